"""Scoring folders: listings, tables that go on after a kill, and the lines of errors."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from mentor_rewards.__main__ import main
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.score_folder import score_folder
from mentor_rewards.testing import sample_batch

ROWS: list[dict[str, Any]] = [
    {"file": "2.png", "prompt": 'b, "quoted"\nand broken', "metadata": {"background": "yellow"}},
    {"file": "0.png", "prompt": "a", "references": ["1.png"], "metadata": {"background": "red"}},
    {"file": "1.png", "prompt": "a"},
    {"file": "3.png", "prompt": "a", "subject": "disc", "metadata": {"background": "mauve"}},
]
SCORE = ("score", "colour_match", "jpeg_size", "--option", "jpeg_size.quality=50")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n, image in enumerate(sample_batch(count=4).images):
        image.save(tmp_path / f"{n}.png")
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def test_folders_that_cannot_be_written_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "none" / "scores.csv"
    assert run(*SCORE, "--images", folder, "--out", out) == 2
    assert capsys.readouterr().err == f"error: {out}: expected a folder at {out.parent}, found none\n"
    assert run("new", "contrast", "--out", folder / "0.png" / "contrast") == 2
    assert "0.png" in capsys.readouterr().err


def test_rows_in_order_with_reasons_and_a_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SCORE, "--images", folder, "--out", folder / "scores.csv") == 0
    rows = table(folder / "scores.csv")
    assert [(row["row"], row["file"], row["prompt"]) for row in rows] == [
        (str(n), row["file"], row["prompt"]) for n, row in enumerate(ROWS)
    ]
    assert [row["colour_match"] == "" for row in rows] == [False, False, True, True]
    assert rows[2]["colour_match.reason"] == "does not apply: no metadata.background"
    assert "unknown background colour 'mauve'" in rows[3]["colour_match.reason"]
    err = capsys.readouterr().err.splitlines()
    assert err[1].split()[:6] == ["colour_match", "4", "50.0", "%", "33.3", "%"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_listings_of_all_kinds_mean_the_same(folder: Path, suffix: str) -> None:
    listing, out = folder / f"rows.{suffix}", folder / "scores.csv"
    flat = [
        {
            "file": row["file"],
            "prompt": row["prompt"],
            "references": ";".join(row.get("references", [])),
            "subject": row.get("subject", ""),
            "metadata.background": row.get("metadata", {}).get("background", ""),
        }
        for row in ROWS
    ]
    if suffix == "csv":
        with listing.open("w", newline="") as text:
            writer = csv.DictWriter(text, flat[0])
            writer.writeheader()
            writer.writerows(flat)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), listing)
    assert run(*SCORE, "--images", folder, "--out", out, "--prompts", listing) == 0
    assert run(*SCORE, "--images", folder, "--out", folder / "other.csv") == 0
    assert out.read_text() == (folder / "other.csv").read_text()


class Killed(BaseException):
    """Stands for a signal."""


def test_every_cut_of_the_table_is_gone_on_with(folder: Path) -> None:
    """Whatever bytes a kill leaves, the second call gives the same table and scores only what was missing."""
    composite = Composite({"colour_match": RewardEntry(role="monitor")})
    out, scored = folder / "scores.csv", []
    score = composite.score

    def counted(batch: Any, **options: Any) -> Any:
        scored.append(len(batch))
        return score(batch, **options)

    composite.score = counted  # type: ignore[method-assign]
    with composite:
        whole = score_folder(composite, folder, out=out, batch=1)
        content = out.read_bytes()
        ends = [end + 1 for end in range(len(content)) if content[end : end + 1] == b"\n"]
        for cut in {*range(0, len(content), 29), *ends, len(content) - 1}:
            out.write_bytes(content[:cut])
            scored.clear()
            again = score_folder(composite, folder, out=out, batch=1)
            assert out.read_bytes() == content
            assert sum(scored) == 4 - again.resumed
            one, two = (vars(each.statistics["colour_match"]) for each in (whole, again))
            assert {**one, "seconds": 0} == pytest.approx({**two, "seconds": 0}, nan_ok=True)


def test_prompts_with_carriage_returns_go_on(folder: Path) -> None:
    """Python's csv would leave them unquoted, and read two rows back."""
    prompts = ["a\rb", "c\r\nd", "\r", 'e"\r']
    rows = [{**row, "prompt": prompt} for row, prompt in zip(ROWS, prompts, strict=True)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = folder / "scores.csv"
    with Composite({"jpeg_size": RewardEntry(role="monitor")}) as composite:
        score_folder(composite, folder, out=out)
        assert [row["prompt"] for row in table(out)] == prompts
        assert score_folder(composite, folder, out=out).resumed == 4


def test_a_task_that_an_entry_does_not_name_is_no_failure(folder: Path) -> None:
    rows = [
        {**row, "metadata": {"task": task}} for row, task in zip(ROWS, ("t2i", "t2i", "subject", "t2i"), strict=True)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    entry = RewardEntry(role="monitor", tasks=("subject",))
    with Composite({"jpeg_size": entry}) as composite:
        stats = score_folder(composite, folder, out=folder / "scores.csv").statistics["jpeg_size"]
    assert (stats.failed, stats.missing) == (0, pytest.approx(3 / 4))


def test_a_check_takes_facts_beside_pictures_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ("check", "colour_match", "--rule", "numbers", "--fact", "background=red")
    (folder / "prompts.jsonl").unlink()
    assert run(*check, "--images", folder) == 0
    assert run(*check[:-2], "--images", folder) == 2
    assert "needs metadata.background, found none" in capsys.readouterr().err
    assert run(*check, "--prompts", folder / "p.csv") == 2
    assert "error: --prompts: expected --images DIR beside it" in capsys.readouterr().err


def test_a_killed_parquet_goes_on(folder: Path) -> None:
    out = folder / "scores.parquet"

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with Composite({"jpeg_size": RewardEntry(role="monitor")}) as composite:
        with pytest.raises(Killed):
            score_folder(composite, folder, out=out, batch=2, progress=kill)
        assert not out.exists()
        assert score_folder(composite, folder, out=out, batch=2).resumed == 2
        assert score_folder(composite, folder, out=out, batch=2).resumed == 4
    found = pyarrow.parquet.read_table(out).to_pylist()
    assert [row["file"] for row in found] == [row["file"] for row in ROWS]
    assert all(math.isfinite(row["jpeg_size"]) for row in found)
    assert not (folder / "scores.parquet.part.csv").exists()


def test_a_batch_that_was_cut_off_is_scored_anew_where_neighbours_count(folder: Path) -> None:
    (folder / "rank.py").write_text(
        "from mentor_rewards import Reward, RewardOutput, RewardSpec\n"
        "class Size(Reward):\n"
        "    spec = RewardSpec(name='size', version='1', batch_invariant=False)\n"
        "    def score(self, batch):\n"
        "        return RewardOutput([float(len(batch))] * len(batch))\n"
    )
    out = folder / "scores.csv"
    with Composite({"size": RewardEntry(use=f"{folder}/rank.py:Size", role="monitor")}) as composite:
        score_folder(composite, folder, out=out, batch=3)
        content = out.read_text()
        out.write_text(content[: content.index("1,0.png")])
        assert score_folder(composite, folder, out=out, batch=3).resumed == 0
        assert out.read_text() == content
        assert score_folder(composite, folder, out=out, batch=3).resumed == 4


def test_tables_of_other_rewards_or_rows_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "scores.csv"
    assert run("score", "jpeg_size", "--images", folder, "--out", out) == 0
    before = out.read_text()

    def refused(*arguments: Any) -> str:
        capsys.readouterr()
        assert run("score", *arguments, "--images", folder, "--out", out) == 2
        assert out.read_text() == before
        return capsys.readouterr().err

    assert "scored with another 'jpeg_size'" in refused("jpeg_size", "-o", "quality=10")
    assert "scored with another 'jpeg_size'" in refused("colour_match")
    (folder / "prompts.jsonl").write_text('{"file": "2.png", "prompt": "new"}')
    assert "scores.csv:2: '2.png' was scored for 'b, " in refused("jpeg_size").replace("scores.csv:3", "scores.csv:2")
    out.with_name("scores.csv.json").unlink()
    before = "name,age\nx,1\n"
    out.write_text(before)
    assert "expected columns row,file,prompt,jpeg_size" in refused("jpeg_size")
    out.write_bytes((folder / "0.png").read_bytes() + b"\n")
    with pytest.raises(RewardError, match=r"scores\.csv: expected a table of scores, found another file"):
        score_folder(Composite({"jpeg_size": RewardEntry(role="monitor")}), folder, out=out)


def test_without_listing_all_pictures_are_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "prompts.jsonl").unlink()
    assert run("score", "jpeg_size", "--images", folder) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("name", "text", "reward", "message"),
    [
        (
            "p.jsonl",
            '\n{"file": "0.png", "promt": "a"}',
            "jpeg_size",
            "p.jsonl:2: unknown key 'promt'; did you mean",
        ),
        ("p.jsonl", '{"prompt": "a"}', "jpeg_size", "p.jsonl:1: file: Field required"),
        ("p.jsonl", "{file}", "jpeg_size", "p.jsonl:1: not JSON"),
        ("p.jsonl", "[1]", "jpeg_size", "p.jsonl:1: expected a JSON object, found list"),
        ("p.jsonl", "", "jpeg_size", "expected one picture a row, found none"),
        ("p.jsonl", '{"file": "9.png"}', "jpeg_size", "p.jsonl:1: no such picture: "),
        ("p.jsonl", '{"file": "p.jsonl"}', "jpeg_size", "p.jsonl is not a readable picture: another kind of file"),
        ("p.jsonl", '{"file": "0.png", "metadata": {"ground": "red"}}', "colour_match", "needs metadata.background"),
        ("p.jsonl", '{"file": "0.png"}', "color_match", "did you mean 'colour_match'?"),
        ("p.csv", "file,promt\n0.png,a\n", "jpeg_size", "p.csv:1: unknown column 'promt'; did you mean 'prompt'?"),
        ("p.csv", "file,file\n0.png,a\n", "jpeg_size", "p.csv:1: column 'file' stands there twice"),
        ("p.csv", 'file,prompt\n0.png,"a\nb"\n1.png,a,b\n', "jpeg_size", "p.csv:4: expected 2 cells, found 3"),
        ("p.csv", "file,metadata\n0.png,{x\n", "jpeg_size", "p.csv:2: metadata: not JSON"),
        ("p.csv", "prompt\na\n", "jpeg_size", "p.csv:2: file: Field required"),
        ("p.parquet", "file", "jpeg_size", "p.parquet: not a parquet file"),
        ("p.txt", "0.png", "jpeg_size", "p.txt: expected a file of .csv, .jsonl, .parquet"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, reward: str, message: str
) -> None:
    (folder / name).write_text(text)
    assert run("score", reward, "--images", folder, "--prompts", folder / name) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jpeg_size", "--out", "x.txt"), "x.txt: expected a name that ends in .csv or .parquet"),
        (("jpeg_size", "-o", "quality"), "--option: expected KEY=VALUE, found 'quality'"),
        (("jpeg_size", "-o", "quality=[1"), "--option: quality: not a YAML value"),
        (("jpeg_size", "colour_match", "-o", "quality=1"), "--option: expected NAME.KEY=VALUE for one of several"),
        (("jpeg_size", "mentor_rewards.x:jpeg_size"), "two rewards are called 'jpeg_size'"),
    ],
)
def test_bad_arguments(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("score", *arguments, "--images", folder) == 2
    assert message in capsys.readouterr().err


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("score", "jpeg_size", "--images", tmp_path) == 2
    assert "expected pictures" in capsys.readouterr().err
