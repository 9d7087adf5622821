"""Which sample each given label is of, and whether it is of these samples at all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from hf_plr.data.content_digest import format_digests
from hf_plr.data.sample_store import spread_rows
from hf_plr.pseudo_labels.label_files import FILE_COLUMN, INDEX_COLUMN, SPAN_COLUMNS
from hf_plr.utils.media_names import may_be_one_file

CHECKED_SAMPLES = 256  # whose digests are compared
DIGEST = "(?=.*[a-f])[0-9a-f]{16}"  # spreadsheets round those of digits alone
REMEDY = (
    "Give labels of these data; where the data of a run have grown or changed, continue that run with continue_from, "
    "which knows samples by content"
)


def find_positions(path: str, columns: pd.DataFrame, rows: np.ndarray, segments: np.ndarray | None) -> np.ndarray:
    """Find the position of each sample in the files, -1 where they do not tell of it, shape (N,)."""
    has_spans = SPAN_COLUMNS[0] in columns
    if has_spans != (segments is not None):
        of_files, of_run = ("segments", "whole samples") if has_spans else ("whole samples", "segments")
        raise ValueError(f"{path} has labels of {of_files}, but this run trains on {of_run}")
    if segments is None:
        keys, wanted = pd.Index(columns[INDEX_COLUMN]), pd.Index(rows)
    else:
        keys = pd.MultiIndex.from_arrays([columns[INDEX_COLUMN], columns[SPAN_COLUMNS[0]]])
        wanted = pd.MultiIndex.from_arrays([rows, segments[:, 0]])
    if not keys.is_unique:
        raise ValueError(f"{path} has more than one label of row {keys[keys.duplicated()][0]}")
    position: np.ndarray = keys.get_indexer(wanted)
    return position


def check_digests(
    path: str,
    given: pd.Series,
    position: np.ndarray,
    rows: np.ndarray,
    digest: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Compare the contents of some samples, evenly spaced by row, with the digests that the files tell of them.

    Args:
        path: the files, for messages.
        given: digests that they tell, shape (n,); those that are empty or no digests are passed over.
        position: position of each sample in them, -1 = none, shape (N,).
        rows: row of each sample, shape (N,).
        digest: as for `GivenLabels.read`.

    Raises:
        ValueError: if some sample has another digest, naming the first.
    """
    known = np.flatnonzero(position >= 0)
    known = known[np.argsort(rows[known], kind="stable")]
    known = known[spread_rows(len(known), CHECKED_SAMPLES)]
    texts = given.iloc[position[known]].astype("string").str.lower()
    is_digest = texts.str.fullmatch(DIGEST).fillna(False).to_numpy(bool)
    known, expected = known[is_digest], texts.to_numpy(object)[is_digest]
    try:
        found = np.array(format_digests(digest(known)), object)
    except OSError:  # unreadable samples are told of, or left out, when all are decoded
        return
    is_other = expected != found
    if is_other.any():
        first = int(is_other.argmax())
        raise ValueError(
            f"{path} has labels of other data: {is_other.sum():,} of {len(known):,} compared samples have other "
            f"contents, the first in row {rows[known[first]]}, with digest {found[first]} and not {expected[first]}. "
            f"{REMEDY}"
        )


def check_names(path: str, given: pd.Series, position: np.ndarray, rows: np.ndarray, names: list[str] | None) -> None:
    """Compare the names of the samples' files with those that labels without digests tell, without folder and ending.

    Args:
        path: the files of labels, for messages.
        given: names that they tell, shape (n,); empty ones are passed over.
        position, rows: as for `check_digests`.
        names: file of each sample, (N,); None where they are not known.

    Raises:
        ValueError: if some sample has another name, naming the first.
    """
    if names is None:
        return
    known = np.flatnonzero(position >= 0)
    told = given.iloc[position[known]].to_list()
    named = zip(rows[known], known, told, strict=True)
    pairs = [(row, names[sample], name) for row, sample, name in named if isinstance(name, str)]
    others = [pair for pair in pairs if not may_be_one_file(pair[1], pair[2])]
    if others:
        row, there, name = min(others)
        raise ValueError(
            f"{path} has labels of other data: {len(others):,} of {len(pairs):,} samples have another file, the first "
            f"in row {row}, {there!r} and not {name!r}. {REMEDY}. Labels whose column {FILE_COLUMN!r} means something "
            "else are taken without it"
        )
