"""``mentor data check | import-mentor | shard | encode``: look at rows, convert, pack and encode them; no training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mentor_base.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

    from mentor_base.data.broken import BrokenRows
    from mentor_base.data.check import DataCheck
    from mentor_base.data.mentor_import import ImportCounts
    from mentor_base.data.rows import Row
    from mentor_base.progress import ProgressBar
    from mentor_base.settings import RowData

data_app = typer.Typer(help="Check, convert and pack training data.", no_args_is_help=True)

SHOWN = 20

Source = Annotated[
    str,
    typer.Argument(metavar="RECIPE_OR_PATH", help="A recipe, or a .jsonl, .tar, .parquet file, a glob or a folder."),
]
NewFolder = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not exist or be empty.")]


@data_app.command("check")
def check_data(
    source: Source,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture, not only its header.")] = False,
    policy: Annotated[
        Path | None, typer.Option(help="A policy's folder: name rows whose text and pictures do not fit its prefix.")
    ] = None,
) -> None:
    """Rows per task, sizes of pictures, and everything that is wrong."""
    from rich.console import Console

    from mentor_base.data.check import check_rows
    from mentor_base.data.sources import split_files

    processor = None
    if policy is not None:
        from mentor_base.checkpoint import model_folder
        from mentor_base.processor import MentorProcessor

        processor = MentorProcessor.from_pretrained(model_folder(policy))
    wrong: list[str] = []
    rows = 0
    for data in row_sections(source):
        for split, files in split_files(data).items():
            found = check_rows(data, files, decode, processor)
            wrong += [*found.faults, *found.broken]
            rows += found.rows + len(found.faults)
            Console().print(_check_table(split, found))
    for line in wrong[:SHOWN]:
        print(line)
    if len(wrong) > SHOWN:
        print(f"... and {len(wrong) - SHOWN} more")
    if wrong:
        raise UserError(f"{source}: {len(wrong)} faults in {rows} rows")


@data_app.command("import-mentor")
def import_mentor_rows(
    source: Annotated[Path, typer.Argument(metavar="SOURCE.jsonl", help="A Stage-1 or Stage-2 file of MENTOR.")],
    out: NewFolder,
    root: Annotated[Path | None, typer.Option(help="Folder of relative paths; default: that of SOURCE.")] = None,
    moved: Annotated[
        list[str] | None, typer.Option("--map", metavar="OLD=NEW", help="Another beginning of paths; several times.")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="JSONL list with the key input_image: pictures for recovery.")
    ] = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures that are made, in pixels.")] = 512,
    variants: Annotated[int, typer.Option(min=1, help="Rows per row of recovery and of several objects.")] = 1,
    seed: int = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Convert only so many rows.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="KEY", help="A key of the rows to leave out.")] = None,
    broken_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of broken rows that is an error.")] = 0.01,
) -> None:
    """Convert MENTOR's rows, whose fields change their meaning with flags: OUT/rows.jsonl, and pictures made for it."""
    from dataclasses import replace

    from rich.console import Console

    from mentor_base.data.broken import BrokenRows
    from mentor_base.data.mentor_import import ImportOptions, import_mentor, read_backgrounds
    from mentor_base.runlog import BROKEN

    options = ImportOptions(
        root=root or source.parent,
        moved=tuple(_pair(text) for text in moved or ()),
        size=size,
        seed=seed,
        variants=variants,
        limit=limit,
        ignore=tuple(ignore or ()),
    )
    if backgrounds is not None:
        options = replace(options, backgrounds=read_backgrounds(backgrounds, options))
    refuse_full(out)
    broken = BrokenRows(broken_rate, out / BROKEN)
    counts = import_mentor(source, out, options, broken)
    Console().print(_import_table(counts))
    print(f"{out / 'rows.jsonl'}: {counts.written.total()} rows")
    _say_broken(broken)


@data_app.command("shard")
def shard_rows(
    source: Source,
    out: NewFolder,
    size: Annotated[int, typer.Option(min=1, help="Rows per shard.")] = 10_000,
) -> None:
    """Pack rows and their pictures into tar shards: OUT/train-000000.tar and on, and the same for val."""
    from mentor_base.data.broken import BrokenRows
    from mentor_base.data.shard_writer import write_shards
    from mentor_base.data.sources import count_rows
    from mentor_base.progress import ProgressBar
    from mentor_base.runlog import BROKEN

    data, files = _one_section(source)
    refuse_full(out)
    out.mkdir(parents=True, exist_ok=True)
    broken = BrokenRows(data.broken_rate, out / BROKEN)
    for split, paths in files.items():
        with ProgressBar(f"packing {split}", sum(count_rows(data, path) for path in paths)) as bar:
            shards = write_shards(_counted(data, paths, bar), out, split, size, broken)
        print(f"{out}/{split}-*.tar: {len(shards)} shards")
    _say_broken(broken)


@data_app.command("encode")
def encode_rows(
    source: Source,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or one to go on with.")],
    tokenizer: Annotated[Path, typer.Option(help="A VQ tokenizer, or a policy that has one.")],
    size: Annotated[int, typer.Option(min=1, help="Rows per shard.")] = 10_000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that the tokenizer encodes at once.")] = 32,
) -> None:
    """Encode the targets once: tar shards as `mentor data shard` makes them, whose rows carry VQ codes."""
    import torch

    from mentor_base.checkpoint import load_tokenizer_of
    from mentor_base.data.broken import BrokenRows
    from mentor_base.data.encode import encode_split, start_folder
    from mentor_base.data.sources import count_rows
    from mentor_base.progress import ProgressBar
    from mentor_base.runlog import BROKEN

    data, files = _one_section(source)
    vq = load_tokenizer_of(tokenizer).to(torch.accelerator.current_accelerator() or "cpu")
    manifest = start_folder(out, vq, size, files)
    broken = BrokenRows(data.broken_rate, out / BROKEN)
    for split, paths in files.items():
        if split in manifest["rows"]:
            print(f"{out}/{split}-*.tar: finished before, {manifest['rows'][split]} rows")
            continue
        with ProgressBar(f"encoding {split}", sum(count_rows(data, path) for path in paths)) as bar:
            count = encode_split(_counted(data, paths, bar), out, split, manifest, vq, batch, broken)
        print(f"{out}/{split}-*.tar: {count} rows with codes of tokenizer {manifest['tokenizer']}")
    _say_broken(broken)


def row_sections(source: str) -> list[RowData]:
    """The rows that a recipe names, each section once; or those of a path.

    Raises:
        UserError: a recipe without rows on disk.
    """
    from mentor_base.data.sources import data_of_path

    if Path(source).suffix not in (".yaml", ".yml"):
        return [data_of_path(source)]
    from mentor_rl.recipe_files import load_recipe

    recipe = load_recipe(source, need_inputs=False)  # rows can be looked at before the policy is there that they train
    sections = list(dict.fromkeys(_row_sections(recipe)))
    if not sections:
        raise UserError(f"{source}: expected data of source jsonl, shards, parquet or prompts, found none")
    return sections


def refuse_full(out: Path) -> None:
    """A folder with anything in it is not written to."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: expected a new or an empty folder, found other files")


def _row_sections(section: BaseModel) -> Iterator[RowData]:
    from pydantic import BaseModel

    from mentor_base.settings import RowData

    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, RowData):
            yield value
        elif isinstance(value, BaseModel):
            yield from _row_sections(value)


def _one_section(source: str) -> tuple[RowData, dict[str, list[Path]]]:
    """The rows to pack, and their files by split."""
    from mentor_base.data.sources import split_files
    from mentor_base.settings import PromptData

    sections = row_sections(source)
    if len(sections) != 1:
        raise UserError(
            f"{source}: expected one section of data to pack, found {len(sections)}; give its files instead"
        )
    if isinstance(sections[0], PromptData):
        raise UserError(f"{source}: expected rows with targets to pack, found prompts without answers")
    return sections[0], split_files(sections[0])


def _counted(data: RowData, paths: Sequence[Path], bar: ProgressBar) -> Iterator[Row | UserError]:
    from mentor_base.data.sources import scan_file

    for path in paths:
        for row in scan_file(data, path):
            yield row
            bar.advance()


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise UserError(f"--map: expected OLD=NEW, found '{text}'")
    return old, new


def _say_broken(broken: BrokenRows) -> None:
    if broken.met:
        print(f"{broken.met} rows with broken pictures were left out; {broken.report} names them")


def _check_table(split: str, found: DataCheck) -> Table:
    from rich.table import Table

    table = Table("task", "rows", "references", "target sizes", "broken", box=None, header_style="bold", title=split)
    for task, count in found.tasks.items():
        table.add_row(task, str(count.rows), _range(count.references), _sizes(count.targets), str(count.broken))
    return table


def _import_table(counts: ImportCounts) -> Table:
    from rich.table import Table

    table = Table("task", "read", "written", "pictures made", "broken", box=None, header_style="bold")
    for task, read in sorted(counts.read.items()):
        numbers = (read, counts.written[task], counts.pictures[task], counts.broken[task])
        table.add_row(task, *map(str, numbers))
    return table


def _range(numbers: Sequence[int] | Counter[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    """The commonest size with its share, and the extremes by area."""
    if not sizes:
        return "-"
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    (width, height), rows = sizes.most_common(1)[0]
    common = f"{width}x{height}"
    if len(sizes) == 1:
        return common
    small, large = (f"{w}x{h}" for w, h in (by_area[0], by_area[-1]))
    return f"{small} to {large}, {rows / sizes.total():.0%} {common}"
