"""Recipe files: strict YAML, ``key.sub=value`` overrides, and input paths looked up by the rule in recipe.py."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from glob import iglob
from pathlib import Path
from typing import Any, get_args

import yaml
from mentor_rewards.contract import RewardEntry
from mentor_rewards.weights import hub_id
from pydantic import BaseModel, ValidationError

from mentor_base.errors import UserError, nearest
from mentor_base.runlog import MARKER, RunFolder
from mentor_base.settings import InputMark
from mentor_rl.ablation.recipe import AblateRecipe
from mentor_rl.evaluate.recipes import BENCHMARKS
from mentor_rl.recipe import GrpoRecipe, Recipe, ScorerRecipe, SftRecipe, TokenizerRecipe
from mentor_rl.recipe_common import Common
from mentor_rl.strict_yaml import Document, Keys, parse_document, parse_value

KINDS: dict[str, type[Common] | Mapping[str, type[Common]]] = {
    "tokenizer": TokenizerRecipe,
    "sft": SftRecipe,
    "scorer": ScorerRecipe,
    "grpo": GrpoRecipe,
    "evaluate": BENCHMARKS,
    "ablate": AblateRecipe,
}
PLUGIN_FILE = re.compile(r"^(?P<file>.+\.py):(?P<name>\w+)$")


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, need_inputs: bool = True) -> Recipe:
    """Read a recipe. Without ``need_inputs`` missing input files are no error and stay as written (``--dry-run``).

    Raises:
        UserError: one line per fault, with file and line, or "command line" for a fault in an override.
    """
    reader = _Reader(Path(path), overrides)
    recipe = reader.validate()
    found: dict[Keys, str] = {}
    missing: list[str] = []
    for keys, value in input_paths(recipe):
        try:
            found[keys] = reader.look_up(keys, value)
        except UserError as error:
            missing.append(str(error))
    if missing and need_inputs:
        raise UserError("\n".join(missing))
    for keys, value in found.items():
        _put(reader.document.data, keys, value)
    return reader.validate()


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe, defaults and found paths included, as plain values: what a run folder keeps."""
    return recipe.model_dump(mode="json")


def input_paths(section: BaseModel, above: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """(keys, path) of every input that a section names; see InputPath, and for rewards recipe.py's docstring."""
    if isinstance(section, RewardEntry):
        yield from _reward_inputs(section, above)
        return
    for name, field in type(section).model_fields.items():
        marked = InputMark in map(type, field.metadata) or _is_marked(field.annotation)
        yield from _inputs_of(getattr(section, name), (*above, name), marked)


def _inputs_of(value: Any, keys: Keys, marked: bool) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, BaseModel):
        yield from input_paths(value, keys)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inputs_of(item, (*keys, key), marked)
    elif isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from _inputs_of(item, (*keys, place), marked)
    elif marked and isinstance(value, str):
        yield keys, value


def _is_marked(annotation: Any) -> bool:
    metadata = getattr(annotation, "__metadata__", ())
    return any(isinstance(mark, InputMark) for mark in metadata) or any(map(_is_marked, get_args(annotation)))


def _reward_inputs(entry: RewardEntry, above: Keys) -> Iterator[tuple[Keys, str]]:
    if entry.use is not None and PLUGIN_FILE.match(entry.use):
        yield (*above, "use"), entry.use
    if isinstance(entry.options.get("checkpoint"), str):
        yield (*above, "options", "checkpoint"), entry.options["checkpoint"]


class _Reader:
    """One recipe file with its overrides: knows where each value came from."""

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self.path = path
        self.document = _read(path)
        self.overridden = {_override(self.document.data, text) for text in overrides}
        self.model = self._kind()

    def where(self, keys: Keys) -> str:
        """The file and line that a value stands on, or the command line."""
        if any(keys[: len(each)] == each for each in self.overridden):
            return "command line"
        line = self.document.line(keys)
        return f"{self.path}:{line}" if line else str(self.path)

    def validate(self) -> Recipe:
        try:
            beside = {"base": self.path.parent}  # where a WeightsSource that is no hub id is looked for first
            return self.model.model_validate(self.document.data, context=beside)  # type: ignore[return-value]
        except ValidationError as error:
            from mentor_rl.recipe_errors import error_lines

            raise UserError("\n".join(error_lines(error, self.model, self.document.data, self.where))) from error

    def look_up(self, keys: Keys, value: str) -> str:
        """The input's path as seen from the current folder: beside the recipe first, overrides here first."""
        plugin = PLUGIN_FILE.match(value)
        file, suffix = (plugin["file"], f":{plugin['name']}") if plugin else (value, "")
        place = self.where(keys)
        candidates = [self.path.parent / Path(file).expanduser(), Path(file).expanduser()]
        if place == "command line":
            candidates.reverse()
        for candidate in candidates:
            if candidate.exists():
                _refuse_unfinished(candidate, f"{place}: {'.'.join(map(str, keys))}")
                return _from_here(candidate) + suffix
            if (
                next(iglob(str(candidate), recursive=True), None) is not None
            ):  # the pattern stays: its reader expands it
                return _from_here(candidate)
        maker = _recipe_that_makes(file, self.path.parent)
        named = hub_id(value) if keys[-2:] == ("options", "checkpoint") else None
        if named is not None and not maker and not any(candidate.parent.is_dir() for candidate in candidates):
            return value  # of a model that the reward fetches, or has in the hub's cache
        tried = " nor ".join(dict.fromkeys(_from_here(candidate) for candidate in candidates))
        neither = "neither " if " nor " in tried else ""
        hint = maker or self._meaning(keys)
        raise UserError(f"{place}: {'.'.join(map(str, keys))}: expected an existing path, found {neither}{tried}{hint}")

    def _meaning(self, keys: Keys) -> str:
        """What a field that names a path stands for, where its description says so."""
        field = self.model.model_fields.get(str(keys[0]))
        return f"; {keys[0]} is {field.description}" if len(keys) == 1 and field and field.description else ""

    def _kind(self) -> type[Common]:
        kind = KINDS[self._name("kind", KINDS)]
        return kind[self._name("benchmark", kind)] if isinstance(kind, Mapping) else kind

    def _name(self, key: str, known: Mapping[str, Any]) -> str:
        """The value of a key that decides which other keys there are."""
        name = self.document.data.get(key)
        if name is None:
            raise UserError(f"{self.path}: {key}: this key has to be given; expected one of {', '.join(sorted(known))}")
        if str(name) not in known:
            raise UserError(f"{self.where((key,))}: {key}: unknown {key} '{name}'; {nearest(str(name), known)}")
        return str(name)


def _read(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a text file in UTF-8, found other bytes") from error
    except FileNotFoundError as error:
        beside = [str(each) for each in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = nearest(str(path), beside) if beside else "see `mentor recipes list`"
        raise UserError(f"{path}: no such recipe; {hint}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read this recipe: {error.strerror}") from error
    return parse_document(text, str(path))


def _override(data: dict[str, Any], text: str) -> Keys:
    """Put ``key.sub=value`` into the data and return its keys."""
    dotted, equals, value_text = text.partition("=")
    keys: Keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"command line: expected key.sub=value, found '{text}'")
    try:
        value = parse_value(value_text)
    except yaml.YAMLError as error:
        raise UserError(f"command line: {dotted}: not a YAML value: '{value_text}'") from error
    _put(data, keys, value)
    return keys


def _put(data: dict[str, Any], keys: Keys, value: Any) -> None:
    section: Any = data
    for depth, key in enumerate(keys[:-1]):
        if isinstance(section, dict) and section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict) and not (isinstance(section, list) and isinstance(keys[depth + 1], int)):
            above = ".".join(map(str, keys[: depth + 1]))
            raise UserError(f"command line: {'.'.join(map(str, keys))}: {above} is a value, not a section")
    section[keys[-1]] = copy.deepcopy(value)


def _refuse_unfinished(path: Path, where: str) -> None:
    """A run folder is an input only once its model is there."""
    if (path / MARKER).exists() and not RunFolder(path).finished and not (path / "config.json").exists():
        raise UserError(f"{where}: expected a finished run, found {path} without a model; train it to the end first")


def _from_here(path: Path) -> str:
    """A path below the current folder is written relative to it, any other one as it is."""
    absolute = os.path.abspath(path)
    here = os.getcwd()
    return os.path.relpath(absolute, here) if absolute.startswith(here + os.sep) else str(path)


def _recipe_that_makes(run: str, folder: Path) -> str:
    """A hint when a recipe beside this one, or in a folder beside its own, writes the run that is missing."""
    for recipe in [*sorted(folder.glob("*.yaml")), *sorted(folder.parent.glob("*/*.yaml"))]:
        try:
            text = recipe.read_text(encoding="utf-8")
            if run not in text:
                continue  # parsing takes longer than reading
            made = parse_document(text, str(recipe)).data.get("run")
        except (UserError, OSError, UnicodeDecodeError):
            continue  # only a hint: a broken neighbour is not this recipe's fault
        if made is not None and Path(str(made)) == Path(run):
            return f"; make it with `mentor train {recipe}`"
    return ""
