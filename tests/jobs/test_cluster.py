"""`hf-plr cluster`: k-means over feature files equals k-means over all features in memory."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.datasets import make_blobs

from hf_plr import KMeans
from hf_plr.cli import main
from hf_plr.clustering.empty_clusters import find_empty_clusters
from hf_plr.clustering.whitening import whiten
from hf_plr.features.centering import center_features
from hf_plr.jobs import feature_files
from hf_plr.jobs.clustering import Centroids
from hf_plr.pseudo_labels.data_record import DataRecord

SIZES = (301, 1, 0, 420, 278)


@pytest.fixture
def features():
    return make_blobs(1000, n_features=12, centers=9, cluster_std=2.0, center_box=(-3, 4), random_state=0)[0].astype(
        np.float32
    )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(feature_files, "BLOCK_BYTES", 4 * 12 * 64)


def write(features, folder, kind=".parquet", record=None):
    """Write the features as shards; row groups and blocks do not end at the same rows."""
    folder.mkdir()
    bounds = np.cumsum((0, *SIZES))
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        path = folder / f"{number}{kind}"
        if kind == ".npy":
            np.save(path, features[start:stop])
            continue
        flat = pa.array(features[start:stop].reshape(-1), pa.float32())
        column = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
        table = pa.table({"index": pa.array(np.arange(start, stop)), "feature": column})
        pq.write_table(table.replace_schema_metadata(record and record.metadata()), path, row_group_size=100)
    return str(folder)


def read(folder, kind=".parquet"):
    read_one = np.load if kind == ".npy" else lambda path: pd.read_parquet(path)["label"].to_numpy()
    return np.concatenate([read_one(folder / f"{number}{kind}") for number in range(len(SIZES))])


def cluster_in_memory(features, start=None, shrinkage=None, **settings):
    """What the trainer does with all features in memory."""
    centered = center_features(torch.from_numpy(features.copy()))
    rows = centered.rows if shrinkage is None else whiten(centered.rows, shrinkage)
    kmeans = KMeans(settings.pop("n_clusters"), **settings)
    if start is not None:
        kmeans.cluster_centers_ = start
    return kmeans.fit(rows)


@pytest.mark.parametrize("kind", [".parquet", ".npy"])
@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ([], {}),
        (["--cluster_space", "white", "--whitening_shrinkage", "0.1"], {"shrinkage": 0.1}),
        (["--fit_samples", "300", "--seed", "4"], {"fit_samples": 300, "seed": 4}),
        (["--iterations", "2"], {"max_iter": 2}),
    ],
)
def test_labels_are_those_of_one_process_with_everything_in_memory(features, tmp_path, kind, options, settings):
    folder, out = write(features, tmp_path / "features", kind), tmp_path / "clusters"
    assert main(["cluster", folder, "--num_clusters", "17", *options, "--output", str(out)]) == 0
    expected = cluster_in_memory(features, n_clusters=17, **settings)
    np.testing.assert_array_equal(read(out, kind), expected.labels_)
    centroids = Centroids.load(out, torch.device("cpu"))
    np.testing.assert_array_equal(centroids.centers.numpy(), expected.cluster_centers_.numpy())
    assert centroids.iterations == expected.n_iter_


def test_the_next_epoch_starts_where_the_last_one_ended(features, tmp_path):
    moved = features + np.random.default_rng(1).normal(scale=0.1, size=features.shape).astype(np.float32)
    first, second = write(features, tmp_path / "0"), write(moved, tmp_path / "1")
    assert main(["cluster", first, "--num_clusters", "17", "--output", str(tmp_path / "c0")]) == 0
    assert main(["cluster", second, "--start", str(tmp_path / "c0"), "--output", str(tmp_path / "c1")]) == 0
    start = cluster_in_memory(features, n_clusters=17).cluster_centers_
    np.testing.assert_array_equal(read(tmp_path / "c1"), cluster_in_memory(moved, start, n_clusters=17).labels_)
    assert (read(tmp_path / "c0") == read(tmp_path / "c1")).mean() > 0.9


def test_empty_clusters_are_refilled_alike(features, tmp_path, monkeypatch):
    folder = write(features, tmp_path / "features")
    far = np.concatenate([features[:3], np.full((14, 12), 50.0, np.float32)])
    centers = torch.nn.functional.normalize(torch.from_numpy(far), dim=1)
    space = Centroids.load(_first_centroids(folder, tmp_path), torch.device("cpu")).space
    Centroids(centers, space, 1).save(tmp_path / "bad")
    found = []
    find = find_empty_clusters
    monkeypatch.setattr(
        "hf_plr.clustering.streamed_kmeans.find_empty_clusters",
        lambda sums: found.append(int((sums.counts == 0).sum())) or find(sums),
    )
    assert main(["cluster", folder, "--start", str(tmp_path / "bad"), "--output", str(tmp_path / "c")]) == 0
    assert max(found) > 5
    np.testing.assert_array_equal(read(tmp_path / "c"), cluster_in_memory(features, centers, n_clusters=17).labels_)


def _first_centroids(folder, tmp_path):
    out = tmp_path / "first"
    assert main(["cluster", folder, "--num_clusters", "17", "--fit_only", "--output", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == ["centroids.safetensors"]
    return out


def test_a_job_array_assigns_what_one_process_does(features, tmp_path, capsys):
    record = DataRecord(1000, "abc")
    folder = write(features, tmp_path / "features", record=record)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["cluster", folder, "--num_clusters", "17", "--output", str(whole)]) == 0
    assert main(["cluster", folder, "--num_clusters", "17", "--fit_only", "--output", str(parts)]) == 0
    for shard in range(3):
        command = ["cluster", folder, "--assign_only", "--shard", f"{shard}/3", "--output", str(parts)]
        assert main(command) == 0
    np.testing.assert_array_equal(read(parts), read(whole))
    table = pq.read_table(parts / "3.parquet")
    assert json.loads(table.schema.metadata[b"hf_plr.data"]) == {"rows": 1000, "digest": "abc"}
    assert table["index"].to_pylist() == list(range(302, 722))
    assert main(command) == 2
    assert "give --skip_existing" in capsys.readouterr().err
    (parts / "4.parquet").write_bytes(b"damaged")
    assert main([*command, "--skip_existing"]) == 0
    assert "Kept" in capsys.readouterr().out
    assert (parts / "4.parquet").read_bytes() == b"damaged"
    assert main([*command, "--overwrite"]) == 0
    np.testing.assert_array_equal(read(parts), read(whole))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "3.parquet").write_bytes(b"x"), "3.parquet cannot be read as features"),
        (lambda folder: pd.DataFrame({"x": [1]}).to_parquet(folder / "3.parquet"), "has no column 'feature'"),
        (lambda folder: pd.DataFrame({"feature": [1.0]}).to_parquet(folder / "3.parquet"), "not lists of numbers"),
        (
            lambda folder: pd.DataFrame({"feature": [None, [1.0] * 12]}).to_parquet(folder / "3.parquet"),
            "3.parquet cannot be read as features: features are missing in some rows",
        ),
        (
            lambda folder: pd.DataFrame({"feature": [[1.0] * 12, None]}).to_parquet(folder / "3.parquet"),
            "3.parquet: features are missing in some rows",
        ),
        (lambda folder: pd.DataFrame({"feature": [[1.0] * 12, [2.0]]}).to_parquet(folder / "3.parquet"), "in length"),
        (lambda folder: pd.DataFrame({"feature": [[1.0] * 5]}).to_parquet(folder / "3.parquet"), "of one backbone"),
        (
            lambda folder: pd.DataFrame({"feature": [[1.0] * 12, [float("nan")] * 12]}).to_parquet(
                folder / "3.parquet"
            ),
            "3.parquet: the feature in row 1 is NaN",
        ),
        (lambda folder: (folder / "shard-00001-of-00003.parquet").write_bytes(b""), "more than one division"),
        (
            lambda folder: pd.DataFrame({"a": [[1.0] * 12], "b": [[1.0]]}).to_parquet(folder / "3.parquet"),
            "it has no column 'feature', but 'a', 'b': name one of 'a', 'b' with --column",
        ),
        (
            lambda folder: pd.DataFrame({"feature": [["x"] * 12]}).to_parquet(folder / "3.parquet"),
            "not lists of numbers: in Python, np.save(",
        ),
        (lambda folder: np.save(folder / "9.npy", np.zeros((2, 12), int)), "9.npy cannot be read as features"),
    ],
)
def test_files_that_do_not_fit_are_named(features, tmp_path, capsys, damage, message):
    folder = tmp_path / "features"
    write(features, folder)
    damage(folder)
    assert main(["cluster", str(folder), "--num_clusters", "5", "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/2"], "--shard needs --assign_only"),
        (["--assign_only", "--shard", "2/2"], "the last of 2 is 1/2"),
        (["--assign_only", "--shard", "2"], "write I/N"),
        (["--assign_only", "--num_clusters", "7"], "--num_clusters is for fitting, and --assign_only takes the"),
        (["--assign_only", "--start", "c"], "--start is for fitting"),
        (["--assign_only"], "has no centroids.safetensors"),
        (["--num_clusters", "2000"], "--num_clusters 2000 is more than the 1,000 samples"),
        (["--num_clusters", "0"], "--num_clusters 0 must be above 0"),
        (["--cluster_space", "white"], "need each other"),
        (["--start", "nowhere"], "nowhere has no centroids.safetensors"),
        (["--column", "x"], "it has no column 'x', but 'index', 'feature': name one of 'feature' with --column"),
        (["--fit_samples", "5", "--num_clusters", "9"], "--fit_samples 5 must be at least the 9 of --num_clusters"),
    ],
)
def test_arguments_that_do_not_fit_are_named(features, tmp_path, capsys, options, message):
    folder = write(features, tmp_path / "features")
    assert main(["cluster", folder, *options, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["list", "large_list", "integers"])
@pytest.mark.parametrize("options", [[], ["--column", "embedding"]])
def test_features_may_be_in_a_column_of_any_name(features, tmp_path, kind, options):
    features = np.round(10 * features).astype(np.int64) if kind == "integers" else features
    values = pa.array(features.tolist())
    values = values.cast(pa.large_list(pa.float32())) if kind == "large_list" else values
    columns = {"file": [f"{i}.png" for i in range(len(features))], "embedding": values}
    columns |= {"box": values, "feature": pa.array(["no"] * len(features))} if options else {}
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    command = ["cluster", str(tmp_path / "mine.parquet"), "--num_clusters", "17", *options]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    labels = pd.read_parquet(tmp_path / "out" / "mine.parquet")["label"]
    np.testing.assert_array_equal(labels, cluster_in_memory(features.astype(np.float32), n_clusters=17).labels_)


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a"])
def test_files_of_other_kinds_are_told_what_features_are_read_from(tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b"PK")
    assert main(["cluster", str(tmp_path / name), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{name} cannot be read as features: features are read from .parquet or .npy: in Python, np.save(" in error


def test_a_column_of_an_array_is_refused(features, tmp_path, capsys):
    np.save(tmp_path / "a.npy", features)
    command = ["cluster", str(tmp_path / "a.npy"), "--column", "x", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "a .npy file has no column 'x': leave out --column" in capsys.readouterr().err


def test_an_output_that_is_named_like_a_file_is_refused(features, tmp_path, capsys):
    folder = write(features, tmp_path / "features")
    for name in ("c/e1.npy", "labels.CSV"):
        assert main(["cluster", folder, "--num_clusters", "3", "--output", str(tmp_path / name)]) == 2
        assert "is named like a file, but labels and centroids go into a folder" in capsys.readouterr().err
    (tmp_path / "taken").write_text("")
    assert main(["cluster", folder, "--num_clusters", "3", "--output", str(tmp_path / "taken")]) == 2
    assert "taken is a file: name a folder for labels and centroids" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "taken"]
    assert main(["cluster", folder, "--num_clusters", "3", "--output", str(tmp_path / "v1.5")]) == 0


def test_a_start_of_more_clusters_than_samples_is_named(features, tmp_path, capsys):
    _first_centroids(write(features, tmp_path / "features"), tmp_path)
    np.save(tmp_path / "few.npy", features[:16])
    start = str(tmp_path / "first")
    assert main(["cluster", str(tmp_path / "few.npy"), "--start", start, "--output", str(tmp_path / "out")]) == 2
    assert f"--start {start} has 17 clusters, more than the 16 samples" in capsys.readouterr().err


@pytest.mark.parametrize("option", [[], ["--skip_existing"], ["--overwrite"]])
def test_features_are_never_replaced_by_labels(features, tmp_path, capsys, option):
    folder = write(features, tmp_path / "features")
    (tmp_path / "link").symlink_to(folder)
    before = {path.name: path.read_bytes() for path in (tmp_path / "features").iterdir()}
    for output in (folder, str(tmp_path / "link")):
        assert main(["cluster", folder, "--num_clusters", "3", "--output", output, *option]) == 2
        assert "0.parquet would take the place of features: name another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "features").iterdir()} == before


def test_labels_that_are_there_are_refused_before_the_fit(features, tmp_path, capsys):
    folder, out = write(features, tmp_path / "features"), tmp_path / "out"
    out.mkdir()
    (out / "3.parquet").write_bytes(b"labels")
    assert main(["cluster", folder, "--num_clusters", "3", "--output", str(out)]) == 2
    assert "3.parquet exists already: give --skip_existing to keep it" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["3.parquet"]


def test_shards_that_are_missing_and_shards_of_other_data_are_named(features, tmp_path, capsys):
    folder = tmp_path / "features"
    write(features, folder)
    other = tmp_path / "other"
    write(features, other, record=DataRecord(10, "x"))
    write(features, tmp_path / "third", record=DataRecord(12, "y"))
    (tmp_path / "third").joinpath("0.parquet").rename(other / "7.parquet")
    assert main(["cluster", str(other), "--output", str(tmp_path / "out")]) == 2
    assert "are of different data sets: 10 rows with digest x, and 12 rows with digest y" in capsys.readouterr().err
    for path in folder.iterdir():
        path.rename(folder / f"shard-0000{path.stem}-of-00007.parquet")
    assert main(["cluster", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "lacks 2 of 7 shards: 5, 6" in capsys.readouterr().err


def test_centroids_are_told_from_those_of_units(features, tmp_path, capsys):
    folder = write(features, tmp_path / "features")
    centers = _first_centroids(folder, tmp_path)
    path = os.path.join(centers, "centroids.safetensors")
    arrays = load_file(path)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "hf-plr-cluster-centroids-1"}
    options = ["cluster", folder, "--start", str(tmp_path / "older"), "--output", str(tmp_path / "c1")]
    (tmp_path / "older").mkdir()
    units = {"centroids": arrays["cluster_centers"], "units": np.arange(17), "layer": np.array([1])}
    older = tmp_path / "older" / "centroids.safetensors"
    for file_format, message in (
        ("hf-plr-centroids-1", "it holds the centroids of units"),
        ("hf-plr-centroids-2", "has format 'hf-plr-centroids-2', this release reads 'hf-plr-cluster-centroids-1'"),
    ):
        save_file(units, older, {"format": file_format})
        assert main(options) == 2
        assert message in capsys.readouterr().err
    save_file(arrays, older, {"format": "hf-plr-centroids-1"})  # as releases before wrote it
    assert main(options) == 0
