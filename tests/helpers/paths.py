"""Places in the repository and beside it."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
REPOSITORY = TESTS.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
RECIPES = REPOSITORY / "recipes"
VIT_PLR = RECIPES / "vit_plr.py"
HUBERT_PLR = RECIPES / "hubert_plr.py"
REID_PLR = RECIPES / "reid_plr.py"
ACCELERATE_CONFIGS = RECIPES / "configs" / "accelerate"
