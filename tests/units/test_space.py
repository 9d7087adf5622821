"""The space of the centroids: standardised by recording or speaker, whitened; by hand, and through a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.damaged import check_damaged
from helpers.launching import launch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hf_plr.units import encoder
from hf_plr.units.encoder import CENTROIDS_FILE, UnitEncoder
from hf_plr.units.space import (
    LARGEST,
    STD_FLOOR,
    FrameSpace,
    FrameSpaceFitter,
    Moments,
    MomentSums,
    measure_columns,
    number_speakers,
)

CPU = torch.device("cpu")
SCRIPT = Path(__file__).with_name("space_in_processes.py")


def space_of(scaling, width=1, **parts):
    """A space whose frames have mean 0 and deviation 1 as a whole."""
    return FrameSpace(scaling, torch.zeros(width), torch.ones(width), **parts)


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_frames_stay_as_they_are_by_default():
    rows = torch.randn(5, 3)
    space = FrameSpace()
    assert space.is_identity
    assert space.map(rows, np.array([2, 3])) is rows


def test_each_recording_is_standardised_by_itself():
    rows = column(1, 3, 5, 5, 11, 8)
    scaled = space_of("recording").map(rows, np.array([2, 3, 1]))
    torch.testing.assert_close(scaled[:2], column(-1, 1))  # mean 2, variance 1
    torch.testing.assert_close(scaled[2:5], column(-2, -2, 4) / 8**0.5)  # mean 7, variance 8
    assert scaled[5] == 0.0  # a single frame is its mean


def test_frames_are_standardised_by_all_of_them_first():
    space = FrameSpace("global", torch.tensor([10.0, 0.0]), torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(space.map(torch.tensor([[14.0, -5.0]]), np.array([1])), torch.tensor([[2.0, -1.0]]))
    assert space.map(torch.tensor([[1e9, -1e9]]), np.array([1])).tolist() == [[LARGEST, -LARGEST]]


def test_recordings_without_variance_are_not_blown_up():
    scaled = space_of("recording").map(column(2.0, 2.0, 2.0, 2.01), np.array([4]))
    torch.testing.assert_close(scaled, column(-0.0025, -0.0025, -0.0025, 0.0075) / STD_FLOOR)
    assert space_of("recording").map(column(3.0, 3.0), np.array([1, 1])).tolist() == [[0.0], [0.0]]


def test_speakers_are_standardised_over_their_recordings_and_unknown_ones_by_recording():
    # Speaker 0 has 0, 2, 4, 6 (mean 3, variance 5) in two recordings, the last recording has no speaker.
    known = Moments(column(3.0, 9.0), column(5**0.5, 1.0))
    space = space_of("speaker", speakers=known)
    rows, counts = column(0, 2, 4, 6, 10, 1, 3), np.array([2, 2, 1, 2])
    scaled = space.map(rows, counts, np.array([0, 0, 1, -1]))
    expected = torch.cat([column(-3, -1, 1, 3) / 5**0.5, column(1, -1, 1)])
    torch.testing.assert_close(scaled, expected)
    by_recording = space_of("recording").map(rows, counts)
    assert torch.equal(space.map(rows, counts), by_recording)
    assert torch.equal(space_of("speaker").map(rows, counts, np.array([0, 0, 1, -1])), by_recording)


def test_moments_of_groups():
    sums = MomentSums(3, 2, 10, CPU)
    sums.add(torch.tensor([[1.0, 0.0], [3.0, 0.0], [7.0, 7.0]]), torch.tensor([0, 0, -1]))
    sums.add(torch.tensor([[5.0, 1.0]]), torch.tensor([2]))
    moments = sums.moments(None)
    torch.testing.assert_close(moments.mean, torch.tensor([[2.0, 0.0], [0.0, 0.0], [5.0, 1.0]]))
    floor = STD_FLOOR
    torch.testing.assert_close(moments.std, torch.tensor([[1.0, floor], [floor, floor], [floor, floor]]))


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 5))
def test_moments_are_the_same_bits_in_any_order(seed, n_rows, n_parts):
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(0, 10.0 ** rng.uniform(-2, 1), (n_rows, 3)).astype(np.float32))
    rows = rows.clamp(-LARGEST, LARGEST)
    groups = torch.from_numpy(rng.integers(-1, 4, n_rows))
    whole, parts = MomentSums(4, 3, n_rows, CPU), MomentSums(4, 3, n_rows, CPU)
    whole.add(rows, groups)
    for part in np.array_split(rng.permutation(n_rows), n_parts):
        parts.add(rows[part], groups[part])
    one, other = whole.moments(None), parts.moments(None)
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.std, other.std)
    for group in range(4):
        own = rows[groups == group].double()
        if len(own):
            torch.testing.assert_close(one.mean[group].double(), own.mean(dim=0), atol=1e-6, rtol=1e-5)
            std = own.std(dim=0, correction=0).clamp(min=STD_FLOOR)
            torch.testing.assert_close(one.std[group].double(), std, atol=1e-5, rtol=1e-4)


def test_constant_columns_stay_constant():
    mean, std = measure_columns(torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 1e-9]], dtype=torch.float64))
    assert mean.tolist() == [2.0, 5.0, pytest.approx(5e-10)]
    assert std.tolist() == [1.0, pytest.approx(1e-4), pytest.approx(1e-4)]
    assert measure_columns(torch.ones(3, 2, dtype=torch.float64))[1].tolist() == [1.0, 1.0]


def test_speakers_are_numbered():
    assert number_speakers(np.array([7, -1, 2, 10**12, 7, -5])).tolist() == [1, -1, 0, 2, 1, -1]
    assert number_speakers(np.array([-1, -1])).tolist() == [-1, -1]


# ---- fitted on a store -----------------------------------------------------------------------------------------------


class Store:
    """Frames of three recordings in two batches, as `Frames` gives them."""

    width = 2
    counts = np.array([3, 4, 5])

    def __init__(self, rows, accelerator):
        self.rows = rows
        self.store = None
        self.extractor = self
        self.accelerator = accelerator

    def local_slice(self, store):
        return slice(0, 3)

    def stream_recordings(self, positions):
        yield self.rows[:7], torch.tensor([0, 1])
        yield self.rows[7:], torch.tensor([2])


class Alone:
    num_processes = 1
    process_index = 0
    device = CPU


@pytest.fixture
def frames():
    rows = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[3.0, 1.0], [0.0, 0.2]]) + 4
    return Store(rows, Alone())


@pytest.mark.parametrize("scaling", ["none", "global", "recording", "speaker"])
@pytest.mark.parametrize("shrinkage", [None, 1e-4])
def test_the_space_is_fitted_on_what_is_clustered(frames, scaling, shrinkage):
    fitter = FrameSpaceFitter(scaling, shrinkage, np.array([1, 0, 1]) if scaling == "speaker" else None)
    drawn = list(frames.stream_recordings(None))
    space, mapped = fitter.fit(frames, drawn, Alone())
    again = [space.map(rows, *fitter.describe(frames, positions)) for rows, positions in drawn]
    assert torch.equal(torch.cat(again), mapped)
    groups = {
        "none": [],
        "global": [range(12)],
        "recording": [range(3), range(3, 7), range(7, 12)],
        "speaker": [[*range(3), *range(7, 12)], range(3, 7)],
    }[scaling]
    if shrinkage is None:
        for group in groups:
            own = mapped[list(group)]
            torch.testing.assert_close(own.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
            torch.testing.assert_close(own.std(dim=0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    else:
        covariance = mapped.T.cov(correction=0)
        torch.testing.assert_close(covariance / covariance.diagonal().mean(), torch.eye(2), atol=2e-2, rtol=0)


def test_frames_that_are_not_finite_spoil_no_speaker(frames):
    clean = FrameSpaceFitter("speaker", None, np.array([0, 0, 0]))
    space = space_of("speaker", width=2)
    frames.rows[3] = torch.nan
    measured = space.with_speakers(frames, clean.speakers, Alone()).speakers
    own = frames.rows[[i for i in range(12) if i != 3]]
    torch.testing.assert_close(measured.mean[0], own.mean(dim=0), atol=1e-5, rtol=0)


# ---- in a file -------------------------------------------------------------------------------------------------------


def make_encoder(scaling="speaker", is_whitened=True):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return torch.from_numpy(rng.random(shape, np.float32) + 0.5)

    mean, std = (None, None) if scaling == "none" else (draw(5), draw(5))
    origin, matrix = (draw(5), draw(5, 5)) if is_whitened else (None, None)
    space = FrameSpace(scaling, mean, std, origin, matrix)
    return UnitEncoder(rng.random((7, 5), np.float32), np.arange(7) * 3 - 1, 1, space)


@pytest.mark.parametrize("scaling", ["none", "global", "recording", "speaker"])
@pytest.mark.parametrize("is_whitened", [False, True])
def test_published_centroids_keep_their_space(tmp_path, scaling, is_whitened):
    made = make_encoder(scaling, is_whitened)
    made.save(tmp_path)
    found = UnitEncoder.load(tmp_path)
    np.testing.assert_array_equal(found.centroids, made.centroids)
    rows, counts = torch.randn(6, 5), np.array([2, 4])
    assert found.space.scaling == scaling
    assert torch.equal(found.space.map(rows, counts), made.space.map(rows, counts))
    with safe_open(tmp_path / CENTROIDS_FILE, framework="numpy") as file:
        as_before = scaling == "none" and not is_whitened
        assert file.metadata()["format"] == f"hf-plr-centroids-{1 if as_before else 2}"


def test_files_of_the_first_format_are_read(tmp_path):
    arrays = {"centroids": np.ones((2, 5), np.float32), "units": np.array([0, 3]), "layer": np.array([1])}
    save_file(arrays, tmp_path / CENTROIDS_FILE, metadata={"format": "hf-plr-centroids-1"})
    found = UnitEncoder.load(tmp_path)
    assert found.space.is_identity
    assert found.units.tolist() == [0, 3]
    save_file(arrays, tmp_path / CENTROIDS_FILE, metadata={"format": "hf-plr-centroids-3"})
    with pytest.raises(ValueError, match="has format 'hf-plr-centroids-3', this release reads"):
        UnitEncoder.load(tmp_path)


def test_damaged_spaces_are_refused(tmp_path):
    make_encoder().save(tmp_path)

    def read():
        found = UnitEncoder.load(tmp_path)
        for value in (found.space.mean, found.space.std, found.space.origin, found.space.matrix):
            assert value is None or (value.dtype == torch.float32 and torch.isfinite(value).all())
        assert found.space.std is None or found.space.std.min() > 0

    check_damaged(tmp_path / CENTROIDS_FILE, read)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frame_std", np.zeros(5, np.float32), "'frame_std' holds values from 0.0"),
        ("frame_mean", None, "'frame_mean' is missing"),
        ("frame_matrix", np.ones((5, 4), np.float32), "'frame_matrix' holds float32 of shape"),
        ("frame_scaling", np.array([4]), "'frame_scaling' holds values from 4"),
    ],
)
def test_spaces_that_do_not_fit_are_named(tmp_path, name, value, message):
    make_encoder().save(tmp_path)
    path = tmp_path / CENTROIDS_FILE
    arrays = load_file(path) | {name: value}
    save_file({k: v for k, v in arrays.items() if v is not None}, path, metadata={"format": encoder.SPACE_FORMAT})
    with pytest.raises(ValueError, match=message):
        UnitEncoder.load(tmp_path)


# ---- over processes --------------------------------------------------------------------------------------------------


def make_units(processes: int, folder: Path) -> dict[str, np.ndarray]:
    output = folder / f"{processes}.npz"
    run = launch(output, processes=processes, script=SCRIPT)
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(np.load(output))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, np.ndarray]:
    return make_units(1, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_units(alone, processes, tmp_path):
    shared = make_units(processes, tmp_path)
    assert set(alone) == set(shared)
    assert len(alone) == 16
    for name in alone:
        np.testing.assert_array_equal(shared[name], alone[name], err_msg=name)
    labels = {name: alone[name].tobytes() for name in alone if name.endswith("labels")}
    assert len(set(labels.values())) == len(labels)  # every space has units of its own
