"""What a recipe does differently where `hf-plr train` started it; nothing here needs torch."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any, TextIO

COMMAND = "HF_PLR_COMMAND"  # set by `hf-plr train`: what was typed, such as "hf-plr train image"
ERRORS_DIR = (
    "HF_PLR_ERRORS_DIR"  # set by it for several processes: a folder with an empty file for each error that was told
)
LOGS = "logs"  # in that folder, and no error
RECIPES = {"image": "vit_plr.py", "audio": "hubert_plr.py", "reid": "reid_plr.py"}

ERROR_LINE = re.compile(r"usage: |Stopped |Interrupted|(\S.*: )?error: ")


def localize_commands(text: str) -> str:
    """A text with the commands in it as they are to be typed: `hf-plr train` where that started this process."""
    if COMMAND not in os.environ:
        return text
    for name, script in RECIPES.items():
        text = text.replace(f"accelerate launch recipes/{script}", f"hf-plr train {name}")
    return re.sub(r"recipes/configs/(\w+)\.yaml", r"\1", text)


def adopt_launch() -> None:
    """Take on the name of the command that was typed, and tell an error that all processes have only once."""
    if COMMAND in os.environ:
        sys.argv[0] = os.environ[COMMAND]  # argparse puts it before an error
    if ERRORS_DIR in os.environ:
        sys.stderr = UniqueErrorStream(sys.stderr, Path(os.environ[ERRORS_DIR]))


def has_reported_error() -> bool:
    """Whether any process of this launch has told of an error."""
    return ERRORS_DIR in os.environ and any(path.name != LOGS for path in Path(os.environ[ERRORS_DIR]).iterdir())


class UniqueErrorStream:
    """A stream that leaves out lines of errors that another process of the same launch has written before.

    Bad arguments and missing data are found by every process alike; all else, tracebacks too, goes through as it is.

    Args:
        stream: where the text goes.
        told: folder with a file for each line that was written.
    """

    def __init__(self, stream: TextIO, told: Path):
        self._stream = stream
        self._told = told
        self._pending = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write whole lines, and keep the beginning of one until its end or a flush."""
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            if not ERROR_LINE.match(line) or self._is_first(line):
                self._stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        """Write what is pending."""
        pending, self._pending = self._pending, ""
        self._stream.write(pending)
        self._stream.flush()

    def _is_first(self, line: str) -> bool:
        try:
            (self._told / hashlib.sha256(line.encode(errors="replace")).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # the folder is gone, or the disk is full: better twice than never
            return True
        return True
