"""The runner of benchmarks on pictures: draws that depend on (item, seed) alone, resume after any kill, honest gaps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from grpo_toys import HERE
from PIL import Image
from pydantic import ValidationError

from mentor_base.checkpoint import load_policy
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted, InterruptGuard
from mentor_base.runlog import RunFolder
from mentor_base.settings import Sampling
from mentor_rl.evaluate import drawing
from mentor_rl.evaluate.benchmark import Item, Unscored
from mentor_rl.evaluate.drawing import batches, draw_missing
from mentor_rl.evaluate.picture_folder import PictureFolder
from mentor_rl.evaluate.picture_run import build_benchmark, check_policies, run_benchmark
from mentor_rl.evaluate.processes import Processes
from mentor_rl.evaluate.prompt_files import read_prompts
from mentor_rl.evaluate.recipes import T2IRewardsRecipe
from mentor_rl.evaluate.result import Result
from mentor_rl.evaluate.score_store import ScoreStore
from mentor_rl.evaluate.t2i_rewards import inapplicable
from mentor_rl.gallery import read_rows

PROMPTS = ["a red fox", "a blue fox", "two foxes", "a fox on a green background", "a small fox"]
ITEMS = [Item(f"fox_{i}", text) for i, text in enumerate(PROMPTS)]
SAMPLING = Sampling(guidance_scale=2.0)


def pictures(folder: Path) -> dict[str, bytes]:
    return {file.name: Image.open(file).tobytes() for file in sorted(folder.glob("*.png"))}


def draw(policy: Path, folder: Path, processes: Processes, guard: InterruptGuard | None = None, **changes: Any) -> None:
    torch.set_num_threads(1)
    items, seeds = changes.get("items", ITEMS), changes.get("seeds", (0, 7))
    draw_missing(
        lambda: load_policy(policy),
        items,
        seeds,
        PictureFolder.of(folder, items, seeds),
        sampling=SAMPLING,
        batch=4,
        processes=processes,
        guard=guard or InterruptGuard(),
        label="fox",
    )


def test_two_processes_draw_what_one_draws(random_policy: Path, tmp_path: Path) -> None:
    draw(random_policy, tmp_path / "one", Processes())
    draw(random_policy, tmp_path / "two", Processes(rank=1, count=2))
    assert len(pictures(tmp_path / "two")) == 4  # the middle one of three batches
    draw(random_policy, tmp_path / "two", Processes(rank=0, count=2))
    one = pictures(tmp_path / "one")
    assert one == pictures(tmp_path / "two")
    assert len(one) == 10
    assert len(set(one.values())) > 5


def test_a_draw_depends_on_item_and_seed_alone(random_policy: Path, tmp_path: Path) -> None:
    draw(random_policy, tmp_path / "all", Processes())
    draw(random_policy, tmp_path / "some", Processes(), items=ITEMS[3:], seeds=(7,))
    everything, some = pictures(tmp_path / "all"), pictures(tmp_path / "some")
    assert some == {name: everything[name] for name in ("fox_3_7.png", "fox_4_7.png")}


def test_drawing_goes_on_after_a_kill(random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first batch, with one of its pictures lost and a half-written file left behind."""
    draw(random_policy, tmp_path / "whole", Processes())
    guard, made, inner = InterruptGuard(), [], drawing.draw_batch

    def counting(*args: Any) -> Any:
        made.append(args[2])
        guard.requested = len(made) == 1
        return inner(*args)

    monkeypatch.setattr(drawing, "draw_batch", counting)
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        draw(random_policy, folder, Processes(), guard)
    assert len(pictures(folder)) == 4
    (folder / "fox_0_0.png").unlink()
    (folder / ".123.fox_0_0.png").write_bytes(b"half")
    draw(random_policy, folder, Processes(), guard)
    assert len(made) == 1 + 3
    (folder / ".123.fox_0_0.png").unlink()
    assert pictures(folder) == pictures(tmp_path / "whole")


def test_batches_hold_whole_groups_of_seeds() -> None:
    sizes = [(len(b.items), len(b.seeds)) for b in batches(ITEMS, (0, 1, 2), 7)]
    assert sizes == [(2, 3), (2, 3), (1, 3)]
    sizes = [(len(b.items), len(b.seeds)) for b in batches(ITEMS[:2], (0, 1, 2), 2)]
    assert sizes == [(1, 2), (1, 2), (2, 1)]


@pytest.fixture
def recipe(random_policy: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return {
        "kind": "evaluate",
        "benchmark": "t2i_rewards",
        "run": str(tmp_path / "run"),
        "policies": {"fox": str(random_policy)},
        "prompts": str(tmp_path / "prompts.txt"),
        "rewards": {"brightness": {"use": f"{HERE}:Brightness"}},
        "sampling": {"guidance_scale": 1.0},
        "seeds": [0, 1],
        "batch": 4,
        "score_batch": 3,
        "device": "cpu",
    }


def run(values: dict[str, Any]) -> Result:
    torch.set_num_threads(1)
    recipe = T2IRewardsRecipe.model_validate(values)
    result = run_benchmark(recipe, build_benchmark(recipe), RunFolder.open(recipe.run, values))
    assert result is not None
    return result


def test_a_judge_goes_on_after_a_kill(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at its third call, and a line cut short: the second run scores four of ten pictures, and says the same."""
    from mentor_rl.evaluate.t2i_rewards import T2IRewards

    whole = run({**recipe, "run": f"{recipe['run']}_whole"})
    asked: list[str] = []
    inner = T2IRewards.score

    def failing(self: Any, samples: Any) -> Any:
        if len(asked) == 6:
            raise KeyboardInterrupt
        asked.extend(sample.item.id for sample in samples)
        return inner(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(T2IRewards, "score", failing)
        with pytest.raises(KeyboardInterrupt):
            run(recipe)
    (lines,) = Path(recipe["run"]).glob("scores/fox/*.jsonl")
    lines.write_bytes(lines.read_bytes() + b'{"item": "prompt_000')
    asked.clear()
    monkeypatch.setattr(T2IRewards, "score", lambda s, rows: (asked.extend(r.item.id for r in rows), inner(s, rows))[1])
    again = run(recipe)
    assert len(asked) == 4
    assert again.metrics == whole.metrics
    assert again.per_item == whole.per_item
    assert again.coverage == {"items": 10, "scored": 10}
    assert again.stand_in  # a plugin
    assert "brightness" in again.judge
    assert recipe["policies"]["fox"] in again.checkpoints["fox"]
    mean = sum(again.per_item["fox"]["brightness"]) / 5
    assert again.metrics["fox"]["brightness"][0] == pytest.approx(mean, abs=1e-5)  # type: ignore[index]
    shown = read_rows(Path(recipe["run"]) / "results" / "pictures" / "t2i_rewards")["fox"]
    assert [len(shown.pictures[0]), len(shown.scores[0])] == [5, 5]
    assert set(shown.scores[0][0]) == {"brightness"}
    for suffix in (".json", ".md", ".png"):
        assert RunFolder(Path(recipe["run"])).result_path("t2i_rewards").with_suffix(suffix).exists()


def test_folders_with_faults_are_listed_and_not_scored(recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    for number in range(4):
        for seed in (0, 1):
            Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(folder / f"prompt_{number:05d}_{seed}.png")
    (folder / "prompt_00000_0.png").write_bytes((folder / "prompt_00000_0.png").read_bytes()[:40])
    Image.new("RGB", (8, 8)).save(folder / "cat.jpg")
    given = {**recipe, "policies": {}, "images": {"other": str(folder)}}
    with pytest.raises(UserError) as caught:
        run(given)
    lines = str(caught.value).splitlines()
    assert "2 missing: prompt_00004_0.png, prompt_00004_1.png" in lines[0]
    assert "1 not asked for: cat.jpg" in lines[1]
    assert "1 unreadable: prompt_00000_0.png" in lines[2]
    assert "expected 10 pictures such as prompt_00000_0.png; nothing was scored" in lines[3]
    assert not (tmp_path / "run" / "results").exists()
    result = run({**given, "run": str(tmp_path / "partial"), "incomplete": "score"})
    assert result.coverage == {"items": 10, "scored": 7}
    assert any("prompt_00000_0" in line for line in result.details["rows"]["other"]["first reasons"])


def test_endings_in_capitals_count_and_doubled_pictures_are_listed(tmp_path: Path) -> None:
    keys = (("a", 0), ("b", 0))
    for name in ("a_0.PNG", "b_0.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    folder = PictureFolder(tmp_path, keys)
    assert not folder.check()
    assert folder.open("a", 0).size == (8, 8)
    Image.new("RGB", (8, 8)).save(tmp_path / "b_0.jpg")
    assert folder.check().lines() == [f"{tmp_path}: 1 there under two endings: b_0.jpg"]


def test_every_file_that_is_no_wanted_picture_is_told(tmp_path: Path) -> None:
    keys = (("a", 0), ("b", 0), ("c", 0))
    for name in ("a_0.png", "a_0.Png", "b_0.gif", "x_0.gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG")
    for name in ("a_0.txt", "notes.txt", ".DS_Store", "policy.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "more").mkdir()
    folder = PictureFolder(tmp_path, keys)
    assert folder.check().lines() == [
        f"{tmp_path}: 2 missing: b_0.png, c_0.png",
        f"{tmp_path}: 1 of another format (expected .png, .jpg or .webp): b_0.gif",
        f"{tmp_path}: 4 not asked for: a_0.Png, a_0.txt, notes.txt, x_0.gif",
    ]
    assert folder.missing() == [("b", 0), ("c", 0)]


def test_a_reward_whose_lower_scores_are_better_is_measured_as_it_is(recipe: dict[str, Any]) -> None:
    result = run({**recipe, "rewards": {"jpeg_size": {}}})
    assert result.metrics["fox"]["jpeg_size"][0] > 0  # type: ignore[index]


def test_a_reward_that_applies_to_no_prompt_is_named(recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    for name in ("plain_00000_0", "plain_00001_0", "more_00000_0"):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    (tmp_path / "plain.txt").write_text("a fox\na kite", encoding="utf-8")
    (tmp_path / "more.txt").write_text("an owl", encoding="utf-8")
    files = {"plain": str(tmp_path / "plain.txt"), "more": str(tmp_path / "more.txt")}
    rewards = {**recipe["rewards"], "subject": {"use": f"{HERE}:Brightness", "tasks": ["subject"]}}
    given = {**recipe, "policies": {}, "images": {"one": str(folder), "two": str(folder)}, "seeds": [0]}
    result = run({**given, "prompts": files, "rewards": rewards})
    assert [note for note in result.notes if "applies" in note] == ["subject applies to none of the 3 prompts"]
    assert result.metrics["one"]["subject"] is None
    assert result.metrics["one"]["brightness"] is not None
    cells = {"": {"a": 1.0, "b": None}, "plain": {"a": None, "b": None}, "more": {"a": 1.0, "b": None}}
    told = inapplicable(cells, {"": 3, "plain": 2, "more": 1})
    assert told == ["b applies to none of the 3 prompts", "a applies to none of the 2 prompts of plain"]


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "a · b", ""])
def test_a_row_has_the_name_of_a_folder(recipe: dict[str, Any], name: str) -> None:
    for kind in ("policies", "images"):
        with pytest.raises(ValidationError, match="expected a name without '/'"):
            T2IRewardsRecipe.model_validate({**recipe, "policies": {}, kind: {name: "x"}})


def test_a_policy_that_is_none_and_a_device_that_is_none_stop_before_drawing(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    second = {**recipe["policies"], "second": str(tmp_path / "empty")}
    with pytest.raises(UserError, match=r"empty: expected a model folder or a finished run"):
        check_policies(second.values())
    with pytest.raises(UserError, match="device: expected one of this machine, found 'gpu'"):
        run({**recipe, "device": "gpu"})
    assert not (tmp_path / "run" / "pictures").exists()


def test_other_weights_do_not_go_on_with_drawn_pictures(recipe: dict[str, Any], other_policy: Path) -> None:
    run(recipe)
    (Path(recipe["run"]) / "recipe.yaml").unlink()
    changed = {**recipe, "policies": {"fox": str(other_policy)}}
    (Path(recipe["run"]) / "recipe.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    with pytest.raises(UserError, match="were drawn by"):
        run(changed)
    both = {**recipe, "policies": {"new": str(other_policy), "fox": str(other_policy)}}
    (Path(recipe["run"]) / "recipe.yaml").write_text(yaml.safe_dump(both), encoding="utf-8")
    with pytest.raises(UserError, match="fox: these pictures were drawn by"):  # told before the first one draws
        run(both)
    assert not pictures(Path(recipe["run"]) / "pictures" / "new")


def test_other_prompts_do_not_go_on_with_drawn_pictures(recipe: dict[str, Any]) -> None:
    run(recipe)
    Path(recipe["prompts"]).write_text("\n".join(["a green fox", *PROMPTS[1:]]), encoding="utf-8")
    with pytest.raises(UserError, match="drawn for other prompts"):
        run(recipe)
    with pytest.raises(UserError, match="expected the beginning of a file name"):
        Item("../fox", "a fox")


def test_facts_hold_for_a_picture_and_a_judge_only(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "judge 1")
    store.add([(("a", 0), "p1", {"x": 1}), (("b", 0), "p2", Unscored("silent"))])
    again = ScoreStore(tmp_path, "judge 1", rank=1)
    again.read()
    assert again.get(("a", 0), "p1") == {"x": 1}
    assert again.get(("a", 0), "another picture") is None
    assert again.get(("b", 0), "p2") is None
    assert again.reason(("b", 0), "p2") == "silent"
    other = ScoreStore(tmp_path, "judge 2")
    other.read()
    assert other.get(("a", 0), "p1") is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat\n\n a  dog \n"),
        ("a.csv", 'id,prompt\n1,a cat\n2,"a dog"\n'),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog", "id": 2}\n'),
        ("a.json", '["a cat", "a dog"]'),
    ],
)
def test_prompt_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", "id,promt\n1,a cat\n", "a.csv:1: expected a column 'prompt', found id, promt"),
        ("a.jsonl", '{"prompt": ""}\n', "a.jsonl:1: expected a prompt, found ''"),
        ("a.jsonl", '{"prompt": "a cat"}\n{\n', "a.jsonl:2: expected a JSON object: Expecting property name"),
        ("a.json", "[\n", "expected json in UTF-8"),
        ("a.txt", "\n", "expected prompts, found none"),
        ("a.tsv", "a", "expected a prompt file of .txt, .csv, .jsonl, .json"),
    ],
)
def test_bad_prompt_files_are_one_line(tmp_path: Path, name: str, text: str, line: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / name)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_under_torchrun_make_the_result_of_one(recipe: dict[str, Any], tmp_path: Path) -> None:
    alone = run({**recipe, "run": str(tmp_path / "alone")})
    file = tmp_path / "bench.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "mentor_rl", "evaluate", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pair = json.loads((tmp_path / "run/results/t2i_rewards.json").read_text())
    assert pair["per_item"] == alone.per_item
    assert len(list((tmp_path / "run/scores/fox").glob("*.jsonl"))) == 2
    assert done.stdout.count("seeds: 0, 1") == 1  # one table
