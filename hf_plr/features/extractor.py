"""Features of all samples, without augmentation, over all processes."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from hf_plr.data.loader import StoreLoader
from hf_plr.data.sample_store import SampleStore
from hf_plr.features.kept_features import KeptFeatures
from hf_plr.modality.base import Modality
from hf_plr.utils.distributed import find_sharded_modules, gather_rows, gather_weights, share_running_statistics
from hf_plr.utils.precision import fast_fp32_products
from hf_plr.utils.progress import track
from hf_plr.utils.rng import uniform

logger = logging.getLogger(__name__)
PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16"}  # as accelerate names them


@dataclass
class BatchLimit:
    """Samples of a batch that memory holds at once; extractors that share it learn it once."""

    samples: int = sys.maxsize


@dataclass
class FeatureExtractor:
    """Extractor of features from any samples.

    Attributes:
        model: the backbone, wrapped or not.
        modality: turns samples into features.
        accelerator: places batches and shares them among processes.
        batch_size: images per batch, or seconds of sound.
        loader: loads batches of samples.
        progress: show a progress bar on the main process.
        shards: parts that the samples are split into, a multiple of the processes, each of which has equally many
            neighbouring ones; 1 for one part a process.
        kept: features that were just extracted, so that they need not be again; None keeps none.
        limit: what was learned of memory, for larger batches to be computed in parts.
    """

    model: torch.nn.Module
    modality: Modality
    accelerator: Accelerator
    batch_size: int
    loader: StoreLoader
    progress: bool = False
    shards: int = 1
    kept: KeptFeatures | None = None
    limit: BatchLimit = field(default_factory=BatchLimit)

    def extract_all(self, store: SampleStore, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Extract features of a store's samples in their order, on every process.

        Args:
            store: the samples.
            positions: positions in the store, shape (M,); None takes all.

        Returns:
            float32 tensor of shape (M, D) on the accelerator's device.
        """
        positions = torch.arange(len(store)) if positions is None else positions
        return gather_rows(self.accelerator, self.extract(store, positions[self.local_slice(store, positions)]))

    def extract(
        self,
        store: SampleStore,
        positions: torch.Tensor,
        dtype: torch.dtype | None = None,
        out: torch.Tensor | None = None,
        view: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Extract features of these samples on this process alone.

        Args:
            store: the samples.
            positions: positions in the store, shape (n,).
            dtype: torch.float32 or torch.bfloat16 for products in it; None for the precision of training, which it
                always is with FSDP and DeepSpeed.
            out: float32 tensor of shape (n, D) to write to, on any device.
            view: seed and epoch of the augmentation, as for `uniform`; None for samples as they are.

        Returns:
            `out`, or a float32 tensor of shape (n, D) on the accelerator's device.
        """
        features = torch.empty(len(positions), self.width, device=self.accelerator.device) if out is None else out
        start = 0

        def collect(rows: torch.Tensor) -> None:
            nonlocal start
            features[start : start + len(rows)] = rows.to(features.device)
            start += len(rows)

        with self.evaluation_mode(dtype):
            if self.kept is not None and view is None:
                kept = self.kept.find(store, positions, self.model, self.describe_products(dtype))
                if kept is not None:
                    return features.copy_(kept)
            self._stream(store, positions, collect, view)
        return features

    def stream(
        self,
        store: SampleStore,
        positions: torch.Tensor,
        consume: Callable[[torch.Tensor], None],
        dtype: torch.dtype | None = None,
    ) -> None:
        """Extract features of these samples on this process, and keep none of them.

        Args:
            store: the samples.
            positions: positions in the store, shape (n,).
            consume: called with the features of each batch, float32 (B, D) on the accelerator's device, in order.
            dtype: as for `extract`.
        """
        with self.evaluation_mode(dtype):
            self._stream(store, positions, consume)

    def _stream(
        self,
        store: SampleStore,
        positions: torch.Tensor,
        consume: Callable[[torch.Tensor], None],
        view: tuple[int, int] | None = None,
    ) -> None:
        for batch in self.batches(store, positions):
            consume(self._compute(batch, None if view is None else uniform(batch["index"], *view)))

    def _compute(self, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None) -> torch.Tensor:
        """Compute the features of a batch, in parts of half the size where the memory does not hold the whole.

        Raises:
            RuntimeError: if one sample alone does not fit.
        """
        n = len(batch["index"])
        while True:
            size = min(n, self.limit.samples)
            try:
                parts = [
                    self.modality.features(
                        self.model,
                        {name: values[start : start + size] for name, values in batch.items()},
                        None if numbers is None else numbers[start : start + size],
                    )
                    for start in range(0, n, size)
                ]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except RuntimeError as error:
                if size == 1 or not should_reduce_batch_size(error):
                    raise
            clear_device_cache(garbage_collection=True)
            self.limit.samples = size // 2
            logger.warning("Memory does not hold a batch of %d samples: features are computed of %d", size, size // 2)

    @contextlib.contextmanager
    def evaluation_mode(self, dtype: torch.dtype | None = None) -> Iterator[None]:
        """Set the model to evaluation mode, without gradients, with fast products; restores every module's mode.

        Args:
            dtype: as for `extract`. Products in float32 on a CPU run in `fast_fp32_products`.
        """
        self._place_model()
        share_running_statistics(self.model, self.accelerator)
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            with (
                gather_weights(self.model, self.accelerator),
                torch.inference_mode(),
                fast_fp32_products(self.accelerator.device),
                self._compute_in(dtype),
            ):
                yield
        finally:
            for module, was_training in modes.items():
                module.training = was_training

    def _place_model(self) -> None:
        """Move the model to its batches: FSDP and DeepSpeed leave it on the CPU until training begins."""
        if not find_sharded_modules(self.model):
            self.model.to(self.accelerator.device)

    def batches(self, store: SampleStore, positions: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
        """Iterate over batches of the samples at these positions, in their order, on the device."""
        for batch in self._load(store, positions):
            yield {name: values.to(self.accelerator.device, non_blocking=True) for name, values in batch.items()}

    def read(self, store: SampleStore, positions: torch.Tensor) -> None:
        """Load the samples at these positions, so that what is wrong with them is noted, and do nothing with them."""
        for _ in self._load(store, positions):
            pass

    def _load(self, store: SampleStore, positions: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
        batches = self.modality.batches(store, positions, self.batch_size)
        for batch in self._show_progress(self.loader.load(store, batches), len(batches)):
            store.note_faults(batch)
            yield batch

    def describe_products(self, dtype: torch.dtype | None) -> tuple[str, int]:
        """Precision of products with this `dtype`, see `extract`, and samples of a batch, as for `KeptFeatures`."""
        trained_in = str(self.accelerator.mixed_precision)
        return trained_in if dtype is None else PRECISIONS[dtype], self.batch_size

    @property
    def width(self) -> int:
        """Size D of a feature."""
        return self.modality.feature_size

    def local_slice(self, store: SampleStore, positions: torch.Tensor | None = None) -> slice:
        """Slice of a store, or of some positions in it, for this process.

        It has whole batches, so that batches are equal for any number of processes. All slices are about equal work.
        """
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        bounds = self.split(store, max(self.shards, processes), positions)
        per_process = (len(bounds) - 1) // processes
        return slice(int(bounds[index * per_process]), int(bounds[(index + 1) * per_process]))

    def split(self, store: SampleStore, n_parts: int, positions: torch.Tensor | None = None) -> np.ndarray:
        """Split a store, or some positions in it, into parts of whole batches; returns their bounds (n_parts + 1,).

        Parts are about equal work; with several shards about equally many samples.
        """
        positions = torch.arange(len(store)) if positions is None else positions
        lengths = np.array([len(batch) for batch in self.modality.batches(store, positions, self.batch_size)], np.int64)
        stops = np.cumsum(lengths)
        costs = self.modality.costs(store)
        if self.shards > 1:
            work_per_batch = lengths.astype(np.float64)
        elif costs is None:
            work_per_batch = np.ones(len(stops))
        else:
            work_per_batch = (
                np.add.reduceat(costs[positions.numpy()], stops - lengths).astype(np.float64) if len(stops) else costs
            )
        cumulative_work = np.concatenate([[0.0], np.cumsum(work_per_batch)])
        # A batch belongs to the part of the work in which it begins.
        first_batches = [
            int(np.searchsorted(cumulative_work[:-1], cumulative_work[-1] * part / n_parts, "left"))
            for part in range(n_parts)
        ]
        return np.concatenate([[0], stops])[[*first_batches, len(stops)]]

    def _show_progress(
        self, batches: Iterator[dict[str, torch.Tensor]], n_batches: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        is_shown = self.progress and self.accelerator.is_main_process
        return track(batches, "Extracting features", n_batches, is_shown)

    @contextlib.contextmanager
    def _compute_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        if dtype is None or find_sharded_modules(self.model):
            with self.accelerator.autocast():
                yield
            return
        is_as_trained = PRECISIONS[dtype] == self.accelerator.mixed_precision
        with (
            contextlib.nullcontext() if is_as_trained else forwards_as_written(self.model),
            # One context for all batches casts weights once.
            torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16),
        ):
            yield


@contextlib.contextmanager
def forwards_as_written(model: torch.nn.Module) -> Iterator[None]:
    """Let modules compute in the precision of the context around them: accelerate gives a prepared one its own."""
    prepared = [module for module in model.modules() if {"forward", "_original_forward"} <= vars(module).keys()]
    forwards = [module.forward for module in prepared]
    for module in prepared:
        module.forward = module._original_forward  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, forward in zip(prepared, forwards, strict=True):
            module.forward = forward
