"""Files of the package that are not modules: recipes, their configs, card templates."""

from __future__ import annotations

from pathlib import Path

import hf_plr


def find_shipped(folder: str) -> Path:
    """Find a folder of shipped files: inside the installed package, or beside it in a checkout.

    Args:
        folder: "recipes" or "model_cards".

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    package = Path(hf_plr.__file__).parent
    for parent in (package, package.parent):
        if (parent / folder).is_dir():
            return parent / folder
    raise FileNotFoundError(f"{folder} is neither in {package} nor in {package.parent}: install hf-plr again")
