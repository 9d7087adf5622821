"""A folder in which bash and Python run as at a reader's prompt: Python remembers what it was told before."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from helpers.paths import REPOSITORY, TESTS


class Session:
    """Runs blocks in a folder; one Python process for all blocks of Python, which ends with the session.

    Args:
        folder: the working folder of all blocks.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._python: subprocess.Popen[str] | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._python is not None:
            assert self._python.stdin is not None
            self._python.stdin.close()
            end_group(self._python)

    def run(self, language: str, text: str, place: str) -> tuple[bool, str]:
        """Run a block.

        Args:
            language: "bash" or "python".
            text: what to run.
            place: page and line, for messages of Python.

        Returns:
            whether it succeeded, and what it printed, with what it printed to stderr.
        """
        return self._run_bash(text) if language == "bash" else self._run_python(text, place)

    def _run_bash(self, text: str) -> tuple[bool, str]:
        log = self._log_file()
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["/usr/bin/env", "bash", "-euo", "pipefail", "-c", text],
                cwd=self.folder,
                env=environment(self.folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait()
            finally:
                end_group(process)  # what was left running in the background, too
        return code == 0, _read(log)

    def _run_python(self, text: str, place: str) -> tuple[bool, str]:
        log = self._log_file()
        if self._python is None or self._python.poll() is not None:
            path = os.pathsep.join([str(TESTS), environment(self.folder)["PYTHONPATH"]])
            self._python = subprocess.Popen(
                [sys.executable, "-u", "-c", "from helpers.doc_sessions import serve; serve()"],
                cwd=self.folder,
                env={**environment(self.folder), "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps({"text": text, "place": place, "log": str(log)}) + "\n")
        self._python.stdin.flush()
        answer = self._python.stdout.readline()  # empty where the process has died
        return answer == "done\n", _read(log)

    def _log_file(self) -> Path:
        logs = self.folder.parent / f"{self.folder.name}-logs"
        logs.mkdir(exist_ok=True)
        return logs / f"{len(list(logs.iterdir())):03d}.log"


def environment(folder: Path) -> dict[str, str]:
    """Variables of a reader: the programs of this Python, this source tree, an empty cache, no network, one thread."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(REPOSITORY),
        "HF_HOME": str(folder.parent / f"{folder.name}-cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def serve() -> None:
    """Run what comes on stdin, a JSON object per line, as one module; answer "done" or "failed" on stdout."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    module = sys.modules["__main__"].__dict__  # so that what a page defines can be pickled
    module.pop("serve")
    sys.path[:] = [entry for entry in sys.path if entry != str(TESTS)]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        entry for entry in os.environ["PYTHONPATH"].split(os.pathsep) if entry != str(TESTS)
    )
    for line in requests:
        request = json.loads(line)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        answer = "done"
        try:
            exec(compile(request["text"], request["place"], "exec"), module)  # noqa: S102
        except BaseException:  # SystemExit as well: a block of a page runs to its end
            traceback.print_exc()
            answer = "failed"
        sys.stdout.flush()
        sys.stderr.flush()
        answers.write(answer + "\n")
        answers.flush()
