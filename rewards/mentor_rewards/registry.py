"""From the name of a reward to a constructed reward.

A name is one of BUILT_IN, an entry point of the group ``mentor.rewards``, ``package.module:Class``, or
``path/to/file.py:Class``. Listing reads metadata only: nothing is imported, so a broken plugin cannot break it. Code
runs only when an entry names it.

Options go to the constructor by keyword and are checked against its signature and annotations. A parameter annotated
``Path`` is a file or folder that must exist; relative ones are looked up in ``base``, then in the current folder.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from mentor_rewards.contract import (
    AnyReward,
    AsyncReward,
    Reward,
    RewardEntry,
    RewardError,
    RewardSpec,
    error_line,
    nearest,
    one_line,
)
from mentor_rewards.weights import input_places

GROUP = "mentor.rewards"

BUILT_IN: dict[str, str] = {
    "clip_image": "mentor_rewards.clip_image:ClipImage",
    "clip_text": "mentor_rewards.clip_text:ClipText",
    "hpsv2": "mentor_rewards.hpsv2:HPSv2",
    "hpsv2.1": "mentor_rewards.hpsv2:HPSv21",
    "pickscore": "mentor_rewards.pickscore:PickScore",
    "aesthetic": "mentor_rewards.aesthetic:Aesthetic",
    "dino": "mentor_rewards.dino:Dino",
    "dinov2": "mentor_rewards.dino:DinoV2",
    "style": "mentor_rewards.style:Style",
    "subject": "mentor_rewards.subject:Subject",
    "efficientnet_similarity": "mentor_rewards.efficientnet:EfficientNetSimilarity",
    "remote": "mentor_rewards.remote:Remote",
    "colour_match": "mentor_rewards.colour_match:ColourMatch",
    "shape_match": "mentor_rewards.shape_match:ShapeMatch",
    "qwen_vl_t2i": "mentor_rewards.qwen_vl:QwenVlT2i",
    "qwen_vl_subject": "mentor_rewards.qwen_vl:QwenVlSubject",
    "jpeg_size": "mentor_rewards.jpeg_size:JpegSize",
    "image_reward": "mentor_rewards.image_reward:ImageReward",
    "ocr_match": "mentor_rewards.ocr_match:OcrMatch",
    "nsfw_guard": "mentor_rewards.nsfw:NsfwGuard",
}


@dataclass(frozen=True)
class Listed:
    """A registered name as metadata has it: what it stands for, and the package that says so.

    ``shadowed``: a built-in has this name already; the reward is reached as ``target``.
    """

    name: str
    target: str
    package: str
    shadowed: bool = False


@dataclass(frozen=True)
class Option:
    """One constructor option: its annotation as written, and the default's repr (None: required)."""

    name: str
    type: str
    default: str | None


@dataclass(frozen=True)
class Description:
    """What is known of a reward without loading weights; ``file`` is where its class stands."""

    name: str
    where: str
    file: str
    about: str
    options: tuple[Option, ...]
    spec: RewardSpec | None


def listed() -> list[Listed]:
    """Everything that is registered, by name, without importing any of it."""
    built_in = [Listed(name, target, "mentor_rewards") for name, target in BUILT_IN.items()]
    plugins = [
        Listed(point.name, point.value, _distribution(point), shadowed=point.name in BUILT_IN)
        for point in entry_points(group=GROUP)
    ]
    return sorted({*built_in, *plugins}, key=lambda found: (found.name, found.shadowed, found.package))


def names() -> dict[str, str]:
    """Every registered name and what it stands for, without importing any reward."""
    return {found.name: found.target for found in listed() if not found.shadowed}


def build_reward(name: str, entry: RewardEntry, base: Path | None = None) -> AnyReward:
    """Construct the reward that an entry asks for; cheap, weights come with ``load``.

    Args:
        name: the entry's own name, also the reward's when ``use`` is absent.
        base: the recipe's folder, for relative paths.

    Raises:
        RewardError: unknown name, missing file, class or member; unknown, missing or ill-typed option.
    """
    cls = reward_class(entry.use or name, base)
    options = _checked_options(name, cls, entry.options, base)
    try:
        reward = cls(**options)
    except RewardError as error:
        raise RewardError(f"reward '{name}': {error}") from error
    except Exception as error:
        raise RewardError(f"reward '{name}': {cls.__name__} cannot be built: {error_line(error)}") from error
    if not isinstance(getattr(reward, "spec", None), RewardSpec):
        raise RewardError(f"reward '{name}': {cls.__name__} has no member 'spec'; expected a RewardSpec")
    return typing.cast("AnyReward", reward)


def reward_class(use: str, base: Path | None = None) -> type:
    """The class behind a registered name, ``package.module:Class`` or ``file.py:Class``; checked for its members."""
    cls = _find_class(use, base)
    if not isinstance(cls, type):
        raise RewardError(f"reward '{use}': expected a class, found {type(cls).__name__}")
    missing = _missing_members(cls)
    if missing:
        raise RewardError(f"reward '{use}': {cls.__name__} is not a Reward, it has no {' and no '.join(missing)}")
    return cls


def describe(use: str, base: Path | None = None) -> Description:
    """Options, spec and the first paragraph of the docstring; imports the reward's module, loads no weights."""
    cls = reward_class(use, base)
    options = tuple(
        Option(
            name=parameter.name,
            type="any" if parameter.annotation is parameter.empty else _as_written(parameter.annotation),
            default=None if parameter.default is parameter.empty else repr(parameter.default),
        )
        for parameter in _parameters(cls).values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    )
    about = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    spec = getattr(cls, "spec", None)
    where, file = names().get(use, use), str(inspect.getsourcefile(cls))
    return Description(use, where, file, about, options, spec if isinstance(spec, RewardSpec) else None)


def _as_written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _find_class(use: str, base: Path | None) -> Any:
    if use in BUILT_IN:
        return _from_module(use, BUILT_IN[use])
    plugins = [found for found in listed() if found.name == use]
    if len(plugins) > 1:
        both = " and ".join(f"{found.target} ({found.package})" for found in plugins)
        raise RewardError(f"reward '{use}': two packages have this name: {both}; say which with package.module:Class")
    if plugins:
        return _from_module(use, plugins[0].target)
    place, colon, class_name = use.rpartition(":")
    if colon and place.endswith(".py"):
        return _from_file(use, place, class_name, base)
    if colon:
        return _from_module(use, use)
    raise RewardError(f"unknown reward '{use}'; {nearest(use, names())} (a plugin is written file.py:Class)")


def _from_module(use: str, target: str) -> Any:
    module_name, _, class_name = target.partition(":")
    if not module_name or not class_name:
        raise RewardError(f"reward '{use}': expected package.module:Class, found '{target}'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RewardError(f"reward '{use}': cannot import {module_name}: {one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise RewardError(f"reward '{use}': {module_name} fails on import: {error_line(error)}") from error
    return _member(use, module, class_name, module_name)


def _from_file(use: str, place: str, class_name: str, base: Path | None) -> Any:
    places = input_places(place, base)
    path = next((found for found in places if found.is_file()), None)
    if path is None:
        raise RewardError(f"reward '{use}': expected a plugin file, found none at {' or '.join(map(str, places))}")
    return _member(use, _load_file(use, path.resolve()), class_name, str(path))


def _load_file(use: str, path: Path) -> types.ModuleType:
    """Run a plugin file once per process, under a name of its own (so its classes can be pickled by reference here)."""
    module_name = f"mentor_rewards_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward '{use}': cannot read {path} as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        hint = _about_neighbours(path, error)
        raise RewardError(f"reward '{use}': {path} fails on import: {error_line(error)}{hint}") from error
    return module


def _about_neighbours(path: Path, error: BaseException) -> str:
    """The end of the line for a plugin file that imports another one beside it."""
    wanted = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if not wanted or not any((path.parent / name).exists() for name in (wanted, f"{wanted}.py")):
        return ""
    return "; a plugin file is imported alone, several belong into a package (`mentor rewards new` writes one)"


def _member(use: str, module: types.ModuleType, class_name: str, where: str) -> Any:
    if hasattr(module, class_name):
        return getattr(module, class_name)
    classes = {key: value for key, value in vars(module).items() if isinstance(value, type)}
    own = [key for key, value in classes.items() if value.__module__ == module.__name__]
    raise RewardError(f"reward '{use}': no class '{class_name}' in {where}; {nearest(class_name, own)}")


def _missing_members(cls: type) -> list[str]:
    """What a class lacks to be a reward. A ``score`` inherited from the protocol itself does nothing, so it is none."""

    def own(name: str) -> bool:
        found = getattr(cls, name, None)
        return callable(found) and found not in (getattr(Reward, name, None), getattr(AsyncReward, name, None))

    missing = [f"'{name}'" for name in ("load", "unload") if not callable(getattr(cls, name, None))]
    if not own("score") and not own("ascore"):
        missing.append("'score' (or 'ascore')")
    elif own("ascore") and not inspect.iscoroutinefunction(cls.ascore):  # type: ignore[attr-defined]
        missing.append("'async def ascore' ('ascore' is a plain function)")
    return missing


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """Constructor parameters; none for a class that only inherits ``object`` or a protocol's ``__init__``."""
    init = cls.__init__  # type: ignore[misc]
    if init is object.__init__ or init.__module__ == "typing":
        return {}
    return dict(list(inspect.signature(init).parameters.items())[1:])


def _checked_options(name: str, cls: type, options: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    parameters = _parameters(cls)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {key: p for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    for key in options:
        if key not in named and not open_ended:
            raise RewardError(f"reward '{name}': unknown option '{key}'; {nearest(key, named)}")
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in options:
            raise RewardError(f"reward '{name}': missing option '{key}'; options: {', '.join(named)}")
    hints = _hints(name, cls) if named else {}
    return {key: _typed(name, key, value, hints.get(key, Any), base) for key, value in options.items()}


def _hints(name: str, cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    except Exception as error:  # most often a name that is imported under TYPE_CHECKING only
        raise RewardError(
            f"reward '{name}': cannot read the annotations of {cls.__name__}.__init__, by which options are checked: "
            f"{error_line(error)}"
        ) from error


def _typed(name: str, key: str, value: Any, hint: Any, base: Path | None) -> Any:
    """The value as the annotation wants it: numbers, tuples, literals by pydantic; paths must exist."""
    if value is not None and Path in (hint, *typing.get_args(hint)) and isinstance(value, str | Path):
        places = input_places(value, base)
        found = next((place for place in places if place.exists()), None)
        if found is None:
            looked = " or ".join(map(str, places))
            raise RewardError(f"reward '{name}': option '{key}': no such file or folder: {looked}")
        return found
    try:
        return _adapter(hint).validate_python(value, context={"base": base})
    except ValidationError as error:
        problem = error.errors()[0]
        raise RewardError(f"reward '{name}': option '{key}': {problem['msg']}, found {value!r}") from error


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # the type brings its own configuration
        return TypeAdapter(hint)


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "unknown package"
