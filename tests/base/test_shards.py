"""Tar shards: rows by offset, an index that is kept and made anew, strict members."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from row_files import red, write_tar

from mentor_base.data.mixture import world_of
from mentor_base.data.rows import BrokenPicture
from mentor_base.data.shards import ShardFile, index_file, scan_shard, split_name
from mentor_base.errors import UserError
from mentor_base.settings import ShardData

Members = list[tuple[str, bytes]]


def picture(value: int, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, form)
    return file.getvalue()


def sample(key: str, value: int = 1, **changes: Any) -> Members:
    entry = {"task": "subject", "text": "<image> this fox", **changes}
    return [
        (f"{key}.json", json.dumps(entry).encode()),
        (f"{key}.image0.png", picture(0)),
        (f"{key}.target.png", picture(value)),
    ]


def test_rows_by_number_equal_the_archive(tmp_path: Path) -> None:
    long = "folder.v2/" + "k" * 120  # longer than a plain header holds
    members = [
        *sample("a", 1, subject="fox", meta={"style": "flat"}),
        ("b.target.png", picture(2)),  # the order within a row is free
        ("b.json", json.dumps({"task": "t2i", "text": "a fox"}).encode()),
        *sample(long, 3),
        (f"{long}.mask.png", picture(9)),
    ]
    shard = ShardFile(write_tar(tmp_path / "x.tar", members))
    rows = [shard[n] for n in (2, 0, 1)]
    loaded = [entry.load() for entry in rows]
    assert [red(example.target) for example in loaded] == [3, 1, 2]
    assert [entry.where.rpartition(":")[2] for entry in rows] == [long, "a", "b"]
    assert (loaded[1].subject, loaded[1].meta["style"]) == ("fox", "flat")
    assert loaded[0].mask is not None
    assert loaded[2].images == ()
    assert list(shard.texts()) == ["<image> this fox", "a fox", "<image> this fox"]
    scanned = [entry for entry in scan_shard(shard.path) if not isinstance(entry, UserError)]
    assert [red(entry.load().target) for entry in scanned] == [1, 2, 3]
    assert split_name("a.b/c.target.png") == ("a.b/c", "target.png")


def test_the_index_is_kept_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", [*sample("a"), *sample("b")])
    for folder in (None, str(tmp_path / "indexes")):
        made = ShardFile(path, folder).index
        with monkeypatch.context() as no_scan:
            no_scan.setattr("mentor_base.data.shards._made", None)
            assert ShardFile(path, folder).index == made
        index_file(path, folder).write_text('{"format": "other"}')
        assert ShardFile(path, folder).index == made
        index_file(path, folder).write_text("{")
        assert ShardFile(path, folder).index == made
    changed = path.stat().st_mtime_ns + 1
    write_tar(path, [*sample("a"), *sample("c")])
    os.utime(path, ns=(changed, changed))
    assert [ShardFile(path)[n].where for n in range(2)] == [f"{path}:a", f"{path}:c"]


def test_an_index_that_cannot_be_kept_is_said_and_does_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "x.tar", sample("a"))
    (tmp_path / "file").touch()
    assert len(ShardFile(path, str(tmp_path / "file"))) == 1
    assert "set data.index to a folder that can" in caplog.text


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.target.png", b"")], "x.tar:a: expected the member 'a.json', found a.target.png"),
        (
            [*sample("a"), *sample("b"), ("a.mask.png", b"")],
            "x.tar:a: expected the members of a row to follow each other",
        ),
        ([*sample("a"), ("a.taget.png", b"")], "x.tar:a: unknown member 'a.taget.png'; did you mean 'target'"),
        ([*sample("a"), ("a.target.jpg", b"")], "x.tar:a: expected one picture 'target', found two"),
        ([*sample("a"), ("a.image2.jpg", b"")], r"x.tar:a: expected a picture 'a.image1.\*', found a.json, "),
        (sample("a")[:2], r"x.tar:a: expected a picture 'a.target.\*', found a.json, a.image0.png"),
        (sample("a", text="a fox"), "x.tar:a: expected one <image> mark per picture, found 0 marks and 1 pictures"),
        (sample("a", target="1.png"), "x.tar:a: target: expected pictures as members of the archive"),
        (sample("a", mata={}), "x.tar:a: unknown key 'mata'; did you mean 'meta'"),
        ([], "x.tar: expected at least one row, found an empty archive"),
    ],
)
def test_bad_members_are_refused_by_name(tmp_path: Path, members: Members, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShardFile(write_tar(tmp_path / "x.tar", members))


def test_archives_that_are_none(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [*sample("a"), *sample("b")])
    whole = path.read_bytes()
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(whole))
    with pytest.raises(UserError, match="found one compressed by gzip; unpack it once"):
        ShardFile(packed)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1].offset_data
    path.write_bytes(whole[: last + 10])
    with pytest.raises(UserError, match=r"x.tar: expected an uncompressed tar archive, found unexpected end of data"):
        ShardFile(path)
    with pytest.raises(UserError, match=r"no.tar: expected a readable tar archive, found no such file"):
        ShardFile(tmp_path / "no.tar")


def test_a_shard_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [*sample("a"), *sample("b")])
    shard = ShardFile(path)
    path.write_bytes(path.read_bytes()[:2048])
    with pytest.raises(UserError, match="the shard is cut short"):
        shard[1]


def test_shards_are_a_world_with_broken_pictures(tmp_path: Path) -> None:
    broken = [(name, b"x" if "target" in name else data) for name, data in sample("b")]
    for k, members in enumerate(([*sample("a", 1), *broken], sample("c", 2))):
        write_tar(tmp_path / f"{k}.tar", members)
    world = world_of(ShardData(train=str(tmp_path / "*.tar"), broken_rate=1), tmp_path / "broken.jsonl")
    reds = [red(world.example("subject", "train", 0, i).target) for i in range(6)]
    assert set(reds) == {1, 2}
    assert "0.tar:b" in (tmp_path / "broken.jsonl").read_text()
    with pytest.raises(BrokenPicture, match=r"0.tar:b: target: expected a readable picture, found .*b.target.png of"):
        ShardFile(tmp_path / "0.tar")[1].load()
