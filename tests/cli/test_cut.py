"""`hf-plr cut`: levels of the tree as tables, without torch, and errors in a line."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from hf_plr.cli import main
from hf_plr.pseudo_labels.label_files import LabelFile
from hf_plr.refinement.cluster_tree import make_tree
from hf_plr.report.names import write_cluster_names
from hf_plr.report.tree_file import read_tree, write_tree

PLACES = {3: 0.0, 5: 1.0, 8: 4.0, 9: 10.0, 12: 11.5, 20: 30.0}  # of clusters on a line
SIZES = {3: 9, 5: 8, 8: 7, 9: 6, 12: 5, 20: 4}


@pytest.fixture
def out(tmp_path):
    """A folder with labels of six clusters and noise, their tree, and no other file."""
    folder = tmp_path / "out"
    folder.mkdir()
    labels, places = np.array(list(PLACES)), np.array(list(PLACES.values()))
    write_tree(folder, make_tree(labels, np.array(list(SIZES.values())), np.abs(places[:, None] - places)))
    spread = np.random.default_rng(0).permutation([*np.repeat(labels, list(SIZES.values())), -1, -1]).astype(np.int32)
    n = len(spread)
    frame = {"index": np.arange(n) * 2, "file": [f"{i}.png" for i in range(n)], "start": np.zeros(n), "end": np.ones(n)}
    frame |= {"label": spread, "previous_label": spread, "confidence": np.ones(n, np.float32), "digest": ["0" * 16] * n}
    pd.DataFrame(frame).to_parquet(folder / "pseudo_labels.parquet")
    return folder


@pytest.fixture
def cut(out, tmp_path, capsys):
    """Runs the command; returns the table and what it said."""

    def call(*options, table="cut.parquet"):
        status = main(["cut", str(out), *options, "--output", str(tmp_path / table)])
        said = capsys.readouterr()
        assert status == 0, said.err
        is_csv = table.endswith(".csv")
        read = functools.partial(pd.read_csv, dtype={"digest": str}) if is_csv else pd.read_parquet
        return read(tmp_path / table), said.out

    return call


@pytest.mark.parametrize("options", [["--clusters", "3"], ["--levels", "2,4"], []])
def test_a_csv_has_the_same_columns_and_rows(out, cut, tmp_path, options):
    write_cluster_names(out, {3: 'a "dog", or two', 8: "Käfer 🪲"})
    table, _ = cut(*options)
    as_csv, said = cut(*options, table="cut.csv")
    pd.testing.assert_frame_equal(as_csv, table, check_dtype=False)
    assert f"Wrote {tmp_path / 'cut.csv'}: 41 samples" in said
    text = (tmp_path / "cut.csv").read_bytes().decode("utf-8")
    assert text.startswith("index,file,start,end,digest,label,")
    assert text.count("\n") == 42
    labels = LabelFile.open(str(tmp_path / "cut.csv")).labels  # what --labels of a training reads
    assert labels.tolist() == table["label"].tolist()


def test_a_run_of_few_clusters_without_levels_is_a_table_too(tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    write_tree(folder, make_tree(np.array([0, 1]), np.array([2, 1]), np.array([[0.0, 1.0], [1.0, 0.0]])))
    pd.DataFrame({"index": [0, 1, 2], "label": [0, 1, 0]}).to_parquet(folder / "pseudo_labels.parquet")
    assert main(["cut", str(folder), "--output", str(tmp_path / "a.csv")]) == 0
    assert (tmp_path / "a.csv").read_text() == "index,label\n0,0\n1,1\n2,0\n"
    capsys.readouterr()
    assert main(["cut", str(folder)]) == 2
    assert "2 clusters have no levels between them" in capsys.readouterr().err


def test_a_level_is_a_file_of_labels_with_the_runs_own_beside(out, cut, tmp_path):
    own = pd.read_parquet(out / "pseudo_labels.parquet")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    table, said = cut("--clusters", "3")
    assert list(table) == ["index", "file", "start", "end", "digest", "label", "cluster"]
    for name in ("index", "file", "start", "end", "digest"):
        pd.testing.assert_series_equal(table[name], own[name])
    np.testing.assert_array_equal(table["cluster"], own["label"])
    parts = {3: 3, 5: 3, 8: 3, 9: 9, 12: 9, 20: 20, -1: -1}
    assert table["label"].tolist() == [parts[label] for label in own["label"]]
    assert "6 clusters are cut into 3 at height" in said
    assert "       3         24         3  3, 5, 8" in said.splitlines()
    assert LabelFile.open(str(tmp_path / "cut.parquet")).labels.tolist() == table["label"].tolist()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.parquet", "out"]


def test_heights_and_pins(out, cut):
    assert set(cut("--height", "1.2")[0]["label"]) == {3, 8, 9, 12, 20, -1}
    table, _ = cut("--clusters", "3", "--keep", "3,5", "--join", "12,20", "--overwrite")
    parts = dict(zip(table["cluster"], table["label"], strict=True))
    assert parts == {3: 3, 8: 3, 5: 5, 9: 9, 12: 9, 20: 9, -1: -1}


def test_levels_have_a_column_each_and_are_nested(out, cut):
    table, said = cut("--levels", "4,2,4")
    assert list(table) == ["index", "file", "start", "end", "digest", "label", "level_2", "level_4"]
    assert table.groupby("level_4")["level_2"].nunique().max() == 1
    assert (table[["level_2", "level_4"]][table["label"] == -1] == -1).all(axis=None)
    assert table[table["label"] != -1][["level_2", "level_4"]].nunique().tolist() == [2, 4]
    assert "columns level_2, level_4" in said
    chosen = read_tree(out).choose_levels()
    table, _ = cut("--overwrite")
    assert [name for name in table if name.startswith("level_")] == [f"level_{n}" for n in chosen]


def test_names_of_clusters_name_those_of_levels(out, cut):
    write_cluster_names(out, {3: "dog", 5: "dog", 8: "cat", 20: "car"})
    table, said = cut("--clusters", "4")
    pairs = set(zip(table["label"], table["name"].fillna("-"), strict=True))
    assert pairs == {(-1, "-"), (3, "dog"), (8, "cat"), (9, "-"), (20, "car")}
    assert "car" in said
    table, _ = cut("--levels", "2,5", "--overwrite")
    assert list(table)[-6:] == ["label", "name", "level_2", "level_5", "name_2", "name_5"]
    assert set(table["name"][table["label"] == 5]) == {"dog"}
    assert table["name"][table["label"] == -1].isna().all()
    assert set(table["name_5"][table["level_5"] == 3]) == {"dog"}
    assert set(table["name_2"].dropna()) == {"dog / cat and 2 without a name", "car"}


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--clusters", "7"], "there is no such cut: 7 clusters are more than the 6"),
        (["--clusters", "2", "--keep", "3,4"], "there is no such cut: there is no cluster 4 to keep"),
        (["--clusters", "1", "--keep", "3,5"], "leaves at least 2 clusters"),
        (["--height", "-1"], "a height is at least 0"),
        (["--levels", "2,9"], "9 clusters are more than the 6"),
        (["--clusters", "2", "--output", "a.xlsx"], "a.xlsx: clusters are written as .csv or .parquet"),
        (["--clusters", "2", "--output", "OUT/pseudo_labels.parquet"], "holds the run's own labels"),
        (["--clusters", "2", "--output", "OUT/units.parquet", "--overwrite"], "units.parquet is the run's own: name"),
        (["--clusters", "2", "--output", "OUT/none/a.parquet"], "none/a.parquet does not exist"),
    ],
)
def test_errors_are_one_line_and_write_nothing(out, capsys, options, fault):
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["cut", str(out), *(option.replace("OUT", str(out)) for option in options)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-plr cut: error: ")
    assert fault in error
    assert error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("text", ["3;4", "3,", "-1,2", ""])
def test_lists_that_are_none_are_refused(out, capsys, text):
    with pytest.raises(SystemExit):
        main(["cut", str(out), f"--keep={text}"])
    assert "is not a list of whole numbers, such as 3,17" in capsys.readouterr().err


def test_labels_of_another_run_and_damaged_ones_are_named(out, tmp_path, capsys):
    def error():
        assert main(["cut", str(out), "--clusters", "2", "--output", str(tmp_path / "a.parquet")]) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
        return capsys.readouterr().err

    frame = pd.read_parquet(out / "pseudo_labels.parquet")
    frame.assign(label=frame["label"].replace(20, 21)).to_parquet(out / "pseudo_labels.parquet")
    assert "pseudo_labels.parquet is not of this tree: there is no cluster 21 in the tree" in error()
    frame.assign(label=frame["label"].astype(float)).to_parquet(out / "pseudo_labels.parquet")
    assert "pseudo_labels.parquet has no column 'label' of integers" in error()
    (out / "pseudo_labels.parquet").write_bytes(b"PAR1")
    assert "pseudo_labels.parquet cannot be read as parquet" in error()
    (out / "pseudo_labels.parquet").unlink()
    assert "holds no pseudo_labels.parquet" in error()
    (out / "tree.json").write_text("{}")
    assert "tree.json cannot be read as a tree of clusters" in error()


def test_it_runs_as_a_program_without_torch_and_replaces_nothing_unasked(out, tmp_path):
    code = "import sys; from hf_plr.cli import main; status = main(); print('torch' in sys.modules); sys.exit(status)"
    command = [sys.executable, "-c", code, "cut", str(out), "--clusters", "2", "--output", str(tmp_path / "a.parquet")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists already: give --overwrite to replace it" in again.stderr
