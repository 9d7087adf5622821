"""Files of a run, which commands do not replace."""

from __future__ import annotations

import os
import shutil

import pandas as pd
import pytest

from hf_plr.cli import main
from hf_plr.clustering.novelty import KNOWN_CLUSTERS_FILE
from hf_plr.pseudo_labels.label_files import PSEUDO_LABELS_FILE
from hf_plr.report.cluster_files import PROTOTYPES_FILE
from hf_plr.report.file_names import METRICS_FILE, PAGE_FILE, PLOT_FILE
from hf_plr.report.html.report_file import DATA_FILE
from hf_plr.report.names import NAMES_FILE
from hf_plr.report.run_history import HISTORY_FILE
from hf_plr.report.tree_file import TREE_FILE
from hf_plr.trainer.checkpoints.run_state import STATE_FILE, name_part
from hf_plr.trainer.unit_trainer import UNITS_FILE
from hf_plr.units.encoder import CENTROIDS_FILE
from hf_plr.utils.run_files import MARKS, WRITTEN, matches, refuse_run_files


def test_all_files_of_a_run_are_known():
    files = [KNOWN_CLUSTERS_FILE, PSEUDO_LABELS_FILE, PROTOTYPES_FILE, METRICS_FILE, PAGE_FILE, PLOT_FILE, DATA_FILE]
    files += [NAMES_FILE, HISTORY_FILE, TREE_FILE, STATE_FILE, name_part(0, 2), UNITS_FILE, CENTROIDS_FILE, *MARKS]
    assert [file for file in files if not matches(file, WRITTEN)] == []


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.json", "config.json", "tree.json", "report.json", "report.html", "centroids.safetensors"):
        (folder / name).write_text("mine")
    pd.DataFrame({"index": [0, 1], "label": [0, 1]}).to_parquet(folder / "pseudo_labels.parquet")
    return folder


@pytest.mark.parametrize(
    ("command", "file", "own"),
    [
        ("assign --model {run} --dataset photos --output {file}", "pseudo_labels.parquet", None),
        ("assign --model {run} --dataset photos --output {file}", "report.csv", "report.html"),
        ("assign --model {run} --dataset photos --output {file}", "tree.parquet", "tree.json"),
        ("assign --model {run} --dataset photos --output {file}", "metrics.parquet", "metrics.json"),
        ("embed --model {run} --dataset photos --output {file}", "pseudo_labels.parquet", None),
        ("units --model {run} --dataset sounds --output {file}", "units.parquet", None),
        ("refine --previous {labels} --current {labels} --output {file}", "pseudo_labels.parquet", None),
        ("report {other} --output {file}", "report.html", None),
        ("cluster {features} --output {run}", "centroids.safetensors", None),
    ],
)
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_no_command_replaces_a_file_of_a_run(run, tmp_path, capsys, command, file, own, options):
    other, features = tmp_path / "other", tmp_path / "features.parquet"
    shutil.copytree(run, other)
    pd.DataFrame({"feature": [[0.0, 1.0], [1.0, 0.0]]}).to_parquet(features)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    labels = other / "pseudo_labels.parquet"
    words = command.format(run=run, file=run / file, labels=labels, other=other, features=features).split()
    assert main([*words, *options]) == 2
    assert f"error: {run / (own or file)} is the run's own: name another file" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_files_of_these_names_in_other_folders_are_replaced(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("metrics.json", "metrics.html", "README.md", "report.json", "tree.json"):
        (mine / name).write_text("mine")
    refuse_run_files([mine / "metrics.html", mine / "metrics.json", mine / "metrics.parquet"])
    os.remove(mine / "metrics.json")
    refuse_run_files([mine / "report.html", mine / "report.json", mine / "pseudo_labels.parquet"])
    refuse_run_files([run / "cut.parquet", run / "assigned.html"])
    with pytest.raises(ValueError, match=r"mine/tree\.json is the run's own: name another file"):
        refuse_run_files([mine / "tree.json"], run=f"{mine}/../mine")
