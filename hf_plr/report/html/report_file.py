"""Files of a report: `report.json` with everything that the page shows, and `report.html`, the page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_plr.report.file_names import PAGE_FILE
from hf_plr.report.html.folder_facts import collect_folder_facts
from hf_plr.report.html.render import as_json, render
from hf_plr.report.html.tree_facts import find_tree
from hf_plr.utils.files import write_text

DATA_FILE = "report.json"
FORMAT = "hf-plr-report-1"

_NUMBER = (int, float)
_SHAPE: dict[str, Any] = {  # fields that the page and a resumed run rely on
    "title": str,
    "run": {"noun": str, "plural": str, "members": str, "samples": int, "stage": str, "finished": bool},
    "facts": [str],
    "scores": dict,
    "score_titles": dict,
    "curves": [{"name": str, "title": str, "what": str, "points": [[_NUMBER]]}],
    "stages": [{"epoch": int, "clusters": int, "noise": int}],
    "sizes": {"clusters": [[_NUMBER]], "of": int, "noise": int},
    "sheets": {"random": [str], "clusters": [{"id": int, "most": [str], "least": [str], "changed": [str]}], "of": int},
    "samples": {"*": [object]},
    "media": {"*": {"*": str}},
    "settings": [[str]],
    "versions": dict,
}
_TREE: dict[str, Any] = {"labels": [int], "sizes": [int], "nodes": [[int]], "heights": [_NUMBER], "levels": [int]}


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the data of a report.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged; the message names the file and the fault.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as the data of a report: {error}") from error
    fault = "it is not a JSON object" if not isinstance(data, dict) else None
    if fault is None and data.get("format") != FORMAT:
        fault = f"its format is {str(data.get('format'))[:40]!r}, not {FORMAT!r}"
    fault = fault or _find_fault(data, _SHAPE, "")
    if fault is None and data.get("tree") is not None:  # which older files do not have
        fault = _find_fault(data["tree"], _TREE, "tree")
    if fault is not None:
        raise ValueError(f"{path} cannot be read as the data of a report: {fault}")
    return data


def write_report(folder: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Write a report's data and its page, with the names, the history and the tree in the folder.

    Each file is complete or as it was before.

    Raises:
        OSError: if they cannot be written.
        ValueError: if names, history or tree are damaged.
    """
    data = data | collect_folder_facts(folder) | {"tree": find_tree(folder, data)}
    text = as_json(data)
    page = render(data, text)
    os.makedirs(folder, exist_ok=True)
    write_text(Path(folder) / DATA_FILE, text)
    write_text(Path(folder) / PAGE_FILE, page)


def _find_fault(value: Any, shape: Any, place: str) -> str | None:
    """Compare a value with a shape: a type, or a list or dictionary of shapes ("*": all); None if it fits."""
    kind: Any = type(shape) if isinstance(shape, (list, dict)) else shape
    if not isinstance(value, kind):
        return f"{place.strip('.')!r} is {'missing' if value is None else 'of another kind'}"
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(shape, list):
        pairs = [(f"{place}[{i}]", item, shape[0]) for i, item in enumerate(value)]
    elif isinstance(shape, dict) and "*" in shape:
        pairs = [(f"{place}.{name}", item, shape["*"]) for name, item in value.items()]
    elif isinstance(shape, dict):
        pairs = [(f"{place}.{name}", value.get(name), expected) for name, expected in shape.items()]
    faults = (_find_fault(item, expected, where) for where, item, expected in pairs)
    return next((fault for fault in faults if fault), None)
