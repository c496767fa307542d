"""``source: shards``: tar archives in the layout of webdataset, read at any place and not as a stream.

    00000042.json           {"task": "subject", "text": "<image> this fox in line art style", "subject": "fox"}
    00000042.image0.jpg     reference pictures, image0, image1, ... as many as the text has marks
    00000042.target.png     the picture to be generated
    00000042.mask.png       mask of the subject in the target, if there is one

The members of a row have its key, which is the path up to the first dot of the file name, and follow each other. The
JSON object has the keys of a row (rows.py) without the pictures; a picture is any file that Pillow reads. Archives are
not compressed, since pictures are.

An index is made when a shard is first opened: the place of each row, and of its text in it. It is kept beside the
shard (``x.tar.index.json``) or in the folder ``index``, and made anew when the shard's size or time of change differ.
A row is then one read of neighbouring bytes. Making the index checks all texts and member names, not the pictures.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mentor_base.data.rows import BytesPicture, Picture, Row, check_facts, check_keys, os_reason, parse_object
from mentor_base.data.schema import TASKS
from mentor_base.errors import UserError, nearest
from mentor_base.runlog import write_atomically

logger = logging.getLogger(__name__)

INDEX_FORMAT = "mentor shard index 1"
TEXT_KEYS = ("task", "text", "subject", "meta", "codes")
COLUMNS = ("starts", "sizes", "text_starts", "text_sizes")


@dataclass
class ShardIndex:
    """Where the rows of a shard lie; bytes from the start of the archive.

    Attributes:
        tasks: place of each row's task in TASKS.
        starts, sizes: the row's members with their headers.
        text_starts, text_sizes: the contents of its JSON member.
    """

    tasks: array[int] = field(default_factory=lambda: array("B"))
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    text_starts: array[int] = field(default_factory=lambda: array("q"))
    text_sizes: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True)
class MemberPicture:
    """A picture inside an archive, at a known place."""

    shard: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.shard}/{self.member}"

    def open(self) -> BinaryIO:
        return io.BytesIO(_read(self.shard, self.offset, self.size))


class ShardFile:
    """A RowFile over one archive.

    Raises:
        UserError: an archive that is none, is compressed or cut short, or the first row that cannot be used.
    """

    def __init__(self, path: Path, index_folder: str | None = None) -> None:
        self.path = path
        self.index = _index_of(path, index_folder)
        self.tasks = self.index.tasks
        if not self.tasks:
            raise UserError(f"{path}: expected at least one row, found an empty archive")

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, n: int) -> Row:
        data = _read(self.path, self.index.starts[n], self.index.sizes[n])
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                members = [member for member in archive if member.isfile()]
            contents = {member.name: data[member.offset_data : member.offset_data + member.size] for member in members}
            key = split_name(members[0].name)[0]
            text = contents[f"{key}.json"]
        except (tarfile.TarError, IndexError, KeyError) as error:
            raise UserError(f"{self.path}: row {n}: this shard was changed while it was open") from error
        pictures = {name: BytesPicture(f"{self.path}/{name}", held) for name, held in contents.items()}
        return _row(f"{self.path}:{key}", text, key, pictures)

    def texts(self) -> Iterator[str]:
        for start, size in zip(self.index.text_starts, self.index.text_sizes, strict=True):
            yield parse_object(_read(self.path, start, size), str(self.path))["text"]


def scan_shard(path: Path) -> Iterator[Row | UserError]:
    """Every row in order, and in place of a row that cannot be used its error."""
    for members in _samples(path):
        try:
            yield _scanned(path, members)[0]
        except UserError as error:
            yield error


def count_shard(path: Path) -> int:
    """The number of rows."""
    return sum(1 for _ in _samples(path))


def split_name(name: str) -> tuple[str, str]:
    """(key, rest) of a member: ``a/b.target.png`` -> (``a/b``, ``target.png``)."""
    folder, slash, file = name.rpartition("/")
    stem, _, rest = file.partition(".")
    return folder + slash + stem, rest


def _index_of(path: Path, folder: str | None) -> ShardIndex:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: expected a readable tar archive, found {os_reason(error)}") from error
    stamp = {"format": INDEX_FORMAT, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
    file = index_file(path, folder)
    index = _kept(file, stamp)
    if index is None:
        index = _made(path)
        _keep(file, stamp, index)
    return index


def index_file(path: Path, folder: str | None) -> Path:
    """Where the index of a shard is kept; in one folder for all, its name tells shards of one name apart."""
    if folder is None:
        return path.with_name(f"{path.name}.index.json")
    place = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    return Path(folder) / f"{path.name}.{place}.index.json"


def _kept(file: Path, stamp: Mapping[str, Any]) -> ShardIndex | None:
    """The index in ``file`` if it is that of this shard; anything else is made anew, which costs time alone."""
    if not file.exists():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if any(held[key] != value for key, value in stamp.items()):
            return None
        codes = [TASKS.index(task) for task in held["task_names"]]
        tasks = array("B", (codes[k] for k in held["tasks"]))
        return ShardIndex(tasks, *(array("q", held[name]) for name in COLUMNS))
    except (ValueError, KeyError, TypeError, IndexError):
        logger.warning("%s: not an index, or of another version; it is made anew", file)
        return None


def _keep(file: Path, stamp: Mapping[str, Any], index: ShardIndex) -> None:
    columns = {name: list(getattr(index, name)) for name in COLUMNS}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({**stamp, "task_names": TASKS, "tasks": list(index.tasks), **columns}))
    except OSError as error:
        logger.warning("%s: cannot keep this index (%s); set data.index to a folder that can", file, os_reason(error))


def _made(path: Path) -> ShardIndex:
    index = ShardIndex()
    for members in _samples(path):
        row, text = _scanned(path, members)
        start = members[0].offset
        index.tasks.append(TASKS.index(row.task))
        index.starts.append(start)
        index.sizes.append(_end(members[-1]) - start)
        index.text_starts.append(text.offset_data)
        index.text_sizes.append(text.size)
    return index


def _end(member: tarfile.TarInfo) -> int:
    blocks = -(-member.size // tarfile.BLOCKSIZE)
    return member.offset_data + blocks * tarfile.BLOCKSIZE


def _samples(path: Path) -> Iterator[list[tarfile.TarInfo]]:
    """The members of each row in turn."""
    seen: set[str] = set()
    sample: list[tarfile.TarInfo] = []
    key = ""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if not member.isfile():
                    raise UserError(f"{path}: {member.name}: expected a file, found a link or device")
                fresh = split_name(member.name)[0]
                if fresh != key or not sample:
                    if fresh in seen:
                        raise UserError(f"{path}:{fresh}: expected the members of a row to follow each other")
                    seen.add(fresh)
                    if sample:
                        yield sample
                    sample, key = [], fresh
                sample.append(member)
    except tarfile.TarError as error:
        raise UserError(f"{path}: expected an uncompressed tar archive, found {_tar_reason(path, error)}") from error
    except OSError as error:
        raise UserError(f"{path}: expected a readable tar archive, found {os_reason(error)}") from error
    if sample:
        yield sample


def _tar_reason(path: Path, error: tarfile.TarError) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    packed = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
    kind = next((name for sign, name in packed.items() if start.startswith(sign)), None)
    return f"one compressed by {kind}; unpack it once" if kind else str(error)


def _scanned(path: Path, members: list[tarfile.TarInfo]) -> tuple[Row, tarfile.TarInfo]:
    """The row of these members, its pictures where they are, and the member that holds its text."""
    key = split_name(members[0].name)[0]
    where = f"{path}:{key}"
    text = next((member for member in members if member.name == f"{key}.json"), None)
    if text is None:
        found = ", ".join(member.name for member in members)
        raise UserError(f"{where}: expected the member '{key}.json', found {found}")
    pictures = {member.name: MemberPicture(path, member.name, member.offset_data, member.size) for member in members}
    if len(pictures) != len(members):
        raise UserError(f"{where}: expected each member once, found one twice")
    return _row(where, _read(path, text.offset_data, text.size), key, pictures), text


def _row(where: str, text: bytes, key: str, members: Mapping[str, Picture]) -> Row:
    """The row of a JSON member and the picture members beside it (``members`` has them all, by name)."""
    entry = parse_object(text, where)
    for name in ("images", "target", "mask"):
        if name in entry:
            raise UserError(f"{where}: {name}: expected pictures as members of the archive, found the key in the JSON")
    check_keys(entry, where, TEXT_KEYS)
    parts: dict[str, Picture] = {}
    for name, picture in members.items():
        if name == f"{key}.json":
            continue
        part = split_name(name)[1].partition(".")[0]
        if part not in ("target", "mask") and not (part.startswith("image") and part[5:].isdecimal()):
            raise UserError(f"{where}: unknown member '{name}'; {nearest(part, ('target', 'mask', 'image0'))}")
        if part in parts:
            raise UserError(f"{where}: expected one picture '{part}', found two")
        parts[part] = picture
    count = sum(part.startswith("image") for part in parts)
    for part in ("target", *(f"image{k}" for k in range(count))):
        if part not in parts:
            raise UserError(f"{where}: expected a picture '{key}.{part}.*', found {', '.join(members)}")
    facts = check_facts(entry, where, count)
    images = tuple(parts[f"image{k}"] for k in range(count))
    return facts.row(where, images, parts["target"], parts.get("mask"))


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot read this shard now: {os_reason(error)}") from error
    if len(data) != size:
        raise UserError(f"{path}: expected {size} bytes at {offset}, found {len(data)}: the shard is cut short")
    return data
