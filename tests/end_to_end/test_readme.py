"""The README's Python runs as it is printed, and its commands exist."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys

import pytest
from helpers.launching import call
from helpers.paths import RECIPES, REPOSITORY

from hf_plr.cli import main

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OF_ACCELERATE = {"--config_file", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"}


def test_there_are_examples_in_python():
    assert EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(example, tmp_path):
    run = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def flags_of(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", text))


def test_flags_are_real(capsys):
    known = set(OF_ACCELERATE)
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
    named = flags_of("\n".join(line for line in README.splitlines() if not re.search(r"benchmarks[./]|pip ", line)))
    assert {"--dataset_name", "--output_dir"} <= named
    assert sorted(named - known) == []


def test_targets_of_make_are_real():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", README, re.MULTILINE))
    assert targets
    assert [target for target in map("".join, targets) if f"\n{target}:" not in makefile] == []
