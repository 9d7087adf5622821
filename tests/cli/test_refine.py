"""`hf-plr refine` on files, in a process and as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hf_plr import PseudoLabelRefiner
from hf_plr.cli import main


@pytest.fixture
def epochs():
    """Labels of two epochs, -1 = noise."""
    rng = np.random.default_rng(0)
    previous = rng.integers(-1, 12, 700)
    return previous, np.where(rng.random(700) < 0.2, rng.integers(-1, 12, 700), previous)


@pytest.fixture
def expected(epochs):
    """What the refiner gives for them, where the numbers of the first epoch stay as they are."""
    refiner = PseudoLabelRefiner()
    refiner.load_state_dict({"version": np.array([2]), "history.1": epochs[0], "refined": epochs[0]})
    return refiner.refine(epochs[1])


def save(labels, path: Path) -> str:
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".csv":
        pd.DataFrame({"index": np.arange(len(labels)), "cluster": labels}).to_csv(path, index=False)
    else:
        pd.DataFrame({"label": labels, "size": 5, "name": "x"}).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("kind", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("output", [".npy", ".csv", ".parquet"])
def test_every_kind_of_file_in_and_out(epochs, expected, tmp_path, monkeypatch, capsys, kind, output):
    monkeypatch.setattr("hf_plr.pseudo_labels.label_files.BLOCK_ROWS", 300)
    files = [save(labels, tmp_path / f"{i}{kind}") for i, labels in enumerate(epochs)]
    out = tmp_path / f"refined{output}"
    assert main(["refine", "--previous", files[0], "--current", files[1], "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "700 samples in" in printed
    assert "12 kept" in printed
    if output == ".npy":
        np.testing.assert_array_equal(np.load(out), expected.labels)
    else:
        frame = pd.read_csv(out) if output == ".csv" else pd.read_parquet(out)
        columns = ["label", "previous_label", "current_label", "confidence"]
        assert list(frame.columns) == (["index"] if kind == ".csv" else []) + columns
        np.testing.assert_array_equal(frame["label"], expected.labels)
        np.testing.assert_array_equal(frame["previous_label"], epochs[0])
        np.testing.assert_allclose(frame["confidence"], expected.confidence, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["0" + kind, "1" + kind, "refined" + output])


def test_it_runs_as_a_program_without_torch(epochs, tmp_path):
    files = [save(labels, tmp_path / f"{i}.npy") for i, labels in enumerate(epochs)]
    code = "import sys; from hf_plr.cli import main; status = main(); print('torch' in sys.modules); sys.exit(status)"
    arguments = ["refine", "--previous", *files, "--current", files[1], "--output", str(tmp_path / "o.parquet")]
    options = ["--space", "joint", "--distance_threshold", "0.45", "--weight", "0.4"]
    run = subprocess.run([sys.executable, "-c", code, *arguments, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"
    assert "Agreement" in run.stdout


def test_an_output_is_not_replaced_unasked(epochs, tmp_path, capsys):
    files = [save(labels, tmp_path / f"{i}.npy") for i, labels in enumerate(epochs)]
    arguments = ["refine", "--previous", files[0], "--current", files[1], "--output", str(tmp_path / "o.csv")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "exists already: give --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "0", "label files are .npy, .csv, .parquet, not .txt"),
        ("missing.npy", None, "does not exist"),
        ("a.npy", b"nonsense", "cannot be read as npy"),
        ("a.npy", np.zeros((2, 2), dtype=int), r"shape (2, 2), but labels have shape (N,)"),
        ("a.npy", np.zeros(3), "holds float64, but labels are integers"),
        ("a.npy", np.array([{}], dtype=object), "cannot be read as npy"),
        ("a.npy", np.array([0, -4]), "a.npy: labels must be -1 (noise) or above, but -4 is among them"),
        ("a.npy", np.empty(0, dtype=int), "holds no labels"),
        ("a.npy", np.array([0, 1, 2]), "has 3 labels but"),
        ("a.csv", "label\n1\n\n", "has 1 labels but"),
        ("a.csv", "x,label\n1,2\n1,\n", "column 'label' is empty in line 3"),
        ("a.csv", "label\n0\n\n0\n", "a.csv: column 'label' is empty in line 3; noise is written as -1"),
        ("a.csv", "index,label\n0,0\n\n1,0\n", "a.csv: column 'label' is empty in line 3"),
        ("a.csv", "x,y\n1,2\n", "2 columns of integers ('x', 'y'): name one with --column"),
        ("a.csv", "label\nrust\n", "but labels are integers"),
        ("a.csv", "label\n0.5\n", "but labels are integers"),
        ("a.csv", "", "cannot be read as csv"),
        (
            "a.csv",
            "label\n\u00e4\n".encode("cp1252"),
            "a.csv cannot be read as csv: it is not in UTF-8: save it as UTF",
        ),
        ("a.csv", "label\n1\n".encode("utf-16"), "a.csv cannot be read as csv: it is not in UTF-8: save it as UTF-8"),
        ("a.csv", "5\n1\n2\n", "the first line holds numbers: put a header there, such as 'label'"),
        ("a.parquet", b"nonsense", "cannot be read as parquet"),
        ("a.csv", "index,label\n1,2\n0,2\n", "not in the same order: in row 0 their index is 1 and 0"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    current = tmp_path / "current.csv"
    current.write_text("index,label\n0,0\n1,0\n")
    out = tmp_path / "o.npy"
    assert main(["refine", "--previous", str(path), "--current", str(current), "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-plr refine: error: ")
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
@pytest.mark.parametrize(("left_out", "column"), [([], "digest"), (["digest"], "file")])
def test_rows_of_other_samples_are_refused(tmp_path, capsys, kind, left_out, column):
    def write(name, first):
        rows = np.arange(first, first + 30)
        files = [f"{row:02}.png" for row in rows]
        frame = pd.DataFrame({"index": np.arange(30), "file": files, "digest": [f"{row:016}" for row in rows]})
        frame = frame.assign(label=rows % 3).drop(columns=left_out)
        path = str(tmp_path / f"{name}{kind}")
        frame.to_csv(path, index=False) if kind == ".csv" else frame.to_parquet(path)
        return path

    out = tmp_path / "o.npy"
    arguments = ["refine", "--current", write("now", 0), "--output", str(out), "--previous"]
    assert main([*arguments, write("shifted", 1)]) == 2
    names = {"digest": f"{1:016} and {0:016}", "file": "01.png and 00.png"}
    assert f"not of the same samples in the same order: in row 0 their {column} is {names[column]}" in (
        capsys.readouterr().err
    )
    assert not out.exists()
    assert main([*arguments, write("same", 0)]) == 0


@pytest.mark.parametrize(
    ("previous", "is_refused"),
    [
        ("index,file,label\n0,a/x.png,0\n1,,0\n", False),
        ("index,file,label\n0,x.png,0\n1,y.png,0\n", False),
        ("index,file,label\n0,/photos/a/x.png,0\n1,/photos/a/y.png,0\n", False),
        ("index,file,digest,label\n0,new.png,1,0\n1,a/y.png,,0\n", False),
        ("index,file,digest,label\n0,a/x.png,1,0\n1,a/y.png,3,0\n", True),
        ("index,file,label\n0,ax.png,0\n1,a/y.png,0\n", True),
        ("index,file,label\n0,7,0\n1,8,0\n", False),
    ],
)
def test_what_names_a_sample(tmp_path, previous, is_refused):
    (tmp_path / "a.csv").write_text(previous)
    (tmp_path / "b.csv").write_text("index,file,digest,label\n0,a/x.png,1,0\n1,a/y.png,2,0\n")
    files = ["--previous", str(tmp_path / "a.csv"), "--current", str(tmp_path / "b.csv")]
    out = str(tmp_path / "o.npy")
    assert main(["refine", *files, "--min_cluster_size", "1", "--output", out]) == (2 if is_refused else 0)


@pytest.mark.parametrize("end", ["", "\n\n\n", "\r\n,\r\n"])
def test_empty_lines_at_the_end_of_a_table_are_no_samples(tmp_path, end):
    (tmp_path / "a.csv").write_text(f"index,label\n0,0\n1,3{end}")
    files = ["--previous", str(tmp_path / "a.csv"), "--current", str(tmp_path / "a.csv")]
    assert main(["refine", *files, "--min_cluster_size", "1", "--output", str(tmp_path / "o.csv")]) == 0
    assert pd.read_csv(tmp_path / "o.csv")["label"].tolist() == [0, 3]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_spreadsheets_and_pandas_write_them(tmp_path, separator):
    table = "\ufeffindex,cluster\n4.0,3.0\n2.0,0.0\n".replace(",", separator)
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    files = ["--previous", str(tmp_path / "a.csv"), "--current", str(tmp_path / "a.csv")]
    assert main(["refine", *files, "--min_cluster_size", "1", "--output", str(tmp_path / "o.csv")]) == 0
    found = pd.read_csv(tmp_path / "o.csv")
    assert (found["index"].tolist(), found["label"].tolist()) == ([4, 2], [3, 0])


def test_an_index_of_text_and_columns_that_are_numbers(tmp_path):
    labels = pd.DataFrame({"index": ["a", "b", "c"], "label": [0, 0, 1]})
    labels.to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({0: [0, 0, 1]}).to_parquet(tmp_path / "b.parquet")
    for name, columns in (("a.csv", ["index", "label"]), ("b.parquet", ["label"])):
        out = tmp_path / f"{name}.out.parquet"
        files = ["--previous", str(tmp_path / name), "--current", str(tmp_path / name)]
        assert main(["refine", *files, "--min_cluster_size", "1", "--output", str(out)]) == 0
        pd.testing.assert_frame_equal(pd.read_parquet(out)[columns], labels[columns])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weight", "2"], "weight=2.0 is outside [0, 1]"),
        (["--n_clusters", "3", "--distance_threshold", "0.5"], "give exactly one of them"),
        (["--linkage", "median"], "linkage='median' is unknown"),
        (["--column", "labels"], "has no column 'labels'; it has 'label'"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, capsys, options, message):
    path = tmp_path / "a.csv"
    path.write_text("label\n0\n1\n")
    files = ["--previous", str(path), "--current", str(path), "--output", str(tmp_path / "o.csv")]
    assert main(["refine", *files, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_number_of_clusters_that_is_none_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["refine", "--previous", "a", "--current", "b", "--output", "c", "--n_clusters", "many"])
    assert "argument --n_clusters: 'many' is neither a number nor 'current'" in capsys.readouterr().err


def test_nobody_reads_the_output(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label\n0\n1\n")
    command = ["refine", "--previous", path, "--current", path, "--output", tmp_path / "o.csv"]
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from hf_plr.cli import main; sys.exit(main())"
    run = subprocess.run([sys.executable, "-c", code, *command], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.parametrize(("n_clusters", "is_told"), [(3, True), (6, False)])
def test_more_clusters_than_asked_for_are_told(tmp_path, monkeypatch, capsys, n_clusters, is_told):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b.npy"):
        np.save(name, np.repeat(np.arange(6), 10))  # all merges are tied
    main(f"refine --previous a.npy --current b.npy --output c.npy --n_clusters {n_clusters}".split())
    assert len(np.unique(np.load("c.npy"))) == 6
    told = "More clusters are left than the 3 asked for: merges there are tied, or missing"
    assert (told in capsys.readouterr().out) == is_told
