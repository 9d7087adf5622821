"""`hf-plr refine` over folders of shards equals `hf-plr refine` on one file with all samples."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from hf_plr.cli import main
from hf_plr.jobs.refinement import ASIDE, sum_tables
from hf_plr.pseudo_labels.cell_targets import read_cell_targets
from hf_plr.pseudo_labels.data_record import DataRecord
from hf_plr.pseudo_labels.given_labels import GivenLabels
from hf_plr.refinement import cooccurrence

OPTIONS = {
    "slr": [],
    "joint": ["--preset", "joint"],
    "consensus": ["--preset", "consensus"],
    "soft": ["--preset", "soft"],
    "rlcc": ["--preset", "rlcc"],
    "ward": ["--linkage", "ward", "--min_cluster_size", "5", "--noise", "drop"],
    "deep joint": ["--space", "joint", "--n_clusters", "9"],
}


def make_labels(seed, n_epochs):
    """Labels of some epochs, which drift, with noise and gaps in their numbers."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(50, 900))
    labels = [rng.integers(-1, 14, n)]
    for _ in range(n_epochs - 1):
        moved = rng.random(n) < 0.25
        labels.append(np.where(moved, rng.integers(-1, 17, n), labels[-1]))
    return [np.where(each > 5, 3 * each, each) for each in labels]


def write_shards(labels, folder, bounds, kind):
    folder.mkdir()
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        name = folder / f"shard-{number:05d}-of-{len(bounds) - 1:05d}"
        if kind == ".npy":
            np.save(f"{name}.npy", labels[start:stop].astype(np.int32))
        else:
            frame = pd.DataFrame({"index": np.arange(start, stop), "file": "x", "label": labels[start:stop]})
            frame.to_parquet(f"{name}.parquet", index=False)
    return str(folder)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("preset", OPTIONS)
def test_refined_labels_are_those_of_one_process(tmp_path, seed, preset):
    n_epochs = 3 if preset in ("consensus", "deep joint") else 2
    labels = make_labels(seed, n_epochs)
    rng = np.random.default_rng(seed)
    n, n_shards = len(labels[0]), int(rng.integers(1, 7))
    bounds = [0, *sorted(rng.choice(np.arange(1, n), n_shards - 1, replace=False)), n]
    kinds = [(".npy", ".parquet")[int(rng.integers(2))] for _ in labels]
    folders = [
        write_shards(each, tmp_path / f"epoch{i}", bounds, kind)
        for i, (each, kind) in enumerate(zip(labels, kinds, strict=True))
    ]
    wholes = []
    for i, each in enumerate(labels):
        wholes.append(str(tmp_path / f"{i}.npy"))
        np.save(wholes[-1], each)
    options = OPTIONS[preset]
    one, many = tmp_path / "one.parquet", tmp_path / "many"
    assert main(["refine", "--previous", *wholes[:-1], "--current", wholes[-1], *options, "--output", str(one)]) == 0
    command = ["refine", "--previous", *folders[:-1], "--current", folders[-1], *options, "--output", str(many)]
    assert main(command) == 0
    expected, files = pd.read_parquet(one), sorted(many.glob("*.parquet"))
    assert len(files) == n_shards
    found = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    assert found.pop("index").tolist() == list(range(n))
    cell = found.pop("cell") if preset in ("soft", "rlcc") else None
    pd.testing.assert_frame_equal(found, expected)
    targets = read_cell_targets(many)
    assert (targets is None) == (cell is None)
    if targets is not None:
        np.testing.assert_allclose(targets["confidence"][cell], found["confidence"], atol=1e-6)


def test_a_table_of_shards_is_that_of_all_samples():
    labels = make_labels(5, 3)
    whole = cooccurrence(*labels)
    bounds = np.linspace(0, len(labels[0]), 12).astype(int)
    total = sum_tables(cooccurrence(*(each[a:b] for each in labels), offset=a) for a, b in itertools.pairwise(bounds))
    for name in ("codes", "counts", "first_member"):
        np.testing.assert_array_equal(getattr(total, name), getattr(whole, name))


@pytest.fixture
def folders(tmp_path):
    labels = make_labels(0, 2)
    bounds = [0, 20, 35, len(labels[0])]
    return [write_shards(each, tmp_path / f"{i}", bounds, ".parquet") for i, each in enumerate(labels)]


def test_it_needs_no_torch_and_replaces_nothing_unasked(folders, tmp_path):
    code = "import sys; from hf_plr.cli import main; status = main(); print('torch' in sys.modules); sys.exit(status)"
    command = ["refine", "--previous", folders[0], "--current", folders[1], "--output", str(tmp_path / "out")]
    run = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False"
    assert main(command) == 2
    soft = [*command, "--preset", "soft", "--overwrite"]
    assert main(soft) == 0
    assert read_cell_targets(tmp_path / "out") is not None
    assert main([*command, "--overwrite"]) == 0
    assert read_cell_targets(tmp_path / "out") is None


def test_what_a_killed_process_left_is_no_shard(folders, tmp_path):
    (tmp_path / "1" / "shard-00001-of-00003.parquet.tmp.parquet").write_bytes(b"incomplete")
    command = ["refine", "--previous", folders[0], "--current", folders[1], "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("before", "after"), [("soft", "rlcc"), ("soft", "slr"), ("slr", "soft")])
def test_an_output_is_never_half_replaced(folders, tmp_path, monkeypatch, before, after):
    n = len(pd.concat([pd.read_parquet(path) for path in (tmp_path / "1").iterdir()]))
    command = ["refine", "--previous", folders[0], "--current", folders[1], "--overwrite", "--preset"]

    def read(folder):
        found = GivenLabels.read(str(folder), np.arange(n), None, n)
        assert found.n_missing == 0
        return found.digest()

    for preset in (before, after):
        assert main([*command, preset, "--output", str(tmp_path / preset)]) == 0
    old, new = read(tmp_path / before), read(tmp_path / after)
    assert old != new
    seen, steps, out = [], itertools.count(), tmp_path / "out"
    for last in range(40):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / before, out)
        (out / ASIDE).mkdir()
        (out / ASIDE / "shard-00000-of-00003.parquet").write_bytes(b"of another process that was killed")
        with monkeypatch.context() as patch:
            steps = itertools.count()
            for name in ("remove", "replace"):
                patch.setattr(os, name, stop_at(last, steps, getattr(os, name)))
            try:
                main([*command, after, "--output", str(out)])
            except KilledError:
                pass
            else:
                break
        try:
            seen.append(read(out))
        except ValueError as error:
            told = any(words in str(error) for words in ("refine them again", "lacks", "has no labels"))
            seen.append("refused" if told else str(error))
    assert list(dict.fromkeys(seen)) in ([old, "refused", new], [old, "refused"])
    assert read(out) == new
    assert list(out.glob("*tmp*")) == []


def stop_at(last, steps, function):
    def step(*args, **kwargs):
        if next(steps) == last:
            raise KilledError
        return function(*args, **kwargs)

    return step


def test_the_data_set_that_the_files_name_is_passed_on(folders, tmp_path):
    record = DataRecord(900, "abc")
    for path in (tmp_path / "1").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata(record.metadata()), path)
    out = tmp_path / "out"
    assert main(["refine", "--previous", folders[0], "--current", folders[1], "--output", str(out)]) == 0
    assert all(pq.read_schema(path).metadata[b"hf_plr.data"] for path in out.iterdir())


def test_shards_that_do_not_fit_are_named(folders, tmp_path, capsys):
    def fails_with(message, *options):
        out = str(tmp_path / "out")
        assert main(["refine", "--previous", folders[0], "--current", folders[1], "--output", out, *options]) == 2
        assert message in capsys.readouterr().err

    first, second, third = sorted((tmp_path / "1").iterdir())
    whole = pd.read_parquet(second)
    whole[:-1].to_parquet(second)
    fails_with("has 15 labels but")
    pd.read_parquet(first).assign(index=5).to_parquet(first)
    fails_with("not in the same order")
    for number, folder in enumerate(folders):
        path = min(Path(folder).iterdir())
        frame = pd.read_parquet(path)
        frame.assign(index=5, file=[f"{row + number}.png" for row in range(len(frame))]).to_parquet(path)
    fails_with("in row 0 their file is 0.png and 1.png")
    third.unlink()
    fails_with("lacks 1 of 3 shards: 2")
    for path in (first, second):
        path.unlink()
    fails_with("has no labels (.npy, .csv, .parquet)")
    whole.to_parquet(tmp_path / "1" / "a.parquet")
    fails_with("has 3 files of labels and")


@pytest.mark.parametrize("kind", [".npy", ".parquet"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_no_folder_of_an_epoch_gets_further_shards(tmp_path, capsys, kind, epoch):
    labels = make_labels(0, 2)
    bounds = [0, 20, len(labels[0])]
    names = [write_shards(each, tmp_path / f"epoch-{i}", bounds, kind) for i, each in enumerate(labels)]
    if kind == ".parquet":  # the same samples under other names
        for number, path in enumerate(sorted((tmp_path / "epoch-0").iterdir())):
            path.rename(path.with_name(f"part-{number}.parquet"))
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    (tmp_path / "link").symlink_to(names[epoch])
    command = ["refine", "--previous", names[0], "--current", names[1], "--output", str(tmp_path / "link")]
    if kind == ".parquet" and epoch == 1:
        assert main([*command, "--overwrite"]) == 0  # in place of its own shards
        return
    assert main([*command, "--overwrite"]) == 2
    assert "link is a folder of labels before refinement" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.glob("epoch-*/*")} == before


def test_labels_in_folders_go_into_a_folder(folders, tmp_path, capsys):
    output = tmp_path / "refined.csv"
    assert main(["refine", "--previous", folders[0], "--current", folders[1], "--output", str(output)]) == 2
    assert "is named like a file, but labels in folders go into a folder: leave out .csv" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("kind", [".npy", ".parquet", ".csv"])
def test_shards_without_rows_are_refined_with_the_others(tmp_path, capsys, kind):
    labels = make_labels(3, 2)
    n = len(labels[0])
    epochs = []
    for name, bounds in (("with", [0, 0, 20, 20, n]), ("without", [0, 20, n]), ("empty", [0, 0, 0])):
        for epoch in range(2):
            epochs.append(
                write_shards(labels[epoch], tmp_path / f"{name}{epoch}", bounds, kind.replace("csv", "parquet"))
            )
            for path in [*(tmp_path / f"{name}{epoch}").iterdir()] if kind == ".csv" else []:
                pd.read_parquet(path)[["index", "label"]].to_csv(path.with_suffix(".csv"), index=False)
                path.unlink()

    def refine(previous, current, output):
        return main(["refine", "--previous", previous, "--current", current, "--output", str(tmp_path / output)])

    assert refine(*epochs[:2], "with") == refine(*epochs[2:4], "without") == 0
    found = [GivenLabels.read(str(tmp_path / name), np.arange(n), None, n).labels for name in ("with", "without")]
    np.testing.assert_array_equal(*found)
    capsys.readouterr()
    assert refine(*epochs[4:], "empty") == 2
    assert "none of the files holds labels" in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the 2 files holds labels"):
        GivenLabels.read(epochs[5], np.arange(n), None, n)
