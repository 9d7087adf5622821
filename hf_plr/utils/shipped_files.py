"""Where the files are that come with the package and are no modules of it: recipes, their configs, card templates."""

from __future__ import annotations

from pathlib import Path

import hf_plr


def find_shipped(folder: str) -> Path:
    """Path of a folder of shipped files: inside the package where it is installed, beside it in a checkout.

    Args:
        folder: its name, "recipes" or "model_cards".

    Raises:
        FileNotFoundError: if it is in neither place.
    """
    package = Path(hf_plr.__file__).parent
    for place in (package, package.parent):
        if (place / folder).is_dir():
            return place / folder
    raise FileNotFoundError(f"{folder} is neither in {package} nor in {package.parent}: install hf-plr again")
