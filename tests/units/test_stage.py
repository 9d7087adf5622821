"""Labels of all frames: counted, spread and gathered part by part, on CPUs alone."""

from __future__ import annotations

import importlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.units import encoder, stage
from hf_plr.units.encoder import write_units
from hf_plr.units.frames import compute_frame_bounds
from hf_plr.units.stage import FrameStage, FrameUnits

counting = importlib.import_module("hf_plr.refinement.cooccurrence")  # a function of the package has this name


def make_stage(n_units=12, processes=1, folder=None):
    """A stage that is asked for what needs no refiner; a stand-in counts the processes."""

    class Processes:
        num_processes = processes

    return FrameStage(n_units, None, 100, 0, Processes(), folder)


@given(st.lists(st.integers(-1, 30), max_size=60), st.integers(1, 9))
def test_units_are_counted_in_chunks(labels, chunk):
    labels = np.array(labels, dtype=np.int16)
    units, counts = np.unique(labels[labels >= 0], return_counts=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "CHUNK", chunk)
        found = FrameUnits(0, labels, labels)
        np.testing.assert_array_equal(found.list_units(), units)
        np.testing.assert_array_equal(found.count_frames(), counts)
        assert found.list_units().dtype == found.count_frames().dtype == np.int64


def test_nothing_of_a_memory_map_is_copied_as_a_whole(tmp_path, monkeypatch):
    labels = np.memmap(tmp_path / "labels", np.int16, "w+", shape=(1000,))
    labels[:] = np.arange(1000) % 7
    largest = 0

    class Watched(np.memmap):
        def __getitem__(self, key):
            nonlocal largest
            part = np.memmap.__getitem__(self, key)
            largest = max(largest, part.size)
            return np.asarray(part)

    monkeypatch.setattr(counting, "CHUNK", 64)
    monkeypatch.setattr(np, "unique", None)
    watched = labels.view(Watched)
    units = FrameUnits(0, watched, watched)
    assert units.list_units().tolist() == list(range(7))
    assert units.count_frames().sum() == 1000
    made = make_stage().apply_centroid_units(np.arange(7) * 2, watched)
    np.testing.assert_array_equal(made, np.arange(1000) % 7 * 2)
    assert largest == 64


@given(st.lists(st.tuples(st.integers(-1, 2**40), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 7))
def test_a_recordings_label_is_spread_over_its_frames(recordings, part):
    labels, counts = map(np.array, zip(*recordings, strict=True))
    bounds = compute_frame_bounds(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "SPREAD_RECORDINGS", part)
        spread = make_stage().spread_over_frames(labels, bounds)
    np.testing.assert_array_equal(spread, np.repeat(labels, counts))
    assert isinstance(spread, np.memmap)
    assert spread.dtype == (np.int32 if labels.max() < 2**31 else np.int64)


@pytest.mark.parametrize("n_units", [12, 20_000])  # int16 and int32
@pytest.mark.parametrize("lengths", [(10, 7, 12), (0, 5, 4), (9, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_labels_of_all_processes_are_gathered_on_cpus(monkeypatch, tmp_path, n_units, lengths, rank):
    rng = np.random.default_rng(0)
    of_stage = make_stage(n_units, processes=3, folder=tmp_path)
    shares = [rng.integers(-1, n_units, length).astype(of_stage._allocate_labels(1).dtype) for length in lengths]
    start = 0

    def gather_rows(accelerator, rows):
        """What arrives is that of all processes, for the frames whose turn it is."""
        nonlocal start
        assert rows.device.type == "cpu"
        assert rows.dtype is torch.uint8  # gloo has no int16
        parts = [torch.from_numpy(share[start : start + 4].view(np.uint8)) for share in shares]
        assert torch.equal(rows, parts[rank])
        start += 4
        return torch.cat(parts)

    monkeypatch.setattr(stage, "GATHERED_FRAMES", 4)
    monkeypatch.setattr(stage, "gather_objects", lambda accelerator, item: list(lengths))
    monkeypatch.setattr(stage, "gather_rows", gather_rows)
    gathered = of_stage._gather_labels(shares[rank])
    np.testing.assert_array_equal(gathered, np.concatenate(shares))
    assert gathered.dtype == shares[0].dtype
    assert isinstance(gathered, np.memmap) or sum(lengths) == 0


@pytest.mark.parametrize("files", [None, ["a.wav", "b.wav", "c.wav", "d.wav", "e.wav"]])
def test_units_are_written_part_by_part(tmp_path, monkeypatch, files):
    rows, units = np.array([7, 3, 9, 0, 4]), [np.arange(n) for n in (3, 1, 4, 2, 5)]
    write_units(tmp_path / "whole", rows, units, files)
    monkeypatch.setattr(encoder, "WRITTEN_ROWS", 2)
    write_units(tmp_path / "parts", rows, units, files)
    whole = pq.read_table(tmp_path / "whole")
    assert whole.equals(pq.read_table(tmp_path / "parts"))
    assert pq.ParquetFile(tmp_path / "whole").num_row_groups == 1
    assert whole["index"].to_pylist() == [0, 3, 4, 7, 9]
    assert whole["units"].to_pylist() == [[0, 1], [0], [0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2, 3]]
    assert files is None or whole["file"].to_pylist() == ["d.wav", "b.wav", "e.wav", "a.wav", "c.wav"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]
