"""Where the templates of cards are."""

from __future__ import annotations

from pathlib import Path

import hf_plr


def template_path(name: str) -> Path:
    """Path of a card template, in the installed package or in a checkout."""
    package = Path(hf_plr.__file__).parent
    installed = package / "model_cards" / name
    return installed if installed.exists() else package.parent / "model_cards" / name
