"""What README and guides name exists: flags, and targets of make. tests/docs runs their blocks."""

from __future__ import annotations

import contextlib
import re

import pytest
from helpers.launching import call
from helpers.paths import RECIPES, REPOSITORY

from hf_plr.cli import main

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
GUIDES = [
    path.read_text(encoding="utf-8")
    for folder in ("how_to", "tutorials")
    for path in (REPOSITORY / "docs" / folder).glob("*.md")
]
OF_ACCELERATE = {"--config_file", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"}


def flags_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", text))


def test_flags_are_real(capsys):
    known = OF_ACCELERATE | {"--learning_rat"}  # a mistake that troubleshooting shows
    for recipe in RECIPES.glob("*.py"):
        known |= flags_of(call("--help_all", script=recipe).stdout)
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z-]+)\b", capsys.readouterr().out, re.MULTILINE)
    assert {"refine", "push-labels"} <= set(commands)
    for command in commands:
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        known |= flags_of(capsys.readouterr().out)
    for text in [README, *GUIDES]:
        lines = [line for line in text.splitlines() if not re.search(r"benchmarks[./]|pip |<!--", line)]
        assert sorted(flags_of("\n".join(lines)) - known) == []
    assert {"--dataset_name", "--output_dir"} <= flags_of(README)


def test_targets_of_make_are_real():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", README, re.MULTILINE))
    assert targets
    assert [target for target in map("".join, targets) if f"\n{target}:" not in makefile] == []
