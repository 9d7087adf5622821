"""Arguments that would be ignored beside others: a table, and its check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple


class Ignored(NamedTuple):
    """Arguments that have no effect where a condition holds.

    Attributes:
        where: whether it holds for these arguments.
        words: the condition in words, after "has no effect".
        names: the arguments, each with the values beside its default that say what is done anyway.
    """

    where: Callable[[Any], bool]
    words: str
    names: dict[str, tuple[Any, ...]]


def _has_no_steps(args: Any, event: str) -> bool:
    return bool(getattr(args, f"{event}_strategy") != "steps")


# transformers fills eval_steps with logging_steps, which copies of arguments keep.
OF_SCHEDULES: tuple[Ignored, ...] = (
    Ignored(lambda args: _has_no_steps(args, "save"), "without save_strategy='steps'", {"save_steps": ()}),
    Ignored(
        lambda args: _has_no_steps(args, "logging") and args.eval_steps != args.logging_steps,
        "without logging_strategy='steps'",
        {"logging_steps": ()},
    ),
    Ignored(
        lambda args: _has_no_steps(args, "eval") and args.eval_steps != args.logging_steps,
        "without eval_strategy='steps'",
        {"eval_steps": (500,)},
    ),
)
OF_ALL: tuple[Ignored, ...] = (
    *OF_SCHEDULES,
    Ignored(
        lambda args: not args.lora,
        "without lora=True",
        {"lora_rank": (), "lora_alpha": (), "lora_targets": ()},
    ),
    Ignored(
        lambda args: args.segment_seconds is None,
        "without segment_seconds",
        {"segment_overlap": ()},
    ),
    Ignored(
        lambda args: args.refinement == "none",
        "with refinement='none'",
        {"refinement_weight": ()},
    ),
)
OF_IMAGES: tuple[Ignored, ...] = (
    Ignored(
        lambda _: True,
        "on images",
        {"segment_seconds": (), "max_seconds": (), "sound_cache_gib": (0.0,), "sound_cache_dir": ()},
    ),
)
OF_RECORDINGS: tuple[Ignored, ...] = (
    Ignored(
        lambda _: True,
        "on recordings",
        {
            "image_cache_gib": (0.0,),
            "image_cache_dir": (),
            "image_size": (),
            "decoded_size": (),
            "pixel_range": (),
            "transparency_background": (),
        },
    ),
)
OF_FRAMES: tuple[Ignored, ...] = (
    Ignored(
        lambda args: args.frame_scaling != "speaker",
        "without frame_scaling='speaker'",
        {"speaker_column": ()},
    ),
)
OF_CLUSTERS: tuple[Ignored, ...] = (
    Ignored(
        lambda args: args.labels is not None,
        "on given labels",
        {
            "continue_from": (),
            "num_labelings": (1,),
            "num_clusters": (),
            "clusterer_kwargs": (),
            "cluster_space": ("centered",),
            "whitening_shrinkage": (),
            "refinement": ("none",),
            "refinement_weight": (),
            "refine_start_epoch": (),
            "feature_source": (),
        },
    ),
    Ignored(
        lambda args: args.refinement == "none",
        "with refinement='none'",
        {"refine_start_epoch": ()},
    ),
    Ignored(
        lambda args: args.cluster_space != "white",
        "without cluster_space='white'",
        {"whitening_shrinkage": ()},
    ),
    Ignored(
        lambda args: args.pair_weight == 0.0,
        "with pair_weight=0",
        {"pair_loss": ()},
    ),
    Ignored(
        lambda args: args.feature_source != "epoch",
        "without feature_source='epoch'",
        {"feature_momentum": ()},
    ),
)
BESIDE_OWN_REFINER: tuple[Ignored, ...] = (
    Ignored(
        lambda _: True,
        "on a refiner of your own",
        {"refinement": (), "refinement_weight": ()},
    ),
)


def beside_clusterer(n_clusters: Any) -> tuple[Ignored, ...]:
    """Make the table of what is ignored beside a clusterer of the user's own, which seeks so many clusters."""
    names = {"num_labelings": (1,), "num_clusters": (n_clusters,), "clusterer_kwargs": ()}
    return (Ignored(lambda _: True, "on a clusterer of your own", names),)


def refuse_ignored(args: Any, table: tuple[Ignored, ...]) -> None:
    """Refuse arguments that would be ignored.

    Args:
        args: the arguments, an instance of a dataclass.
        table: what is ignored where.

    Raises:
        ValueError: naming the first such argument, its value and the condition.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for ignored in table:
        if not ignored.where(args):
            continue
        for name, taken in ignored.names.items():
            value = getattr(args, name)
            if value not in (defaults[name], *taken):
                add = "add it, or " if ignored.words.startswith("without") else ""
                raise ValueError(f"{name}={value!r} has no effect {ignored.words}: {add}leave {name} out")
