"""Batches of a store of samples, decoded by worker processes; the stage and training load alike."""

from __future__ import annotations

import ast
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from hf_plr.data.sample_store import SampleStore
from hf_plr.utils.cores import count_local_processes

if TYPE_CHECKING:
    from hf_plr.training_args import BaseTrainingArguments

logger = logging.getLogger(__name__)

PREFETCHED = 4  # batches per worker, and of the thread that collects decoded samples
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # where Linux keeps what processes share; nothing is written by name
NUMBER = "dataloader_num_workers"
SPARE_DESCRIPTORS = 4  # of the socket by which a worker sends a batch

Collate = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


class StoreLoader:
    """Loads batches of stores, as the arguments say at the time.

    Workers live for one pass where they are forked, which takes some 10 ms each, so that none hold what has changed
    since. Where they have to import everything again ("spawn", "forkserver"), they stay for the next pass over the same
    store.

    Args:
        args: arguments of training; see `worker_settings`.
        collate: makes a batch of the items of a store; picklable.
    """

    def __init__(self, args: BaseTrainingArguments, collate: Collate):
        self.args = args
        self.collate = Collator(collate)
        self._kept: tuple[dict[str, Any], DataLoader, _Batches] | None = None

    def load(self, store: SampleStore, batches: Sequence[torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
        """Iterate over batches of the samples at these positions, in their order, on the CPU."""
        if store.is_cached:
            if self.args.dataloader_pin_memory and self.args.device.type != "cpu":
                yield from read_ahead(store, batches)
            else:
                yield from map(store.batch, batches)
            return
        settings = worker_settings(self.args, store)
        is_kept = settings["num_workers"] > 0 and start_method(self.args) != "fork"
        settings |= {"persistent_workers": is_kept}
        loader, order = self._open(store, settings)
        order.batches = batches
        yield from loader

    def close(self) -> None:
        """End workers that have stayed; the next pass starts new ones."""
        if self._kept is not None:
            end_workers(self._kept[1])
            self._kept = None

    def _open(self, store: SampleStore, settings: dict[str, Any]) -> tuple[DataLoader, _Batches]:
        if self._kept is not None:
            kept_settings, loader, order = self._kept
            if kept_settings == settings and loader.dataset is store and order.revision == store.revision:
                return loader, order
            self.close()
        order = _Batches(store.revision)
        loader = DataLoader(
            store,
            batch_sampler=order,
            collate_fn=self.collate,
            generator=torch.Generator(),  # a separate one: opening a loader draws a number
            **settings,
        )
        outlive_sigterm(loader)
        if settings["persistent_workers"]:
            self._kept = settings, loader, order
        return loader, order


def read_ahead(store: SampleStore, batches: Sequence[torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Iterate over batches of decoded samples in pinned memory; a thread collects the next ones in the meantime."""

    def collect(positions: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: values.pin_memory() for name, values in store.batch(positions).items()}

    executor = ThreadPoolExecutor(1)
    try:
        ahead: deque[Future[dict[str, torch.Tensor]]] = deque()
        for positions in batches:
            ahead.append(executor.submit(collect, positions))
            if len(ahead) > PREFETCHED:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


class _Batches(Sampler[list[int]]):
    """The batches of the present pass.

    Args:
        revision: the store's when workers got their copy of it.
    """

    batches: Sequence[torch.Tensor] = ()

    def __init__(self, revision: int):
        self.revision = revision

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class EpochOrder(Sampler[int]):
    """Order of another sampler, where each epoch draws a number of torch's global generator.

    A loader draws one whenever it starts its workers, or has none. One whose workers stay would not, and numbers that
    are drawn later, as for dropout, would depend on whether there are workers. Such a loader gets a generator of its
    own, and the number is drawn here.

    Args:
        sampler: the order.
    """

    def __init__(self, sampler: Sampler[int]):
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        torch.empty((), dtype=torch.int64).random_()
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # torch's class has no length


def worker_settings(args: BaseTrainingArguments, store: SampleStore) -> dict[str, Any]:
    """Settings of a loader of a store, by their names in `torch.utils.data.DataLoader`.

    Args:
        args: the arguments. A number of workers that nobody gave is 0 where samples are kept decoded, and where new
            processes would run the user's script again.
        store: the samples.
    """
    workers = args.dataloader_num_workers
    if NUMBER in args.by_default and workers and (store.is_cached or not _may_start(args)):
        workers = 0
    is_kept = args.dataloader_persistent_workers
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0 and (start_method(args) != "fork" if is_kept is None else is_kept),
        "prefetch_factor": (args.dataloader_prefetch_factor or PREFETCHED) if workers else None,
        "multiprocessing_context": args.dataloader_multiprocessing_context if workers else None,
        "pin_memory": args.dataloader_pin_memory and args.device.type != "cpu",
    }


def outlive_sigterm(loader: Any) -> None:
    """Let SIGTERM end the workers of a loader only where the process that loads sends it, on Linux.

    Schedulers send SIGTERM to all processes of a run. The one that trains saves and then ends its workers; one that
    ended by itself would end the run before that.
    """
    if not hasattr(signal, "sigwaitinfo"):  # only there do processes learn who sent a signal
        return
    loader = getattr(loader, "base_dataloader", loader)  # accelerate has wrapped it
    loader.worker_init_fn = _WorkerStart(loader.worker_init_fn)
    start_workers = loader._get_iterator

    def start_them_blocked() -> Any:
        """Start workers with SIGTERM blocked, which they inherit, so that none ends before it has begun."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return start_workers()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    loader._get_iterator = start_them_blocked


class _WorkerStart:
    """What a worker does first; picklable.

    Args:
        then: what else is called with the number of the worker.
    """

    def __init__(self, then: Callable[[int], None] | None):
        self.then = then

    def __call__(self, worker: int) -> None:
        """Wait for SIGTERM of the parent, which is blocked in all threads."""
        threading.Thread(target=_end_by_the_parent, args=(os.getppid(),), daemon=True).start()
        if self.then is not None:
            self.then(worker)


def _end_by_the_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler does, where the parent sends the signal


def end_workers(loader: Any) -> None:
    """End the workers of a loader that have stayed.

    When a loader is collected among other garbage, torch closes the queues before it tells the workers to end through
    them, and then waits five seconds for each.
    """
    loader = getattr(loader, "base_dataloader", loader)  # accelerate has wrapped it
    iterator, loader._iterator = loader._iterator, None
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


@contextlib.contextmanager
def trainer_settings(args: BaseTrainingArguments, settings: dict[str, Any]) -> Iterator[None]:
    """Let arguments be these inside the context, where a `transformers.Trainer` makes a loader by them."""
    named = {
        name if name.startswith("dataloader_") else f"dataloader_{name}": value for name, value in settings.items()
    }
    before = {name: getattr(args, name) for name in named}
    vars(args).update(named)  # not by setattr: they would count as given
    try:
        yield
    finally:
        vars(args).update(before)


def start_method(args: BaseTrainingArguments) -> str:
    """How workers are started: "fork", "spawn" or "forkserver"."""
    return args.dataloader_multiprocessing_context or multiprocessing.get_start_method()


_said: set[str] = set()


def _may_start(args: BaseTrainingArguments) -> bool:
    """Whether processes can be started without running the user's script again, as fork always can."""
    if start_method(args) == "fork" or is_guarded(getattr(sys.modules["__main__"], "__file__", None)):
        return True
    _say_once(
        "Samples are decoded in this process: worker processes would run this script from its beginning. Put what it "
        'does under `if __name__ == "__main__":`, and they are used.'
    )
    return False


def is_guarded(script: str | None) -> bool:
    """Whether new processes can import a script: it has an if of `__name__`, or there is none, as in a notebook."""
    if script is None or not os.path.isfile(script):
        return True
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    tests = [node.test for node in tree.body if isinstance(node, ast.If)]
    return any(isinstance(part, ast.Name) and part.id == "__name__" for test in tests for part in ast.walk(test))


class Collator:
    """Makes batches of items; one that a worker makes goes to the other process in shared memory, if that has room.

    Containers often have 64 MiB of it, and a process that writes where there is none is ended by the kernel; and limits
    of a job on sizes and numbers of files hold there, too. Batches then pass through the worker's pipe.

    Args:
        collate: makes a batch of items.
    """

    def __init__(self, collate: Collate):
        self.collate = collate

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate samples; the tensors of a worker go through a pipe where shared memory takes none of them."""
        batch = self.collate(items)
        worker = get_worker_info()
        if worker is None:
            return batch
        n_bytes = sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
        # All workers of all processes may find the room at once.
        if free_shared_memory() >= n_bytes * worker.num_workers * count_local_processes() and _share(batch):
            return batch
        return {name: _Piped(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _share(batch: dict[str, Any]) -> bool:
    """Move the tensors of a batch to shared memory; False where that fails.

    The queue does so, too, but in a thread whose errors nobody sees: the other process would wait forever.
    """
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    try:
        for tensor in tensors:
            tensor.share_memory_()
        _try_descriptors(len(tensors) + SPARE_DESCRIPTORS)
    except (RuntimeError, OSError):
        return False
    return True


def _try_descriptors(n: int) -> None:
    """Open and close so many files, as the queue will, which sends a descriptor of each tensor through a socket.

    Raises:
        OSError: if that is more than the process may have.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            stack.enter_context(open(os.devnull, "rb"))


class _Piped:
    """A tensor that is pickled with its contents, and is a tensor again on the other side."""

    def __init__(self, tensor: torch.Tensor):
        self.array = tensor.numpy()

    def __reduce__(self) -> tuple[Callable[[np.ndarray], torch.Tensor], tuple[np.ndarray]]:
        return _receive, (self.array,)


def _receive(array: np.ndarray) -> torch.Tensor:
    _say_once(
        f"{SHARED_MEMORY} is almost full, or limits on files (ulimit) leave no room there: batches come from worker "
        "processes through pipes, which is slower. More room (docker run --shm-size 8g, or --ipc host) avoids that."
    )
    return torch.from_numpy(array)


def free_shared_memory() -> int:
    """Free bytes of the memory that processes share; as good as endless where it is no folder."""
    try:
        state = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return sys.maxsize
    return state.f_bavail * state.f_frsize


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)
