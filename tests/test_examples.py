"""The examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest
from helpers.paths import REPOSITORY

SOURCES = sorted((REPOSITORY / "hf_plr").rglob("*.py"))
MODULES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCES
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_the_main_parts_have_examples():
    assert {"hf_plr.clustering.kmeans", "hf_plr.refinement.refiner"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    failures, tested = doctest.testmod(importlib.import_module(name))
    assert failures == 0
    assert tested > 0
