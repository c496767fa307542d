"""EmojiBench: its arithmetic by hand-worked cases, and a whole bench that stops and goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from mentor_base.data.atlas import Atlas
from mentor_base.data.schema import Prompt
from mentor_base.data.shapes import COLOURS
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.runlog import RunFolder
from mentor_rl.cli import main
from mentor_rl.evaluate import bootstrap, emojibench
from mentor_rl.evaluate.cells import Cell, CellStore
from mentor_rl.evaluate.emojibench import Measured, Part, best_guidance, metrics_of, row_name
from mentor_rl.evaluate.emojibench_parts import BenchParts
from mentor_rl.evaluate.emojibench_run import changes_markdown, evaluate, relative_changes
from mentor_rl.evaluate.evaluator import Calibration, Evaluator, EvaluatorNet, fit_temperature, following
from mentor_rl.evaluate.fingerprint import fingerprint
from mentor_rl.evaluate.paired import change, pairs_of, verdict
from mentor_rl.evaluate.processes import Processes
from mentor_rl.evaluate.recipes import BASELINES, EmojiBenchRecipe
from mentor_rl.evaluate.result import Result


def measured(cp: list[list[float]], pf: list[list[float]]) -> Measured:
    cp_IS, pf_IS = np.array(cp), np.array(pf)
    return Measured(cp_IS, pf_IS, pf_IS, pf_IS, ())


def test_products_by_hand() -> None:
    """Two items, two seeds: CP = .5, PF = .4; the product of means is not the mean of products."""
    table = measured([[1.0, 0.0], [0.5, 0.5]], [[0.8, 0.0], [0.4, 0.4]]).table()
    metrics: dict[str, Any] = metrics_of(table)
    assert metrics["CP"][0] == pytest.approx(0.5)
    assert metrics["PF"][0] == pytest.approx(0.4)
    assert metrics["CP·PF"][0] == pytest.approx(0.2)
    assert metrics["CP·PF per picture"][0] == pytest.approx((0.8 + 0.0 + 0.2 + 0.2) / 4)
    assert metrics["CP/PF"][0] == pytest.approx(1.25)


def test_a_share_of_nothing_has_no_interval_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    before = np.array([[0.0], [0.0], [0.4]])
    _, relative = bootstrap.paired_change(before, before + 0.1, lambda m: m[..., 0])
    assert relative[0] == pytest.approx(0.75)
    assert not math.isfinite(relative[2])
    assert not recwarn.list


def test_bootstrap_knows_the_width_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, size=(100, 1))
    mean, low, high = bootstrap.estimate(values, lambda m: m[..., 0])
    half = 1.96 * values.std() / math.sqrt(100)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * half, rel=0.1)
    assert bootstrap.estimate(values, lambda m: m[..., 0]) == [mean, low, high]
    constant = bootstrap.estimate(np.full((5, 1), 0.25), lambda m: m[..., 0])
    assert constant == pytest.approx([0.25, 0.25, 0.25])


def test_a_single_item_says_nothing_of_others() -> None:
    alone = np.array([[0.5]])
    assert bootstrap.estimate(alone, lambda m: m[..., 0]) == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)
    changed, relative = bootstrap.paired_change(alone, alone + 0.1, lambda m: m[..., 0])
    assert changed == pytest.approx([0.1, math.nan, math.nan], nan_ok=True)
    assert relative == pytest.approx([0.2, math.nan, math.nan], nan_ok=True)
    assert verdict(changed) == "no interval"


def test_paired_change_is_sharper_than_its_parts() -> None:
    """Every item gains .1 of a widely spread score: the change is certain though the scores are not."""
    before = np.linspace(0.1, 0.9, 40)[:, None]
    change, relative = bootstrap.paired_change(before, before + 0.1, lambda m: m[..., 0])
    assert change == pytest.approx([0.1, 0.1, 0.1])
    assert relative[0] == pytest.approx(0.1 / 0.5)


def test_prompt_following_is_a_geometric_mean_of_what_was_asked() -> None:
    nan = float("nan")
    style, ground = np.array([0.25, 0.0, 0.81, nan, nan]), np.array([1.0, 1.0, nan, 0.5, nan])
    assert following(style, ground) == pytest.approx([0.5, 0.0, 0.81, 0.5, 1.0], abs=1e-5)


def test_calibration_maps_unrelated_to_0_and_same_to_1() -> None:
    calibration = Calibration(unrelated=0.2, same=0.7)
    assert calibration.concept(np.array([0.0, 0.2, 0.45, 0.7, 1.0])) == pytest.approx([0, 0, 0.5, 1, 1])


def test_temperature_of_overconfident_logits() -> None:
    """Right three times out of four: the best confidence is 3/4, that is a logit of log 3."""
    logits = np.array([[4.0, 0.0]] * 4)
    temperature = fit_temperature(logits, np.array([0, 0, 0, 1]))
    assert 4.0 / temperature == pytest.approx(math.log(3.0), rel=0.02)


def test_best_guidance_needs_both() -> None:
    sweep = {
        3.0: measured([[0.9]], [[0.2]]),
        1.5: measured([[0.6]], [[0.5]]),
        1.0: measured([[0.5]], [[0.6]]),
    }
    assert best_guidance(sweep) == 1.0


def test_changes_pair_items_and_pool_splits() -> None:
    def result(**items_of_q: list[str]) -> Result:
        rows = {
            row_name(name, split): {"item": items, "CP": [0.2 + shift, 0.4 + shift], "PF": [0.5, 0.5]}
            for split in ("unseen_subjects", "unseen_pairs")
            for name, shift, items in (("p", 0.0, ["a", "b"]), ("q", 0.06, items_of_q.get(split, ["a", "b"])))
        }
        return Result("emojibench", {row: {} for row in rows}, rows, details={"policies": ["p", "q"]})

    pairs = pairs_of(result(), "p", "q")
    assert list(pairs) == ["unseen subjects", "unseen pairs", ""]
    changed = change(*pairs[""], "CP·PF")
    assert changed is not None
    assert changed[0] == pytest.approx([0.03, 0.03, 0.03])
    assert changed[1][0] == pytest.approx(0.2)
    assert list(relative_changes(result(), "p", "q")) == ["unseen subjects", "unseen pairs", "held out"]
    assert relative_changes(result(), "p", "q")["unseen pairs"]["PF"] == "+0.0% [+0.0%, +0.0%]"
    alone = result(**{split: ["a", "b"] for split in ("unseen_subjects", "unseen_pairs")})
    for row in alone.per_item.values():
        row |= {"item": ["a"], "CP": row["CP"][:1], "PF": [0.0]}
    shares = relative_changes(alone, "p", "q")["unseen pairs"]
    assert shares == {"CP": "+30.0%", "PF": "–", "CP·PF": "–"}  # one item; nothing to take a share of
    with pytest.raises(UserError, match="expected the same items for 'p' and 'q'"):
        pairs_of(result(unseen_pairs=["a", "c"]), "p", "q")
    with pytest.raises(UserError, match="did you mean 'q'"):
        pairs_of(result(), "p", "qq")


def test_result_survives_the_disk_and_refuses_strangers(tmp_path: Path) -> None:
    result = Result("emojibench", {"a": {"CP": [0.5, 0.4, 0.6], "guidance": 1.5, "x": float("nan")}}, seeds=(0, 1))
    result.write(tmp_path / "r.json")
    again = Result.read(tmp_path / "r.json")
    assert again.metrics == {"a": {"CP": [0.5, 0.4, 0.6], "guidance": 1.5, "x": None}}
    assert again.seeds == (0, 1)
    assert "| a | 0.500 [0.400, 0.600] | 1.500 |" in again.markdown()
    assert again.table().row_count == 1
    (tmp_path / "bad.json").write_text(json.dumps({"benchmark": "x", "metrics": {}, "sedes": []}))
    with pytest.raises(UserError, match="did you mean 'seeds'"):
        Result.read(tmp_path / "bad.json")


def test_cells_are_found_by_key_and_weights_only(tmp_path: Path) -> None:
    cell = Cell({"cp": np.array([0.25, 1.0])}, (Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")))
    CellStore(tmp_path, "weights 1").put({"seed": 0}, cell)
    found = CellStore(tmp_path, "weights 1").get({"seed": 0})
    assert found is not None
    assert found.columns["cp"].tolist() == [0.25, 1.0]
    assert [p.getpixel((3, 3)) for p in found.pictures] == [(255, 0, 0), (0, 0, 255)]
    assert [CellStore(tmp_path, "weights 1").has({"seed": seed}) for seed in (0, 1)] == [True, False]
    assert CellStore(tmp_path, "weights 1").get({"seed": 1}) is None
    assert CellStore(tmp_path, "weights 2").get({"seed": 0}) is None


@pytest.fixture(scope="module")
def untrained_evaluator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    styles = Atlas.load().styles
    size: dict[str, Any] = {"width": 8, "depth": (1, 1), "embedding": 16}
    judge = Evaluator(EvaluatorNet(styles=len(styles), colours=len(COLOURS), **size), styles, tuple(COLOURS), size=size)
    folder = tmp_path_factory.mktemp("judge") / "evaluator"
    judge.save(folder, torch.float32)
    return folder


def test_evaluator_files_are_strict(untrained_evaluator: Path, tmp_path: Path) -> None:
    judge = Evaluator.load(untrained_evaluator)
    sprite = Atlas.load().sprite("1f98a", "noto")
    assert judge.concept([sprite], [sprite]) == pytest.approx([1.0], abs=1e-5)
    with pytest.raises(UserError, match="did you mean 'noto'"):
        judge.score([sprite], [Prompt("a fox <image>", (sprite,), "fox", {"style": "notto"})])
    with pytest.raises(UserError, match="reference"):
        judge.score([sprite], [Prompt("a fox", (), "fox", {"style": "noto"})])
    with pytest.raises(UserError, match="found no config"):
        Evaluator.load(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((untrained_evaluator / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"found no model\.safetensors"):
        Evaluator.load(broken)
    (broken / "model.safetensors").write_bytes((untrained_evaluator / "model.safetensors").read_bytes())
    text = (untrained_evaluator / "config.json").read_text(encoding="utf-8")
    (broken / "config.json").write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(UserError, match="expected shape"):
        Evaluator.load(broken)


def short_bench(run: Path, evaluator: Path, policies: dict[str, Any]) -> EmojiBenchRecipe:
    return EmojiBenchRecipe(
        kind="evaluate",
        run=str(run),
        benchmark="emojibench",
        policies=policies,
        evaluator=str(evaluator),
        splits=("unseen_subjects",),
        items=3,
        seeds=(0, 1),
        guidance=(1.0, 2.0),
    )


def test_a_bench_stops_between_parts_and_goes_on(
    untrained_evaluator: Path,
    random_policy: Path,
    other_policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM at the third part: a second call draws only what is missing, and ends as an unbroken one."""
    recipe = short_bench(
        tmp_path / "run",
        untrained_evaluator,
        policies={"before": str(random_policy), "after": (str(random_policy), str(other_policy))},
    )
    from mentor_base import generate

    draw, drawn = generate.draw, []

    def counting(*args: Any, **kwargs: Any) -> Any:
        drawn.append(kwargs["seed"])
        if len(drawn) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args, **kwargs)

    monkeypatch.setattr(generate, "draw", counting)
    run = RunFolder.open(recipe.run, recipe.model_dump(mode="json"))
    with pytest.raises(Interrupted, match="goes on"):
        evaluate(recipe, run)
    before_resume = len(drawn)
    result = evaluate(recipe, run)
    assert result is not None
    # Per checkpoint, one of which has two names: two scales on val, two seeds, shapes; the text-only row has two seeds.
    assert before_resume == 3
    assert len(drawn) == 2 * (2 + 2 + 1) + 2
    rows = ("before", "after 1", "after 2", "after", "text only (before)", "copy the reference",
            "random training picture", "target")  # fmt: skip
    assert set(result.metrics) == {row_name(name, "unseen_subjects") for name in (*rows, "target, tokenizer")}
    assert result.metrics[row_name("copy the reference", "unseen_subjects")]["CP"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert Result.read(run.result_path("emojibench")).per_item == result.per_item
    assert run.result_path("emojibench").with_suffix(".png").exists()
    assert set(result.details["sweep"]["policies"]["after 2"]) == {"1", "2"}
    # "after 1" is the checkpoint "before"; "after" is the mean of its two training seeds.
    columns = {name: np.array(result.per_item[row_name(name, "unseen_subjects")]["CP"]) for name in rows[:4]}
    assert columns["before"].tolist() == columns["after 1"].tolist()
    assert columns["after"] == pytest.approx((columns["after 1"] + columns["after 2"]) / 2, abs=2e-5)
    changed = change(*pairs_of(result, "before", "after")["unseen subjects"], "CP")
    assert changed is not None
    assert changed[0][0] == pytest.approx((columns["after"] - columns["before"]).mean(), abs=1e-5)
    assert "| after | unseen subjects | " in changes_markdown(result)
    page = run.result_path("emojibench").with_suffix(".md").read_text(encoding="utf-8")
    assert f"- after 2: {other_policy} {fingerprint(other_policy)}\n" in page  # what drew, judged and was asked
    assert f" {fingerprint(untrained_evaluator)}\n- prompts: 3 each of unseen_subjects; number 4711" in page
    assert "- scored: 18 of 18 pictures\n- guidance: each policy at the scale of 1, 2 with the best" in page
    first = emojibench.bench_items("unseen_subjects", 3)[0].meta["where"]
    assert result.per_item[row_name("target", "unseen_subjects")]["item"][0] == first
    # That a part is finished is seen without reading it.
    judge, cells, path = Evaluator.load(untrained_evaluator), run.path / "results" / "cells", str(random_policy)
    parts = BenchParts(recipe, [path], judge, cells, Processes(), InterruptGuard())
    monkeypatch.setattr(CellStore, "get", lambda self, key: pytest.fail("a finished part was read"))
    parts.make("again", [(path, Part("subject", "val", 0, scale)) for scale in (1.0, 2.0)])
    assert len(drawn) == 2 * (2 + 2 + 1) + 2


def test_baselines_are_measured_without_a_policy(untrained_evaluator: Path, tmp_path: Path) -> None:
    recipe = short_bench(tmp_path / "run", untrained_evaluator, policies={})
    result = evaluate(recipe, RunFolder.open(recipe.run, recipe.model_dump(mode="json")))
    assert result is not None
    assert list(result.metrics) == [row_name(name, "unseen_subjects") for name in BASELINES[:3]]  # no tokenizer
    assert (tmp_path / "run" / "results" / "emojibench.md").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"policies": {}, "baselines": False}, "expected policies .* or baselines, found neither"),
        ({"policies": {"target": "x"}}, "policies.target: expected rows of its own, found 'target' twice"),
        ({"policies": {"a": ["x", "y"], "a 1": "z"}}, "policies.a 1: expected rows of its own, found 'a 1' twice"),
        ({"seeds": [0, 0]}, "seeds: expected each once"),
        ({"guidance": [1.0, 1.0]}, "guidance: expected each once"),
        ({"seeds": []}, "at least 1 item"),
        ({"guidance": []}, "at least 1 item"),
        ({"splits": []}, "at least 1 item"),
    ],
)
def test_rows_that_would_hide_each_other_are_refused(changes: dict[str, Any], line: str) -> None:
    values = {"kind": "evaluate", "run": "r", "benchmark": "emojibench", "policies": {"a": "x"}, "evaluator": "e"}
    EmojiBenchRecipe.model_validate({**values, "policies": {"target": "x"}, "baselines": False})
    with pytest.raises(ValidationError, match=line):
        EmojiBenchRecipe.model_validate({**values, **changes})


def test_a_policy_that_is_none_is_told_before_another_one_has_drawn(
    untrained_evaluator: Path, random_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    recipe = short_bench(
        tmp_path / "run", untrained_evaluator, {"before": str(random_policy), "after": str(tmp_path / "empty")}
    )
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(file)])
    assert ended.value.code == 2
    assert "empty: expected a model folder or a finished run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_deal_out_the_parts_and_make_the_result_of_one(
    untrained_evaluator: Path, random_policy: Path, other_policy: Path, tmp_path: Path
) -> None:
    """Each draws half of the parts; the first makes the tables, and says them once. A second call shows them again."""
    policies = {"before": str(random_policy), "after": str(other_policy)}
    recipe = short_bench(tmp_path / "alone", untrained_evaluator, policies)
    alone = evaluate(recipe, RunFolder.open(recipe.run, recipe.model_dump(mode="json")))
    assert alone is not None
    file = tmp_path / "bench.yaml"
    settings = {**recipe.model_dump(mode="json"), "run": str(tmp_path / "pair")}
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for _ in range(2):
        done = subprocess.run(
            [*launch, "-m", "mentor_rl", "evaluate", str(file)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("change from before") == 1
    pair = Result.read(tmp_path / "pair/results/emojibench.json")
    assert pair.per_item == alone.per_item
    assert pair.details == alone.details
    cells = sorted(path.name for path in (tmp_path / "alone/results/cells").iterdir())
    assert sorted(path.name for path in (tmp_path / "pair/results/cells").iterdir()) == cells


def test_an_evaluator_that_cannot_tell_subjects_refuses() -> None:
    with pytest.raises(UserError, match="train it longer"):
        Calibration(unrelated=0.9, same=0.8).concept(np.array([0.5]))
