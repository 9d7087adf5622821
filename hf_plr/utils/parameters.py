"""Parameters of objects that keep what their constructor is given, as estimators of scikit-learn do."""

from __future__ import annotations

import inspect
from typing import Any


def default_parameters(part: object) -> dict[str, Any]:
    """The arguments of an object's constructor that have a default, by name; none where it tells nothing of them."""
    try:
        arguments = inspect.signature(type(part)).parameters.values()
    except ValueError:  # of some compiled classes
        return {}
    return {each.name: each.default for each in arguments if each.default is not each.empty}
