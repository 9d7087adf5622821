"""`Reporter`: collects the content of the page during a run, and writes it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.data.audio_store import AudioStore
from hf_plr.data.sample_store import SampleStore
from hf_plr.refinement.cluster_tree import ClusterTree
from hf_plr.refinement.cooccurrence import iterate_chunks, list_cluster_ids
from hf_plr.report.html.flows import cluster_flow
from hf_plr.report.html.previews import MEDIA_TYPES, Previews
from hf_plr.report.html.projection import layouts
from hf_plr.report.html.report_file import DATA_FILE, FORMAT, read_report, write_report
from hf_plr.report.html.run_facts import as_line, run_facts
from hf_plr.report.html.sheets import (
    Snapshot,
    cluster_sheets,
    cluster_table,
    contact_members,
    map_positions,
    random_check,
    size_table,
    typical_members,
)
from hf_plr.report.html.tree_facts import describe_tree
from hf_plr.report.html.unit_examples import unit_sheets
from hf_plr.utils.distributed import gather_rows
from hf_plr.utils.rng import isolate_rng

if TYPE_CHECKING:
    from hf_plr.report.summary import RunSummary

logger = logging.getLogger(__name__)

MAX_DETAILED_STAGES = 60  # last stages that keep the details of their changes
MAX_NEW = 8  # new clusters per stage that have examples
MEMBERS = {"image": 8, "recording": 4}  # per sheet
EXAMPLES = {"image": 6, "recording": 3}  # per new cluster
CONTACTS = {"image": 1_200, "recording": 240}  # in the contact sheet; a sound takes five times the room of an image
LEAST_ALLOWANCE, ALLOWANCE = 0.5, 0.01  # seconds, and fraction of the time since the last report, for new previews


class Reporter:
    """Content of the page of one run.

    It never changes the run: an error in the report is a warning.

    Args:
        when: "epoch" (write at every stage), "end" (only when asked to), or "no".
        folder: the output folder.
        store: the training samples.
        seed: seed of the samples that are drawn to be shown.
        accelerator: distributes the samples over processes; the main one writes.

    Attributes:
        rows: row of the original data per row of the training data; None if they are the same.
    """

    def __init__(self, when: str, folder: str, store: SampleStore, seed: int, accelerator: Accelerator):
        self.when = when
        self.folder = folder
        self.store = store
        self.seed = seed
        self.accelerator = accelerator
        self.rows: np.ndarray | None = None
        self.previews = Previews(store)
        self._stages: list[dict[str, Any]] = []
        self._snapshot: Snapshot | None = None
        self._features: np.ndarray | None = None
        self._map: dict[str, Any] | None = None
        self._tree: dict[str, Any] | None = None
        self._written = time.perf_counter()
        self._is_new = False

    # ---- collecting --------------------------------------------------------------------------------------------

    def note_stage(
        self,
        snapshot: Snapshot | None,
        features: torch.Tensor | None = None,
        part: slice | None = None,
        tree: ClusterTree | None = None,
    ) -> None:
        """Add a stage; called on every process.

        Args:
            snapshot: its labels; the main process needs them alone, others may have None.
            features: this process's rows, shape (n, D), for a map; None for no map.
            part: positions of these rows.
            tree: tree of its clusters, if it is known; the main process needs it alone.
        """
        if self.when == "no":
            return
        dots = None if features is None or part is None else self._features_of_dots(features, part)
        if not self.accelerator.is_main_process or snapshot is None:
            return
        with _errors_as_warnings():
            self._features, self._map = dots, None
            self._tree = None if tree is None else describe_tree(tree)
            self._snapshot, self._is_new = snapshot, True
            stages = [stage for stage in self._stages if stage["epoch"] < snapshot.epoch]
            self._stages = [*stages, _stage(snapshot, EXAMPLES[self.store.noun])]
            for old in self._stages[:-MAX_DETAILED_STAGES]:
                if old["flow"]:
                    old["flow"]["events"] = []

    @property
    def _dots(self) -> np.ndarray:
        """Positions of the samples on the map, (M,)."""
        return map_positions(len(self.store), self.seed)

    def _features_of_dots(self, features: torch.Tensor, part: slice) -> np.ndarray:
        """Gather the features of the samples on the map on every process, shape (M, D)."""
        dots = self._dots
        local = dots[(dots >= part.start) & (dots < part.stop)] - part.start
        rows = features[torch.from_numpy(local).to(features.device)].float()
        return gather_rows(self.accelerator, rows).cpu().numpy()

    def resume(self, snapshot: Snapshot | None) -> None:
        """Resume the report of an interrupted run: take over its stages up to this one, whose labels the run resumes.

        A damaged report is a warning, and the report begins anew.
        """
        if self.when == "no" or not self.accelerator.is_main_process or snapshot is None:
            return
        self._snapshot = snapshot
        try:
            data = read_report(Path(self.folder) / DATA_FILE)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            logger.warning("%s. The report begins anew.", error)
            return
        if data["run"]["samples"] != len(self.store):
            return
        is_current = data["stages"][-1:] and data["stages"][-1]["epoch"] == snapshot.epoch
        self._map = data.get("map") if is_current else None
        self._tree = data.get("tree") if is_current else None
        self._stages = [stage for stage in data["stages"] if stage["epoch"] <= snapshot.epoch]
        self.previews = Previews(self.store, data["media"])

    # ---- writing -----------------------------------------------------------------------------------------------

    def write_stage(self, summary: RunSummary, log: list[dict[str, Any]]) -> None:
        """Write the report of a new stage, if there is one; previews that take too long are left for later."""
        if self.when == "epoch" and self._is_new and self.accelerator.is_main_process:
            allowance = max(LEAST_ALLOWANCE, ALLOWANCE * (time.perf_counter() - self._written))
            self._write(summary, log, finished=False, seconds=allowance)

    def write(self, summary: RunSummary, log: list[dict[str, Any]]) -> None:
        """Write the report of a run that has ended."""
        if self.when != "no" and self.accelerator.is_main_process:
            self._write(summary, log, finished=True, seconds=None)

    def _write(self, summary: RunSummary, log: list[dict[str, Any]], finished: bool, seconds: float | None) -> None:
        with isolate_rng(self.seed), _errors_as_warnings():
            write_report(self.folder, self.data(summary, log, finished, seconds))
        self._written, self._is_new = time.perf_counter(), False

    def data(
        self, summary: RunSummary, log: list[dict[str, Any]], finished: bool = True, seconds: float | None = None
    ) -> dict[str, Any]:
        """Collect everything that the page shows, as JSON can hold it.

        Args:
            summary: the run.
            log: the log as `Trainer` keeps it.
            finished: True if the run has ended.
            seconds: time for new previews; None for as long as it takes.
        """
        snapshot = self._snapshot
        data = {
            "format": FORMAT,
            **run_facts(summary, log, finished, "epoch" if snapshot is None or snapshot.bounds is None else "round"),
            "stages": self._stages,
            "sizes": {"clusters": [], "of": 0, "noise": 0},
            "sheets": {"random": [], "clusters": [], "typical": {}, "contact": {}, "of": 0},
            "map": None,
            "tree": self._tree,
            "media_types": MEDIA_TYPES[self.store.noun],
        }
        if snapshot is not None:
            data["labels_id"] = _labels_id(snapshot.labels)
            data["sizes"] = size_table(snapshot)
            data["sheets"] = self._sheets(snapshot) if snapshot.bounds is None else self._unit_sheets(snapshot)
            data["map"] = self._layout(finished)
        keys = list(dict.fromkeys(_shown_keys(data)))
        data["media"] = self.previews.make(keys, seconds)
        data["media_wanted"] = len(keys)
        data["samples"] = self._samples(keys)
        return data

    def _sheets(self, snapshot: Snapshot) -> dict[str, Any]:
        check = random_check(snapshot.labels, self.seed)
        flow = self._stages[-1]["flow"] if self._stages else None
        new = {cluster for event in flow["events"] for cluster in event["new"]} if flow else set()
        sheets = cluster_sheets(snapshot, new, MEMBERS[self.store.noun])
        for sheet in sheets:
            sheet |= {name: _keys(sheet[name]) for name in ("most", "least", "changed")}
        typical = typical_members(snapshot, np.unique(snapshot.labels[check]), excluded=check)
        return {
            "random": _keys(check.tolist()),
            "clusters": sheets,
            "typical": _keys_by_cluster(typical),
            "contact": _keys_by_cluster(contact_members(snapshot, CONTACTS[self.store.noun])),
            "of": len(list_cluster_ids(snapshot.labels)),
        }

    def _unit_sheets(self, snapshot: Snapshot) -> dict[str, Any]:
        assert snapshot.bounds is not None
        assert isinstance(self.store, AudioStore)
        seconds = self.store.lengths / self.store.audio_format.sampling_rate
        sheets = unit_sheets(snapshot.labels, snapshot.bounds, seconds)
        contact = {str(sheet["id"]): sheet["most"] for sheet in sheets}
        n_units = len(list_cluster_ids(snapshot.labels))
        return {"random": [], "clusters": sheets, "typical": {}, "contact": contact, "of": n_units}

    def _layout(self, final: bool) -> dict[str, Any] | None:
        if self._features is not None and (self._map is None or final):
            self._map = {
                "positions": _keys(self._dots.tolist()),
                "layouts": layouts(self._features, self.seed, final),
                "of": len(self.store),
            }
        return self._map

    def _samples(self, keys: list[str]) -> dict[str, list[Any]]:
        """Look up row, label, label before, confidence and file of samples, by key; None for unknown values.

        Start and end in seconds follow where samples are segments.
        """
        snapshot, files, segments = self._snapshot, self.store.files(), self.store.segments
        samples: dict[str, list[Any]] = {}
        for key in keys:
            position = int(key.partition("@")[0])
            row = int(self.store.rows[position])
            row = row if self.rows is None else int(self.rows[row])
            sample: list[Any] = [row, None, None, None, None if files is None else as_line(files[position])]
            if snapshot is not None and snapshot.confidence is not None:
                before = None if snapshot.previous is None else int(snapshot.previous[position])
                sample[1:4] = [int(snapshot.labels[position]), before, round(float(snapshot.confidence[position]), 4)]
            samples[key] = sample if segments is None else sample + segments[position].tolist()
        return samples


def _stage(snapshot: Snapshot, examples: int) -> dict[str, Any]:
    """Describe the changes at a stage, with examples of new clusters."""
    flow = None if snapshot.previous is None else cluster_flow(snapshot.previous, snapshot.labels)
    for event in flow["events"] if flow is not None and snapshot.bounds is None else ():
        typical = typical_members(snapshot, np.array(event["new"][:MAX_NEW], np.int64), examples)
        event["examples"] = _keys_by_cluster(typical)
    ids, sizes, _ = cluster_table(snapshot)
    noise = len(snapshot.labels) - int(sizes.sum())
    return {"epoch": int(snapshot.epoch), "clusters": len(ids), "noise": noise, "flow": flow}


def _labels_id(labels: np.ndarray) -> str:
    """Identify labels whatever their integer type; the browser keeps the marks of an auditor under this name."""
    total = hashlib.sha256()
    for span in iterate_chunks(len(labels)):
        total.update(labels[span].astype("<i8").tobytes())
    return total.hexdigest()[:16]


def _shown_keys(data: dict[str, Any]) -> Iterable[str]:
    """Yield the keys of all samples that a page shows, the most important ones first: all of them may not fit."""
    sheets = data["sheets"]
    yield from sheets["random"]
    for members in sheets["typical"].values():
        yield from members
    yield from _by_rank(list(sheets["contact"].values()))
    flows = [stage["flow"] for stage in reversed(data["stages"]) if stage["flow"]]
    for flow in flows[:1]:
        yield from _examples(flow)
    yield from _by_rank([sheet[name] for sheet in sheets["clusters"] for name in ("most", "least", "changed")])
    if data["map"] is not None:
        yield from data["map"]["positions"]
    for flow in flows[1:]:
        yield from _examples(flow)


def _examples(flow: dict[str, Any]) -> Iterable[str]:
    for event in flow["events"]:
        for members in event.get("examples", {}).values():
            yield from members


def _by_rank(groups: list[list[str]]) -> Iterable[str]:
    """Yield the first of each group, then the second of each, and so on."""
    for rank in zip_longest(*groups):
        yield from (key for key in rank if key is not None)


def _keys(positions: list[int]) -> list[str]:
    return [str(position) for position in positions]


def _keys_by_cluster(members: dict[int, list[int]]) -> dict[str, list[str]]:
    return {str(cluster): _keys(positions) for cluster, positions in members.items()}


@contextlib.contextmanager
def _errors_as_warnings() -> Iterator[None]:
    """Turn every error inside into a warning."""
    try:
        yield
    except Exception as error:  # such as a full disk: training is worth more
        logger.warning("The report is not written: %s: %s. The run goes on.", type(error).__name__, error)
