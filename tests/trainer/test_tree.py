"""The tree that a run leaves: of its last clusters, by what is known of them, whatever made them."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from hf_plr import PseudoLabelRefiner, read_levels, read_tree
from hf_plr.cli import main
from hf_plr.hub.label_dataset import make_labels_card
from hf_plr.recipe_tools.output_folder import OutputArguments, prepare_output_dir
from hf_plr.report.terminal_summary import format_summary
from hf_plr.trainer import cluster_tree, label_output
from hf_plr.trainer.label_output import suggest_commands


@pytest.fixture(scope="module")
def settings():
    return {"num_train_epochs": 2, "num_clusters": 12, "report": "no"}


def test_a_run_leaves_the_tree_of_its_last_clusters(make_trainer, tmp_path, settings, capsys):
    trainer = make_trainer(**settings)
    trainer.train()
    trainer.save_labels(tmp_path / "out")
    labels = pd.read_parquet(tmp_path / "out" / "pseudo_labels.parquet")["label"]
    tree = read_tree(tmp_path / "out")
    sizes = labels[labels >= 0].value_counts().to_dict()
    assert dict(zip(tree.labels.tolist(), tree.sizes.tolist(), strict=True)) == sizes
    assert (np.diff(tree.sizes) <= 0).all()  # of a first run: the largest is the most senior
    assert ("tree.json", "tree of the clusters, which hf-plr cut takes") in trainer.summary().label_files
    output = tmp_path / "three.parquet"
    assert main(["cut", str(tmp_path / "out"), "--clusters", "3", "--output", str(output)]) == 0
    assert "cut into 3" in capsys.readouterr().out
    np.testing.assert_array_equal(pd.read_parquet(output)["label"], tree.cut(3).apply(labels))
    first = (tmp_path / "out" / "tree.json").read_bytes()
    trainer.save_labels(tmp_path / "again")
    assert (tmp_path / "again" / "tree.json").read_bytes() == first
    prepare_output_dir(OutputArguments(output_dir=str(tmp_path / "out"), overwrite=True), is_main_process=True)
    assert not (tmp_path / "out" / "tree.json").exists()


def test_the_labels_have_a_column_for_each_level(make_trainer, tmp_path, settings, capsys):
    trainer = make_trainer(**settings, levels="8,3")
    trainer.train()
    out = tmp_path / "out"
    trainer.save_labels(out)
    table, levels, tree = pd.read_parquet(out / "pseudo_labels.parquet"), read_levels(out), read_tree(out)
    assert list(levels) == [3, 8]
    assert list(table)[-2:] == ["level_3", "level_8"]
    assert table.groupby("label")["level_8"].nunique().max() == table.groupby("level_8")["level_3"].nunique().max() == 1
    for n, level in levels.items():
        np.testing.assert_array_equal(table[f"level_{n}"], level.apply(table["label"]))
        np.testing.assert_array_equal(level.numbers, tree.cut(n).numbers)  # of a first run
    trainer.args.levels = None  # three that the tree suggests
    trainer.save_labels(tmp_path / "chosen")
    assert list(read_levels(tmp_path / "chosen")) == tree.choose_levels()
    assert main(["cut", str(out), "--output", str(tmp_path / "cut.parquet")]) == 0  # without levels those of the run
    assert list(pd.read_parquet(tmp_path / "cut.parquet"))[-2:] == ["level_3", "level_8"]
    card = str(make_labels_card(Dataset.from_pandas(table), "alice/labels", out))
    assert "cluster of the sample where the tree of the clusters is cut into 8" in card


def test_the_summary_suggests_commands_that_work_on_the_output_folder(make_trainer, tmp_path, settings, capsys):
    out = tmp_path / "my run"
    trainer = make_trainer(**settings, output_dir=str(out))
    trainer.train()
    trainer.save_labels(out)
    summary = trainer.summary()
    text = format_summary(summary, 1.0, ("last", "words"))
    assert f"Results in {out}:" in text
    lines = text[text.index("Next:") :].splitlines()
    commands = [command for command, _ in summary.next_commands]
    for command in commands:
        assert sum(line.startswith(f"  {command}   ") for line in lines) == 1
    assert [shlex.split(command)[:2] for command in commands] == [["hf-plr", x] for x in ("name", "cut", "assign")]
    assert str(out) in shlex.split(commands[2])
    for command in commands[:2]:
        assert main(shlex.split(command)[1:]) == 0
    assert "cut into 10" in capsys.readouterr().out
    assert (out / "cut.parquet").exists()
    assert "cut" not in str(suggest_commands("out", 2, "images"))


def test_levels_of_more_clusters_than_are_sought_are_refused_before_anything_is_done(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="levels=3,22: 22 clusters are more than the 21"):  # 1.5 times the root of 203
        make_trainer(num_clusters=None, levels="3,22", num_train_epochs=1)
    np.save(tmp_path / "given.npy", np.arange(203) % 5)
    with pytest.raises(ValueError, match="levels=3,6: 6 clusters are more than the 5"):
        make_trainer(labels=str(tmp_path / "given.npy"), levels="3,6", num_clusters=None)


def test_levels_of_more_clusters_than_are_left_are_told(make_trainer, tmp_path, settings, caplog):
    few = {"refiner": PseudoLabelRefiner.from_preset("slr", n_clusters=4)}
    trainer = make_trainer(few, **settings, levels="2,3,12")
    trainer.train()
    trainer.save_labels(tmp_path / "out")
    n = len(read_tree(tmp_path / "out"))
    assert n == 4
    assert f"levels=2,3,12: only {n} clusters are left, with no level of 12." in caplog.text
    assert list(read_levels(tmp_path / "out")) == [2, 3]


def test_the_past_of_the_members_counts(make_trainer, tmp_path, settings, monkeypatch):
    trainer = make_trainer(**settings, refinement="consensus")
    trainer.train()
    trainer.save_labels(tmp_path / "a")
    seen = []

    def compare(prototypes, tables):
        seen.extend(tables)
        return compare_clusters(prototypes)

    compare_clusters = cluster_tree.compare_clusters
    monkeypatch.setattr(cluster_tree, "compare_clusters", compare)
    trainer.save_labels(tmp_path / "b")
    n_members = 1 + trainer.labelings[0].stage.ensemble.n_members
    assert len(seen) == 2 * n_members + 2  # two epochs of a consensus, and raw and previous labels
    assert not np.array_equal(read_tree(tmp_path / "a").heights, read_tree(tmp_path / "b").heights)


def test_given_labels_have_a_tree_of_their_prototypes(make_trainer, tmp_path, settings):
    given = np.arange(203) % 5 * 3
    np.save(tmp_path / "given.npy", given)
    trainer = make_trainer(labels=str(tmp_path / "given.npy"), num_train_epochs=1, report="no")
    trainer.train()
    trainer.save_labels(tmp_path / "out")
    tree = read_tree(tmp_path / "out")
    assert sorted(tree.labels.tolist()) == [0, 3, 6, 9, 12]
    assert tree.heights[0] > 0


def test_more_clusters_than_a_tree_can_have_leave_none(make_trainer, tmp_path, settings, monkeypatch, caplog):
    trainer = make_trainer(**settings)
    trainer.train()
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "tree.json").write_text("of an earlier run")
    monkeypatch.setattr(label_output, "MOST_CLUSTERS", 2)
    trainer.save_labels(tmp_path / "out")
    assert "are too many for a tree: tree.json is not written" in caplog.text
    assert not (tmp_path / "out" / "tree.json").exists()
