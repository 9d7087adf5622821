"""Command `hf-plr`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from hf_plr.cli import assign, audit, cluster, cut, embed, env, name, push, push_labels, refine, report, train, units
from hf_plr.hub.push import HubError

COMMANDS = {
    "refine": refine,
    "units": units,
    "embed": embed,
    "assign": assign,
    "cluster": cluster,
    "report": report,
    "audit": audit,
    "name": name,
    "cut": cut,
    "push": push,
    "push-labels": push_labels,
    "env": env,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `hf-plr`; returns the exit status.

    It is 0, 1 if the Hub fails, 2 if arguments or files do not fit, or 3 for an alarm that was asked for.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:  # this parser does not know the recipe's arguments
        return train.main(argv[1:])
    args = make_parser().parse_args(argv)
    try:
        status = COMMANDS[args.command].run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, TypeError, ValueError, ImportError) as error:
        print(f"hf-plr {args.command}: error: {error}", file=sys.stderr)
        return 2
    except HubError as error:
        print(f"hf-plr {args.command}: error: {error}", file=sys.stderr)
        return 1
    return status or 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; what follows `hf-plr train` is the recipe's to parse."""
    parser = argparse.ArgumentParser(prog="hf-plr", description="Pseudo-label refinement.", allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    subparsers.add_parser("train", help=train.SUMMARY)
    for command, module in COMMANDS.items():
        subparser = subparsers.add_parser(
            command,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(subparser)
    return parser
