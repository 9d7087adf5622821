"""`tree.json`: what is written is read again, and damage is named in a line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hf_plr
from hf_plr.refinement.cluster_tree import make_levels, make_tree
from hf_plr.report.tree_file import TREE_FILE, read_tree, write_tree


def make(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    return make_tree(rng.choice(99, n, replace=False), rng.integers(1, 50, n), distances)


@given(st.integers(1, 20), st.integers(0, 2**32))
def test_what_is_written_is_read_again(tmp_path_factory, n, seed):
    folder, tree = tmp_path_factory.mktemp("out"), make(n, seed)
    levels, _ = make_levels(tree)
    write_tree(folder, tree, levels)
    found = read_tree(folder)
    again = hf_plr.read_levels(folder)
    assert list(again) == list(levels)
    for n, level in levels.items():
        np.testing.assert_array_equal(again[n].numbers, level.numbers)
        assert again[n].height == level.height
    for name in ("labels", "sizes", "nodes", "heights"):
        np.testing.assert_array_equal(getattr(found, name), getattr(tree, name))
    assert [path.name for path in folder.iterdir()] == [TREE_FILE]


def test_the_file_has_clusters_and_merges_with_sizes(tmp_path):
    tree = make(4)
    write_tree(tmp_path, tree)
    content = json.loads((tmp_path / TREE_FILE).read_text())
    assert content["format"] == "hf-plr-tree-1"
    assert [each["size"] for each in content["clusters"]] == sorted(tree.sizes.tolist(), reverse=True)
    assert content["merges"][-1]["size"] == tree.sizes.sum()
    assert set(content["merges"][0]) == {"nodes", "height", "size"}
    assert hf_plr.read_tree(tmp_path).cut(1).members.keys() == {tree.labels[0]}


def damage(content, *keys, value):
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        (("format",), "hf-plr-tree-9", "its format is not"),
        (("clusters", 0), {"label": 1}, "'size' is missing"),
        (("clusters", 0, "label"), "1", "a label is not a whole number"),
        (("clusters", 0, "label"), -1, "below 0"),
        (("clusters", 0, "label"), 2**70, "too"),
        (("clusters", 0, "size"), 0, "a size below 1"),
        (("merges", 0, "nodes"), [0, 0], "merged twice"),
        (("merges", 0, "nodes"), [0, 9], "before it is made"),
        (("merges", 0, "nodes"), [0], "inhomogeneous"),
        (("merges", 0, "height"), 99.0, "do not ascend"),
        (("merges", 0, "height"), True, "a height is not a number"),
        (("merges", 0, "size"), 3.5, "a size is not a whole number"),
        (("merges", 1, "size"), 1, "not that of its two nodes"),
        (("merges",), [], "0 merges of 5 clusters"),
        (("clusters",), None, "not iterable"),
        (("levels", 0, "numbers"), [1, 2], "its level of 2 clusters has 2 numbers"),
        (("levels", 0, "numbers"), [7, 7, 7, 7, 7], "the numbers of its level of 2 clusters are not those of a cut"),
        (("levels", 0, "numbers", 0), -1, "are not those of a cut"),
        (("levels", 0, "numbers", 0), 1.0, "a number is not a whole number"),
        (("levels", 0, "clusters"), 9, "9 clusters are more than the 5"),
        (("levels", 1, "clusters"), 2, "its levels do not ascend"),
        (("levels", 0), {}, "'clusters' is missing"),
    ],
)
def test_damage_is_named_in_a_line(tmp_path, keys, value, fault):
    tree = make(5)
    write_tree(tmp_path, tree, make_levels(tree, [2, 3])[0])
    content = json.loads((tmp_path / TREE_FILE).read_text())
    damage(content, *keys, value=value)
    (tmp_path / TREE_FILE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{TREE_FILE} cannot be read as a tree of clusters: .*{fault}") as caught:
        read_tree(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_other_text_is_refused(tmp_path, text):
    (tmp_path / TREE_FILE).write_text(text)
    with pytest.raises(ValueError, match="cannot be read as a tree of clusters"):
        read_tree(tmp_path)


def test_a_tree_of_an_older_release_has_no_levels(tmp_path):
    write_tree(tmp_path, make(5))
    content = json.loads((tmp_path / TREE_FILE).read_text())
    del content["levels"]
    (tmp_path / TREE_FILE).write_text(json.dumps(content))
    assert hf_plr.read_levels(tmp_path) == {}
    assert len(read_tree(tmp_path)) == 5


def test_a_folder_without_a_tree_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no tree\.json: give the output folder of a finished run"):
        read_tree(tmp_path)
