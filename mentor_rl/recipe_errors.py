"""pydantic's errors as lines for people: file and line, key, what was expected and found, the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mentor_base.errors import nearest
from mentor_rl.strict_yaml import Keys

MISSING = object()


def error_lines(error: ValidationError, model: type[BaseModel], data: Any, where: Callable[[Keys], str]) -> list[str]:
    """One line per key at fault; ``where`` tells which file and line it comes from.

    A value that none of several types takes has an error for each of them. Where one of them found the fault deeper
    inside, it was meant, and what the others say of the whole value is left out.
    """
    found: dict[Keys, list[str]] = {}
    for detail in error.errors():
        keys = (*real_keys(detail["loc"], data), *_tag_key(detail))
        found.setdefault(keys, []).append(_explain(detail, keys, model))
    above = {keys[:depth] for keys in found for depth in range(len(keys))}
    told = {keys: ", or ".join(dict.fromkeys(said)) for keys, said in found.items() if keys not in above}
    return [": ".join(filter(None, (where(keys), ".".join(map(str, keys)), said))) for keys, said in told.items()]


def real_keys(location: Keys, data: Any) -> Keys:
    """pydantic's location without what it adds to the keys: tags of unions and '[key]'."""
    keys: list[str | int] = []
    for i, part in enumerate(location):
        if part == "[key]":
            continue
        inside = _step(data, part)
        if inside is MISSING and (i + 1 < len(location) or (isinstance(part, str) and not isinstance(data, dict))):
            continue
        keys.append(part)
        data = inside
    return tuple(keys)


def names_at(model: type[BaseModel], keys: Keys) -> list[str]:
    """The field names that are valid in the section at ``keys``."""
    return sorted({name for section in _sections_at(model, keys) for name in section.model_fields})


def _tag_key(detail: ErrorDetails) -> Keys:
    """The key whose value chooses among sections, which pydantic leaves out: 'kind', or a function named for it."""
    discriminator = str(detail.get("ctx", {}).get("discriminator", ""))
    return tuple(re.findall(r"[a-z]+", discriminator)) if detail["type"] == "union_tag_invalid" else ()


def _explain(detail: ErrorDetails, keys: Keys, model: type[BaseModel]) -> str:
    kind, found, context = detail["type"], detail.get("input"), detail.get("ctx", {})
    if kind == "extra_forbidden":
        for section in _sections_at(model, keys[:-1]):
            if keys[-1] in (ruled_out := getattr(section, "RULED_OUT", {})):
                return f"trl's setting is ruled out for pictures: {ruled_out[keys[-1]]}"
        return f"unknown key; {nearest(str(keys[-1]), names_at(model, keys[:-1]))}"
    if kind == "missing":
        return "this key has to be given"
    if kind in ("literal_error", "union_tag_invalid"):
        options = re.findall(r"'([^']*)'", str(context.get("expected", context.get("expected_tags", ""))))
        name = str(context.get("tag", found))
        return f"unknown name '{name}'; {nearest(name, options)}"
    if kind == "value_error":
        return str(context["error"])
    expected = detail["msg"].replace("Input should be", "expected")
    expected = re.sub(r"^expected a valid (tuple|list)", "expected a list", expected)
    expected = re.sub(r"^(Tuple|List|Dictionary) should have", "expected", expected)
    expected = re.sub(r"^expected a valid (\w+)", r"expected a value of type \1", expected)
    return f"{expected}, found {_shown(found)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _step(data: Any, key: str | int) -> Any:
    if isinstance(data, dict):
        return data.get(key, MISSING)
    if isinstance(data, (list, tuple)) and isinstance(key, int) and key < len(data):
        return data[key]
    return MISSING


def _sections_at(model: type[BaseModel], keys: Keys) -> list[type[BaseModel]]:
    """The sections that may stand at ``keys``."""
    annotations: list[Any] = [model]
    for key in keys:
        annotations = [inner for each in annotations for inner in _below(each, key)]
    return [section for each in annotations for section in _models(each)]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a value of this annotation may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _models(inner)]


def _below(annotation: Any, key: str | int) -> list[Any]:
    """The annotations of what stands under ``key``: a field of a section, or a value of a mapping or list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(key))
        return [field.annotation] if field is not None else []
    if get_origin(annotation) is dict:
        return [get_args(annotation)[1]]
    if get_origin(annotation) in (tuple, list):
        return list(get_args(annotation))
    return [found for inner in get_args(annotation) for found in _below(inner, key)]
