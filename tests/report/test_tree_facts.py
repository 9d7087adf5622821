"""Which tree a page shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hf_plr.refinement.cluster_tree import make_tree
from hf_plr.report.html.tree_facts import describe_tree, find_tree
from hf_plr.report.names import write_cluster_names
from hf_plr.report.tree_file import write_tree


def make(sizes):
    distances = np.abs(np.subtract.outer(np.arange(len(sizes)) ** 1.5, np.arange(len(sizes)) ** 1.5))
    return make_tree(np.arange(len(sizes)), np.array(sizes), distances)


def data_of(sizes, **more):
    return {"sizes": {"clusters": [[label, size, 1.0] for label, size in enumerate(sizes)]}, **more}


def test_the_tree_of_the_folder_is_taken_if_it_is_of_the_same_clusters(tmp_path):
    write_tree(tmp_path, make([4, 3, 2, 2]))
    tree = find_tree(tmp_path, data_of([4, 3, 2, 2]))
    assert tree == describe_tree(make([4, 3, 2, 2]))
    assert (tree["labels"], tree["levels"], len(tree["nodes"])) == ([0, 1, 2, 3], [2], 3)
    for others in ([4, 3, 2, 1], [4, 3, 2], [4, 3, 2, 2, 1]):
        assert find_tree(tmp_path, data_of(others)) is None
    assert find_tree(tmp_path / "nowhere", data_of([4, 3, 2, 2])) is None


def test_levels_of_the_run_come_with_their_numbers_and_names(tmp_path):
    tree = make([4, 3, 2, 2])
    level = replace(tree.cut(2), numbers=np.array([7, 7, 9, 9]))
    write_tree(tmp_path, tree, {2: level})
    write_cluster_names(tmp_path, {0: "cat"}, {2: {9: "dogs"}})
    found = find_tree(tmp_path, data_of([4, 3, 2, 2]))
    assert (found["levels"], found["numbers"], found["names"]) == ([2], {"2": [7, 7, 9, 9]}, {"2": {"9": "dogs"}})


def test_the_tree_of_the_stage_is_taken_where_the_folder_has_none(tmp_path):
    own = describe_tree(make([5, 2, 1]))
    assert find_tree(tmp_path, data_of([5, 2, 1], tree=own)) == own
    assert find_tree(tmp_path, data_of([5, 2], tree=own)) is None
    write_tree(tmp_path, make([1, 1, 1]))  # of another run
    assert find_tree(tmp_path, data_of([5, 2, 1], tree=own)) == own


def test_a_damaged_tree_is_named(tmp_path):
    (tmp_path / "tree.json").write_text("{")
    with pytest.raises(ValueError, match=r"tree\.json cannot be read"):
        find_tree(tmp_path, data_of([1]))


def test_more_clusters_than_a_page_shows_have_no_tree():
    assert describe_tree(make([1] * 2001)) is None
    assert len(describe_tree(make([1] * 2000))["labels"]) == 2000
