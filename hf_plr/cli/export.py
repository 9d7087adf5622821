"""Sort the images or recordings of a run into folders, one for each cluster.

  hf-plr export out --dataset photos --output sorted
  hf-plr export out --dataset photos --output sorted --level 10 --copy

`out` is a run's output folder, and photos the folder with its images or recordings. sorted gets a folder for each
cluster, such as 003 or, where clusters have names, 003_crack, and one called none for samples in no cluster. They hold
symbolic links to the files, or copies with --copy; the files stay where they are. A file name that a folder has already
gets the names of its own folders in front. A recording that was cut into segments is in the folder of every cluster
that has one of them. Files that have gone since the run, or that have other content under the same name, are counted
and left out. --level 10 takes the clusters of that level of the run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_plr.pseudo_labels.label_files import DIGEST_COLUMN, FILE_COLUMN, LABEL_COLUMN, PSEUDO_LABELS_FILE, level_column
from hf_plr.report.names import read_cluster_names
from hf_plr.report.tree_file import read_levels
from hf_plr.utils.files import check_folder
from hf_plr.utils.shards import TEMPORARY
from hf_plr.utils.words import count_noun

SUMMARY = "sort a run's images or recordings into folders by cluster"
LOOKED_AT = 16  # files by which the folder of the data is found
LONGEST = 80  # characters of a name that is made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `hf-plr export`."""
    parser.add_argument("folder", metavar="OUT", help="output folder of the run")
    parser.add_argument("--dataset", required=True, metavar="DIR", help="folder with the run's images or recordings")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--level", type=int, metavar="N", help="take the clusters of the run's column level_N")
    parser.add_argument("--copy", action="store_true", help="copy files, in place of links to them")


def run(args: argparse.Namespace) -> None:
    """Read the labels, find the files, write the folders.

    Raises:
        ValueError, OSError: if the run's data are no files, are not found, or the output may not be written.
    """
    output, data = os.path.abspath(args.output), os.path.realpath(args.dataset)
    check_folder(args.output, "clusters")
    if os.path.isdir(output) and os.listdir(output):
        raise ValueError(f"--output {args.output} is not empty: name a new folder")
    if not os.path.isdir(data):
        raise ValueError(
            f"--dataset {args.dataset} is no folder here: name that of the run's images or recordings. Those of a Hub "
            "data set, an archive or a parquet file are no files to sort"
        )
    _refuse_inside(args, data)
    labels, files, digests = _read(args.folder, args.level)
    base = _find_base(data, files, digests)
    _refuse_inside(args, os.path.realpath(base))  # which may be linked
    names = read_cluster_names(args.folder)
    if args.level is not None:
        level = read_levels(args.folder).get(args.level)
        names = {} if level is None else level.names(names)
    pairs = dict.fromkeys(zip(labels, files, strict=True))  # segments of a recording may share a cluster
    gone = {file for file in files if not (base / file).is_file()}
    changed = set() if digests is None else _find_changed(base, dict(zip(files, digests, strict=True)), gone)
    folders = {label: _name_folder(label, names, max(labels)) for label in sorted(set(labels))}
    left_out = gone | changed
    taken = [pair for pair in pairs if pair[1] not in left_out]
    count = _write(output, base, taken, folders, args.copy)
    n_files = len({file for _, file in taken})
    what = f"{count:,} {'copies of' if args.copy else 'links to'} {count_noun(n_files, 'file')}"
    has_noise = min(folders) < 0
    also = ", and of samples in none" if has_noise else ""
    print(f"Wrote {args.output}: {what}, in folders of {count_noun(len(folders) - has_noise, 'cluster')}{also}")
    if gone:
        print(f"Not where they were in {base}, and left out: {len(gone):,}, such as {min(gone)}")
    if changed:
        print(f"Other content in {base} than in the run, and left out: {len(changed):,}, such as {min(changed)}")


def _refuse_inside(args: argparse.Namespace, data: str) -> None:
    if Path(os.path.realpath(args.output)).is_relative_to(data):
        raise ValueError(f"--output {args.output} is in --dataset {args.dataset}: a next run would take it for data")


def _read(folder: str, level: int | None) -> tuple[list[int], list[str], list[str] | None]:
    """Read the cluster, the file and, where the run has them, the digest of each sample."""
    path, column = Path(folder) / PSEUDO_LABELS_FILE, LABEL_COLUMN if level is None else level_column(level)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {PSEUDO_LABELS_FILE}")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
    if column not in table.column_names:
        levels = ", ".join(name for name in table.column_names if name.startswith("level_")) or "no levels"
        raise ValueError(f"--level {level}: {path} has no column {column}, but {levels}")
    if FILE_COLUMN not in table.column_names:
        raise ValueError(
            f"{path} names no files, as the run's data were not files in a folder: hf-plr cut {folder} --output "
            "clusters.csv has the cluster of each row"
        )
    labels, files = table[column], table[FILE_COLUMN].to_pylist()
    if labels.null_count or not pa.types.is_integer(labels.type) or not files or None in files:
        raise ValueError(f"{path}: columns {column} and {FILE_COLUMN} need a whole number and a name in every row")
    for file in files:
        if os.path.isabs(file) or ".." in PurePosixPath(file).parts:
            raise ValueError(f"{path}: the file {file} is not below a folder of all files: it cannot be sorted")
    return labels.to_pylist(), files, table[DIGEST_COLUMN].to_pylist() if DIGEST_COLUMN in table.column_names else None


def _find_base(data: str, files: Sequence[str], digests: Sequence[str] | None) -> Path:
    """Find the folder that the files are relative to: the innermost one that had all of them, in the data or below."""
    from hf_plr.data.content_digest import digest_content  # imports torch

    rows = np.unique(np.linspace(0, len(files) - 1, LOOKED_AT).astype(int)).tolist()
    found: dict[Path, tuple[int, int]] = {}  # files whose content is that of the run, and files that are there
    for folder in _list_folders(data):
        there = [row for row in rows if (folder / files[row]).is_file()]
        same = there
        if digests is not None:
            same = [row for row in there if f"{digest_content(str(folder / files[row])):016x}" == digests[row]]
        if there:
            found[folder] = (len(same), len(there))
    if not found:
        raise ValueError(f"--dataset {data} has no {files[0]}, nor has a folder in it: name that of the run's data")
    best = max(found.values())
    if best[0] == 0:
        raise ValueError(
            f"--dataset {data} has files of these names with other content, such as {files[rows[0]]}: name the folder "
            "of the run's data"
        )
    first, *others = [folder for folder, score in found.items() if score == best]
    if others and first != Path(data):
        raise ValueError(f"--dataset {data}: the files may be those of {first} or of {others[0]}: name one of these")
    return first


def _find_changed(base: Path, digests: Mapping[str, str | None], gone: set[str]) -> set[str]:
    """Find files whose content is not that of the run, such as new ones under the names of others that were deleted.

    Args:
        base: the folder that the files are relative to.
        digests: digest of each file in the run; None where it is not known.
        gone: files that are not there.
    """
    from hf_plr.data.content_digest import digest_all, format_digests  # imports torch

    there = [file for file, digest in digests.items() if digest is not None and file not in gone]
    found = format_digests(digest_all(str(base / file) for file in there))
    return {file for file, digest in zip(there, found, strict=True) if digest != digests[file]}


def _list_folders(data: str) -> list[Path]:
    """List a folder and those below it, also linked ones, as a data set takes them; each once, where it comes first."""
    found: dict[str, Path] = {}
    waiting = [data]
    while waiting:
        folder = waiting.pop(0)
        real = os.path.realpath(folder)
        if real in found:
            continue
        found[real] = Path(folder)
        with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
            waiting += sorted(entry.path for entry in entries if entry.is_dir())
    return sorted(found.values())


def _name_folder(label: int, names: Mapping[int, str], largest: int) -> str:
    """Name the folder of a cluster: its number, and of its name the characters that every file system takes."""
    if label < 0:
        return "none"
    name = re.sub(r"[^\w.-]+", "_", names.get(label, "")).strip("._")
    return f"{label:0{max(3, len(str(largest)))}d}{name and '_'}{name}"


def _write(output: str, base: Path, pairs: Sequence[tuple[int, str]], folders: Mapping[int, str], is_copy: bool) -> int:
    """Write all folders under a temporary name, which becomes that of the output; returns the number of files."""
    temporary = Path(f"{output}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
    taken: set[tuple[int, str]] = set()
    try:
        for name in folders.values():
            (temporary / name).mkdir(parents=True)
        for label, file in pairs:
            path = temporary / folders[label] / _name_file(label, file, taken)
            if is_copy:
                shutil.copy2(base / file, path)
                continue
            try:
                path.symlink_to(base / file)
            except OSError as error:
                raise OSError(f"the place of {output} takes no links ({error}): give --copy") from error
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(pairs)


def _name_file(label: int, file: str, taken: set[tuple[int, str]]) -> str:
    """Name a file as no other in the folder of its cluster, also where capitals do not count."""
    stem, ending = os.path.splitext("_".join(PurePosixPath(file).parts)[-LONGEST:])
    more = (f"{stem}_{number}{ending}" for number in itertools.count(2))
    for name in itertools.chain([os.path.basename(file), f"{stem}{ending}"], more):
        if (label, name.casefold()) not in taken:
            taken.add((label, name.casefold()))
            return name
    raise AssertionError
