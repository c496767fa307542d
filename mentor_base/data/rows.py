"""What the rows of every source on disk share: the keys of an Example, their checks, and pictures that may be broken.

    {"task": "subject", "text": "<image> this fox in line art style", "images": [...], "target": ..., "subject": "fox",
     "mask": null, "meta": {"style": "line art"}}

``task``, ``text`` and ``target`` are required. JSON rows may have ``codes``, the target as a tokenizer made them
(``mentor data encode``): {"tokenizer": "5d41402abc4b2a76", "tokens": [17, 4, ...]}. A source (jsonl.py, shards.py,
parquet.py) says how pictures are named and where rows lie; it is a RowFile. Everything but the pixels is strict and
checked when a file is opened. A picture that cannot be decoded is a fault of that row alone, found when the row is
drawn: BrokenPicture. Pixels are those that are stored: an EXIF rotation is not applied, as in the reference.

A picture is broken by what it holds or by its absence, never by a moment's failure of a disk or a network: that one
stops the run, because a skipped row would make the run's rows depend on more than (seed, index).
"""

from __future__ import annotations

import errno
import io
import json
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from PIL import Image, UnidentifiedImageError

from mentor_base.data.schema import TASKS, Codes, Example, Prompt, check_text
from mentor_base.errors import UserError, nearest
from mentor_base.images import over_white

KEYS = ("task", "text", "images", "target", "subject", "mask", "meta")
CODED_KEYS = (*KEYS, "codes")  # of sources in JSON
PROMPT_KEYS = ("task", "text", "images", "subject", "meta")  # of rows without an answer
REQUIRED = ("task", "text", "target")
FACTS: dict[str, tuple[type, str]] = {
    "task": (str, "a task name"),
    "text": (str, "a caption"),
    "subject": (str, "a name or null"),
    "meta": (dict, "an object"),
}
NULLABLE = ("subject",)
ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
LASTING = {  # what an absent file looks like; any other fault of the system may be gone a second later
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


class BrokenPicture(UserError):
    """A picture that cannot be decoded.

    Attributes:
        row: where its row stands, e.g. "rows.jsonl:12".
        picture: "target", "mask" or "images[0]".
        reason: what was found.
    """

    def __init__(self, row: str, picture: str, reason: str) -> None:
        super().__init__(f"{row}: {picture}: expected a readable picture, found {reason}")
        self.row, self.picture, self.reason = row, picture, reason

    def __reduce__(self) -> tuple[type[BrokenPicture], tuple[str, str, str]]:
        return BrokenPicture, (self.row, self.picture, self.reason)  # a worker hands it to the process that trains


class Picture(Protocol):
    """An encoded picture (PNG, JPEG, WebP, ...) somewhere."""

    @property
    def name(self) -> str:
        """What people know it by: a path, or a member of an archive."""

    def open(self) -> BinaryIO:
        """Its bytes from the start."""


@dataclass(frozen=True)
class FilePicture:
    """A picture file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def open(self) -> BinaryIO:
        return self.path.open("rb")


@dataclass(frozen=True)
class BytesPicture:
    """A picture file's bytes, taken from an archive or a table."""

    name: str
    data: bytes

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


@dataclass(frozen=True)
class Row:
    """A checked row: everything of an Example but the pixels; of a prompt without an answer ``target`` is None."""

    where: str
    task: str
    text: str
    images: tuple[Picture, ...]
    target: Picture | None
    subject: str | None
    mask: Picture | None
    meta: Mapping[str, Any]
    codes: Codes | None = None

    def load(self) -> Example:
        """Decode the pictures.

        Raises:
            BrokenPicture: the first one that cannot be decoded, or a mask of another size than its target.
            UserError: a prompt without an answer.
        """
        self.answer()
        decoded = {part: decode(picture, self.where, part) for part, picture in self.pictures()}
        target, mask = decoded["target"], decoded.get("mask")
        if mask is not None and mask.size != target.size:
            raise BrokenPicture(self.where, "mask", f"{mask.size} pixels over a target of {target.size}")
        images = tuple(decoded[f"images[{k}]"] for k in range(len(self.images)))
        meta = self._facts()
        return Example(self.task, self.text, images, target, self.subject, mask, meta, self.codes)

    def answer(self) -> Picture:
        """The target; raises UserError for a prompt without one."""
        if self.target is None:
            raise UserError(f"{self.where}: expected a target, found a prompt without one")
        return self.target

    def prompt(self) -> Prompt:
        """Decode what is asked, and not the answer; raises BrokenPicture."""
        images = (decode(picture, self.where, f"images[{k}]") for k, picture in enumerate(self.images))
        return Prompt(self.text, tuple(images), self.subject, {**self._facts(), "task": self.task})

    def _facts(self) -> dict[str, Any]:
        return {**self.meta, "where": self.where}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(width, height) of each picture by its part, from the headers alone; raises BrokenPicture."""
        return {part: read_header(picture, self.where, part)[0] for part, picture in self.pictures()}

    def pictures(self) -> Iterator[tuple[str, Picture]]:
        """(part, picture): images[0], ..., target, mask."""
        for k, picture in enumerate(self.images):
            yield f"images[{k}]", picture
        if self.target is not None:
            yield "target", self.target
        if self.mask is not None:
            yield "mask", self.mask


class RowFile(Protocol):
    """The rows of one file, by number; small enough in memory for millions of them.

    Attributes:
        path: the file.
        tasks: for each row, the place of its task in TASKS.
    """

    path: Path
    tasks: array[int]

    def __len__(self) -> int:
        """The number of rows."""

    def __getitem__(self, n: int) -> Row:
        """Row ``n``, read now; raises UserError when the file is no longer what was opened."""

    def texts(self) -> Iterator[str]:
        """The text of every row, without reading pictures."""


@dataclass(frozen=True)
class Facts:
    """What a row says besides its pictures."""

    task: str
    text: str
    subject: str | None
    meta: Mapping[str, Any]
    codes: Codes | None = None

    def row(self, where: str, images: tuple[Picture, ...], target: Picture | None, mask: Picture | None) -> Row:
        """The row that says this about these pictures."""
        return Row(where, self.task, self.text, images, target, self.subject, mask, self.meta, self.codes)


def check_facts(entry: Mapping[str, Any], where: str, images: int) -> Facts:
    """Task, text, subject, meta and codes of a row with ``images`` reference pictures.

    Raises:
        UserError: as ``where: key: expected ..., found ...``.
    """
    for key, (kind, words) in FACTS.items():
        value = entry.get(key, {} if key == "meta" else None)
        if not isinstance(value, kind) and not (value is None and key in NULLABLE):
            raise UserError(f"{where}: {key}: expected {words}, found {shown(value)}")
    task, text = entry["task"], entry["text"]
    if task not in TASKS:
        raise UserError(f"{where}: unknown task '{task}'; {nearest(task, TASKS)}")
    check_text(text, images, where)
    if not text.strip():
        raise UserError(f"{where}: expected a caption, found an empty text")
    return Facts(task, text, entry.get("subject"), entry.get("meta", {}), check_codes(entry.get("codes"), where))


def check_codes(value: Any, where: str) -> Codes | None:
    """The codes of a row, if it has any; whether they fit a policy is found where they meet it."""
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != set(Codes._fields) or not isinstance(value["tokenizer"], str):
        raise UserError(f"{where}: codes: expected {{tokenizer: ..., tokens: [...]}}, found {shown(value)}")
    tokens = value["tokens"]
    if not isinstance(tokens, list) or not tokens or any(type(token) is not int or token < 0 for token in tokens):
        raise UserError(f"{where}: codes.tokens: expected whole numbers from 0 on, found {shown(tokens)}")
    return Codes(value["tokenizer"], tuple(tokens))


def check_keys(keys: Mapping[str, Any], where: str, known: tuple[str, ...] = KEYS) -> None:
    """Refuse a key that no row has, and the lack of one that every row has."""
    for key in keys:
        if key not in known:
            answer = known is PROMPT_KEYS and key in CODED_KEYS
            hint = "a prompt has no answer (source: jsonl is for rows with one)" if answer else nearest(key, known)
            raise UserError(f"{where}: unknown key '{key}'; {hint}")
    for key in REQUIRED:
        if key in known and key not in keys:
            raise UserError(f"{where}: expected the key '{key}', found {', '.join(keys) or 'no key'}")


def parse_object(text: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object whose texts can be written again."""
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        entry = json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: expected a JSON object in UTF-8, found other bytes") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: expected a JSON object, found {error.msg} at column {error.colno}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a JSON object, found {shown(entry)}")
    if ESCAPED_HALF.search(text):
        _refuse_halves(entry, where)
    return entry


def _refuse_halves(entry: Mapping[str, Any], where: str) -> None:
    """JSON can name half of a surrogate pair, as a caption cut between the two has; no tokenizer reads it."""
    for key, value in entry.items():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: {key}: expected Unicode, found half of a character in {shown(value)}") from error


def read_header(picture: Picture, row: str, part: str) -> tuple[tuple[int, int], str]:
    """((width, height), format as PIL names it), without decoding; raises BrokenPicture."""
    with _opened(picture, row, part) as file, _image(file, picture, row, part) as image:
        return image.size, str(image.format)


def read_bytes(picture: Picture, row: str, part: str) -> bytes:
    """The encoded picture; raises BrokenPicture where it is absent."""
    with _opened(picture, row, part) as file:
        try:
            return file.read()
        except OSError as error:
            raise _unreadable(error, picture, row, part) from error


def decode(picture: Picture, row: str, part: str) -> Image.Image:
    """The pixels: PIL RGB over white, "L" for the part "mask"; raises BrokenPicture."""
    data = io.BytesIO(read_bytes(picture, row, part))
    with _image(data, picture, row, part) as image:
        try:
            image.load()
            return image.convert("L") if part == "mask" else over_white(image)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever they stumble over: struct.error, IndexError, ...
            raise BrokenPicture(row, part, f"{picture.name}: {_reason(error)}") from error


def shown(value: object) -> str:
    """A value in an error line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def os_reason(error: OSError) -> str:
    """What the system said, without the path."""
    return "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


def _opened(picture: Picture, row: str, part: str) -> BinaryIO:
    try:
        return picture.open()
    except ValueError as error:  # a path with a null byte
        raise BrokenPicture(row, part, f"{picture.name}: {error}") from error
    except OSError as error:
        raise _unreadable(error, picture, row, part) from error


def _unreadable(error: OSError, picture: Picture, row: str, part: str) -> UserError:
    """What a fault of the system means: a picture that is absent, or a disk that fails at the moment."""
    if error.errno in LASTING:
        return BrokenPicture(row, part, f"{picture.name}: {os_reason(error)}")
    return UserError(f"{row}: {part}: cannot read {picture.name} now: {os_reason(error)}")


def _image(file: BinaryIO, picture: Picture, row: str, part: str) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise BrokenPicture(row, part, f"{picture.name} of another kind") from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        if isinstance(error, OSError) and error.errno is not None:  # the system's, none of Pillow's
            raise _unreadable(error, picture, row, part) from error
        raise BrokenPicture(row, part, f"{picture.name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = os_reason(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split()) or type(error).__name__
