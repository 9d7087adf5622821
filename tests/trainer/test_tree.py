"""The tree that a run leaves: of its last clusters, by what is known of them, whatever made them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hf_plr import read_tree
from hf_plr.cli import main
from hf_plr.recipe_tools.running import prepare_output_dir
from hf_plr.trainer import cluster_tree, label_output


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
    trainer.args.overwrite, trainer.args.resume_from_checkpoint = True, None
    prepare_output_dir(trainer.args, is_main_process=True)
    assert not (tmp_path / "out" / "tree.json").exists()


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
