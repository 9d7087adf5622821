"""The page: data, style and script put together into one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent
SCRIPTS = ("base", "overview", "curves", "flow", "sizes", "map", "sheets", "marks", "page")
MIB = 2**20
LIMIT = 20 * MIB
CONTENT_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def render(data: dict[str, Any], written: str | None = None) -> str:
    """The page that shows a report's data, under 20 MiB.

    Names in the data are others' text: here they are JSON without a single angle bracket, and the script only ever
    makes them the text of elements. The page's policy allows it no request and no script but its own.

    Args:
        data: the data.
        written: what `as_json` gives for them, if that is there already.
    """
    style, template = ((SOURCE / name).read_text(encoding="utf-8") for name in ("style.css", "template.html"))
    parts_of_script = [(SOURCE / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    script = "\n".join(["(() => {", '"use strict";', *parts_of_script, "})();"])
    policy = CONTENT_POLICY.format(script=_hash(script), style=_hash(style))
    shell = len(style) + len(script) + len(template) + len(policy)
    text = as_json(data) if written is None else written
    if len(text) > LIMIT - 2 * shell:
        text = _within(data, LIMIT - 2 * shell)
    size = f"{(shell + len(text)) / MIB:.1f}"
    parts = {"policy": policy, "style": style, "script": script, "size": size, "limit": f"{LIMIT // MIB}"}
    before, _, after = template.partition("{{data}}")
    for name, part in parts.items():
        before, after = (half.replace(f"{{{{{name}}}}}", part) for half in (before, after))
    return f"{before}{text}{after}"


def _within(data: dict[str, Any], limit: int) -> str:
    """JSON of the data with as many previews as fit, the first ones."""
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
    """JSON of ASCII characters that no HTML parser takes for anything but text.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(source: str) -> str:
    """As a content policy names an inline script or style."""
    return base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")
