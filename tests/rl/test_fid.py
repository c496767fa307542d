"""FID and KID: formulas with known answers, and the Inception network against torch-fidelity's."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_rl.evaluate.benchmark import Scored
from mentor_rl.evaluate.fid import (
    covariance,
    frechet_distance,
    gaussian_distance,
    kernel_distance,
    squared_mmd,
)
from mentor_rl.evaluate.fid_bench import Fid
from mentor_rl.evaluate.fid_features import ClipFeatures, InceptionFeatures
from mentor_rl.evaluate.fid_inception import Inception, load_inception, resized
from mentor_rl.evaluate.picture_run import run_benchmark
from mentor_rl.evaluate.recipes import FidRecipe
from mentor_rl.evaluate.result import Result

GOLDEN_PLACES = [2, 4, 6, 7]
GOLDEN = [1.4922982, 1.6895664, 5.7838416, 0.5411785]
GOLDEN_MEAN = 1.3604876


def test_two_gaussians() -> None:
    zero, one = np.zeros(3), np.eye(3)
    assert gaussian_distance(zero, one, zero, one) == pytest.approx(0, abs=1e-12)
    assert gaussian_distance(zero, one, np.array([1.0, 2.0, 2.0]), one) == pytest.approx(9.0)
    # Diagonal: the sum of (s - s')^2 of the standard deviations.
    wide = np.diag([4.0, 9.0, 16.0])
    assert gaussian_distance(zero, one, zero, wide) == pytest.approx(1 + 4 + 9)
    # Covariances that commute keep that under any rotation; singular ones are no trouble.
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    flat = np.diag([4.0, 0.0, 0.0])
    assert gaussian_distance(zero, turn @ wide @ turn.T, zero, turn @ flat @ turn.T) == pytest.approx(0 + 9 + 16)
    # One dimension, from samples: means 0 and 3, unbiased variances 2 and 8.
    near, far = np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]])
    assert covariance(far)[0, 0] == 8.0
    assert frechet_distance(near, far) == pytest.approx(9 + 2 + 8 - 2 * 4)


def test_equal_sets_and_shifted_sets() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 80)).astype(np.float32)  # fewer pictures than features
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(4 * 80, rel=1e-5)
    kid, spread = kernel_distance(features, rng.normal(size=(50, 80)).astype(np.float32))
    assert abs(kid) < 0.05
    assert np.isnan(spread)  # one subset, the whole set: nothing varies
    assert kernel_distance(features, features + 2)[0] > 1
    with pytest.raises(ValueError, match="equally many features"):
        frechet_distance(features, features[:, :3])
    with pytest.raises(ValueError, match="at least two pictures"):
        kernel_distance(features[:1], features)


def test_the_squared_mmd_by_hand() -> None:
    """Features 1, -1 against 1, 2: kernels (xy + 1)^3 within 0, within 27, across 8, 27, 0, -1."""
    one, other = np.array([[1.0], [-1.0]]), np.array([[1.0], [2.0]])
    assert squared_mmd(one, other) == pytest.approx(0 + 27 - 2 * (8 + 27 + 0 - 1) / 4)


def test_the_numbers_of_torch_fidelity() -> None:
    """torch-fidelity 0.4.0 gives 18.4010976 and .1460932 for the same features."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(300, 64)).astype(np.float32)
    other = (rng.normal(size=(280, 64)) * 1.3 + 0.2).astype(np.float32)
    assert frechet_distance(one, other) == pytest.approx(18.4010976, rel=1e-6)
    assert kernel_distance(one[:280], other, subset_size=280)[0] == pytest.approx(0.1460932, rel=1e-5)


def test_subsets_of_a_large_set() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 4)), rng.normal(size=(90, 4))
    kid, spread = kernel_distance(one, other, subsets=40, subset_size=30)
    assert kernel_distance(one, other, subsets=40, subset_size=30) == (kid, spread)
    assert abs(kid - squared_mmd(one, other)) < 3 * spread / 40**0.5 + 0.02
    assert spread > 0


def random_weights(file: Path) -> Path:
    """Weights from numpy's generator, in the layout of the published file."""
    rng, state = np.random.default_rng(2015), {}
    with torch.device("meta"):
        shapes = Inception().state_dict()
    for name, tensor in sorted(shapes.items()):
        shape = tuple(tensor.shape)
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif tensor.dim() > 1:
            values = rng.normal(size=shape) * np.sqrt(2.0 / np.prod(shape[1:]))
        elif name.endswith("bn.weight"):
            values = rng.uniform(0.8, 1.2, shape)
        else:
            values = rng.normal(size=shape) * 0.1
        state[name] = torch.from_numpy(values).float()
    torch.save(state, file)
    return file


def test_inception_is_that_of_torch_fidelity(tmp_path: Path) -> None:
    """torch-fidelity 0.4.0 gave these features (FeatureExtractorInceptionV3, "2048") for the same weights and bytes."""
    network = load_inception(random_weights(tmp_path / "inception.pth"))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 64), dtype=np.uint8)
    with torch.no_grad():
        features = network(torch.from_numpy(pictures).float())
    assert features.shape == (2, 2048)
    assert features[0, GOLDEN_PLACES].tolist() == pytest.approx(GOLDEN, rel=1e-4)
    assert float(features.double().mean()) == pytest.approx(GOLDEN_MEAN, rel=1e-5)
    # The extractor resizes each picture on its own, so that a batch may hold several shapes.
    images = [Image.fromarray(picture.transpose(1, 2, 0)) for picture in pictures]
    extractor = InceptionFeatures(tmp_path / "inception.pth")
    assert extractor([*images, Image.new("RGB", (20, 30))])[:2] == pytest.approx(features.numpy(), rel=1e-3, abs=1e-3)
    state = torch.load(tmp_path / "inception.pth", weights_only=True)
    torch.save({"fc.weight": state["fc.weight"]}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="missing keys: Conv2d_1a_3x3"):
        load_inception(tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"no such file; expected weights-inception-2015-12-05"):
        load_inception(tmp_path / "none.pth")


def test_resizing_as_tensorflow_1_did() -> None:
    """Output pixel i looks at i x old / new: the first pixel stays, the last output repeats the last input."""
    line = torch.tensor([[[[0.0, 10.0]]]])
    assert resized(line, 4)[0, 0, 0].tolist() == [0.0, 5.0, 10.0, 10.0]


CLIP = Path(__file__).parents[2] / "recipes" / "emoji" / "checkpoints" / "clip"


def noise(folder: Path, names: Sequence[str], seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(folder / name)
    return folder


def test_a_set_is_near_itself_and_far_from_another(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"noise {i}" for i in range(6)), encoding="utf-8")
    names = [f"prompt_{i:05d}_0.png" for i in range(6)]
    same = noise(tmp_path / "same", names, seed=0)
    black = tmp_path / "black"
    black.mkdir()
    for name in names:
        Image.new("RGB", (64, 64)).save(black / name)
    recipe = FidRecipe(
        kind="evaluate",
        benchmark="fid",
        run=str(tmp_path / "run"),
        prompts=str(tmp_path / "prompts.txt"),
        real=str(noise(tmp_path / "real", [f"{i}.png" for i in range(6)], seed=0)),
        images={"same": str(same), "black": str(black)},
        features="clip",
        weights=CLIP,
        score_batch=4,
    )
    result = run_benchmark(recipe, Fid(recipe), RunFolder.open(recipe.run, recipe.model_dump(mode="json")))
    assert result is not None
    assert result.metrics["same"]["FD-CLIP"] == pytest.approx(0, abs=1e-6)
    assert result.metrics["same"]["KD-CLIP x 1000"] < 0  # unbiased: below 0 for equal sets
    assert result.metrics["black"]["FD-CLIP"] > 0.1
    assert (result.stand_in, result.metrics["same"]["pictures"]) == (True, 6)
    assert "not the standard FID" in result.judge
    few = "6 pictures for 96 features: their covariance is singular, and FD-CLIP means little"
    assert few in result.notes
    assert "| same | 0.000 | -" in (tmp_path / "run" / "results" / "fid.md").read_text(encoding="utf-8")
    assert Result.read(tmp_path / "run" / "results" / "fid.json").metrics["same"]["sd over subsets"] is None
    # The same from a file of statistics.
    features = ClipFeatures(CLIP)([Image.open(tmp_path / "real" / f"{i}.png") for i in range(6)])
    np.savez(tmp_path / "real.npz", mu=features.mean(0), sigma=covariance(features))
    again = recipe.model_copy(update={"real": str(tmp_path / "real.npz"), "run": str(tmp_path / "again")})
    by_file = run_benchmark(again, Fid(again), RunFolder.open(again.run, again.model_dump(mode="json")))
    assert by_file is not None
    assert by_file.metrics["black"]["FD-CLIP"] == pytest.approx(result.metrics["black"]["FD-CLIP"], rel=1e-4)
    assert "KD-CLIP x 1000" not in by_file.metrics["black"]
    np.savez(tmp_path / "real.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match="expected statistics of"):
        run_benchmark(again, Fid(again), RunFolder.open(again.run, again.model_dump(mode="json")))


@pytest.mark.parametrize(("pictures", "told"), [(4, False), (3, True)])
def test_a_singular_covariance_is_told_where_it_is_one(pictures: int, told: bool, tmp_path: Path) -> None:
    """Three features: four pictures span them, three do not."""
    (tmp_path / "prompts.txt").write_text("noise\n" * pictures, encoding="utf-8")
    np.savez(tmp_path / "real.npz", mu=np.zeros(3), sigma=np.eye(3))
    given = {"prompts": str(tmp_path / "prompts.txt"), "real": str(tmp_path / "real.npz"), "images": {"x": "x"}}
    bench = Fid(FidRecipe.model_validate({"kind": "evaluate", "benchmark": "fid", "run": "run", **given}))
    bench._extractor = SimpleNamespace(label="FD")  # type: ignore[assignment]
    rows = np.random.default_rng(0).normal(size=(pictures, 3)).astype("<f4")
    facts = {
        (f"prompt_{i:05d}", 0): {"features": base64.b64encode(row.tobytes()).decode()} for i, row in enumerate(rows)
    }
    table = bench.tabulate(Scored("x", tuple(bench.items()), (0,), facts, lambda item, seed: Path()))
    assert any("3 pictures for 3 features" in note for note in table.notes) is told


def test_faults_show_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("noise", encoding="utf-8")
    real = noise(tmp_path / "real", ["0.png", "1.png"], seed=0)
    given: dict[str, Any] = {
        "kind": "evaluate", "benchmark": "fid", "run": "run", "prompts": str(tmp_path / "prompts.txt"),
        "real": str(real), "images": {"x": "x"},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"expected the file of Inception's weights, weights-inception.*found none"):
        Fid(FidRecipe.model_validate(given)).check()
    clip = {**given, "features": "clip", "weights": str(CLIP)}
    Fid(FidRecipe.model_validate(clip)).check()
    np.savez(tmp_path / "half.npz", mu=np.zeros(3))
    with pytest.raises(UserError, match=r"half\.npz: expected an \.npz with the arrays mu and sigma"):
        Fid(FidRecipe.model_validate({**clip, "real": str(tmp_path / "half.npz")})).check()
    (real / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 real pictures cannot be read: .*1.png"):
        Fid(FidRecipe.model_validate(clip))
    (real / "1.png").unlink()
    with pytest.raises(UserError, match="at least two pictures"):
        Fid(FidRecipe.model_validate(clip))
