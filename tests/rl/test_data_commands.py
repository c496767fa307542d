"""``mentor data``: what is wrong is printed and is exit code 2; shards hold what they were made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mentor_base.data.shards import ShardFile
from mentor_base.errors import UserError
from mentor_rl.cli import main

Outcome = tuple[int, str, str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with five pictures; cut.png is truncated."""
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        Image.new("RGB", (8 + 2 * (k == 3), 8), (k, 0, 0)).save(f"{k}.png")
    Image.effect_noise((64, 64), 90).save("noise.png")
    Path("cut.png").write_bytes(Path("noise.png").read_bytes()[:900])
    return tmp_path


def write(*rows: Any, name: str = "rows.jsonl") -> None:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def row(target: str, **changes: Any) -> dict[str, Any]:
    return {"task": "subject", "text": "<image> a fox", "images": ["0.png"], "target": target, **changes}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    with pytest.raises(SystemExit) as done:
        main(["data", *arguments])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_a_check_counts_tasks_and_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(row("1.png"), row("2.png"), row("3.png"), row("1.png", task="t2i", text="a fox", images=[]))
    code, out, err = run(capsys, "check", "rows.jsonl", "--decode")
    assert (code, "decoding: 4/4" in err) == (0, True)
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert lines["subject"] == ["3", "1", "8x8", "to", "10x8,", "67%", "8x8", "0"]
    assert lines["t2i"] == ["1", "0", "8x8", "0"]


def test_a_check_names_everything_that_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(row("1.png"), row("no.png"), row("1.png", task="subjct"), row("cut.png"))
    code, out, err = run(capsys, "check", "rows.jsonl")
    assert (code, err.splitlines()[-1]) == (2, "rows.jsonl: 2 faults in 4 rows")
    assert "rows.jsonl:3: unknown task 'subjct'; did you mean 'subject'?" in out
    assert "rows.jsonl:2: target: expected a readable picture, found no.png: no such file" in out
    code, out, err = run(capsys, "check", "rows.jsonl", "--decode")
    assert (code, err.splitlines()[-1]) == (2, "rows.jsonl: 3 faults in 4 rows")
    assert "rows.jsonl:4: target: expected a readable picture, found cut.png" in out


def test_a_check_names_prompts_that_do_not_fit_a_policy(
    folder: Path, random_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "The image is <image>\na " + "very " * 200 + "long caption"
    write(row("1.png"), row("2.png", text=long))
    assert run(capsys, "check", "rows.jsonl")[0] == 0
    code, out, err = run(capsys, "check", "rows.jsonl", "--policy", str(random_policy))
    assert (code, err.splitlines()[-1]) == (2, "rows.jsonl: 1 faults in 2 rows")
    (line,) = [line for line in out.splitlines() if line.startswith("rows.jsonl")]
    assert line.startswith("rows.jsonl:2: expected at most 160 prefix slots, found ")
    assert line.endswith('(1 pictures of 16) in "The image is <image>\\na very very ve...')
    assert run(capsys, "check", "rows.jsonl", "--policy", ".")[2].startswith(".: expected a model folder")


def test_a_check_of_prompts(folder: Path, random_policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts have no answers, so none is missed; captions are prompts too."""
    asked = [{k: v for k, v in row("", images=[name]).items() if k != "target"} for name in ("1.png", "cut.png")]
    write(*asked, name="prompts.jsonl")
    Path("captions.txt").write_text("a fox\n\na " + "very " * 200 + "long caption\n", encoding="utf-8")
    recipe = {
        "kind": "grpo",
        "run": "runs/x",
        "policy": "runs/not_there_yet",
        "prompts": {
            "data": {"source": "prompts", "train": ["prompts.jsonl", "captions.txt"]},
            "weights": {"t2i": 1, "subject": 1},
        },
        "algorithm": {},
        "optimisation": {"lr": 1e-3, "steps": 1},
        "rewards": {"jpeg_size": {}},
        "checkpoints": {"every": 1},
    }
    Path("x.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    code, out, err = run(capsys, "check", "x.yaml")
    assert code == 0
    assert [line.split() for line in out.splitlines()[2:]] == [
        ["subject", "2", "1", "-", "0"],
        ["t2i", "2", "0", "-", "0"],
    ]
    code, out, err = run(capsys, "check", "x.yaml", "--decode", "--policy", str(random_policy))
    assert (code, err.splitlines()[-1]) == (2, "x.yaml: 2 faults in 4 rows")
    assert "captions.txt:3: expected at most 160 prefix slots" in out
    assert "prompts.jsonl:2: images[0]: expected a readable picture, found cut.png" in out
    for command in (("shard", "x.yaml", "out"), ("encode", "x.yaml", "out", "--tokenizer", str(random_policy))):
        code, _, err = run(capsys, *command)
        assert (code, err) == (2, "x.yaml: expected rows with targets to pack, found prompts without answers\n")


def test_a_check_of_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(row("1.png"))
    write(row("2.png"), name="val.jsonl")
    recipe = {
        "kind": "sft",
        "run": "runs/x",
        "init": "runs/not_there_yet",
        "stage": {
            "name": "alignment",
            "mixture": {
                "data": {"source": "jsonl", "train": ["rows.jsonl"], "val": "val.jsonl"},
                "weights": {"t2i": 1},
            },
            "train": {},
        },
        "optimisation": {"lr": 1e-3, "steps": 1, "batch": 1},
        "validation": {"every": 1},
        "checkpoints": {"every": 1},
    }
    Path("x.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    code, out, _ = run(capsys, "check", "x.yaml")
    assert code == 0
    assert out.count("subject") == 2
    Path("val.jsonl").unlink()
    code, out, err = run(capsys, "check", "x.yaml")
    assert (code, err.splitlines()[-1]) == (2, "x.yaml: 1 faults in 2 rows")
    assert "val.jsonl: expected a readable JSONL file, found no such file" in out
    recipe["stage"]["mixture"]["data"] = {}  # type: ignore[index]
    Path("x.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    code, _, err = run(capsys, "check", "x.yaml")
    assert (code, err) == (2, "x.yaml: expected data of source jsonl, shards, parquet or prompts, found none\n")


def test_shards_hold_the_rows_they_were_made_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(*[row(f"{k}.png", subject="fox", meta={"place": k}) for k in range(4)], row("1.png", mask="2.png"))
    code, out, _ = run(capsys, "shard", "rows.jsonl", "out", "--size", "2")
    assert (code, out) == (0, "out/train-*.tar: 3 shards\n")
    shards = [ShardFile(path) for path in sorted(Path("out").glob("*.tar"))]
    rows = [entry for shard in shards for entry in (shard[n] for n in range(len(shard)))]
    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert [entry.meta.get("place") for entry in rows] == [0, 1, 2, 3, None]
    assert [entry.target.open().read() for entry in rows[:4]] == [Path(f"{k}.png").read_bytes() for k in range(4)]
    assert rows[4].mask is not None
    assert run(capsys, "check", "out", "--decode")[0] == 0
    again = run(capsys, "shard", "out/*.tar", "again", "--size", "2")
    assert again[0] == 0
    for path in Path("out").glob("*.tar"):
        assert path.read_bytes() == (Path("again") / path.name).read_bytes(), "the same rows are the same bytes"
    code, _, err = run(capsys, "shard", "rows.jsonl", "out")
    assert (code, err) == (2, "out: expected a new or an empty folder, found other files\n")


def test_shards_leave_broken_rows_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(row("1.png"), row("no.png"), row("2.png"))
    code, out, _ = run(capsys, "shard", "rows.jsonl", "out")
    assert (code, out.splitlines()[-1]) == (
        0,
        "1 rows with broken pictures were left out; out/broken.ndjson names them",
    )
    assert len(ShardFile(Path("out/train-000000.tar"))) == 2
    assert run(capsys, "check", "out")[0] == 0, "the report is not taken for rows"


def test_importing_mentors_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"image_path": "1.png", "source_image": "/old/2.png", "input_text": "a fox", "objects": "fox"}
    write(entry, entry | {"objects": None}, name="stage.jsonl")
    code, out, _ = run(capsys, "import-mentor", "stage.jsonl", "out", "--map", "/old/=")
    assert code == 0
    assert out.splitlines()[-1] == "out/rows.jsonl: 2 rows"
    assert run(capsys, "check", "out/rows.jsonl", "--decode")[0] == 0
    for arguments, line in (
        (["stage.jsonl", "out"], "out: expected a new or an empty folder, found other files"),
        (["stage.jsonl", "new", "--map", "x"], "--map: expected OLD=NEW, found 'x'"),
        (["none.jsonl", "new"], "none.jsonl: expected a readable JSONL file, found no such file"),
    ):
        code, _, err = run(capsys, "import-mentor", *arguments)
        assert (code, err.strip()) == (2, line)
    with pytest.raises(UserError):
        main(["--debug", "data", "check", "none.jsonl"])
