"""Training on several clusterings of every epoch at once."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.runs import StopAt, assert_same_run
from sklearn.metrics import adjusted_rand_score

from hf_plr.clustering import KMeans, make_clusterers
from hf_plr.refinement import PRESETS, PseudoLabelRefiner
from hf_plr.utils.rng import uniform


def test_each_labeling_is_twice_as_fine_as_the_one_before():
    found = make_clusterers(3, "kmeans", 10, {"max_iter": 7}, n_samples=203, seed=5)
    assert [each.n_clusters for each in found] == [10, 20, 40]
    assert [each.seed for each in found] == [5, 6, 7]
    assert {each.max_iter for each in found} == {7}
    assert [each.n_clusters for each in make_clusterers(3, "agglomerative", 30, n_samples=100)] == [30, 50, 50]
    assert [each.eps for each in make_clusterers(3, "dbscan", 9, {"eps": 0.4, "k1": 8}, n_samples=99)] == [
        0.4,
        0.3,
        0.225,
    ]
    assert [each.n_clusters for each in make_clusterers(2, "kmeans", 9, {"n_clusters": 4}, n_samples=99)] == [4, 8]


def test_a_clusterer_without_a_number_of_clusters_is_refused(make_trainer):
    with pytest.raises(
        ValueError, match=r"num_labelings=2 needs a clusterer with a number of clusters, .* hdbscan has none"
    ):
        make_trainer(num_labelings=2, clusterer="hdbscan")
    with pytest.raises(ValueError, match="num_labelings=2 has no effect on a clusterer of your own"):
        make_trainer({"clusterer": KMeans(5)}, num_labelings=2)
    with pytest.raises(ValueError, match="num_clusters=6 has no effect on a clusterer of your own"):
        make_trainer({"clusterer": KMeans(5)}, num_clusters=6)
    make_trainer({"clusterer": KMeans(5)}, num_clusters=5)  # so it is
    with pytest.raises(ValueError, match="num_labelings=0 must be at least 1"):
        make_trainer(num_labelings=0)


def test_auto_refines_three_labelings_where_the_clusterer_allows_it(make_trainer):
    trainer = make_trainer(refinement="auto", num_train_epochs=1)
    assert [labeling.stage.clusterer.n_clusters for labeling in trainer.labelings] == [12, 24, 48]
    presets = ("consensus", "none", "none")
    for labeling, preset in zip(trainer.labelings, presets, strict=True):
        assert labeling.stage.refiner.settings() == PseudoLabelRefiner.from_preset(preset).settings()
    assert [labeling.stage.ensemble is not None for labeling in trainer.labelings] == [True, False, False]
    trainer.train()
    card = trainer.summary().last_labels
    assert card.endswith(f"; trained together with labelings of {_sizes(trainer)} clusters")
    finer = make_trainer(refinement="auto", clusterer="dbscan", clusterer_kwargs={"eps": 0.6}).labelings
    assert [labeling.stage.clusterer.eps for labeling in finer] == [0.6, 0.45, 0.3375]
    assert len(make_trainer(refinement="auto", num_labelings=2).labelings) == 2
    for one in (
        make_trainer(refinement="auto", num_labelings=1),
        make_trainer(refinement="auto", clusterer="reciprocal_hdbscan"),
        make_trainer(
            refinement="auto",
            clusterer="agglomerative",
            clusterer_kwargs={"n_clusters": None, "distance_threshold": 1.0},
        ),
        make_trainer({"clusterer": KMeans(5)}, refinement="auto"),
        make_trainer({"refiner": PseudoLabelRefiner.from_preset("joint")}, refinement="auto"),
        *(make_trainer(refinement=name) for name in PRESETS if name != "nested"),
    ):
        assert len(one.labelings) == 1


def test_auto_stands_for_soft_with_dbscan(make_trainer):
    trainer = make_trainer(refinement="auto", clusterer="dbscan")
    soft = PseudoLabelRefiner.from_preset("soft").settings()
    assert [labeling.stage.refiner.settings() for labeling in trainer.labelings] == [soft] * 3
    assert "refinement soft" in trainer.describe_clusters()


def test_one_sample_cannot_be_clustered(tmp_path, some_digits):
    with pytest.raises(ValueError, match="1 sample cannot be clustered: give two or more"):
        tiny.image_trainer(tmp_path, some_digits.select([0]), num_clusters=1)


def test_a_finer_one_fits_on_as_many_samples_as_it_has_clusters():
    found = make_clusterers(3, "kmeans", 10, {"fit_samples": 15}, n_samples=203)
    assert [each.fit_samples for each in found] == [15, 20, 40]


DENSITY = {"clusterer": "dbscan", "clusterer_kwargs": {"eps": 0.5, "k1": 12}, "refinement": "auto"}


def test_labelings_of_dbscan_are_trained_on(make_trainer):
    whole = make_trainer(**DENSITY, save_strategy="no")
    whole.train()
    assert [labeling.stage.clusterer.eps for labeling in whole.labelings] == [0.5, 0.375, 0.28125]
    raw = [(labeling.pseudo_labels.raw_labels == -1).mean() for labeling in whole.labelings]
    assert raw[0] < raw[1] < raw[2]


def test_a_finer_labeling_without_clusters_sits_the_epoch_out(make_trainer, tmp_path, caplog):
    settings = {**DENSITY, "clusterer_kwargs": {"eps": 0.3, "k1": 12, "min_samples": 6}, "refinement": "soft"}
    settings |= {"num_labelings": 3, "cluster_space": "centered", "pair_weight": 0.0}
    settings |= {"learning_rate": 1e-12}  # so that the features of the start, and with them the clusters, stay
    whole = make_trainer(output_dir=str(tmp_path / "whole"), confidence_power=1.0, **settings)
    whole.train()
    assert [labeling.pseudo_labels.n_clusters > 0 for labeling in whole.labelings] == [True, True, False]
    assert "a finer labeling has no clusters, so this epoch trains on the others" in caplog.text
    assert whole.state.log_history[-1]["train_loss"] > 0
    make_trainer(
        {"callbacks": [StopAt(10)]}, output_dir=str(tmp_path / "part"), confidence_power=1.0, **settings
    ).train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), confidence_power=1.0, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_what_auto_stands_for_resumes_it(make_trainer, tmp_path):
    whole = make_trainer(output_dir=str(tmp_path / "whole"), refinement="auto")
    whole.train()
    make_trainer({"callbacks": [StopAt(10)]}, output_dir=str(tmp_path / "part"), refinement="auto").train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), refinement="consensus", num_labelings=3)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def _sizes(trainer) -> str:
    return " and ".join(str(labeling.pseudo_labels.n_clusters) for labeling in trainer.labelings[1:])


def test_the_loss_is_the_mean_of_the_labelings(make_trainer):
    trainer = make_trainer(num_labelings=3, num_train_epochs=1, pair_weight=0.0)
    trainer.train()
    assert [labeling.pseudo_labels.n_clusters for labeling in trainer.labelings] == [12, 24, 48]
    assert trainer.pseudo_labels is trainer.labelings[0].pseudo_labels
    index = torch.arange(40)
    batch = next(iter(trainer.get_train_dataloader()))
    batch = {**batch, "index": index[: len(batch["index"])]}
    index = batch["index"]
    with torch.no_grad():
        raw = trainer.modality.features(trainer.model, batch, uniform(index, trainer.args.seed, 0))
        loss = trainer.compute_loss(trainer.model, batch)
    expected = []
    memory = trainer.cluster_objective.memory
    for labeling, prototypes in zip(trainer.labelings, memory.prototypes, strict=True):
        features = torch.nn.functional.normalize(raw - memory.center, dim=1)
        cosines = features @ prototypes.T
        targets = torch.from_numpy(labeling.pseudo_labels.targets)[index].long()
        expected.append(torch.nn.functional.cross_entropy(cosines / trainer.args.temperature, targets))
    assert float(loss) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_their_agreement_is_logged(make_trainer):
    trainer = make_trainer(num_labelings=2)
    trainer.train()
    entry = [entry for entry in trainer.state.log_history if "plr/seconds" in entry][-1]
    one, other = (labeling.pseudo_labels.labels for labeling in trainer.labelings)
    assert entry["plr/labelings_ari"] == pytest.approx(adjusted_rand_score(one, other))


def test_each_labeling_is_refined_by_its_own_past(make_trainer):
    trainer = make_trainer(num_labelings=2, refinement="joint")
    trainer.train()
    for labeling in trainer.labelings:
        refiner = copy.deepcopy(labeling.stage.refiner)
        assert len(refiner.state_dict()["history.1"]) == 203
        np.testing.assert_array_equal(refiner.state_dict()["history.1"], labeling.pseudo_labels.raw_labels)
    first, second = (labeling.stage.refiner for labeling in trainer.labelings)
    assert first is not second


def test_an_own_refiner_that_takes_one_labeling_gets_one(make_trainer):
    own = PseudoLabelRefiner(space="joint", metric="coassociation", generations=2)
    trainer = make_trainer({"refiner": own}, num_train_epochs=2, save_strategy="no")
    assert trainer.labelings[0].stage.ensemble is None
    trainer.train()
    consensus = make_trainer({"refiner": PseudoLabelRefiner.from_preset("consensus")}, num_train_epochs=1)
    assert consensus.labelings[0].stage.ensemble is not None


# ---- three levels of one hierarchy -------------------------------------------------------------------------------


def assert_nested(levels) -> None:
    """Every cluster of a level lies in one of the level before, and what is noise there is noise here."""
    for coarser, finer in itertools.pairwise(levels):
        labelled = finer >= 0
        assert (coarser[labelled] >= 0).all()
        assert len(set(zip(coarser[labelled], finer[labelled], strict=True))) == len(set(finer[labelled]))


def test_levels_of_one_hierarchy_are_trained_on(make_trainer):
    trainer = make_trainer(refinement="nested", save_strategy="no")
    first, *finer = (labeling.stage for labeling in trainer.labelings)
    assert first.clusterer.n_clusters == 48
    assert first.ensemble.n_clusters == 24
    assert first.refiner.settings() == PseudoLabelRefiner.from_preset("nested", n_clusters=12).settings()
    assert [stage.clusterers for stage in finer] == [[], []]
    assert trainer.describe_clusters().startswith("12, 24 and 48 by KMeans")
    trainer.train()
    labels = [labeling.pseudo_labels for labeling in trainer.labelings]
    assert_nested([each.labels for each in labels])
    assert_nested([each.targets for each in labels])
    assert [each.n_clusters <= number for each, number in zip(labels, (12, 24, 48), strict=True)] == [True] * 3
    assert labels[0].n_clusters < labels[1].n_clusters < labels[2].n_clusters
    for each in labels:
        assert (each.labels == each.previous_labels).mean() > 0.2  # numbers of each level live on
        assert 0.0 <= each.confidence.min() <= each.confidence.max() <= 1.0
    assert len(trainer.cluster_objective.memory.prototypes) == 3


def test_a_resumed_run_on_levels_is_the_whole_one(make_trainer, tmp_path):
    settings = {"refinement": "nested", "confidence_power": 1.0, "min_confidence": 0.2}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    make_trainer({"callbacks": [StopAt(10)]}, output_dir=str(tmp_path / "part"), **settings).train()
    resumed = make_trainer(output_dir=str(tmp_path / "part"), **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    for one, other in zip(whole.labelings, resumed.labelings, strict=True):
        np.testing.assert_array_equal(one.pseudo_labels.labels, other.pseudo_labels.labels)


def test_the_number_of_levels_is_that_of_labelings(make_trainer):
    two = make_trainer(refinement="nested", num_labelings=2)
    assert [labeling.stage.n_sought for labeling in two.labelings] == [12, 24]
    assert two.labelings[0].stage.clusterer.n_clusters == 24
    (one,) = make_trainer(refinement="nested", num_labelings=1).labelings
    assert one.stage.refiner.n_levels == 1
    own = PseudoLabelRefiner(n_levels=2)
    labelings = make_trainer({"refiner": own}).labelings
    assert labelings[0].stage.refiner is own
    assert [labeling.stage.clusterer.n_clusters for labeling in labelings] == [24, 24]


def test_levels_need_a_kmeans_that_can_be_finer(make_trainer):
    with pytest.raises(ValueError, match="needs clusterer='kmeans', which can be made finer, not dbscan"):
        make_trainer(refinement="nested", clusterer="dbscan")
    with pytest.raises(ValueError, match="needs clusterer='kmeans', which can be made finer, not one of your own"):
        make_trainer({"clusterer": KMeans(5)}, refinement="nested")
