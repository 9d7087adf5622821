"""Finding the columns of images and labels."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from hf_plr.data.columns import AmbiguousLabelColumns, find_image_column, find_label_column


def empty(**features):
    return Dataset.from_dict({name: [] for name in features}, features=Features(features))


def test_the_only_image_column_is_found():
    assert find_image_column(empty(picture=Image(), number=Value("int64"))) == "picture"


def test_no_or_two_image_columns_are_named():
    with pytest.raises(ValueError, match=r"no column holds images .* text \(string\)"):
        find_image_column(empty(text=Value("string")))
    with pytest.raises(ValueError, match=r"2 columns hold images \(left, right\): choose one with image_column"):
        find_image_column(empty(left=Image(), right=Image()))
    assert find_image_column(empty(left=Image(), right=Image()), "right") == "right"
    with pytest.raises(ValueError, match="image_column='top' is not in the data set; the columns are: left, right"):
        find_image_column(empty(left=Image(), right=Image()), "top")


def test_labels_are_found_where_it_is_clear_which():
    names = ClassLabel(names=["a", "b"])
    assert find_label_column(empty(image=Image(), species=names)) == "species"
    assert find_label_column(empty(image=Image(), label=Value("int64"))) == "label"
    assert find_label_column(empty(image=Image(), width=Value("int64"))) is None
    assert find_label_column(empty(image=Image(), a=names, b=names), "b") == "b"
    with pytest.raises(AmbiguousLabelColumns, match=r"2 columns could hold the labels \(a, b\)"):
        find_label_column(empty(image=Image(), a=names, b=names))
