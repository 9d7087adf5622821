"""Parameters of objects that keep what their constructor is given, as estimators of scikit-learn do."""

from __future__ import annotations

import inspect
import re
from typing import Any

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe_value(value: object) -> str:
    """Describe a parameter alike in every run: a function by its module and name, an object without its address."""
    if inspect.isroutine(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return ADDRESS.sub("", str(value))


def default_parameters(part: object) -> dict[str, Any]:
    """The arguments of an object's constructor that have a default, by name; none where it tells nothing of them."""
    try:
        arguments = inspect.signature(type(part)).parameters.values()
    except ValueError:  # of some compiled classes
        return {}
    return {each.name: each.default for each in arguments if each.default is not each.empty}
