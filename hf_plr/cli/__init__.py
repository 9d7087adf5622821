"""Command `hf-plr`."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from hf_plr.hub.errors import HubError
from hf_plr.utils.streams import escape_what_streams_lack

COMMANDS = (
    "refine",
    "units",
    "embed",
    "assign",
    "cluster",
    "report",
    "audit",
    "name",
    "cut",
    "export",
    "push",
    "push-labels",
    "env",
)


LAUNCHERS = ("train", "finetune")  # whose recipes parse their own arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-plr`; returns the exit status.

    It is 0, 1 if the Hub fails, 2 if arguments or files do not fit, 3 for an alarm that was asked for, or 130 after
    Ctrl-C.
    """
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("hf-plr: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(argv: Sequence[str] | None) -> int:
    escape_what_streams_lack()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in LAUNCHERS:
        status: int = _load(argv[0]).main(argv[1:])
        return status
    parser = make_parser(argv[:1] if argv and argv[0] in COMMANDS else COMMANDS)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        again = unknown[0] if getattr(args, "rename", None) and not unknown[0].startswith("-") else None
        hint = "" if again is None else f"; give --rename again before {again}"
        print(f"hf-plr {args.command}: error: unrecognized arguments: {' '.join(unknown)}{hint}", file=sys.stderr)
        raise SystemExit(2)
    try:
        status = _load(args.command).run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, TypeError, ValueError, ImportError) as error:
        message = str(error).replace("dataset_name=", "--dataset ")  # what recipes and trainers call it
        print(f"hf-plr {args.command}: error: {message}", file=sys.stderr)
        return 2
    except HubError as error:
        print(f"hf-plr {args.command}: error: {error}", file=sys.stderr)
        return 1
    return status or 0


def make_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Make the parser of all commands, or of some; what follows `hf-plr train` or `finetune` is the recipe's to parse.

    A command's module is imported for it: all of them take two seconds.
    """
    parser = argparse.ArgumentParser(prog="hf-plr", description="Pseudo-label refinement.", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in LAUNCHERS:
        subparsers.add_parser(command, help=_load(command).SUMMARY)
    for command in commands:
        module = _load(command)
        subparser = subparsers.add_parser(
            command,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(subparser)
    return parser


def _load(command: str) -> Any:
    return importlib.import_module(f"hf_plr.cli.{command.replace('-', '_')}")
