"""YAML files with arguments: what is read of them, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

DEPTH = 20
EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # numbers of YAML 1.2 that PyYAML reads as text


def read_yaml(path: str) -> dict[str, Any]:
    """Read the values of a file by name; none of an empty one.

    Raises:
        OSError: if it cannot be read.
        ValueError, yaml.YAMLError: if it is no YAML of 'name: value' lines, gives a name twice, has aliases, or is
            nested deeply.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    _check_plain(text)
    values = yaml.load(text, _UniqueNames) or {}  # noqa: S506  # a SafeLoader
    if not isinstance(values, dict):
        raise ValueError(f"expected 'name: value' lines, got {type(values).__name__}")
    return values


def as_numbers(value: Any) -> Any:
    """Convert texts such as 1e-6 within lists and dictionaries to numbers; a text by itself stays what it is."""
    if isinstance(value, dict):
        return {name: _as_number(part) for name, part in value.items()}
    return [_as_number(part) for part in value] if isinstance(value, list) else value


def _as_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else as_numbers(value)


class _UniqueNames(yaml.SafeLoader):
    """Loader that refuses a name which stands twice: the first would have no effect."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} stands in it twice: leave one of them")
        return super().construct_mapping(node, deep)


def _check_plain(text: str) -> None:
    """Reject YAML that grows from kilobytes to gigabytes or hours.

    Raises:
        ValueError: if it has aliases or deep nesting.
    """
    depth = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases (*name) are not supported: write the value out")
        if depth > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} deep: write 'name: value' lines")
