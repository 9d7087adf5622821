"""Damaged states of a run, and states that cannot be: the message names checkpoint and array."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.damaged import check_damaged

from hf_plr.clustering import KMeans
from hf_plr.features.centering import CenteredFeatures
from hf_plr.refinement import PseudoLabelRefiner
from hf_plr.trainer.checkpoints.run_state import STATE_FILE, load_state, save_state

pytestmark = pytest.mark.timeout(300)


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
        trainer.cluster_objective.to(torch.device("cpu"))
        trainer.cluster_objective.loss(features[some], some)
        trainer.cluster_objective.update_prototypes(features[some], trainer.cluster_objective.targets_of(some))
        trainer._feature_source.record(some, features[some])
        centered = CenteredFeatures(features, torch.zeros(32), slice(0, 203))
        labeling = trainer.labelings[0]
        labeling.refine(labeling.cluster(centered.rows, now.epoch + 1), now.epoch + 1, centered.part)

    check_damaged(tmp_path / STATE_FILE, read, named=tmp_path, examples=100)


def test_checkpoints_of_frames(make_sound_trainer, tmp_path):
    save_state(tmp_path, state_of(make_sound_trainer(**OF_FRAMES, save_strategy="no")), {})
    trainer = make_sound_trainer(**OF_FRAMES)

    def read():
        trainer.load_label_state(load_state(tmp_path)[0], str(tmp_path))
        trainer._units_in_use()
        trainer.frame_units.map_centroids_to_units(12)
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
