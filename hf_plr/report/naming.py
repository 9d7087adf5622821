"""Names for clusters from tables that people write: of names, or of labels of a few samples."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hf_plr.pseudo_labels.label_files import LabelFile
from hf_plr.refinement.cooccurrence import NOISE
from hf_plr.report.csv_rows import leave_out, parse_integer, parse_second, quote, read_rows
from hf_plr.report.marks import list_starts, round_to_units
from hf_plr.report.names import unify_spaces, validate_name
from hf_plr.utils.files import compose_accents

FILE_COLUMN = "file"


@dataclass(frozen=True)
class FewLabels:
    """Labels that people gave to some samples, each sample once.

    Attributes:
        sample: position of the sample in the run's labels, shape (n,).
        label: its label, shape (n,).
    """

    sample: np.ndarray
    label: list[str]


@dataclass(frozen=True)
class Vote:
    """Labels of the members of one cluster.

    Attributes:
        cluster: the cluster.
        members: number of its members.
        counts: (label, labelled members that have it), the most frequent first.
    """

    cluster: int
    members: int
    counts: tuple[tuple[str, int], ...]

    @property
    def labelled(self) -> int:
        """Members that have a label."""
        return sum(count for _, count in self.counts)

    @property
    def name(self) -> str | None:
        """The label of more than half of the labelled members; None if there is none, and the cluster is contested."""
        label, count = self.counts[0]
        return label if 2 * count > self.labelled else None


def read_names_table(path: str | os.PathLike[str]) -> dict[int, str | None]:
    """Read a table of names: columns cluster and name; an empty name, which takes a name away, is None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and the line, if it is not such a table, or a cluster has two names.
    """
    _check_exists(path)
    names: dict[int, str | None] = {}
    for line, fields in read_rows(path, ("cluster", "name"), ("cluster", "name")):
        where = f"{path}, line {line}"
        cluster = parse_integer(where, "cluster", fields["cluster"])
        name = _parse_name(where, fields["name"]) if fields["name"] else None
        if cluster < 0:
            raise ValueError(f"{where}: {cluster} is not a cluster, and has no name")
        if cluster in names and names[cluster] != name:
            raise ValueError(f"{where}: cluster {cluster} has another name in a line before: settle on one")
        names[cluster] = name
    if not names:
        raise ValueError(f"{path} holds no names: nothing follows its header")
    return names


def parse_renames(
    texts: Sequence[str], names: Mapping[int, str], shown: Mapping[int, str] | None = None
) -> dict[int, str | None]:
    """Parse corrections of names, each "OLD=NEW".

    Args:
        texts: OLD is the number of a cluster, or a name: then all clusters that have it get another. An empty NEW
            takes the name away.
        names: the names that clusters have, by cluster.
        shown: further names by which clusters are listed.

    Returns:
        New name by cluster; None where it is taken away.

    Raises:
        ValueError: naming the text, if it is no such correction, no cluster has the name, or two disagree.
    """
    changes: dict[int, str | None] = {}
    for text in texts:
        old, equals, new = (part.strip() for part in text.partition("="))
        where = f"--rename {quote(text)}"
        if not equals or not old:
            raise ValueError(f"{where} is not OLD=NEW, such as 7=dent, or crak=crack")
        is_number = old.isascii() and old.isdecimal()
        pairs = [*names.items(), *(shown or {}).items()]
        clusters = [int(old)] if is_number else [label for label, name in pairs if name == unify_spaces(old)]
        if not clusters:
            raise ValueError(f"{where}: no cluster is called {quote(old)}: give a name from --list, or a number")
        name = _parse_name(where, new) if new else None
        for cluster in clusters:
            if changes.setdefault(cluster, name) != name:
                raise ValueError(f"{where}: cluster {cluster} gets another name in a --rename before: settle on one")
    return changes


def read_few_labels(path: str | os.PathLike[str], labels: LabelFile) -> FewLabels:
    """Read labels of a few samples and look the samples up.

    The columns are label, and index (row of the data set) or file (as in `pseudo_labels.parquet`). Where the run's
    samples are segments of recordings, a column start (in seconds, to the millisecond) says which one is meant; without
    it a label is of all segments of the recording. Rows without a label are skipped, and rows of samples that the run
    does not have, such as unreadable ones, with a warning. Files may have backslashes, and begin with the folders that
    lead to the data.

    Args:
        path: a CSV file with a header.
        labels: the run's labels, as `read_labels` gives them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and the line, if it is not such a table, no sample is known, or one has two labels.
    """
    _check_exists(path)
    found: dict[int, tuple[str, int]] = {}
    rows = list(read_rows(path, ("index", FILE_COLUMN, "start", "label"), ("label",)))
    if rows and ("index" in rows[0][1]) == (FILE_COLUMN in rows[0][1]):
        raise ValueError(f"{path}, line 1: one of the columns 'index' and 'file' must name the samples")
    for line, sample, label in _look_up(path, rows, labels):
        if found.setdefault(sample, (label, line))[0] != label:
            other, before = found[sample]
            raise ValueError(
                f"{path}, line {line}: this sample is {quote(label)} here and {quote(other)} in line {before}: "
                "settle on one"
            )
    if not found:
        raise ValueError(f"{path} holds no labels: its column 'label' is empty in every row")
    samples = sorted(found)
    return FewLabels(np.array(samples, np.int64), [found[sample][0] for sample in samples])


def count_votes(few: FewLabels, labels: np.ndarray) -> list[Vote]:
    """Count the labels of the members of each cluster that has a labelled member, the largest cluster first.

    Args:
        few: labels of a few samples.
        labels: pseudo-label of every sample, -1 = in no cluster, shape (N,).
    """
    clusters, sizes = np.unique(labels[labels != NOISE], return_counts=True)
    members = dict(zip(clusters.tolist(), sizes.tolist(), strict=True))
    by_cluster: dict[int, Counter[str]] = {}
    for cluster, label in zip(labels[few.sample].tolist(), few.label, strict=True):
        if cluster != NOISE:
            by_cluster.setdefault(cluster, Counter())[label] += 1
    votes = [
        Vote(cluster, members[cluster], tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))
        for cluster, counts in by_cluster.items()
    ]
    return sorted(votes, key=lambda vote: (-vote.members, vote.cluster))


def _look_up(
    path: str | os.PathLike[str], rows: list[tuple[int, dict[str, str]]], labels: LabelFile
) -> Iterator[tuple[int, int, str]]:
    """Yield (line, position of a sample, label), of a recording without a start for each of its segments."""
    column = "index" if rows and "index" in rows[0][1] else FILE_COLUMN
    parsed = []
    for line, fields in rows:
        where = f"{path}, line {line}"
        key = parse_integer(where, "index", fields["index"]) if column == "index" else fields[FILE_COLUMN]
        start = parse_second(where, fields.get("start", ""))
        if fields["label"]:
            parsed.append((line, key, start, _parse_name(where, fields["label"])))
    positions = _find_positions({key for _, key, _, _ in parsed}, column, labels)
    starts = list_starts(labels)
    missing: list[str] = []
    for line, key, start, label in parsed:
        samples = positions.get(key, [])
        if labels.spans is not None and start >= 0:
            samples = [sample for sample in samples if starts[sample] == round_to_units(np.array([start]))[0]]
        if not samples:
            segment = f" with a segment at {start:g} s" if labels.spans is not None and start >= 0 else ""
            shown = key if isinstance(key, int) else quote(key) + (_describe_paths(key, labels) if not missing else "")
            missing.append(f"line {line}: sample {shown}{segment}")
        for sample in samples:
            yield line, sample, label
    leave_out(path, missing, len(parsed), labels.path)


def _find_positions(keys: set[int] | set[str] | set[int | str], column: str, labels: LabelFile) -> dict:
    """Find the positions of rows of the data set, or of files, in the labels."""
    if column == "index":
        assert labels.index is not None
        wanted = np.flatnonzero(np.isin(labels.index, np.array(sorted(keys), np.int64)))
        names = labels.index[wanted].tolist()
    else:
        if FILE_COLUMN not in pq.read_schema(labels.path).names:
            raise ValueError(f"{labels.path} has no column 'file': name the samples by 'index', the row of the data")
        files = pq.read_table(labels.path, columns=[FILE_COLUMN])[FILE_COLUMN].to_pylist()
        named = _match_files({str(key) for key in keys}, {file for file in files if file is not None})
        wanted = np.array([i for i, file in enumerate(files) if file in named], np.int64)
        names = [files[i] for i in wanted]
        by_file: dict[str, set[int]] = {}
        for name, row in zip(names, labels.index[wanted].tolist() if labels.index is not None else [], strict=True):
            if len(by_file.setdefault(name, set()) | {row}) > 1:
                raise ValueError(f"{labels.path} has several rows of a file {quote(name)}: name the samples by 'index'")
            by_file[name].add(row)
    positions: dict[int | str, list[int]] = {}
    for name, position in zip(names, wanted.tolist(), strict=True):
        for key in [name] if column == "index" else named[name]:
            positions.setdefault(key, []).append(position)
    return positions


def _match_files(keys: set[str], files: set[str]) -> dict[str, list[str]]:
    """Find the texts that name each file: its path, one with backslashes, or one from further above.

    Letters with accents may be composed in one way in the table and in another on the disk.

    Args:
        keys: texts of a table.
        files: paths of the run, below the folder of its data.
    """
    plain = {key: key if key in files else key.replace("\\", "/").removeprefix("./") for key in keys}
    levels = zip(*(path.split("/")[:-1] for path in plain.values()), strict=False)
    common = [folders[0] for folders in takewhile(lambda folders: len(set(folders)) == 1, levels)]
    prefixes = ["".join(f"{folder}/" for folder in common[:n]) for n in range(len(common) + 1)]
    composed: dict[str, list[str]] = {}
    for file in files:
        composed.setdefault(compose_accents(file), []).append(file)

    def find(path: str) -> str | None:
        alike = composed.get(compose_accents(path), [])
        return path if path in files else alike[0] if len(alike) == 1 else None

    prefix = max(
        prefixes, key=lambda prefix: sum(find(path.removeprefix(prefix)) is not None for path in plain.values())
    )
    named: dict[str, list[str]] = {}
    for key, path in plain.items():
        found = find(path.removeprefix(prefix))
        if found is not None:
            named.setdefault(found, []).append(key)
    return named


def _describe_paths(name: str, labels: LabelFile) -> str:
    """Describe the run's files that have a name in some folder, in brackets; nothing if there are none."""
    files = pq.read_table(labels.path, columns=[FILE_COLUMN])[FILE_COLUMN].to_pylist()
    paths = sorted(
        {file for file in files if file is not None and compose_accents(file).endswith(f"/{compose_accents(name)}")}
    )
    return f" (in folders: {len(paths):,}, such as {quote(paths[0])})" if paths else ""


def _parse_name(where: str, text: str) -> str:
    try:
        return validate_name(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_exists(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
