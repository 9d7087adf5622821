"""The protocol of clusterers, and the adapter of what has only `fit_predict`."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering
from sklearn.preprocessing import FunctionTransformer

from hf_plr import KMeans, ReciprocalDBSCAN, ReciprocalHDBSCAN
from hf_plr.clustering import Clusterer, FitPredictClusterer, as_clusterer
from hf_plr.clustering.protocol import describe_clusterer
from hf_plr.trainer.settings import as_stored


class Answer:
    """An object with `fit_predict` alone."""

    def __init__(self, labels):
        self.labels = labels

    def fit_predict(self, features):
        assert isinstance(features, np.ndarray)
        return self.labels


class Remembering(Answer):
    """One with a state as well."""

    def state_dict(self):
        return {"labels": self.labels}

    def load_state_dict(self, state):
        self.labels = state["labels"]


def fit_predict(clusterer, n=6):
    return clusterer.fit_predict_shard(torch.zeros(n, 2), Accelerator(cpu=True))


@pytest.mark.parametrize("clusterer", [KMeans(3), ReciprocalDBSCAN(), ReciprocalHDBSCAN()])
def test_our_own_are_clusterers_as_they_are(clusterer):
    assert isinstance(clusterer, Clusterer)
    assert as_clusterer(clusterer) is clusterer
    clusterer.load_state_dict(clusterer.state_dict())
    assert describe_clusterer(clusterer)["class"] == type(clusterer).__name__


def test_anything_with_fit_predict_is_adapted():
    clusterer = as_clusterer(Answer(np.arange(6) - 1))
    assert isinstance(clusterer, FitPredictClusterer)
    assert isinstance(clusterer, Clusterer)
    np.testing.assert_array_equal(fit_predict(clusterer), np.arange(6) - 1)
    assert (clusterer.get_params(), clusterer.state_dict()) == ({}, {})
    clusterer.load_state_dict({})
    assert describe_clusterer(clusterer) == {"class": "Answer"}


def test_what_an_object_has_beyond_that_is_used():
    clusterer = as_clusterer(Remembering(np.zeros(6, int)))
    clusterer.load_state_dict({"labels": np.ones(6, int)})
    assert clusterer.state_dict()["labels"].tolist() == [1] * 6
    estimator = as_clusterer(AgglomerativeClustering(4))
    assert estimator.get_params()["n_clusters"] == 4
    copy = clone(estimator).set_params(n_clusters=2)
    assert (copy.get_params()["n_clusters"], estimator.get_params()["n_clusters"]) == (2, 4)
    assert describe_clusterer(estimator)["linkage"] == "ward"


@pytest.mark.parametrize("labels", [np.zeros(5, int), np.zeros(6), np.zeros((6, 1), int)])
def test_answers_that_are_not_one_integer_per_sample_are_refused(labels):
    with pytest.raises(ValueError, match=r"fit_predict gave .*; expected integers of shape \(6,\), -1 = noise"):
        fit_predict(as_clusterer(Answer(labels)))


def test_an_object_without_fit_predict_is_refused_before_any_work(make_trainer):
    with pytest.raises(TypeError, match="the clusterer dict has no fit_predict: give an object with"):
        make_trainer({"clusterer": {}})


class WithParameters(Answer):
    """One with parameters."""

    def __init__(self, **parameters):
        super().__init__(None)
        self.parameters = parameters

    def get_params(self, deep=True):
        return self.parameters


def describe_in_another_place(**parameters):
    return as_stored(describe_clusterer(as_clusterer(WithParameters(**parameters))))


def test_a_description_holds_no_addresses():
    """Those of a resumed run are others, and it would be refused."""
    found = describe_in_another_place(
        metric=fit_predict,
        bound=Answer(None).fit_predict,
        plain=Answer(None),
        partial=functools.partial(fit_predict, n=3),
        scale=FunctionTransformer(fit_predict),
        steps=[("first", Answer(None)), ("second", lambda rows: rows)],
        array=np.arange(3),
        kind=Answer,
    )
    here = fit_predict.__module__
    assert found == {
        "class": "WithParameters",
        "metric": f"{here}.fit_predict",
        "bound": f"{here}.Answer.fit_predict",
        "plain": f"<{here}.Answer object>",
        "partial": "functools.partial(<function fit_predict>, n=3)",
        "scale": "FunctionTransformer(func=<function fit_predict>)",
        "steps": [
            ["first", f"<{here}.Answer object>"],
            ["second", f"{here}.test_a_description_holds_no_addresses.<locals>.<lambda>"],
        ],
        "array": "[0 1 2]",
        "kind": f"<class '{here}.Answer'>",
    }
