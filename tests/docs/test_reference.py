"""The documentation builds without a warning, and its reference has every public name, command, metric and file."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.finished_runs import publish
from helpers.paths import REPOSITORY

from hf_plr.cli import COMMANDS

REFERENCE = REPOSITORY / "docs" / "reference"
MODULES = ("hf_plr", "hf_plr.clustering", "hf_plr.modality", "hf_plr.refinement")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as a folder of HTML."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", REPOSITORY / "docs", folder]
    run = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def read_inventory(site):
    """Names of Python that the built documentation has an entry for."""
    parts = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return set(re.findall(r"^(\S+) py:", zlib.decompress(parts[4]).decode(), re.MULTILINE))


def missing_names(entries):
    """Public names of the documented modules that have no entry, neither in the module nor in the package."""
    return [
        f"{module}.{name}"
        for module in MODULES
        for name in importlib.import_module(module).__all__
        if not {f"{module}.{name}", f"hf_plr.{name}"} & entries
    ]


@pytest.mark.slow
def test_every_public_name_has_an_entry(site):
    entries = read_inventory(site)
    assert missing_names(entries) == []
    assert missing_names(entries - {"hf_plr.assign", "hf_plr.refinement.project"}) == [
        "hf_plr.assign",
        "hf_plr.refinement.project",
    ]


@pytest.mark.slow
def test_commands_and_arguments_are_those_of_the_programs(site):
    commands = (site / "reference" / "command_line.html").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f">hf-plr {name}<" not in commands] == []
    assert "--false_alarms" in commands
    recipes = (site / "reference" / "recipes.html").read_text(encoding="utf-8")
    for argument in ("--num_clusters", "--objective", "--identity_column", "--labels_per_class", "--max_seconds"):
        assert argument in recipes
    assert "The built page" not in commands + recipes


@pytest.mark.slow
def test_metrics_files_and_columns_of_a_run_are_in_the_reference(make_trainer):
    out, _ = publish(make_trainer())
    files = {path.name for path in (REPOSITORY / out).iterdir()}
    known = (REFERENCE / "output_folder.md").read_text(encoding="utf-8")
    assert [name for name in files if f"`{re.sub('-[0-9]+$', '-N/', name)}`" not in known] == []
    known = (REFERENCE / "file_formats.md").read_text(encoding="utf-8")
    columns = pq.read_schema(f"{out}/pseudo_labels.parquet").names
    assert [name for name in columns if f"`{re.sub('[0-9]+$', 'K', name)}`" not in known] == []
    known = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    with open(f"{out}/metrics.json", encoding="utf-8") as file:
        metrics = json.load(file)
    logged = {name.removeprefix("plr/") for epoch in metrics["epochs"] for name in epoch}
    assert "clusters_raw" in logged
    assert [name for name in {*logged, *metrics} if f"`{name}`" not in known] == []


def test_metrics_and_files_of_a_run_on_frames_are_in_the_reference(make_sound_trainer, some_sounds):
    sounds = some_sounds.select(range(24))
    trainer = make_sound_trainer(trainer={"train_dataset": sounds}, num_train_epochs=2, report="no", save_strategy="no")
    trainer.train()
    trainer.save_model()
    trainer.save_labels(trainer.args.output_dir)
    names = {name for entry in trainer.state.log_history for name in entry}
    logged = {name.removeprefix("plr/") for name in names if name.startswith("plr/")}
    assert {"round", "frames", "agreement_ari", "pnmi", "seconds_fit"} <= logged
    of_frames = (REFERENCE / "metrics.md").read_text(encoding="utf-8").split("\n## ")[2]
    assert "for frames" in of_frames
    assert {name for name in logged if f"`{name}`" not in of_frames} == set()
    files = {path.name for path in Path(trainer.args.output_dir).iterdir()}
    known = (REFERENCE / "output_folder.md").read_text(encoding="utf-8")
    assert "units.parquet" in files
    assert {name for name in files if f"`{name}`" not in known} == set()
