"""Labelled samples to fine-tune and to score a classifier on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from hf_plr.data.columns import find_label_column
from hf_plr.data.loading import load_train_and_test
from hf_plr.data.media_kinds import Kind
from hf_plr.data.sample_store import SKIP_HINT, select_undecoded
from hf_plr.data.true_labels import encode_labels
from hf_plr.data.unreadable import UnreadableSample
from hf_plr.recipe_tools.finetune_arguments import FinetuneArguments

logger = logging.getLogger(__name__)

Read = Callable[[Any, int], object]  # of a stored value and its row


@dataclass
class LabelledData:
    """Splits of a data set with classes.

    Attributes:
        train: samples to train on.
        test: samples to score on.
        train_labels, test_labels: class of each sample, (N,).
        train_rows, test_rows: row of each sample in its split, (N,); in the only one where there is no test split.
        names: names of the classes.
    """

    train: Dataset
    test: Dataset
    train_labels: np.ndarray
    test_labels: np.ndarray
    train_rows: np.ndarray
    test_rows: np.ndarray
    names: list[str]

    def keep_readable(self, column: str, read: Callable[[Dataset], Read], skip_unreadable: bool) -> LabelledData:
        """Read every sample once, and leave out those that cannot be read.

        Args:
            column: column of the samples.
            read: makes, for a split, what reads a stored value; it is called with the value and its row.
            skip_unreadable: leave them out with a warning, rather than raise.

        Raises:
            UnreadableSample: naming the row and what is wrong with it.
            ValueError: if no sample of a split can be read.
        """
        train = _find_readable(self.train, self.train_rows, column, read(self.train), skip_unreadable)
        test = _find_readable(self.test, self.test_rows, column, read(self.test), skip_unreadable)
        return LabelledData(
            self.train.select(train),
            self.test.select(test),
            self.train_labels[train],
            self.test_labels[test],
            self.train_rows[train],
            self.test_rows[test],
            self.names,
        )


def _find_readable(samples: Dataset, rows: np.ndarray, column: str, read: Read, skip_unreadable: bool) -> np.ndarray:
    """Positions of the samples that can be read."""
    stored = select_undecoded(samples, column)
    kept, errors = [], []
    for position, row in enumerate(rows.tolist()):
        try:
            read(stored[position][column], row)
        except UnreadableSample as error:
            if not skip_unreadable:
                raise type(error)(f"{error}. {SKIP_HINT}") from error
            errors.append(str(error))
        else:
            kept.append(position)
    if not kept:
        raise ValueError(f"none of {len(rows)} samples can be read: {errors[0] if errors else 'there are none'}")
    if errors:
        logger.warning("%d of %d samples are left out: %s", len(errors), len(rows), "; ".join(errors[:10]))
    return np.asarray(kept)


def load_labelled(args: FinetuneArguments, seed: int, kind: Kind) -> LabelledData:
    """Load both splits, without samples that have no class, and draw `args.labels_per_class` samples per class.

    Without a test split, a fraction of each class is held out.

    Raises:
        ValueError: if there is no label column, a split has no class, the one to train on has one alone, or a class has
            too few samples.
    """
    train, test = load_train_and_test(args.dataset_name, args.dataset_config_name, args.train_split, kind)
    column = find_label_column(train, args.label_column)
    if column is None:
        raise ValueError("no column holds classes: name it with --label_column")
    train_rows, test_rows = np.arange(len(train)), np.arange(0 if test is None else len(test))
    if test is None:
        train_rows, test_rows = hold_out(encode_labels(train, column), args.test_fraction, seed)
        train, test = train.select(train_rows), train.select(test_rows)
        logger.warning(
            "There is no test split: %d samples, a fraction of %g of each class, are held out to score on",
            *(len(test_rows), args.test_fraction),
        )
    train_labels, test_labels, names = number_classes(train, test, column)
    if not names:
        raise ValueError(f"no sample of the {args.train_split} split has a class in column {column!r}")
    if len(names) == 1:
        raise ValueError(
            f"in the {args.train_split} split, column {column!r} holds one class only, {names[0]!r} (-1 means "
            "no label): name another with --label_column, or number its classes from 0"
        )
    if not (test_labels >= 0).any():
        raise ValueError(f"no sample of the test split has a class in column {column!r} that samples to train on have")
    rows = draw_per_class(train_labels, args.labels_per_class, seed)
    labelled_rows = np.flatnonzero(test_labels >= 0)
    return LabelledData(
        train.select(rows),
        test.select(labelled_rows),
        train_labels[rows],
        test_labels[labelled_rows],
        train_rows[rows],
        test_rows[labelled_rows],
        names,
    )


def number_classes(train: Dataset, test: Dataset, column: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Number the classes that training samples have from 0 on; returns those of both splits, -1 = none, and the names.

    Whole numbers keep their order, and so do the names of class labels. What a warning says: how many rows have no
    class, and which classes of the test split no training sample has; both are -1.
    """
    numbers: dict[str, int] = {}
    train_labels, test_labels = (encode_labels(split, column, numbers) for split in (train, test))
    for labels, use in ((train_labels, "train"), (test_labels, "score")):
        n_missing = int((labels == -1).sum())
        if n_missing:
            logger.warning(
                "%d of %d rows to %s on have no class in column %r (missing, or -1)",
                *(n_missing, len(labels), use, column),
            )
    texts = {number: name for name, number in numbers.items()}
    values = np.unique(train_labels[train_labels != -1])
    absent = test_labels[(test_labels != -1) & ~np.isin(test_labels, values)]
    if len(absent):
        names = [texts.get(value, str(value)) for value in np.unique(absent).tolist()]
        logger.warning(
            "%d of %d rows to score on are left out: no sample to train on has their classes in %r (%s)",
            *(len(absent), len(test_labels), column, ", ".join(names[:10]) + ", ..." * (len(names) > 10)),
        )
    train_labels, test_labels = (
        np.where(np.isin(labels, values), np.searchsorted(values, labels), -1) for labels in (train_labels, test_labels)
    )
    return train_labels, test_labels, [texts.get(value, str(value)) for value in values.tolist()]


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction of each class by the seed, at least one sample where it has two.

    Args:
        labels: classes (N,), -1 = none.
        fraction: in (0, 1).
        seed: of the draw.

    Returns:
        The rows to train on, those of no class among them, and those to score on, ascending.

    Raises:
        ValueError: if no class has two samples, or the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction={fraction} must lie between 0 and 1")
    rng = np.random.default_rng(seed)
    is_held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[labels != -1]):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        is_held[rng.choice(rows, count, replace=False)] = True
    if not is_held.any():
        raise ValueError("there is no test split, and no class has two samples, one of them to score on")
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def draw_per_class(labels: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Draw `count` samples per class by the seed; for None, take all that have a class. Returns rows, ascending.

    Raises:
        ValueError: if a class has fewer.
    """
    if count is None:
        return np.flatnonzero(labels >= 0)
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        if not 1 <= count <= len(rows):
            raise ValueError(
                f"labels_per_class={count}, but class {label} has {len(rows)} samples: use 1 to {len(rows)}"
            )
        drawn.append(rng.choice(rows, count, replace=False))
    return np.sort(np.concatenate(drawn))
