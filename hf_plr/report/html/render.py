"""Rendering of the page: data, style and script in one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent
SCRIPTS = (
    "base",
    "menu",
    "levels",
    "overview",
    "contact",
    "tree",
    "map",
    "sizes",
    "sheets",
    "marks",
    "curves",
    "flow",
    "runs",
    "page",
)
REPORT, ASSIGNED = "report", "assigned"  # pages
SCRIPTS_BY_PAGE = {
    REPORT: SCRIPTS,
    ASSIGNED: ("base", "menu", "assigned", "assigned_shares", "assigned_time", "assigned_page"),
}
STYLES_BY_PAGE = {REPORT: ("style.css", "clusters.css"), ASSIGNED: ("style.css", "assigned.css")}
MIB = 2**20
LIMIT = 20 * MIB
CONTENT_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def render(data: dict[str, Any], text: str | None = None, page: str = REPORT) -> str:
    """Render a page that shows a report's data, under 20 MiB.

    Names in the data are foreign text: here they are JSON without a single angle bracket, and the script only ever
    makes them the text of elements. The page's policy allows no request and no script but its own.

    Args:
        data: the data.
        text: the data as JSON, if `as_json` was called before.
        page: "report" of a run, or "assigned" of a data set that has been assigned to a run's clusters.
    """
    style = "\n".join((SOURCE / name).read_text(encoding="utf-8") for name in STYLES_BY_PAGE[page])
    template = (SOURCE / "template.html").read_text(encoding="utf-8")
    parts_of_script = [(SOURCE / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS_BY_PAGE[page]]
    script = "\n".join(["(() => {", '"use strict";', *parts_of_script, "})();"])
    policy = CONTENT_POLICY.format(script=_hash(script), style=_hash(style))
    shell = len(style) + len(script) + len(template) + len(policy)
    text = as_json(data) if text is None else text
    if len(text) > LIMIT - 2 * shell:
        text = _fit(data, LIMIT - 2 * shell)
    size = f"{(shell + len(text)) / MIB:.1f}"
    parts = {"page": page, "policy": policy, "style": style, "script": script, "size": size, "limit": f"{LIMIT // MIB}"}
    before, _, after = template.partition("{{data}}")
    for name, part in parts.items():
        before, after = (half.replace(f"{{{{{name}}}}}", part) for half in (before, after))
    return f"{before}{text}{after}"


def _fit(data: dict[str, Any], limit: int) -> str:
    """Convert the data to JSON with as many previews as fit, the first ones."""
    media: dict[str, Any] = data.get("media", {})
    room = limit - len(as_json({**data, "media": {}}))
    kept: dict[str, Any] = {}
    for key, preview in media.items():
        room -= len(as_json({key: preview}))
        if room < 0:
            break
        kept[key] = preview
    return as_json({**data, "media": kept})


def as_json(data: Any) -> str:
    """Convert data to JSON of ASCII characters that an HTML parser takes for text alone.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(source: str) -> str:
    """Hash an inline script or style as a content policy names it."""
    return base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
