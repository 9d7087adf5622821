"""A label for every frame of all recordings, in one memory-mapped file that the processes of a machine share."""

from __future__ import annotations

import contextlib
import os
import tempfile

import numpy as np
import torch
from accelerate import Accelerator

from hf_plr.refinement.cooccurrence import iterate_blocks
from hf_plr.utils.distributed import gather_objects, gather_rows, is_single_process, wait_for_all
from hf_plr.utils.mapped_arrays import PREFIX, allocate_array, reserve

SENT_FRAMES = 1 << 22  # of each process at a time, where there are several machines


class SharedLabels:
    """Allocates labels of all frames, once on each machine; its processes write those of their own recordings.

    Files have no name but while the processes of a machine open them, and are gone as soon as nothing refers to them.

    Args:
        accelerator: connects the processes.
        folder: folder of the files; None takes the system's temporary folder.
    """

    def __init__(self, accelerator: Accelerator, folder: str | os.PathLike[str] | None = None):
        self.accelerator = accelerator
        self.folder = folder

    def allocate(self, n_frames: int, dtype: np.dtype) -> np.ndarray:
        """Allocate labels (n_frames,), zeros; called on every process.

        Raises:
            RuntimeError: if a process cannot make or open the file, on every process.
        """
        if is_single_process(self.accelerator) or n_frames == 0:
            return allocate_array((n_frames,), dtype, self.folder)
        with contextlib.ExitStack() as stack:
            path: str | OSError | None = None
            if self.accelerator.is_local_main_process:
                try:
                    path = self._make_file(n_frames * dtype.itemsize)
                    stack.callback(os.unlink, path)
                except OSError as error:
                    path = error
            paths = gather_objects(self.accelerator, path)
            self._raise_fault(paths)
            # Processes of a machine are neighbours, and the first of them has made its file.
            own = next(each for each in paths[self.accelerator.process_index :: -1] if each is not None)
            labels: np.ndarray | OSError
            try:
                labels = np.memmap(own, dtype, "r+", shape=(n_frames,))
            except OSError as error:
                labels = error
            self._raise_fault(gather_objects(self.accelerator, labels if isinstance(labels, OSError) else None))
        assert isinstance(labels, np.ndarray)
        return labels

    def complete(self, labels: np.ndarray, own: slice) -> None:
        """Wait until each process has written its own frames, and bring over those of other machines.

        Args:
            labels: output of `allocate`, (F,), in which this process has written its own.
            own: the frames of this process's recordings.
        """
        if is_single_process(self.accelerator):
            return
        is_first = self.accelerator.is_local_main_process
        spans = gather_objects(self.accelerator, (own.start, own.stop, is_first))
        if sum(first for *_, first in spans) > 1:
            self._exchange(labels, own, [slice(start, stop) for start, stop, _ in spans])
        wait_for_all(self.accelerator, "writing the labels of frames")

    def _exchange(self, labels: np.ndarray, own: slice, parts: list[slice]) -> None:
        """Send own frames to all machines, part by part and on CPUs; the first process of each writes what comes."""
        longest = max(part.stop - part.start for part in parts)
        for span in iterate_blocks(longest, SENT_FRAMES):
            sent = labels[own][span].view(np.uint8)  # as bytes: no backend takes int16
            arrived = gather_rows(self.accelerator, torch.from_numpy(np.array(sent))).numpy().view(labels.dtype)
            for part in parts:
                whole = labels[part][span]
                values, arrived = arrived[: len(whole)], arrived[len(whole) :]
                if self.accelerator.is_local_main_process:
                    whole[:] = values

    def _make_file(self, n_bytes: int) -> str:
        folder = tempfile.gettempdir() if self.folder is None else self.folder
        os.makedirs(folder, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=folder, prefix=PREFIX)
        try:
            reserve(descriptor, n_bytes, folder)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path

    def _raise_fault(self, found: list[str | OSError | None]) -> None:
        fault = next((each for each in found if isinstance(each, OSError)), None)
        if fault is not None:
            raise RuntimeError(f"the labels of all frames could not be allocated in {self.folder or 'a file'}: {fault}")
