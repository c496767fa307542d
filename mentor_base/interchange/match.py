"""Which tensor of a checkpoint is which of ours: all of them or an error that says what the checkpoint looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mentor_base.config import SIZES, MentorConfig
from mentor_base.errors import UserError
from mentor_base.interchange.names import LLAMAGEN, MENTOR, OURS, VQ16, Layout
from mentor_base.interchange.weight_files import Pieces
from mentor_base.misfit import Misfit
from mentor_base.model import MentorForConditionalGeneration

Shape = tuple[int, ...]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Blueprint:
    """What a policy of some config consists of.

    Attributes:
        model: on the meta device: shapes without memory.
        shapes: of every stored tensor, by name.
        tied: second names of a tensor -> the name under which it is stored.
    """

    model: MentorForConditionalGeneration
    shapes: dict[str, Shape]
    tied: dict[str, str]

    @classmethod
    def of(cls, config: MentorConfig) -> Blueprint:
        with torch.device("meta"):
            model = MentorForConditionalGeneration(config)
        tied = {str(alias): str(name) for alias, name in model.all_tied_weights_keys.items()}
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
        return cls(model, shapes, tied)

    def below(self, *starts: str) -> dict[str, Shape]:
        """Shapes of the tensors whose names start with one of ``starts``."""
        return {name: shape for name, shape in self.shapes.items() if name.startswith(starts)}


def gather(
    tensors: Tensors,
    layout: Layout,
    shapes: Mapping[str, Shape],
    where: str,
    tied: Mapping[str, str] | None = None,
) -> tuple[dict[str, Pieces], list[str]]:
    """-> (our names -> their tensors in pieces, their names that are left out). Nothing is read from disk.

    Args:
        shapes: our names and shapes.
        tied: second names of ours -> first ones. Theirs may hold either or both; both have to be equal.

    Raises:
        UserError: missing, unknown or misshapen tensors, or unequal copies of a tied one.
    """
    tied = {alias: name for alias, name in (tied or {}).items() if name in shapes}
    misfit = Misfit()
    found: dict[str, Pieces] = {}
    expected: dict[str, None] = {}  # their names, in our order
    for name, shape in shapes.items():
        aliases = [name, *(alias for alias, first in tied.items() if first == name)]
        options = [keys for keys in map(layout.keys, aliases) if keys]
        held = [keys for keys in options if any(key in tensors for key in keys)] or options[:1]
        if not held:
            misfit.missing.append(f"'{name}' has no place in a {layout.title} checkpoint")
        copies = [_pieces(tensors, keys, shape, misfit) for keys in held]
        expected.update((key, None) for keys in held for key in keys)
        if all(copies) and copies:
            found[name] = copies[0]
            _check_equal(copies, held, where)
    rest = [key for key in tensors if key not in expected]
    left_out = [key for key in rest if layout.leaves_out(key)]
    surplus = [key for key in rest if not layout.leaves_out(key)]
    misfit.note_names(surplus, [key for key in expected if key not in tensors])
    misfit.check(where, lambda: looks_like(tensors))
    return found, left_out


def _pieces(tensors: Tensors, keys: tuple[str, ...], shape: Shape, misfit: Misfit) -> Pieces:
    """The tensors behind one of ours; empty when one of them does not fit."""
    expected = (shape[0] // len(keys), *shape[1:]) if shape else shape
    fits = []
    for key in keys:
        if key in tensors and tuple(tensors[key].shape) != expected:
            misfit.note_shape(key, expected, tensors[key].shape)
        elif key in tensors:
            fits.append(tensors[key])
    return tuple(fits) if len(fits) == len(keys) else ()


def _check_equal(copies: list[Pieces], keys: list[tuple[str, ...]], where: str) -> None:
    first = copies[0][0]
    for (other,), (key,) in zip(copies[1:], keys[1:], strict=True):
        if other.data_ptr() != first.data_ptr() and not torch.equal(other, first):
            raise UserError(f"{where}: '{key}': expected a copy of '{keys[0][0]}', found other values")


def looks_like(tensors: Tensors) -> str:
    """What a state dict probably is, as the end of an error line."""
    for layout in (VQ16, OURS):
        (table,) = layout.keys("codes.weight")
        if table in tensors:
            codes, width = _rows(tensors, table)
            return f"looks like a {layout.title} tokenizer with {codes} codes of {width}"
    if "shared.weight" in tensors:
        return f"looks like a T5 of width {_rows(tensors, 'shared.weight')[1]}"
    if "cls_embedding.embedding_table.weight" in tensors:
        return "looks like a class-conditional LlamaGen, which has no text prefix"
    for layout, mark in ((OURS, ""), (MENTOR, "encoder.text.shared.weight"), (LLAMAGEN, "decoder.norm.weight")):
        size = decoder_size(tensors, layout)
        if size is not None and (not mark or layout.keys(mark)[0] in tensors):
            return (
                f"looks like {layout.title} {size_name(*size) or 'of no known size'}: width {size[0]}, {size[1]} layers"
            )
    return "looks like none of the checkpoints known here"


def decoder_size(tensors: Tensors, layout: Layout) -> tuple[int, int] | None:
    """(width, layers) of the decoder in a state dict; None where there is none."""
    table = layout.keys("decoder.embedding.weight")[0]
    if table not in tensors:
        return None
    layers = 0
    while layout.keys(f"decoder.blocks.{layers}.attention_norm.weight")[0] in tensors:
        layers += 1
    return _rows(tensors, table)[1], layers


def size_name(width: int, layers: int) -> str | None:
    """The row of SIZES with this width and depth."""
    for name, row in SIZES.items():
        if (row["hidden_size"], row["num_hidden_layers"]) == (width, layers):
            return name
    return None


def _rows(tensors: Tensors, key: str) -> tuple[int, int]:
    shape = tensors[key].shape
    return (int(shape[0]), int(shape[-1])) if len(shape) == 2 else (0, 0)
