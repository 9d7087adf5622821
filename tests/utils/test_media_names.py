"""Which names may be of one file, and which are of two."""

from __future__ import annotations

import pytest

from hf_plr.utils.media_names import may_be_one_file


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a/x.png", "a/x.png", True),
        ("/scratch/1/img/x.png", "/scratch/2/img/x.png", True),
        ("C:\\photos\\x.png", "photos/x.png", True),
        ("x.jpg", "x.PNG", True),
        ("x", "x.png", True),
        ("p225.001", "p225.001.wav", True),
        ("Zu\u0308ge.wav", "Z\u00fcge.wav", True),
        ("x.png", "y.png", False),
        ("rec.001", "rec.002", False),
        ("rec.001.wav", "rec.002.wav", False),
        ("x.png", "x2.png", False),
    ],
)
def test_names_of_one_file(one, other, expected):
    assert may_be_one_file(one, other) == may_be_one_file(other, one) == expected
