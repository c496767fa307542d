"""``mentor import``: checkpoints of LlamaGen, MENTOR, VQ-16 and transformers as folders of ours, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mentor_base.errors import UserError

if TYPE_CHECKING:
    from mentor_base.interchange.report import ImportReport

LISTED = 8  # names shown of a long list; import.json has all


def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="A .pt, .bin or .safetensors file, or a folder (shards too).")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist or be empty.")],
    kind: Annotated[Literal["llamagen", "mentor", "vq", "hf"], typer.Option("--from", help="What SOURCE is.")],
    size: Annotated[str | None, typer.Option(help="B, L, XL, ...; default: recognised from the shapes.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the drawn picture; weights do not say it.")] = None,
    vq: Annotated[Path | None, typer.Option(help="VQ-16 file, or a tokenizer folder of ours, to put in.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder with the text tokenizer.json (FlanT5's).")] = None,
    text_encoder: Annotated[Path | None, typer.Option(help="transformers folder of FlanT5 (llamagen).")] = None,
    vision: Annotated[Path | None, typer.Option(help="transformers folder of CLIP or its tower (llamagen).")] = None,
    connector: Annotated[
        Path | None, typer.Option(help="mm_projector file (llamagen); default: a new connector.")
    ] = None,
    prefix_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of the unconditional table = longest prefix; default: the source's.")
    ] = None,
    keep_rows: Annotated[
        Literal["front", "tail"] | None,
        typer.Option(
            help="Where the source's rows go when their number changes. Prefixes are padded on the left and read the "
            "table's tail; MENTOR copied LlamaGen's 120 rows to the front of 512, where short prompts never see them."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="On disk; default: as in the source.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A field of the policy, e.g. prefix_rotation=identity; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what no source holds.")] = 0,
) -> None:
    """Turn a checkpoint of another project into a folder that training, sampling and export read."""
    from mentor_base.interchange.importing import import_checkpoint as convert
    from mentor_base.interchange.options import ImportOptions
    from mentor_rl.export import make_readable, new_folder

    options = ImportOptions(
        size=size,
        image_size=image_size,
        prefix_rows=prefix_rows,
        keep_rows=keep_rows,
        dtype=dtype,
        options=_fields(option or []),
        vq=vq,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vision=vision,
        connector=connector,
        seed=seed,
    )
    with new_folder(out) as folder:
        report = convert(source, kind, folder, options)
        make_readable(folder)
    show(report)
    print(out)


def _fields(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE with values as in YAML."""
    import yaml

    fields: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise UserError(f"--option: expected KEY=VALUE, found '{pair}'")
        try:
            fields[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--option {key}: expected a YAML value, found '{value}'") from error
    return fields


def show(report: ImportReport) -> None:
    """Print what was mapped, left out, freshly initialised and chosen."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("part", "from", "tensors", "parameters", "dtype", box=None, header_style="bold")
    for part in report.parts:
        kinds = ", ".join(part.dtypes)
        table.add_row(part.name, part.source, str(part.tensors), f"{part.parameters:,}", kinds)
    console.print(table)
    choices = [f"{name}: {value}" for name, value in report.choices.items()]
    fresh = [f"{name}: {how}" for name, how in report.fresh.items()]
    for title, lines in (("chosen", choices), ("freshly initialised", fresh), ("left out", report.left_out)):
        if lines:
            console.print(f"[bold]{title}[/bold]")
            listed = lines if title == "chosen" else lines[:LISTED]
            for line in listed:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
            if len(lines) > len(listed):
                console.print(f"  and {len(lines) - len(listed)} more, all in import.json")
