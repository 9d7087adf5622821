"""`report.json`, which holds everything that the page shows, and `report.html`, the page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_plr.report.html.render import as_json, render

DATA_FILE = "report.json"
PAGE_FILE = "report.html"
FORMAT = "hf-plr-report-1"

_NUMBER = (int, float)
_SHAPE: dict[str, Any] = {  # what the page and a run that goes on rely on
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


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The data of a report.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, naming it and what is wrong.
    """
    try:
        data = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as the data of a report: {error}") from error
    flaw = "it is no JSON object" if not isinstance(data, dict) else None
    if flaw is None and data.get("format") != FORMAT:
        flaw = f"its format is {str(data.get('format'))[:40]!r}, not {FORMAT!r}"
    flaw = flaw or _flaw(data, _SHAPE, "")
    if flaw is not None:
        raise ValueError(f"{path} cannot be read as the data of a report: {flaw}")
    return data


def write_report(folder: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Write a report's data and its page; each is complete or as it was before.

    Raises:
        OSError: if they cannot be written.
    """
    text = as_json(data)
    page = render(data, text)
    os.makedirs(folder, exist_ok=True)
    write_text(Path(folder) / DATA_FILE, text)
    write_text(Path(folder) / PAGE_FILE, page)


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flaw(value: Any, shape: Any, place: str) -> str | None:
    """What is wrong with a value; None if it has the shape: a type, or a list or dictionary of shapes ("*": all)."""
    kind: Any = type(shape) if isinstance(shape, (list, dict)) else shape
    if not isinstance(value, kind):
        return f"{place.strip('.')!r} is {'missing' if value is None else 'of another kind'}"
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(shape, list):
        pairs = [(f"{place}[{i}]", one, shape[0]) for i, one in enumerate(value)]
    elif isinstance(shape, dict) and "*" in shape:
        pairs = [(f"{place}.{name}", one, shape["*"]) for name, one in value.items()]
    elif isinstance(shape, dict):
        pairs = [(f"{place}.{name}", value.get(name), wanted) for name, wanted in shape.items()]
    return next((flaw for flaw in (_flaw(one, wanted, where) for where, one, wanted in pairs) if flaw), None)
