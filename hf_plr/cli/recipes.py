"""What `hf-plr train` and `hf-plr finetune` have in common: they start a recipe by `accelerate launch`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from hf_plr.utils.shipped_files import find_shipped


def start_recipe(parser: argparse.ArgumentParser, scripts: Mapping[str, str], argv: Sequence[str]) -> int:
    """Start one of several recipes; returns the exit status: the recipe's, or 2 if it could not be started.

    Args:
        parser: output of `make_launch_parser`.
        scripts: file of each recipe, by its name.
        argv: the words after the command: the recipe's name, its arguments, and options of the parser.
    """
    options, arguments = parser.parse_known_args(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    name, *arguments = arguments
    if name not in scripts:
        parser.error(f"{name!r} is not a recipe: choose {', '.join(scripts)}, before its arguments")
    try:
        # Imported here: `hf-plr train --help` needs no torch.
        from hf_plr.recipe_tools.launcher import launch

        recipes = find_shipped("recipes")
        configs = recipes / "configs"
        arguments = resolve_recipe_configs(arguments, configs)
        flags = make_launch_flags(options, configs / "accelerate")
        return launch(f"{parser.prog} {name}", recipes / scripts[name], arguments, flags)
    except (OSError, ImportError, ValueError) as error:
        parser.error(str(error))


class OneLineParser(argparse.ArgumentParser):
    """Parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print a message without the usage, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_launch_parser(prog: str, data: Mapping[str, str], description: str | None) -> argparse.ArgumentParser:
    """Make the parser of options for `accelerate launch`; its help lists the recipes.

    Args:
        prog: the command, such as "hf-plr train".
        data: what each recipe is for, by its name.
        description: of the command.
    """
    names = "\n".join(f"  {name:<7} {purpose}" for name, purpose in data.items())
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} NAME [arguments]",
        description=f"{names}\n\n{description}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--num_processes", type=_parse_positive, metavar="N", help="processes; default: one, or one per GPU"
    )
    parser.add_argument(
        "--config_file", metavar="FILE", help="a file of `accelerate config`, or the name of one that comes with hf-plr"
    )
    parser.add_argument(
        "--num_cpu_threads_per_process", type=_parse_positive, metavar="N", help="default: 1 of several"
    )
    parser.add_argument("--main_process_port", type=int, metavar="PORT", help="default: one that is free")
    parser.add_argument("--main_process_ip", metavar="ADDRESS", help="of the first of several machines")
    parser.add_argument("--machine_rank", type=int, metavar="N", help="this machine's number among several")
    return parser


def _parse_positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def make_launch_flags(options: argparse.Namespace, configs: Path) -> list[str]:
    """Make the flags of `accelerate launch` from options.

    Args:
        options: output of `make_launch_parser`.
        configs: folder of the shipped configs.

    Raises:
        ValueError: if the config does not exist, or cannot be one of `accelerate`.
    """
    if options.config_file is not None:
        options.config_file = resolve_config("--config_file", options.config_file, configs)
        check_launch_config(options.config_file)
    flags = {name: value for name, value in vars(options).items() if value is not None}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def check_launch_config(path: str) -> None:
    """Reject a file in which `accelerate launch` would stumble over the form, and not over a value.

    Raises:
        OSError, ValueError: naming the file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config_file {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config_file {path}: it holds no 'name: value' lines, as `accelerate config` writes them")
    for name in ("num_processes", "num_machines", "machine_rank", "main_process_port"):
        if not isinstance(values.get(name), (int, type(None))):
            raise ValueError(f"--config_file {path}: {name} is {values[name]!r}, but is a whole number")


def resolve_recipe_configs(arguments: Sequence[str], configs: Path) -> list[str]:
    """Replace the names of shipped configs in a recipe's arguments by their paths.

    Raises:
        ValueError: if the config does not exist.
    """
    resolved = list(arguments)
    for i, word in enumerate(arguments):
        if i and arguments[i - 1] == "--config":
            resolved[i] = resolve_config("--config", word, configs)
        elif word.startswith("--config="):
            resolved[i] = f"--config={resolve_config('--config', word.removeprefix('--config='), configs)}"
    return resolved


def resolve_config(option: str, value: str, configs: Path) -> str:
    """Find the path of a config file.

    Args:
        option: name of its option, for the error.
        value: a path, or the name of a file in `configs` without its ending.
        configs: folder of the shipped configs.

    Raises:
        ValueError: if `value` is neither.
    """
    if os.path.exists(value) and not os.path.isdir(value):  # a folder may well have the name of a config
        return value
    shipped = {path.stem: path for path in sorted(configs.glob("*.yaml"))}
    if value not in shipped:
        raise ValueError(f"{option} {value}: no such file; give a path, or one of {', '.join(shipped)}")
    return str(shipped[value])
