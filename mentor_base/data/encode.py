"""Targets as VQ codes, made once: rows of any source -> tar shards whose rows carry ``codes``.

A stage then skips the tokenizer's encoder at every step. Codes and pictures train the same: codes are made in float32
here and in the model's loss, from the same pixels. (On a GPU two batch sizes may round differently: a code whose two
nearest vectors are equally far can then differ.)

A run that was stopped goes on after its last whole shard. codes.json says what the folder holds:

    {"tokenizer": "5d41402abc4b2a76", "image_size": 256, "tokens": 256, "codebook_size": 16384, "rows_per_shard": 10000,
     "files": {"train": {"rows.jsonl": 73211}}, "rows": {"train": 300}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mentor_base.data.broken import BrokenRows
from mentor_base.data.rows import BrokenPicture, Row, decode, shown
from mentor_base.data.schema import Codes
from mentor_base.data.shard_writer import write_shards
from mentor_base.data.shards import ShardFile
from mentor_base.data.targets import target_pixels
from mentor_base.errors import UserError
from mentor_base.runlog import write_atomically
from mentor_base.vq import VQModel

MANIFEST = "codes.json"


def start_folder(out: Path, vq: VQModel, size: int, files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Make the folder and its manifest, or take up one that was made of the same files by the same tokenizer.

    Returns:
        The manifest, whose "rows" names the splits that are finished.

    Raises:
        UserError: a folder with anything else in it.
    """
    manifest: dict[str, Any] = {
        "tokenizer": vq.fingerprint(),
        "image_size": vq.config.image_size,
        "tokens": vq.config.tokens,
        "codebook_size": vq.config.codebook_size,
        "rows_per_shard": size,
        "files": {split: {str(path): path.stat().st_size for path in paths} for split, paths in files.items()},
    }
    file = out / MANIFEST
    if file.exists():
        held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for key, value in manifest.items():
            if held.get(key) != value:
                there, now = shown(held.get(key)), shown(value)
                raise UserError(f"{out}: holds other codes: {key}: {there} there, {now} now; name another OUT")
        return held
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: expected a new or an empty folder, or one to go on with, found other files")
    out.mkdir(parents=True, exist_ok=True)
    manifest["rows"] = {}
    _write(out, manifest)
    return manifest


def encode_split(
    rows: Iterable[Row | UserError],
    out: Path,
    split: str,
    manifest: dict[str, Any],
    vq: VQModel,
    batch: int,
    broken: BrokenRows,
) -> int:
    """Encode the rows of one split into ``out`` and note it in the manifest. Returns the number of rows there.

    Raises:
        UserError: the first row that cannot be used, or too many with broken pictures (those are left out).
    """
    there = sum(len(ShardFile(path)) for path in sorted(out.glob(f"{split}-*.tar")))
    broken.drawn += there  # the broken rows among them are met again below
    coded = encoded(rows, vq, manifest["tokenizer"], batch, skip=there)
    shards = write_shards(coded, out, split, manifest["rows_per_shard"], broken, written=there)
    manifest["rows"][split] = there + sum(len(ShardFile(path)) for path in shards)
    _write(out, manifest)
    return int(manifest["rows"][split])


def encoded(
    rows: Iterable[Row | UserError], vq: VQModel, fingerprint: str, batch: int, skip: int
) -> Iterator[Row | UserError]:
    """The rows in their order, with codes; in place of one whose pictures cannot be used, its error.

    ``skip`` whole rows are left out, which were encoded before.
    """
    waiting: list[tuple[Row, Image.Image]] = []
    for row in rows:
        target = _target(row)
        if not isinstance(target, Image.Image):
            yield target
        elif skip:
            skip -= 1
        else:
            assert isinstance(row, Row)
            waiting.append((row, target))
            if len(waiting) == batch:
                yield from _with_codes(waiting, vq, fingerprint)
                waiting = []
    if waiting:
        yield from _with_codes(waiting, vq, fingerprint)


def _target(row: Row | UserError) -> Image.Image | UserError:
    """The target of a row all of whose pictures can be used, or what is wrong with it."""
    if isinstance(row, UserError):
        return row
    try:
        row.sizes()
        return decode(row.answer(), row.where, "target")
    except BrokenPicture as error:
        return error


@torch.no_grad()
def _with_codes(waiting: Sequence[tuple[Row, Image.Image]], vq: VQModel, fingerprint: str) -> Iterator[Row]:
    pairs = [(row.task, target) for row, target in waiting]
    pixels_N3HW = target_pixels(pairs, int(vq.config.image_size)).to(vq.device)
    for (row, _), tokens in zip(waiting, vq.encode(pixels_N3HW).tolist(), strict=True):
        yield replace(row, codes=Codes(fingerprint, tuple(tokens)))


def _write(out: Path, manifest: dict[str, Any]) -> None:
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
