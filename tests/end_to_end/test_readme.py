"""The README's Python runs as it is printed, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_three_examples():
    assert len(EXAMPLES) == 3


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=["trainer", "refiner", "scores"])
def test_example_runs(example, tmp_path):
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_flags_and_targets_are_real():
    helped = "".join(
        subprocess.run(
            [sys.executable, str(REPOSITORY / "recipes" / recipe), "--help_all"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for recipe in ("vit_plr.py", "reid_plr.py", "hubert_plr.py", "finetune_image.py")
    )
    missing = [flag for flag in set(re.findall(r"`(--[a-z0-9_]+)", README)) if f"{flag}\n" not in helped]
    assert missing == []
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert [target for target in re.findall(r"make ([a-z]+) ", README) if f"\n{target}:" not in makefile] == []
