"""Arrays that are read are what they say they are."""

from __future__ import annotations

import numpy as np
import pytest

from hf_plr.utils.serialization import validate_array


def test_a_byte_that_is_neither_true_nor_false_is_refused():
    neither = np.array([0, 1, 2], np.uint8).view(bool)
    with pytest.raises(ValueError, match="'seen' holds values from 0 to 2"):
        validate_array({"seen": neither}, "seen", "booleans", (3,))
