"""Damaged files: a reader gives what can be, or an error that names the file, and nothing else happens."""

from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from datasets import Image as ImageColumn
from helpers.paths import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_plr import PLRTrainingArguments
from hf_plr.clustering import KMeans
from hf_plr.data.audio_decoding import UnreadableSound, decode_waveform
from hf_plr.data.image_store import UnreadableImage, _decode
from hf_plr.data.pixel_cache import PixelCache
from hf_plr.data.sample_store import UnreadableSample
from hf_plr.features.centering import CenteredFeatures
from hf_plr.models.vision import load_backbone
from hf_plr.pseudo_labels.label_files import LabelFile
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.recipe_tools.running import DataArguments
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.reid.reid_data import load_reid_folder
from hf_plr.report.outputs import read_scores
from hf_plr.trainer.checkpointing import STATE_FILE, load_state, save_state
from hf_plr.units.encoder import CENTROIDS_FILE, UnitEncoder
from hf_plr.utils.serialization import checked

ROOM = 1 << 30  # bytes that a reader of a few kilobytes may not ask for

pytestmark = pytest.mark.timeout(300)


@st.composite
def damaged(draw, whole):
    """Bytes of a file that was cut off, has other bits or bytes, goes on as it should not, or is something else."""
    kind = draw(st.sampled_from(["cut", "flipped", "flipped", "replaced", "replaced", "longer", "other"]))
    place = st.integers(0, len(whole) - 1) | st.integers(0, min(len(whole), 400) - 1)  # headers matter most
    if kind == "cut":
        return whole[: draw(place)]
    if kind == "longer":
        return whole[: draw(place)] + draw(st.binary(max_size=60))
    if kind == "other":
        return draw(st.binary(max_size=200))
    changed = bytearray(whole)
    for at in draw(st.lists(place, min_size=1, max_size=4)):
        changed[at] = changed[at] ^ 1 << draw(st.integers(0, 7)) if kind == "flipped" else draw(st.integers(0, 255))
    return bytes(changed)


@contextlib.contextmanager
def little_memory():
    """Make whatever asks for more than `ROOM` fail."""
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    used = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData")) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def check_damaged(path, read, errors=(ValueError,), named=None, examples=150):
    """Read a file, damaged in many ways; `read` must itself assert that what it gets is well formed."""
    whole = path.read_bytes()
    read()

    @given(damaged(whole))
    @settings(max_examples=min(examples, settings.default.max_examples), database=None)
    @example(b"")
    @example(whole[:-1])
    def check(content):
        path.write_bytes(content)
        with little_memory():
            refusal = None
            try:
                read()
            except errors as error:
                refusal = error
        if refusal is not None:
            assert str(named or path) in str(refusal)
            if not isinstance(refusal, UnreadableSample):  # these are others' formats, read by others' code
                assert not isinstance(refusal.__cause__, MemoryError)

    try:
        check()
    finally:
        path.write_bytes(whole)


LABELS = np.random.default_rng(0).integers(-1, 12, 60)


def write_label_file(path):
    frame = pd.DataFrame({"index": np.arange(60), "label": LABELS})
    if path.suffix == ".npy":
        np.save(path, LABELS)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)


@pytest.mark.parametrize("kind", ["npy", "csv", "parquet"])
def test_label_files(tmp_path, kind):
    path = tmp_path / f"labels.{kind}"
    write_label_file(path)

    def read():
        labels = LabelFile.open(str(path)).labels
        assert labels.ndim == 1
        assert labels.dtype.kind in "iu"
        assert len(labels) > 0
        assert labels.min() >= -1

    check_damaged(path, read, errors=(ValueError, TypeError))


def test_an_archive_and_a_pickle_are_no_npy(tmp_path):
    path = tmp_path / "labels.npy"
    with open(path, "wb") as file:
        np.savez(file, labels=LABELS)
    with pytest.raises(ValueError, match="cannot be read as npy"):
        LabelFile.open(str(path))
    np.save(path, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"labels.npy cannot be read as npy: .*objects"):
        LabelFile.open(str(path))
    np.save(path, LABELS.astype("m8[s]"))
    with pytest.raises(TypeError, match=r"labels.npy: it holds timedelta64\[s\]"):
        LabelFile.open(str(path))
    np.save(path, np.array([1, 2**64 - 1], dtype=np.uint64))
    with pytest.raises(ValueError, match=r"labels.npy: label 18446744073709551615 is above"):
        LabelFile.open(str(path))


def test_published_centroids(tmp_path):
    encoder = UnitEncoder(np.random.default_rng(0).random((7, 5), np.float32), np.arange(7) * 3 - 1, 1)
    encoder.save(tmp_path)

    def read():
        found = UnitEncoder.load(tmp_path)
        assert (found.centroids.ndim, found.centroids.dtype) == (2, np.float32)
        assert np.isfinite(found.centroids).all()
        assert (found.units.shape, found.units.dtype) == ((len(found.centroids),), np.int64)
        assert found.units.min() >= -1
        assert found.layer >= 0

    check_damaged(tmp_path / CENTROIDS_FILE, read)


def test_centroids_of_another_backbone_are_refused(make_sound_trainer):
    trainer = make_sound_trainer()
    for encoder in (UnitEncoder(np.zeros((4, 31), np.float32), np.arange(4), 1),
                    UnitEncoder(np.zeros((4, 32), np.float32), np.arange(4), 3)):  # fmt: skip
        with pytest.raises(ValueError, match="they belong to another backbone"):
            next(encoder.encode(trainer.extractor, trainer.train_dataset))


def test_pixel_cache(tmp_path):
    cache = PixelCache(tmp_path, "key", (6, 3, 2, 2))
    with cache.written() as room:
        room.fill_(7)
        cache.note([1, 4])

    def read():
        found = cache.read()
        if found is not None:
            pixels, unreadable = found
            assert (pixels.shape, pixels.dtype) == ((6, 3, 2, 2), torch.uint8)
            assert unreadable == sorted(set(unreadable))
            assert all(0 <= row < 6 for row in unreadable)

    pixels, unreadable = cache.read()
    assert (pixels == 7).all()
    assert unreadable == [1, 4]
    for path in (cache.path, cache._note):  # damaged ones count as not there
        check_damaged(path, read, errors=())
    for note in ('{"unreadable": [6]}', '{"unreadable": [true]}', '{"unreadable": "1"}', "[1]", "3", "[" * 10**5):
        cache._note.write_text(note)
        assert cache.read() is None


def test_scores_of_a_run(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"scores": {"before": {"mAP": 0.5}}, "samples": 3}))

    assert read_scores(path) == {"before": {"mAP": 0.5}}

    def read():
        for found in read_scores(path).values():
            assert all(isinstance(value, float) for value in found.values())

    check_damaged(path, read)


def test_configs_of_the_recipes(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    settings_ = (REPOSITORY / "recipes" / "configs" / "cluster_contrast_market1501.yaml").read_bytes().splitlines()
    path.write_bytes(b"\n".join(line for line in settings_ if line and not line.startswith((b"#", b"image_"))))

    def read():
        parser = RecipeParser([DataArguments, PLRTrainingArguments], "", lambda given: {})
        try:
            parser.parse_args_and_config(["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true"])
        except SystemExit:
            raise ValueError(capsys.readouterr().err) from None

    check_damaged(path, read, examples=80)


def test_lists_of_images(tmp_path):
    names = ["0000/0000_000_01_0_0.jpg", "0001/0001_000_12_0_0.jpg"]
    for folder in ("train", "test"):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
    for split in ("train", "val", "query", "gallery"):
        (tmp_path / f"list_{split}.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))

    def read():
        for row in load_reid_folder(tmp_path)["train"].cast_column("image", ImageColumn(decode=False)).to_list():
            assert Path(row["image"]["path"]).resolve().is_relative_to(tmp_path / "train")

    check_damaged(tmp_path / "list_train.txt", read, named=tmp_path, examples=60)
    outside = tmp_path.parent / "a_b_1_c.jpg"
    outside.touch()
    for path in ("../../a_b_1_c.jpg", str(outside)):
        (tmp_path / "list_train.txt").write_text(f"{path} 0\n")
        with pytest.raises(ValueError, match=r"list_train.txt, line 1: .* is not below"):
            load_reid_folder(tmp_path)
    for line in (
        f"{names[0]} {'9' * 30}",
        f"{names[0]} ²",
        f"a_b_{'1' * 30}_c 0",
        "x" * 5000 + "_b_1_c 0",
        "a\0_b_1_c 0",
    ):
        (tmp_path / "list_train.txt").write_text(f"{line}\n")
        with pytest.raises(ValueError, match=r"list_train.txt"):
            load_reid_folder(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp"])
def test_images(tmp_path, kind):
    path = tmp_path / f"image.{kind}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    check_damaged(path, lambda: _decode(str(path), 5), errors=(UnreadableImage,), named="image 5", examples=60)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_sounds(tmp_path, kind):
    path = tmp_path / f"sound.{kind}"
    soundfile.write(path, np.sin(np.arange(800) / 5), 8_000)

    def read():
        waveform = decode_waveform(str(path), 5, 8_000, max_samples=4_000)
        assert (waveform.ndim, waveform.dtype) == (1, np.float32)
        assert np.isfinite(waveform).all()

    check_damaged(path, read, errors=(UnreadableSound,), named="recording 5", examples=60)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_models(tmp_path, tiny_vit, file):
    tiny_vit().save_pretrained(tmp_path)
    check_damaged(tmp_path / file, lambda: load_backbone(tmp_path), named=tmp_path, examples=40)


# ---- the state of a run ----------------------------------------------------------------------------------------------

OF_IMAGES = {
    "num_train_epochs": 1,
    "refinement": "rlcc",
    "refine_start_epoch": 0,
    "feature_source": "epoch",
    "num_labelings": 2,
}
OF_FRAMES = {"num_train_epochs": 1}


def state_of(trainer):
    trainer.train()
    return {name: np.array(value) for name, value in trainer.label_state().items()}


def test_checkpoints_of_images(make_trainer, tmp_path):
    save_state(tmp_path, state_of(make_trainer(**OF_IMAGES, save_strategy="no")), {})
    trainer = make_trainer(**OF_IMAGES)
    features = torch.nn.functional.normalize(torch.randn(203, 32), dim=1)

    def read():
        """Take up the state and go on from it: refine, and take a loss."""
        trainer.load_label_state(load_state(tmp_path)[0], str(tmp_path))
        now = trainer.pseudo_labels
        some = torch.arange(20)
        for labeling in trainer.labelings:
            labeling.to(torch.device("cpu"))
            labeling.loss(features[some], some)
            labeling.update_prototypes(features[some], some)
        trainer._feature_source.note(some, features[some])
        centered = CenteredFeatures(features, torch.zeros(32), slice(0, 203))
        labeling = trainer.labelings[0]
        labeling.refine(labeling.cluster(centered), now.epoch + 1, centered.part)

    check_damaged(tmp_path / STATE_FILE, read, named=tmp_path, examples=100)


def test_checkpoints_of_frames(make_sound_trainer, tmp_path):
    save_state(tmp_path, state_of(make_sound_trainer(**OF_FRAMES, save_strategy="no")), {})
    trainer = make_sound_trainer(**OF_FRAMES)

    def read():
        trainer.load_label_state(load_state(tmp_path)[0], str(tmp_path))
        trainer._units_in_use()
        trainer.frame_units.unit_of_centroid(12)
        trainer.stage.refiner.refine(trainer.frame_units.raw_labels)

    check_damaged(tmp_path / STATE_FILE, read, named=tmp_path, examples=100)


def with_first(value):
    """The same array with another first value."""

    def change(array):
        changed = array.copy()
        changed.flat[0] = value
        return changed

    return change


def gone(array):
    return None


def shorter(array):
    return array[:-1]


def as_floats(array):
    return array.astype(np.float64)


def as_integers(array):
    return array.astype(np.int64)


def as_column(array):
    return array[:, None]


def refusal(load, state):
    try:
        load(state, "checkpoint")
    except ValueError as error:
        return str(error)
    return "taken"


def check_refused(load, state, changes):
    """Load a state with one array changed; the message must name the file and the array."""
    load(state, "checkpoint")
    for name, change in changes:
        value = change(state[name])
        changed = {k: v for k, v in state.items() if k != name} | ({} if value is None else {name: value})
        message = refusal(load, changed)
        assert message.startswith(f"checkpoint/{STATE_FILE}: "), (name, change, message)
        assert name.split(".", 1)[-1] in message or "its labels have lengths" in message


def test_a_state_of_images_that_cannot_be_is_refused(make_trainer):
    state = state_of(make_trainer(**OF_IMAGES, save_strategy="no"))
    other = make_trainer(**OF_IMAGES)
    n_clusters = int(state["n_clusters"][0])
    labels = ["labels", "previous_labels", "raw_labels", "targets", "refiner.history.1", "refiner.refined"]
    single = ["epoch", "n_clusters", "features.dtype", "refiner.version"]
    changes = [(name, change) for name in labels for change in (as_floats, as_column, with_first(-2))]
    changes += [(name, change) for name in labels[1:] for change in (gone, shorter)]
    changes += [(name, change) for name in single for change in (as_floats, shorter, with_first(-1))]
    changes += [(name, gone) for name in single]
    changes += [
        ("targets", with_first(n_clusters)),
        ("n_clusters", with_first(0)),
        ("features.rows", gone),
        ("n_clusters", with_first(10**6)),
        ("features.dtype", with_first(3)),
        ("confidence", gone),
        ("confidence", shorter),
        ("confidence", with_first(1.5)),
        ("confidence", with_first(np.nan)),
        ("confidence", as_integers),
        ("center", gone),
        ("center", shorter),
        ("center", with_first(np.inf)),
        ("prototypes", gone),
        ("prototypes", shorter),
        ("prototypes", as_integers),
        ("prototypes", with_first(np.nan)),
        ("features.rows", shorter),
        ("features.rows", with_first(np.nan)),
        ("features.seen", gone),
        ("features.seen", as_integers),
        ("features.seen", shorter),
        *((f"soft.{name}", change) for name in ("cell", "case") for change in (gone, shorter)),
        ("soft.codes", gone),
        ("soft.shares_of_case", gone),
        ("soft.shares_of_case", np.ravel),
        ("soft.cell", with_first(-1)),
        ("soft.cell", with_first(10**6)),
        ("soft.codes", with_first(10**6)),
        ("soft.codes", with_first(-2)),
        ("soft.codes", lambda codes: codes[:, :0]),
        ("soft.case", with_first(4)),
        ("soft.shares_of_case", with_first(-1.0)),
        *((f"soft.basis.0.{name}", change) for name in ("indices", "indptr") for change in (gone, shorter)),
        ("soft.basis.0.data", gone),
        ("soft.basis.0.data", with_first(-1.0)),
        ("soft.basis.0.indices", with_first(n_clusters)),
        ("soft.basis.0.indices", with_first(-1)),
        ("soft.basis.0.indptr", with_first(1)),
        ("clusterer.cluster_centers", as_integers),
        ("clusterer.cluster_centers", with_first(np.inf)),
        ("clusterer.cluster_centers", np.ravel),
    ]
    check_refused(other.load_label_state, state, changes)


def test_a_state_of_frames_that_cannot_be_is_refused(make_sound_trainer):
    state = state_of(make_sound_trainer(**OF_FRAMES, save_strategy="no"))
    other = make_sound_trainer(**OF_FRAMES)
    labels = ["units", "raw_units", "refiner.history.1", "refiner.refined"]
    changes = [(name, change) for name in labels for change in (as_floats, as_column, shorter, with_first(-2))]
    changes += [(name, gone) for name in labels[1:]]
    changes += [
        ("units", with_first(24)),
        ("raw_units", with_first(12)),
        ("raw_units", with_first(-1)),
        ("round", gone),
        ("round", as_floats),
        ("round", with_first(-1)),
        ("kmeans.cluster_centers", as_integers),
        ("kmeans.cluster_centers", with_first(np.nan)),
        *((name, gone) for name in state if name.startswith("head.")),
        *((name, shorter) for name in state if name.startswith("head.")),
    ]
    check_refused(other.load_label_state, state, changes)


def test_a_refiner_and_a_clusterer_by_themselves():
    refiner = PseudoLabelRefiner()
    refiner.refine(np.arange(5))
    state = refiner.state_dict()
    for name, value in (("history.1", np.zeros(5)), ("history.1", np.zeros((5, 1), int)), ("refined", np.full(5, -2))):
        with pytest.raises(ValueError, match=name):
            PseudoLabelRefiner().load_state_dict({**state, name: value})
    with pytest.raises(ValueError, match=r"'history.1' is missing"):
        PseudoLabelRefiner().load_state_dict({"version": state["version"], "history.2": np.arange(5)})
    for centers in (torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.full((3, 2), torch.nan)):
        with pytest.raises(ValueError, match="cluster_centers"):
            KMeans(3).load_state_dict({"cluster_centers": centers})


def test_a_byte_that_is_neither_true_nor_false_is_refused():
    neither = np.array([0, 1, 2], np.uint8).view(bool)
    with pytest.raises(ValueError, match="'seen' holds values from 0 to 2"):
        checked({"seen": neither}, "seen", "booleans", (3,))
