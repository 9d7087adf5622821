"""Training: its rate against a stock Trainer, what waits for the device, what is not deterministic, and memory."""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from benchmarks import throughput
from benchmarks.gpu_check.data import count_vit_operations, draw_features
from benchmarks.gpu_check.findings import Bench, Findings
from benchmarks.gpu_check.machine import product_rate
from benchmarks.measuring import PeakMemory
from benchmarks.scaling.model import Size, while_clustering
from hf_plr import KMeans, PLRTrainer, PLRTrainingArguments, PseudoLabelRefiner
from hf_plr.clustering.rows import BLOCK_SCORES, OTHER_BLOCK_SCORES
from hf_plr.data.example_data import digits
from hf_plr.models.vision import small_vit, small_vit_processor
from hf_plr.pseudo_labels.stage import RefinementStage
from hf_plr.trainer.progress_display import ProgressDisplay

COUNTED_STEP = 6  # by then both trainers have all their memory
PROFILED_STEPS = 20
# Kernels without a deterministic form that a run may use, and why: attention's gradient and interpolated positions move
# weights by rounding, which `exact_resume` forbids; cuBLAS needs a variable that is set before the process starts.
KNOWN_WARNINGS = ("attention", "upsample_bicubic2d", "CuBLAS")


def check_trainer(bench: Bench, findings: Findings) -> None:
    """PLRTrainer with three labelings against a stock Trainer, in batches of 256 and 64, and against the card."""
    model, image_size = bench.size(("vit_s", 224), ("vit_s", 224) if bench.is_gpu else ("small_vit", 32))
    for batch_size, least in bench.size([(256, 0.95), (64, 0.90)], [(64, 0.90)] if bench.is_gpu else [(32, 0.90)]):
        args = throughput_arguments(
            bench,
            model=model,
            samples=bench.size(4096, 1024 if bench.is_gpu else 128),
            batch_size=batch_size,
            steps=bench.size(60, 20 if bench.is_gpu else 6),
            turns=bench.size(3, 1),
        )
        result = throughput.measure(args)
        name = f"batch_{batch_size}"
        findings.report(f"{name}_images_per_second", result["plr_samples_per_second"])
        findings.report(f"{name}_ratio_of_host_seconds", result["trainer_ratio_cpu_seconds"])
        findings.expect(f"{name}_ratio", result["trainer_ratio"], at_least=least, unless=bench.no_rates)
        if model == "vit_s":
            operations = 3 * count_vit_operations("small", image_size, 16)
            used = result["plr_samples_per_second"] * operations / 1e12 / product_rate(bench, "bf16")
            unless = bench.no_rates if batch_size == 256 else "batches of 64 are small"
            findings.expect(f"{name}_share_of_products", used, at_least=0.25, unless=unless)


def throughput_arguments(bench: Bench, **values: Any) -> argparse.Namespace:
    """Arguments of `benchmarks.throughput` for this device; bfloat16 where it is a GPU."""
    parser = argparse.ArgumentParser()
    throughput.add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    return argparse.Namespace(**{**defaults, "bf16": bench.is_gpu, "device": bench.device.type, **values})


# ---- what waits for the device -------------------------------------------------------------------------------------


def check_synchronisations(bench: Bench, findings: Findings) -> None:
    """Waits for the device in one step, beyond a stock Trainer's, and the share of twenty steps that it is busy."""
    model = bench.size("vit_s", "vit_s" if bench.is_gpu else "small_vit")
    batch_size = bench.size(256, 64 if bench.is_gpu else 32)
    steps = COUNTED_STEP + 2 + (PROFILED_STEPS if bench.is_gpu else 0)
    args = throughput_arguments(bench, model=model, samples=1024, batch_size=batch_size, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        for name, trainer in zip(
            ("plr", "stock"), throughput.trainers(args, throughput.many_digits(1024), folder), strict=True
        ):
            waits, busy = watch_steps(bench, trainer)
            findings.report(f"waits_{name}", len(waits))
            findings.note(f"{name} waits: {', '.join(sorted(set(waits))) or 'never'}")
            if busy is not None:
                findings.report(f"busy_{name}", busy)
    values = findings.values
    findings.expect("waits_beyond_stock", values["waits_plr"] - values["waits_stock"], at_most=2)
    if bench.is_gpu:
        findings.expect("busy", values["busy_plr"], at_least=0.9, unless=bench.no_rates)
    else:
        findings.note("counted are the operations that would wait on a GPU, but no copies to it; no profile")


def watch_steps(bench: Bench, trainer: Trainer) -> tuple[list[str], float | None]:
    """Train; returns what waited in one step, and the busy share of the following ones (None on a CPU)."""
    count = count_cuda_waits if bench.is_gpu else count_waiting_operations
    watch = StepWatch(bench, count)
    trainer.add_callback(watch)
    trainer.train()
    return watch.waits, None if watch.profile is None else busy_share(watch.profile)


class StepWatch(TrainerCallback):
    """Counts waits from the end of one step to the end of the next, then profiles some steps on a GPU."""

    def __init__(self, bench: Bench, count: Callable[[list[str]], Any]):
        self.bench = bench
        self.waits: list[str] = []
        self.profile: Any = None
        self._counting = count(self.waits)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == COUNTED_STEP:
            self._counting.__enter__()
        elif state.global_step == COUNTED_STEP + 1:
            self._counting.__exit__(None, None, None)
            if self.bench.is_gpu:
                self.bench.synchronize()
                self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self.profile.__enter__()
        elif state.global_step == COUNTED_STEP + 1 + PROFILED_STEPS and self.profile is not None:
            self.bench.synchronize()
            self.profile.__exit__(None, None, None)


@contextmanager
def count_cuda_waits(waits: list[str]) -> Iterator[None]:
    """Collect torch's own warnings of waiting for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            waits.append(f"{warning.filename.rsplit('/', 2)[-1]}:{warning.lineno}")


class count_waiting_operations(TorchDispatchMode):
    """Collect the operations whose result the host reads, or whose size it has to know."""

    ALWAYS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "is_nonzero", "item")
    INDEXED = ("index", "index_put", "index_put_")

    def __init__(self, waits: list[str]):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        is_boolean = name in self.INDEXED and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in self.ALWAYS or is_boolean:
            self.waits.append(name)
        return function(*args, **(kwargs or {}))


def busy_share(profile: Any) -> float:
    """Share of the time from the first kernel to the end of the last one in which any kernel or copy ran."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    )
    if not spans:
        return 0.0
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / (until - spans[0][0])


# ---- what is not deterministic -------------------------------------------------------------------------------------


def check_determinism(bench: Bench, findings: Findings) -> None:
    """A stage and some steps under `use_deterministic_algorithms`: kernels without a deterministic form."""
    args = PLRTrainingArguments(
        str(bench.new_folder("determinism")),
        num_train_epochs=2,
        steps_per_epoch=3,
        per_device_train_batch_size=32,
        save_strategy="no",
        report="no",
        use_cpu=not bench.is_gpu,
        disable_tqdm=True,
        report_to="none",
    )
    images = digits().remove_columns("label").select(range(300))
    trainer = PLRTrainer(small_vit(32, 8), args, images, processing_class=small_vit_processor(32))
    trainer.remove_callback(ProgressDisplay)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            trainer.train()
        finally:
            torch.use_deterministic_algorithms(False)
    heads = {str(warning.message).split("\n")[0][:120] for warning in caught if "determinis" in str(warning.message)}
    unknown = [head for head in heads if not any(known.lower() in head.lower() for known in KNOWN_WARNINGS)]
    findings.report("warnings", sorted(heads))
    findings.expect("unknown_warnings", len(unknown), at_most=0)
    findings.note("; ".join(unknown) or "none beyond the known ones")


# ---- memory --------------------------------------------------------------------------------------------------------


def check_memory(bench: Bench, findings: Findings) -> None:
    """Memory of a stage against the scaling model, of training against a stock Trainer; a stage in a tenth of it."""
    n, dimension, n_clusters = bench.size((1_000_000, 1024, 1500), (100_000, 128, 150))
    blocks = OTHER_BLOCK_SCORES if bench.is_gpu else BLOCK_SCORES["cpu"]
    size = Size(n, dimension, n_clusters, processes=1, block_scores=blocks)
    on_host = () if not bench.is_gpu else ("labels of all samples", "labels of own samples")
    modelled = sum(value for name, value in while_clustering(size).items() if name not in on_host)
    measured = measure_peak(bench, lambda: run_stage(bench, n, dimension, n_clusters))
    findings.report("stage_mib", measured / 2**20)
    findings.expect("stage_over_model", measured / modelled, at_most=1.15)
    args = throughput_arguments(
        bench, model=bench.size("vit_s", "small_vit"), samples=1024, batch_size=bench.size(128, 32), steps=4
    )
    if not bench.is_gpu:
        findings.note("a CPU's memory in training and with a limit is not measured")
        return
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = throughput.trainers(args, throughput.many_digits(1024), folder)
        peaks = [measure_peak(bench, trainer.train) for trainer in (theirs, ours)]
        del ours, theirs
    findings.report("training_mib", peaks[1] / 2**20)
    findings.expect("training_over_stock", peaks[1] / peaks[0], at_most=1.15)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.1, bench.device)
    try:
        run_stage(bench, n, dimension, n_clusters)
        findings.report("stage_with_a_tenth_of_the_card", "ends")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def measure_peak(bench: Bench, work: Callable[[], Any]) -> float:
    """Bytes by which memory rises during a piece of work: of the device, or of the process on a CPU."""
    if not bench.is_gpu:
        with PeakMemory() as memory:
            work()
        return memory.peak_mib * 2**20
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_allocated(bench.device)
    work()
    bench.synchronize()
    return float(torch.cuda.max_memory_allocated(bench.device) - before)


def run_stage(bench: Bench, n_samples: int, dimension: int, n_clusters: int) -> None:
    """Cluster drawn features, and refine the clusters by those of a second pass."""
    accelerator = Accelerator(cpu=not bench.is_gpu)
    features = draw_features(n_samples, dimension, n_clusters, bench.device)
    start = features[:n_clusters].clone()
    stage = RefinementStage(KMeans(n_clusters, init=start, max_iter=3), PseudoLabelRefiner(), 1, accelerator)
    labels = None
    for epoch in range(2):
        part = slice(0, n_samples)
        clusters = stage.cluster(features, epoch)
        labels = stage.refine(clusters, epoch, part, labels)
