"""`Reporter`: gathers what the page shows as a run goes on, and writes it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.data.audio_store import AudioStore
from hf_plr.data.sample_store import SampleStore
from hf_plr.refinement import NOISE
from hf_plr.report.html.flows import cluster_flow
from hf_plr.report.html.previews import MEDIA_TYPES, Previews
from hf_plr.report.html.projection import layouts
from hf_plr.report.html.report_file import DATA_FILE, FORMAT, read_report, write_report
from hf_plr.report.html.run_facts import as_line, run_facts
from hf_plr.report.html.sheets import Snapshot, cluster_sheets, map_positions, random_check, sizes_of, typical_members
from hf_plr.report.html.unit_examples import unit_sheets
from hf_plr.utils.distributed import gather_rows

if TYPE_CHECKING:
    from hf_plr.report.summary import RunSummary

logger = logging.getLogger(__name__)

WHEN = ("epoch", "end", "no")
MAX_DETAILED_STAGES = 60  # whose changes are told in full, the last ones
MAX_NEW = 8  # new clusters of a stage that examples are kept of
MEMBERS = {"image": 8, "recording": 4}  # of a sheet
EXAMPLES = {"image": 6, "recording": 3}  # of a new cluster
LEAST_ALLOWANCE, ALLOWANCE = 0.5, 0.01  # seconds, and share of the time since the last report, for new previews


class Reporter:
    """What the page of one run shows. Nothing in it changes the run: what goes wrong here is warned of, no more.

    Args:
        when: "epoch" (write at every stage), "end" (only when asked to), or "no".
        folder: the output folder.
        store: the training samples.
        seed: seed of what is drawn to be shown.
        accelerator: shares the samples among processes; the main one writes.

    Attributes:
        rows: number of each row of the training data in the data that it was taken from; None for the row itself.
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
        self._now: Snapshot | None = None
        self._dots = map_positions(len(store), seed)
        self._features: np.ndarray | None = None
        self._map: dict[str, Any] | None = None
        self._written = time.perf_counter()
        self._is_new = False

    # ---- gathering ---------------------------------------------------------------------------------------------

    def note_stage(self, now: Snapshot, features: torch.Tensor | None = None, part: slice | None = None) -> None:
        """Take in a stage; called on every process.

        Args:
            now: its labels.
            features: this process's rows, shape (n, D), for a map; None for none.
            part: positions of these rows.
        """
        if self.when == "no":
            return
        dots = None if features is None or part is None else self._features_of_dots(features, part)
        if not self.accelerator.is_main_process:
            return
        with _warned():
            self._features, self._map = dots, None
            self._now, self._is_new = now, True
            stages = [stage for stage in self._stages if stage["epoch"] < now.epoch]
            self._stages = [*stages, _stage(now, EXAMPLES[self.store.noun])]
            for old in self._stages[:-MAX_DETAILED_STAGES]:
                if old["flow"]:
                    old["flow"]["events"] = []

    def _features_of_dots(self, features: torch.Tensor, part: slice) -> np.ndarray:
        """Features of the samples on the map, on every process, shape (M, D)."""
        mine = self._dots[(self._dots >= part.start) & (self._dots < part.stop)] - part.start
        rows = features[torch.from_numpy(mine).to(features.device)].float()
        return gather_rows(self.accelerator, rows).cpu().numpy()

    def go_on(self, now: Snapshot) -> None:
        """Take up what the report of an interrupted run has of the stages up to this one, whose labels it goes on with.

        Where that report is damaged, it is warned of, and the report begins anew.
        """
        if self.when == "no" or not self.accelerator.is_main_process:
            return
        self._now = now
        try:
            data = read_report(Path(self.folder) / DATA_FILE)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            logger.warning("%s. The report begins anew.", error)
            return
        if data["run"]["samples"] != len(self.store):
            return
        is_of_now = data["stages"][-1:] and data["stages"][-1]["epoch"] == now.epoch
        self._map = data.get("map") if is_of_now else None
        self._stages = [stage for stage in data["stages"] if stage["epoch"] <= now.epoch]
        self.previews = Previews(self.store, data["media"])

    # ---- writing -----------------------------------------------------------------------------------------------

    def write_stage(self, summary: RunSummary, log: list[dict[str, Any]]) -> None:
        """Write the report of a new stage, if there is one; previews take a bounded time, and the rest comes later."""
        if self.when == "epoch" and self._is_new:
            allowance = max(LEAST_ALLOWANCE, ALLOWANCE * (time.perf_counter() - self._written))
            self._write(summary, log, finished=False, seconds=allowance)

    def write(self, summary: RunSummary, log: list[dict[str, Any]]) -> None:
        """Write the report of a run that has ended."""
        if self.when != "no":
            self._write(summary, log, finished=True, seconds=None)

    def _write(self, summary: RunSummary, log: list[dict[str, Any]], finished: bool, seconds: float | None) -> None:
        with _warned():
            write_report(self.folder, self.data(summary, log, finished, seconds))
        self._written, self._is_new = time.perf_counter(), False

    def data(
        self, summary: RunSummary, log: list[dict[str, Any]], finished: bool = True, seconds: float | None = None
    ) -> dict[str, Any]:
        """Everything that the page shows, as JSON can hold it.

        Args:
            summary: the run.
            log: the log as `Trainer` keeps it.
            finished: whether the run has ended.
            seconds: time for new previews; None for as long as it takes.
        """
        now = self._now
        data = {
            "format": FORMAT,
            **run_facts(summary, log, finished, "epoch" if now is None or now.bounds is None else "round"),
            "stages": self._stages,
            "sizes": {"clusters": [], "of": 0, "noise": 0},
            "sheets": {"random": [], "clusters": [], "typical": {}, "of": 0},
            "map": None,
            "media_types": MEDIA_TYPES[self.store.noun],
        }
        if now is not None:
            data["labels_id"] = hashlib.sha256(np.ascontiguousarray(now.labels).tobytes()).hexdigest()[:16]
            data["sizes"] = sizes_of(now)
            data["sheets"] = self._sheets(now) if now.bounds is None else self._unit_sheets(now)
            data["map"] = self._layout(with_umap=finished)
        wanted = list(dict.fromkeys(_shown(data)))
        data["media"] = self.previews.of(wanted, seconds)
        data["media_wanted"] = len(wanted)
        data["samples"] = self._samples(wanted)
        return data

    def _sheets(self, now: Snapshot) -> dict[str, Any]:
        check = random_check(now.labels, self.seed)
        flow = self._stages[-1]["flow"] if self._stages else None
        new = {cluster for event in flow["events"] for cluster in event["new"]} if flow else set()
        sheets = cluster_sheets(now, new, MEMBERS[self.store.noun])
        for sheet in sheets:
            sheet |= {name: _keys(sheet[name]) for name in ("most", "least", "changed")}
        typical = typical_members(now, np.unique(now.labels[check]))
        return {
            "random": _keys(check.tolist()),
            "clusters": sheets,
            "typical": {str(cluster): _keys(members) for cluster, members in typical.items()},
            "of": _count(now.labels),
        }

    def _unit_sheets(self, now: Snapshot) -> dict[str, Any]:
        assert now.bounds is not None
        assert isinstance(self.store, AudioStore)
        seconds = self.store.lengths / self.store.audio_format.sampling_rate
        sheets = unit_sheets(now.labels, now.bounds, seconds)
        return {"random": [], "clusters": sheets, "typical": {}, "of": _count(now.labels)}

    def _layout(self, with_umap: bool) -> dict[str, Any] | None:
        if self._features is not None and (self._map is None or with_umap):
            self._map = {
                "positions": _keys(self._dots.tolist()),
                "layouts": layouts(self._features, self.seed, with_umap),
                "of": len(self.store),
            }
        return self._map

    def _samples(self, keys: list[str]) -> dict[str, list[Any]]:
        """Row in the data, label, label before, confidence and file of samples, by key; None for what is not known."""
        now, files = self._now, self.store.files()
        found: dict[str, list[Any]] = {}
        for key in keys:
            position = int(key.partition("@")[0])
            row = int(self.store.rows[position])
            row = row if self.rows is None else int(self.rows[row])
            told: list[Any] = [row, None, None, None, None if files is None else as_line(files[position])]
            if now is not None and now.confidence is not None:
                before = None if now.previous is None else int(now.previous[position])
                told[1:4] = [int(now.labels[position]), before, round(float(now.confidence[position]), 4)]
            found[key] = told
        return found


def _stage(now: Snapshot, examples: int) -> dict[str, Any]:
    """What happened at a stage, with examples of what is new."""
    flow = None if now.previous is None else cluster_flow(now.previous, now.labels)
    for event in flow["events"] if flow is not None and now.bounds is None else ():
        found = typical_members(now, np.array(event["new"][:MAX_NEW], np.int64), examples)
        event["examples"] = {str(cluster): _keys(members) for cluster, members in found.items()}
    noise = int(np.count_nonzero(now.labels == NOISE))
    return {"epoch": int(now.epoch), "clusters": _count(now.labels), "noise": noise, "flow": flow}


def _count(labels: np.ndarray) -> int:
    """Clusters that have members."""
    return len(np.unique(labels[labels != NOISE]))


def _shown(data: dict[str, Any]) -> Iterable[str]:
    """Keys of all samples that a page shows, the most important ones first: there may not be room for all."""
    sheets = data["sheets"]
    yield from sheets["random"]
    for members in sheets["typical"].values():
        yield from members
    flows = [stage["flow"] for stage in reversed(data["stages"]) if stage["flow"]]
    for flow in flows[:1]:
        yield from _examples(flow)
    deepest = max(
        (len(sheet[name]) for sheet in sheets["clusters"] for name in ("most", "least", "changed")), default=0
    )
    for rank in range(deepest):
        for sheet in sheets["clusters"]:
            for name in ("most", "least", "changed"):
                yield from sheet[name][rank : rank + 1]
    if data["map"] is not None:
        yield from data["map"]["positions"]
    for flow in flows[1:]:
        yield from _examples(flow)


def _examples(flow: dict[str, Any]) -> Iterable[str]:
    for event in flow["events"]:
        for members in event.get("examples", {}).values():
            yield from members


def _keys(positions: list[int]) -> list[str]:
    return [str(position) for position in positions]


@contextlib.contextmanager
def _warned() -> Iterator[None]:
    """Let the run go on whatever happens inside."""
    try:
        yield
    except Exception as error:  # a full disk, a sample that cannot be read any more: training is worth more
        logger.warning("The report is not written: %s: %s. The run goes on.", type(error).__name__, error)
