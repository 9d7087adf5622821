"""Environment of a recipe that `hf-plr train` or `finetune` started; nothing here needs torch."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any, TextIO

COMMAND = "HF_PLR_COMMAND"  # set by these: the typed command, such as "hf-plr train image"
ERRORS_DIR = "HF_PLR_ERRORS_DIR"  # set by them for several processes: a folder with an empty file per reported error
CHOSEN_THREADS = "HF_PLR_CHOSEN_THREADS"  # set by them where the user has set OMP_NUM_THREADS
LOGS = "logs"  # a folder in it, which is not an error
RECIPES = {  # by command and name
    "train": {"image": "vit_plr.py", "audio": "hubert_plr.py", "reid": "reid_plr.py"},
    "finetune": {"image": "finetune_image.py", "audio": "finetune_audio.py"},
}

ERROR_LINE = re.compile(r"usage: |Stopped |Interrupted|(\S.*: )?error: ")


def localize_commands(text: str) -> str:
    """Replace the commands in a text by those of `hf-plr`, if one of these started this process."""
    if COMMAND not in os.environ:
        return text
    for command, scripts in RECIPES.items():
        for name, script in scripts.items():
            text = text.replace(f"accelerate launch recipes/{script}", f"hf-plr {command} {name}")
    return re.sub(r"recipes/configs/(\w+)\.yaml", r"\1", text)


def note_chosen_threads() -> None:
    """Note, before accelerate sets it to 1, that the user has set `OMP_NUM_THREADS`."""
    if os.environ.get("OMP_NUM_THREADS"):
        os.environ[CHOSEN_THREADS] = "1"


def has_chosen_threads(is_launched: bool) -> bool:
    """Return True if `OMP_NUM_THREADS` is the user's choice.

    Args:
        is_launched: whether `accelerate launch` started this process; it sets 1 where nothing is set.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    return bool(threads) and (threads != "1" or not is_launched or CHOSEN_THREADS in os.environ)


def adopt_launch() -> None:
    """Adopt the name of the typed command, and report an error of all processes only once."""
    if COMMAND in os.environ:
        sys.argv[0] = os.environ[COMMAND]  # argparse puts it before an error
    if ERRORS_DIR in os.environ:
        sys.stderr = UniqueErrorStream(sys.stderr, Path(os.environ[ERRORS_DIR]))


def has_reported_error() -> bool:
    """Return True if any process of this launch has reported an error."""
    return ERRORS_DIR in os.environ and any(path.name != LOGS for path in Path(os.environ[ERRORS_DIR]).iterdir())


class UniqueErrorStream:
    """Stream that leaves out error lines which another process of the launch has already written.

    Every process reports bad arguments and missing data alike. All other text, tracebacks too, passes unchanged.

    Args:
        stream: stream of the output.
        folder: folder with a file per written line.
    """

    def __init__(self, stream: TextIO, folder: Path):
        self._stream = stream
        self._folder = folder
        self._pending = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write complete lines, and keep an incomplete one until its end or a flush."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            if not ERROR_LINE.match(line) or self._is_first(line):
                self._stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        """Write the pending text."""
        pending, self._pending = self._pending, ""
        self._stream.write(pending)
        self._stream.flush()

    def _is_first(self, line: str) -> bool:
        try:
            (self._folder / hashlib.sha256(line.encode(errors="replace")).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # the folder is gone, or the disk is full: better twice than never
            return True
        return True
