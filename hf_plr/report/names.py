"""`cluster_names.json`: names that people gave to clusters, and to those of levels, by number."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_plr.utils.files import write_text

NAMES_FILE = "cluster_names.json"
FORMAT = "hf-plr-names-1"
LONGEST_NAME = 60  # characters
JOINER = re.compile(r"(?<=[^\s\u200c\u200d])[\u200c\u200d](?=[^\s\u200c\u200d])")


def read_cluster_names(folder: str | os.PathLike[str]) -> dict[int, str]:
    """Read the names in a run's output folder, by cluster, ascending; empty where there are none.

    Clusters that an earlier run had and this one has no more may have names too.

    Raises:
        ValueError: if the file is damaged, naming it and the fault.
    """
    return _read(folder)[0]


def read_level_names(folder: str | os.PathLike[str]) -> dict[int, dict[int, str]]:
    """Read the names that clusters of levels have, by number, by the number of clusters of the level.

    Raises:
        ValueError: as `read_cluster_names`.
    """
    return _read(folder)[1]


def _read(folder: str | os.PathLike[str]) -> tuple[dict[int, str], dict[int, dict[int, str]]]:
    path = Path(folder) / NAMES_FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as names of clusters: {error}") from error
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        levels = content.get("levels", {})
        if not isinstance(levels, dict):
            raise ValueError("it holds no names of levels")
        of_levels = {_parse_label(n): parse_names(names) for n, names in levels.items()}
        return parse_names(content.get("names")), dict(sorted(of_levels.items()))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as names of clusters: {error}") from error


def parse_names(content: Any) -> dict[int, str]:
    """Parse names by number as JSON holds them.

    Raises:
        ValueError: with the fault.
    """
    if not isinstance(content, dict):
        raise ValueError("it holds no names")
    return dict(sorted((_parse_label(label), validate_name(name)) for label, name in content.items()))


def write_cluster_names(
    folder: str | os.PathLike[str], names: Mapping[int, str], levels: Mapping[int, Mapping[int, str]] | None = None
) -> None:
    """Write the names into a run's output folder in place of those there; without names there is no file afterwards.

    Args:
        folder: the folder.
        names: name by cluster.
        levels: names of clusters of levels, by the number of clusters of the level; None keeps those that are there.

    Raises:
        ValueError: if a name is not valid, see `validate_name`.
        OSError: if the file cannot be written; what was there stays.
    """
    path = Path(folder) / NAMES_FILE
    levels = read_level_names(folder) if levels is None else levels
    content: dict[str, Any] = {"format": FORMAT, "names": _as_json(names)}
    of_levels = {str(int(n)): _as_json(of_level) for n, of_level in sorted(levels.items()) if of_level}
    if not names and not of_levels:
        path.unlink(missing_ok=True)
        return
    content |= {"levels": of_levels} if of_levels else {}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def carry_names(names: Mapping[int, str], renumbered: Mapping[int, int]) -> dict[int, str]:
    """Names of the clusters of a run before, also of those that go on under another number.

    Args:
        names: name by cluster of the run before.
        renumbered: number now by number before.
    """
    return {**{now: names[before] for before, now in renumbered.items() if before in names}, **names}


def _as_json(names: Mapping[int, str]) -> dict[str, str]:
    return {str(int(label)): validate_name(name) for label, name in sorted(names.items())}


def validate_name(name: object) -> str:
    """Return a name of a cluster: one line of 1 to 60 printable characters, without spaces around it.

    Spaces of any width become plain ones. Zero width joiners and non-joiners, which Persian, Indic scripts and emoji
    need, may stand between two other characters that are not spaces.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(name, str):
        raise ValueError(f"a name is text, not {type(name).__name__}")
    if not name.strip():
        raise ValueError("a name is empty")
    name = unify_spaces(name)
    if not JOINER.sub("", name).isprintable() or name != name.strip():
        raise ValueError(f"the name {name[:LONGEST_NAME]!a} is not one line of printable characters")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name {name[:20] + '...'!a} has {len(name)} characters, more than {LONGEST_NAME}")
    return name


def unify_spaces(text: str) -> str:
    """Replace every Unicode space by a plain one; tabs and ends of lines, which are control characters, stay."""
    return "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)


def format_cluster(label: int, names: Mapping[int, str]) -> str:
    """Format a cluster for people: "crack (3)", or "3" without a name."""
    return f"{names[label]} ({label})" if label in names else str(label)


def _parse_label(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text[:LONGEST_NAME]!a} is not the number of a cluster")
    return int(text)
