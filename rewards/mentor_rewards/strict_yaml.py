"""YAML as recipes need it: one mapping, no key twice, 1e-4 is a number, and every key knows its line.

Here, and not in mentor_rl, because a reward server reads the same files.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from mentor_rewards.contract import RewardError

Keys = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where 1e-4 is a string; YAML 1.2 has it as a number, and so have we. No aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed here", event.start_mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass
class Document:
    """A mapping, and the line (from 1) on which each of its keys or list items stands."""

    data: dict[str, Any]
    lines: dict[Keys, int] = field(default_factory=dict)

    def line(self, keys: Keys) -> int | None:
        """The line of this key, or of the nearest section around it."""
        while keys:
            if keys in self.lines:
                return self.lines[keys]
            keys = keys[:-1]
        return None


def parse_document(text: str, name: str) -> Document:
    """Read one YAML mapping. Errors name the file and the line."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise RewardError(f"{name}: expected a recipe, found an empty file")
        if not isinstance(root, yaml.MappingNode):
            raise RewardError(f"{name}:{_line(root)}: expected 'key: value' lines, found a {_kind(root)}")
        lines: dict[Keys, int] = {}
        _collect_lines(root, (), lines, name)
        return Document(loader.construct_document(root), lines)
    except yaml.YAMLError as error:
        raise RewardError(_syntax_error(error, name)) from error
    finally:
        loader.dispose()


def parse_value(text: str) -> Any:
    """One value as it would stand behind a key. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def _collect_lines(node: yaml.Node, keys: Keys, lines: dict[Keys, int], name: str) -> None:
    """Note the line of every key below ``node``, and refuse keys that are not plain text or stand there twice."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*keys, i)] = _line(item)
            _collect_lines(item, (*keys, i), lines, name)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value in node.value:
        key: Hashable = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str) or key == "<<":
            raise RewardError(f"{name}:{_line(key_node)}: expected a name as key, found {key!r}")
        here = (*keys, key)
        if here in lines:
            dotted = ".".join(map(str, here))
            raise RewardError(f"{name}:{_line(key_node)}: {dotted}: key given twice, first on line {lines[here]}")
        lines[here] = _line(key_node)
        _collect_lines(value, here, lines, name)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_error(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f"{name}:{mark.line + 1}" if mark is not None else name
    return f"{where}: not YAML: {problem}"


def _kind(node: yaml.Node) -> str:
    return "list" if isinstance(node, yaml.SequenceNode) else "single value"
