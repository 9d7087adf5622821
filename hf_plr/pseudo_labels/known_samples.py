"""Which samples an earlier run knew, and by which labels: by content, whatever their rows and file names."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.data.content_digest import parse_digests
from hf_plr.pseudo_labels.label_files import DIGEST_COLUMN, FILE_COLUMN, LABEL_COLUMN, PSEUDO_LABELS_FILE, SPAN_COLUMNS
from hf_plr.refinement import NOISE

UNITS_PER_SECOND = 1_000  # segments are told apart by the milliseconds at which they start and end


@dataclass(frozen=True)
class LastLabels:
    """The labels that a run left, one per sample, n of them.

    Attributes:
        source: output folder of the run.
        labels: -1 = noise, int64 of shape (n,).
        digests: digest of each sample's content, uint64 of shape (n,); None in folders of older releases.
        files: file of each sample, below the folder of all files; None where they have none.
        spans: start and end of each sample in milliseconds, int64 of shape (n, 2); None where samples are whole.
    """

    source: str
    labels: np.ndarray
    digests: np.ndarray | None
    files: list[str] | None
    spans: np.ndarray | None

    @classmethod
    def read(cls, folder: str) -> LastLabels:
        """Read the labels in a run's output folder.

        Raises:
            FileNotFoundError: if it has none.
            ValueError: if they are damaged, naming the file.
        """
        path = os.path.join(folder, PSEUDO_LABELS_FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{folder} holds no {PSEUDO_LABELS_FILE}")
        try:
            names = pq.read_schema(path).names
            columns = [n for n in (LABEL_COLUMN, DIGEST_COLUMN, FILE_COLUMN, *SPAN_COLUMNS) if n in names]
            table = pq.read_table(path, columns=columns)
            if LABEL_COLUMN not in columns or not pa.types.is_integer(table.schema.field(LABEL_COLUMN).type):
                raise ValueError(f"it has no column {LABEL_COLUMN!r} of integers")
            if empty := [name for name in columns if table[name].null_count]:
                raise ValueError(f"column {empty[0]!r} has empty values")
            labels = table[LABEL_COLUMN].to_numpy().astype(np.int64)
            if labels.min(initial=NOISE) < NOISE:
                raise ValueError(f"label {labels.min()} is below {NOISE}")
            digests = parse_digests(table[DIGEST_COLUMN].to_pylist()) if DIGEST_COLUMN in columns else None
            files = [str(name) for name in table[FILE_COLUMN].to_pylist()] if FILE_COLUMN in columns else None
            spans = None
            if set(SPAN_COLUMNS) <= set(columns):
                spans = round_spans(np.stack([table[name].to_numpy().astype(np.float64) for name in SPAN_COLUMNS], 1))
        except Exception as error:  # pyarrow raises a dozen kinds for damaged files
            raise ValueError(f"{path} cannot be read as the labels of a run: {error}") from error
        return cls(folder, labels, digests, files, spans)

    def sizes(self) -> dict[int, int]:
        """Members by cluster, ascending, without noise."""
        ids, counts = np.unique(self.labels[self.labels != NOISE], return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class KnownSamples:
    """The samples of a run against those of the run before.

    Attributes:
        position: position in `LastLabels` of each sample, -1 = new, int64 of shape (N,).
        known: samples that both runs have, further copies of one among them.
        new: samples that only this run has.
        removed: samples that only the run before had.
        before: samples that the run before had.
        copies: samples of this run with the content of one that is known already, whose label they have.
        renamed: known samples whose file has another name.
        moved: known samples whose file has that name in another folder.
    """

    position: np.ndarray
    known: int
    new: int
    removed: int
    before: int
    copies: int = 0
    renamed: int = 0
    moved: int = 0

    def describe(self) -> str:
        """Describe them in a line."""
        words = f"{self.before - self.removed:,} of {self.before:,} samples known, {self.new:,} new"
        words += f", {self.removed:,} removed"
        words += f", {self.copies:,} more copies of known ones" if self.copies else ""
        words += f", {self.renamed:,} renamed" if self.renamed else ""
        return words + (f", {self.moved:,} in other folders" if self.moved else "")


def match_samples(
    last: LastLabels, digests: np.ndarray, files: list[str] | None, spans: np.ndarray | None, rows: np.ndarray
) -> KnownSamples:
    """Find each sample among those of the run before.

    Equal content makes the same sample, of segments with the same start and end. Among several of equal content file
    names decide, then the order of the data. A folder without digests is matched by file names.

    Args:
        last: what the run before left.
        digests: digest of each sample's content, uint64 of shape (N,).
        files: file of each sample; None where they have none.
        spans: start and end in milliseconds, (N, 2); None where samples are whole.
        rows: row of each sample in the data, shape (N,).

    Raises:
        ValueError: if no sample is known, segments meet whole samples, or there is nothing to match by.
    """
    n_last, n = len(last.labels), len(rows)
    if (spans is None) != (last.spans is None):
        of_last, of_run = ("whole samples", "segments") if last.spans is None else ("segments", "whole samples")
        raise ValueError(f"{last.source} has labels of {of_last}, but this run trains on {of_run}")
    order = np.arange(n) if spans is None else np.lexsort((spans[:, 0], rows))
    order = np.argsort(rows, kind="stable") if spans is None else order  # sounds are stored by length
    spans_of_both = np.zeros((n_last + n, 2), np.int64)
    if spans is not None and last.spans is not None:
        spans_of_both = np.concatenate([last.spans, spans[order]])
    frame = pd.DataFrame({"start": spans_of_both[:, 0], "end": spans_of_both[:, 1]})
    has_files = files is not None and last.files is not None
    if files is not None and last.files is not None:
        paths = [*last.files, *(files[i] for i in order.tolist())]
        frame["path"] = pd.factorize(np.array(paths, object))[0]
        frame["name"] = pd.factorize(np.array([os.path.basename(path) for path in paths], object))[0]
    if last.digests is None:
        names = _choose_names(last.source, frame, n_last, has_files)
        passes = [[names]]
    else:
        frame["digest"] = np.concatenate([last.digests, digests[order]])
        passes = [*([["digest", "path"], ["digest", "name"]] if has_files else []), ["digest"]]
    found = np.full(n, -1)
    for columns in passes:
        _pair(frame.groupby([*columns, "start", "end"], sort=False).ngroup().to_numpy(), n_last, found)
    known = found >= 0
    removed = n_last - int(known.sum())
    keys = frame.groupby([*passes[-1], "start", "end"], sort=False).ngroup().to_numpy()
    ids, first = np.unique(keys[:n_last], return_index=True)
    place = np.searchsorted(ids, keys[n_last:]).clip(max=max(len(ids) - 1, 0))
    is_copy = ~known & (ids[place] == keys[n_last:]) if len(ids) else np.zeros(n, bool)
    found[is_copy] = first[place[is_copy]]
    if not (found >= 0).any():
        raise ValueError(describe_unknown(last, n))
    renamed = moved = 0
    if has_files:
        before, now = found[known], n_last + np.flatnonzero(known)
        names, path_ids = frame["name"].to_numpy(), frame["path"].to_numpy()
        has_name = names[before] == names[now]
        renamed = int((~has_name).sum())
        other = has_name & (path_ids[before] != path_ids[now])
        moved = sum(_has_moved(paths[i], paths[j]) for i, j in zip(before[other], now[other], strict=True))
    position = np.full(n, -1)
    position[order] = found
    n_known = int((found >= 0).sum())
    return KnownSamples(position, n_known, n - n_known, removed, n_last, int(is_copy.sum()), renamed, moved)


def _has_moved(before: str, now: str) -> bool:
    """Whether a file is in another folder, not just told from a folder further above or below."""
    return not (before.endswith(f"/{now}") or now.endswith(f"/{before}"))


def describe_unknown(last: LastLabels, n_samples: int) -> str:
    """Say that none of so many samples is known."""
    return (
        f"{last.source} has none of these {n_samples:,} samples: continue_from needs the data of that run, grown or "
        "changed"
    )


def round_spans(seconds: np.ndarray) -> np.ndarray:
    """Round starts and ends in seconds to milliseconds, int64."""
    return np.rint(seconds * UNITS_PER_SECOND).astype(np.int64)


def _choose_names(source: str, frame: pd.DataFrame, n_last: int, has_files: bool) -> str:
    """Choose what file names tell samples apart: below the folder of all files, or without folders."""
    scores = {}
    for name in ("path", "name") if has_files else ():
        keys = frame.groupby([name, "start", "end"], sort=False).ngroup()
        if keys[:n_last].is_unique and keys[n_last:].is_unique:
            scores[name] = int(keys[n_last:].isin(keys[:n_last]).sum())
    if not scores:
        raise ValueError(
            f"{source} was written by an older release, without digests of contents, and the samples have no file "
            "names that tell all of them apart: train on that data again with this release, then continue from there"
        )
    return max(scores, key=lambda name: scores[name])  # of equal ones the first


def _pair(keys: np.ndarray, n_last: int, found: np.ndarray) -> None:
    """Pair the samples of both runs that have one key and no partner yet, in their order.

    Args:
        keys: of the samples of the run before, then of this one, shape (n + N,).
        n_last: number n of the first.
        found: partner of each sample of this run, -1 = none, shape (N,); changed in place.
    """
    is_free = np.ones(n_last, bool)
    is_free[found[found >= 0]] = False
    before, now = np.flatnonzero(is_free), np.flatnonzero(found < 0)
    numbered = [
        pd.MultiIndex.from_arrays([own, pd.Series(own).groupby(own).cumcount()])
        for own in (keys[:n_last][before], keys[n_last:][now])
    ]
    partner = numbered[0].get_indexer(numbered[1])
    found[now[partner >= 0]] = before[partner[partner >= 0]]
