"""The examples in the docstrings of clustering, refinement and sampling."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "hf_plr.clustering.kmeans",
    "hf_plr.clustering.reciprocal",
    "hf_plr.pseudo_labels.sampler",
    "hf_plr.refinement.agglomeration",
    "hf_plr.refinement.cooccurrence",
    "hf_plr.refinement.correspondence",
    "hf_plr.refinement.projection",
    "hf_plr.refinement.refiner",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    failures, tested = doctest.testmod(importlib.import_module(name))
    assert failures == 0
    assert tested > 0
