"""Limits of arguments as annotations, and checks of values against them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from math import inf
from numbers import Real
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Limit(NamedTuple):
    """A condition on a number or numbers, and the complaint about one that does not meet it."""

    holds: Callable[[Any], bool]
    complaint: str


WHOLE = Limit(lambda value: float(value).is_integer(), "must be a whole number")
Count = Annotated[int, WHOLE, Limit(lambda value: value >= 1, "must be at least 1")]
CountOrZero = Annotated[int, WHOLE, Limit(lambda value: value >= 0, "must be at least 0")]
AtLeastZero = Annotated[float, Limit(lambda value: value >= 0, "must be at least 0")]
AboveZero = Annotated[float, Limit(lambda value: value > 0, "must be above 0")]
Fraction = Annotated[float, Limit(lambda value: 0 <= value <= 1, "is outside [0, 1]")]
FractionBelowOne = Annotated[float, Limit(lambda value: 0 <= value < 1, "is outside [0, 1)")]
FractionAboveZero = Annotated[float, Limit(lambda value: 0 < value <= 1, "is outside (0, 1]")]

NumberRange = Annotated[
    list[float],
    Limit(lambda value: len(value) == 2 and -inf < value[0] < value[1] < inf, "must be two numbers, the lower first"),
]


def check_values(args: Any, declared_in: type) -> None:
    """Check values against the choices and limits in the annotations of one class.

    Raises:
        ValueError: naming the argument, its value and what it may be.
    """
    hints = get_type_hints(declared_in, include_extras=True)
    for name in declared_in.__annotations__:
        value, parts = getattr(args, name), (hints[name], *get_args(hints[name]))
        if value is None and type(None) in parts:
            continue
        for part in parts:
            if get_origin(part) is Annotated and value is not None:
                _check_type(name, value, get_args(part)[0])
            if get_origin(part) is Literal and value not in get_args(part):
                raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(get_args(part))}")
            for limit in getattr(part, "__metadata__", ()):
                if value is None or not limit.holds(value):
                    raise ValueError(f"{name}={value} {limit.complaint}")


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse text, truth values and lists where a number is expected, and all but lists of numbers otherwise."""
    is_list = get_origin(kind) is list
    numbers = value if is_list and isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(number, Real) and not isinstance(number, bool) for number in numbers):
        raise ValueError(f"{name}={value!r} must be {'a list of numbers' if is_list else 'a number'}")


def check_segments(seconds: float | None, overlap: float) -> None:
    """Check the length and the overlap of the segments of recordings.

    Raises:
        ValueError: if the overlap is as long as they are.
    """
    if seconds is not None and overlap >= seconds:
        raise ValueError(f"segment_overlap={overlap} must be less than segment_seconds={seconds}")


def read_json_object(argument: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Read a JSON object that may have been read before; None stays None.

    Raises:
        ValueError: naming the argument, if the text is no JSON object.
    """
    if value is None or isinstance(value, dict):
        return value
    try:
        read = json.loads(value)
    except (TypeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{argument}={value!r} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{argument}={value!r} must be a JSON object, such as '{{\"eps\": 0.5}}'")
    return read


def read_levels_argument(value: list[int] | str | None, n_clusters: int | None = None) -> list[int] | None:
    """Read numbers of clusters of levels, such as "8,16,32", or a list that may have been read before.

    Args:
        value: the numbers; None stays None.
        n_clusters: clusters that are sought; None if that is not known yet.

    Returns:
        The numbers, the fewest clusters first.

    Raises:
        ValueError: naming the argument, if there are no such levels.
    """
    if value is None:
        return None
    words = value.split(",") if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    shown = ",".join(str(word).strip() for word in words)
    try:
        numbers = [int(word) for word in words if not isinstance(word, (bool, float))]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len(numbers) < len(words):
        raise ValueError(f"levels={shown} is not a list of whole numbers: write it as levels=8,16,32")
    if min(numbers) < 2:
        raise ValueError(f"levels={shown}: a level has at least 2 clusters, not {min(numbers)}")
    twice = [number for number in numbers if numbers.count(number) > 1]
    if twice:
        raise ValueError(f"levels={shown}: {twice[0]} is there twice, name each level once")
    check_levels(sorted(numbers), n_clusters)
    return sorted(numbers)


def check_levels(levels: list[int] | str | None, n_clusters: int | None) -> None:
    """Check that no level has more clusters than are sought, or given.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(levels, list) and n_clusters is not None and max(levels) > n_clusters:
        raise ValueError(
            f"levels={','.join(map(str, levels))}: {max(levels):,} clusters are more than the {n_clusters:,} of which "
            "a level is made: leave it out, or raise num_clusters"
        )
