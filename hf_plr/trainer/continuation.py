"""A run that continues another: what it takes over from the folder of the run before, and what it tells of it."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.clustering import KMeans
from hf_plr.data.content_digest import digest_samples
from hf_plr.data.sample_store import SampleStore
from hf_plr.models.initial_weights import is_untrained
from hf_plr.pseudo_labels.carrying import carry_labels, start_from_clusters
from hf_plr.pseudo_labels.holding import AllLabels
from hf_plr.pseudo_labels.known_samples import (
    KnownSamples,
    LastLabels,
    describe_unknown,
    match_samples,
    round_spans,
)
from hf_plr.pseudo_labels.labeling import Labeling
from hf_plr.refinement import NOISE, cooccurrence
from hf_plr.refinement.cluster_tree import KnownLevels
from hf_plr.refinement.run_events import find_run_events
from hf_plr.report.run_history import DataChange, RunEntry, RunEvents, RunHistory
from hf_plr.trainer.predecessor import ABOUT, COUNTS, Predecessor, find_predecessor, parse_about
from hf_plr.training_args import PLRTrainingArguments
from hf_plr.training_args.defaults import keep_from_scratch
from hf_plr.utils.distributed import gather_results, gather_rows
from hf_plr.utils.serialization import validate_array

CHECKED_SAMPLES = 256  # that are read together to find a known one
LAST, IDS = "continued.last", "continued.ids"  # in the state of a run


class Continuation:
    """Takes over labels, numbers and names of a run before, and finds out what became of its clusters.

    Args:
        predecessor: the run before.

    Attributes:
        predecessor: the run before.
        known: which samples it had; None before `match`.
        n_fitting: new samples that fitted one of its clusters at the first stage.
        events: what became of its clusters; none before `find_events`.
        known_levels: its levels, and what its clusters share with those of this run; None before `find_events`.
    """

    def __init__(self, predecessor: Predecessor):
        self.predecessor = predecessor
        self.known: KnownSamples | None = None
        self.n_fitting = 0
        self._last: np.ndarray | None = None  # last labels of held samples, -1 for new ones; from the first stage on
        self._ids = np.empty(0, np.int64)  # clusters of the run before
        self.events = RunEvents()
        self.known_levels: KnownLevels | None = None

    def choose_start(self, model: Any, args: PLRTrainingArguments) -> tuple[Any, PLRTrainingArguments]:
        """Choose the model to start from, and the defaults for it.

        Args:
            model: the model, its name or its path, as the user gave it; None takes the weights of the run before.
            args: the arguments, which stay as they are.

        Returns:
            The model, and `args` or a copy: what goes back to random weights keeps the defaults of these.

        Raises:
            ValueError: if there are no weights in the folder.
        """
        if model is None and not (Path(self.predecessor.weights) / "config.json").is_file():
            raise ValueError(f"continue_from={self.predecessor.weights!r} holds no weights: name a model to start from")
        model = self.predecessor.weights if model is None else model
        is_from_scratch = self.is_start(model) and self.predecessor.history.from_scratch
        return model, keep_from_scratch(args) if is_from_scratch else args

    def is_start(self, model: Any) -> bool:
        """True if a model, its name or its path is that of the run before."""
        name = model if isinstance(model, (str, os.PathLike)) else getattr(model, "name_or_path", "")
        return bool(name) and os.path.realpath(name) == os.path.realpath(self.predecessor.weights)

    # ---- before the first epoch ----------------------------------------------------------------------------------

    def check_known(self, store: SampleStore) -> None:
        """Check that the run before had some sample, by reading as few as it takes; unreadable ones are passed over.

        Raises:
            ValueError: as `match`.
        """
        last = self._require_labels()
        spans = None if store.segments is None else round_spans(store.segments)
        if last.digests is None or (spans is None) != (last.spans is None):
            match_samples(last, np.zeros(len(store), np.uint64), store.files(), spans, store.rows)
            return
        keys = {*zip(*(column.tolist() for column in _keys(last.digests, last.spans)), strict=True)}
        for start in range(0, len(store), CHECKED_SAMPLES):
            part = slice(start, min(start + CHECKED_SAMPLES, len(store)))
            try:
                columns = _keys(digest_samples(store, part), None if spans is None else spans[part])
            except Exception:  # unreadable samples are told of, or left out, when all are decoded
                return
            if not keys.isdisjoint(zip(*(column.tolist() for column in columns), strict=True)):
                return
        raise ValueError(describe_unknown(last, len(store)))

    def match(self, store: SampleStore, part: slice, accelerator: Accelerator) -> None:
        """Find out which samples the run before had; called on every process, once all samples can be read.

        Args:
            store: all samples.
            part: positions of this process's samples.
            accelerator: connects the processes.

        Raises:
            ValueError: if none is known, or they cannot be told apart.
        """
        last = self._require_labels()
        digests = gather_digests(digest_own(store, part, accelerator), accelerator)
        spans = None if store.segments is None else round_spans(store.segments)
        self.known = match_samples(last, digests, store.files(), spans, store.rows)
        self._ids = np.array(list(last.sizes()), np.int64)
        self._last, self.n_fitting = None, 0  # of an earlier training

    def _require_labels(self) -> LastLabels:
        if self.predecessor.labels is None:
            raise ValueError(
                f"continue_from={self.predecessor.folder!r} is gone: without it this run can be resumed, not started"
            )
        return self.predecessor.labels

    def begin(
        self, labeling: Labeling, rows: torch.Tensor, part: slice, holder: AllLabels, accelerator: Accelerator
    ) -> None:
        """Carry the last labels over to the first stage; nothing at later ones. Called on every process.

        Args:
            labeling: the reported labeling.
            rows: features of this process's samples in the space of the clusters, unit length, shape (n, D).
            part: positions of these samples.
            holder: knows whose labels each process holds.
            accelerator: connects the processes.
        """
        if self._last is not None:
            return
        labels = self.predecessor.labels
        assert labels is not None
        assert self.known is not None
        position = self.known.position
        of_all = np.where(position >= 0, labels.labels[position], NOISE)
        last, ids = of_all[part], np.unique(of_all[of_all != NOISE])
        carried = carry_labels(rows, last, position[part] < 0, ids, accelerator)
        clusterer = labeling.stage.clusterer
        if isinstance(clusterer, KMeans) and str(clusterer.init) == "warm" and len(ids):
            start_from_clusters(clusterer, carried, rows, accelerator)
        labels_now = holder.hold(carried.labels).astype(np.int32)
        labeling.continue_from(labels_now, holder.first(part), self.predecessor.history.next_number)
        self._last = holder.hold(last.astype(np.int32)).astype(np.int32)
        self.n_fitting = carried.n_fitting

    # ---- at the end ----------------------------------------------------------------------------------------------

    def find_events(self, labels: np.ndarray, holder: AllLabels) -> RunEvents:
        """Find what became of the clusters of the run before; called on every process.

        Args:
            labels: the labels that this process holds.
            holder: adds up what the processes hold.
        """
        assert self._last is not None
        table = holder.add_shards(cooccurrence(self._last, labels))
        self.known_levels = KnownLevels(table, self.predecessor.levels, self.predecessor.history.next_number)
        self.events = RunEvents.from_cluster_events(find_run_events(table, self._ids))
        return self.events

    def describe(self) -> str:
        """Describe which samples are known, in a line."""
        return "" if self.known is None else f"{self.predecessor.folder}: {self.known.describe()}"

    def describe_events(self) -> str:
        """Describe what became of the clusters of the run before, in a sentence."""
        counts = self.events.counts()
        before = len(self._ids)
        others = [f"{counts[kind]} {kind}" for kind in ("split", "merged", "reshaped", "died", "born") if counts[kind]]
        words = f"Continues {self.describe()}. Of its {before} clusters {counts['kept']} were kept"
        return f"{words}; events: {', '.join(others)}." if others else f"{words}."

    # ---- saving and resuming -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """State for a resumed run, as arrays by name: all that it needs, since the folder may have gone by then."""
        if self._last is None or self.known is None:
            return {}
        about = {
            "history": self.predecessor.history.to_json(),
            "names": self.predecessor.names,
            "counts": {field: getattr(self.known, field) for field in COUNTS},
            "n_fitting": self.n_fitting,
            "levels": self.predecessor.levels,
            "level_names": self.predecessor.level_names,
        }
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        return {LAST: self._last, IDS: self._ids, ABOUT: text}

    def load_state_dict(self, state: Mapping[str, np.ndarray], n_held: int) -> None:
        """Restore the output of `state_dict`; other entries are ignored.

        Args:
            state: arrays by name.
            n_held: number of samples whose labels this process holds.

        Raises:
            ValueError: if an array is missing or damaged, naming it.
        """
        told, self.known, self.n_fitting = parse_about(state)
        own = self.predecessor
        self.predecessor = dataclasses.replace(told, folder=own.folder, weights=own.weights, labels=own.labels)
        self._ids = validate_array(state, IDS, "integers", (None,), 0)
        self._last = validate_array(state, LAST, "integers", (n_held,), NOISE)


def open_continuation(args: PLRTrainingArguments) -> Continuation | None:
    """Open what the arguments say to continue.

    Returns:
        None where they name nothing.

    Raises:
        ValueError: as `find_predecessor`, and as `PLRTrainingArguments.check`.
    """
    if args.continue_from is None:
        return None
    args.check()  # `output_dir` may have been assigned since
    output_dir = None if args.empties_output_dir else str(args.output_dir)
    return Continuation(find_predecessor(args.continue_from, output_dir, args.resume_from_checkpoint))


def starts_from_scratch(continuation: Continuation | None, model: Any, backbone: torch.nn.Module) -> bool:
    """True if the weights to start from go back to random ones, as far as is known.

    Args:
        continuation: the run before; None for a first run.
        model: the model as the user gave it.
        backbone: the backbone in it.
    """
    if continuation is not None and continuation.is_start(model):
        return continuation.predecessor.history.from_scratch
    return not isinstance(model, (str, os.PathLike)) and is_untrained(backbone)


def make_history(
    args: PLRTrainingArguments,
    ids: np.ndarray,
    sizes: np.ndarray,
    next_number: int,
    from_scratch: bool,
    continuation: Continuation | None,
) -> RunHistory:
    """Make the history of a run that ends: those of the run that it continues, and itself.

    Args:
        args: the arguments.
        ids: its labels, ascending, -1 = noise, shape (K,).
        sizes: members of each, shape (K,).
        next_number: the smallest number that none of its clusters has had.
        from_scratch: True if its weights go back to random ones.
        continuation: the run before; None for a first run.
    """
    by_label = dict(zip(ids.tolist(), sizes.tolist(), strict=True))
    noise = by_label.pop(NOISE, 0)
    entry = RunEntry(
        id=uuid.uuid4().hex[:16],
        name=os.path.basename(os.path.realpath(str(args.output_dir))),
        written=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        samples=noise + sum(by_label.values()),
        noise=noise,
        clusters=by_label,
    )
    highest = max(by_label, default=NOISE)
    if continuation is None or continuation.known is None:
        return RunHistory(max(next_number, highest + 1), (entry,), from_scratch)
    known, before = continuation.known, continuation.predecessor.read_audits()
    data = DataChange(known.known, known.new, known.removed)
    entry = dataclasses.replace(entry, data=data, events=continuation.events)
    return RunHistory(max(before.next_number, next_number, highest + 1), (*before.runs, entry), from_scratch)


def digest_own(store: SampleStore, part: slice, accelerator: Accelerator) -> np.ndarray:
    """Digest this process's samples by content; called on every process, and fails on all of them.

    Returns:
        The bytes of each digest, uint8 of shape (n, 8).
    """
    digests, failure = np.empty(0, np.uint64), None
    try:
        digests = digest_samples(store, part)
    except Exception as error:  # the other processes wait: tell them before raising
        failure = error
    gather_results(accelerator, None, failure)
    return digests.view(np.uint8).reshape(-1, 8)


def gather_digests(own: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """Gather the digests (n, 8) of all processes: uint64 of shape (N,), on every process."""
    rows: np.ndarray = gather_rows(accelerator, torch.from_numpy(own)).numpy()
    return np.ascontiguousarray(rows).view(np.uint64)[:, 0]


def _keys(digests: np.ndarray, spans: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """What samples are known by: digests (n,), and of segments start and end in milliseconds (n, 2)."""
    return (digests,) if spans is None else (digests, spans[:, 0], spans[:, 1])
