"""Labels of all frames: counted, scored and kept part by part, on CPUs alone."""

from __future__ import annotations

import importlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.evaluation.units import score_units
from hf_plr.pseudo_labels.holding import is_of_samples
from hf_plr.refinement import PseudoLabelRefiner, cooccurrence
from hf_plr.units import encoder, stage
from hf_plr.units.encoder import write_units
from hf_plr.units.frames import compute_frame_bounds
from hf_plr.units.stage import FrameStage, FrameUnits

counting = importlib.import_module("hf_plr.refinement.cooccurrence")  # a function of the package has this name


class Alone:
    num_processes = 1
    process_index = 0
    is_main_process = is_local_main_process = True


def make_stage(n_units=12, folder=None):
    """A stage that is asked for what needs no recordings."""
    return FrameStage(n_units, PseudoLabelRefiner(), 100, 0, Alone(), folder)


def units_of(raw_labels, labels):
    return FrameUnits(0, labels, raw_labels, slice(0, len(labels)), cooccurrence(raw_labels, labels))


@given(st.lists(st.integers(-1, 30), max_size=60), st.integers(1, 9))
def test_units_are_counted_in_chunks(labels, chunk):
    labels = np.array(labels, dtype=np.int16)
    units, counts = np.unique(labels[labels >= 0], return_counts=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "CHUNK", chunk)
        patch.setattr(counting, "COUNT_CHUNK", chunk)
        found = units_of(np.zeros_like(labels), labels)
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
            if part.size == len(self):  # the frames of one process, which are all
                return part
            largest = max(largest, part.size)
            return np.asarray(part)

    monkeypatch.setattr(counting, "CHUNK", 64)
    monkeypatch.setattr(counting, "COUNT_CHUNK", 64)
    unique = np.unique

    def unique_of_little(values, *args, **kwargs):
        assert np.size(values) <= 64
        return unique(values, *args, **kwargs)

    monkeypatch.setattr(np, "unique", unique_of_little)
    watched = labels.view(Watched)
    stage = make_stage()
    units = stage.refine(watched, 0, slice(0, 1000))
    assert units.list_units().tolist() == list(range(7))
    assert units.count_frames().sum() == 1000
    made = stage.apply_centroid_units(np.arange(7) * 2, watched)
    np.testing.assert_array_equal(made, np.arange(1000) % 7 * 2)
    assert isinstance(made, np.memmap)
    assert largest == 64


@given(st.lists(st.tuples(st.integers(-1, 2**40), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 7))
def test_units_are_scored_by_the_labels_of_their_recordings(recordings, part):
    truth, counts = map(np.array, zip(*[*recordings, (3, 2)], strict=True))
    bounds = compute_frame_bounds(counts)
    labels = np.random.default_rng(len(truth)).integers(0, 5, bounds[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "SPREAD_RECORDINGS", part)
        found = make_stage().score(units_of(labels, labels), truth, bounds)
    assert found == score_units(labels, np.repeat(truth, counts))


def test_without_a_label_there_are_no_scores_and_classes_may_be_any_numbers():
    bounds, labels = compute_frame_bounds(np.array([3, 2])), np.array([0, 0, 1, 1, 1])
    score = make_stage().score
    assert score(units_of(labels, labels), np.array([-1, -1]), bounds) == {}
    found = score(units_of(labels, labels), np.array([-5, -3]), bounds)
    assert found == score(units_of(labels, labels), np.array([0, 1]), bounds)


def test_a_centroid_has_the_unit_of_most_of_its_frames_or_none():
    raw = np.repeat([0, 1, 2, 3], [5, 5, 4, 3])
    labels = np.array([7] * 5 + [-1] * 5 + [9] * 4 + [-1, -1, 7])
    assert units_of(raw, labels).map_centroids_to_units(5).tolist() == [7, -1, 9, -1, -1]
    nothing = np.full(17, -1)
    assert units_of(raw, nothing).map_centroids_to_units(5).tolist() == [-1] * 5


@pytest.mark.parametrize("n_units", [12, 20_000])  # int16 and int32
def test_a_state_is_taken_up_by_a_process_of_several_and_from_one_file_of_all(n_units):
    rng = np.random.default_rng(0)
    of_all, of_part = make_stage(n_units), make_stage(n_units)
    centers = torch.zeros(n_units, 2)
    for each in (of_all, of_part):
        each.kmeans.load_state_dict({"cluster_centers": centers})
    for round_ in range(2):
        clusters = rng.integers(0, 9, 300).astype(np.int16)
        units = of_all.refine(clusters, round_, slice(0, 300))
    state = of_all.state_dict(units)
    own = slice(100, 220)
    restored = of_part.load_state_dict(state, own, 300)  # as older releases wrote it
    np.testing.assert_array_equal(restored.labels[own], units.labels[own])
    np.testing.assert_array_equal(restored.raw_labels[own], units.raw_labels[own])
    assert restored.labels.shape == (300,)
    again = of_part.state_dict(restored)
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array[own] if is_of_samples(name) else array, err_msg=name)
    of_part.load_state_dict(again, own, 300)
    with pytest.raises(ValueError, match=r"'units' holds .* of shape \(120,\), expected integers of shape \(130,\)"):
        of_part.load_state_dict(again, slice(100, 230), 300)


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
