"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from hf_plr.utils.words import count_noun


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, "cluster"), "0 clusters"),
        ((1, "cluster"), "1 cluster"),
        ((1200, "cluster"), "1,200 clusters"),
        ((1, "class", "classes"), "1 class"),
        ((2, "class", "classes"), "2 classes"),
    ],
)
def test_one_is_no_plural(arguments, expected):
    assert count_noun(*arguments) == expected
