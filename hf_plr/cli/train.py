"""Adapt a backbone to unlabelled data: start one of the recipes, in one process or several.

  hf-plr train image --dataset_name YOUR_IMAGES --output_dir out
  hf-plr train audio --num_processes 2
  hf-plr train reid --config omniglot --dataset_name TARGET --output_dir out

Without arguments, image and audio train on small data of their own. `hf-plr train image --help` lists the arguments of
the recipe. --config takes a file, or the name of one that comes with the package. These are for `accelerate launch`,
which starts the recipe:
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_plr.recipe_tools.launch_environment import RECIPES
from hf_plr.utils.shipped_files import find_shipped

SUMMARY = "adapt a backbone to unlabelled images or recordings"
PROG = "hf-plr train"
DATA = {
    "image": "images, with a vision backbone such as ViT, DINOv3, CLIP, Swin or ConvNeXt",
    "audio": "recordings, with a backbone such as HuBERT, WavLM, AST or Whisper",
    "reid": "images of persons or vehicles for re-identification, with or without a labelled source",
}


def main(argv: Sequence[str]) -> int:
    """Run `hf-plr train`; returns the exit status: the recipe's, or 2 if it could not be started.

    Args:
        argv: the words after `hf-plr train`.
    """
    parser = make_launch_parser()
    options, arguments = parser.parse_known_args(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    name, *arguments = arguments
    if name not in RECIPES:
        parser.error(f"{name!r} is not a recipe: choose {', '.join(RECIPES)}, before its arguments")
    try:
        # Imported here: `hf-plr train --help` needs no torch.
        from hf_plr.recipe_tools.launcher import launch

        recipes = find_shipped("recipes")
        configs = recipes / "configs"
        arguments = resolve_recipe_configs(arguments, configs)
        return launch(
            f"{PROG} {name}", recipes / RECIPES[name], arguments, make_launch_flags(options, configs / "accelerate")
        )
    except (OSError, ImportError, ValueError) as error:
        parser.error(str(error))


class OneLineParser(argparse.ArgumentParser):
    """Parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print a message without the usage, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_launch_parser() -> argparse.ArgumentParser:
    """Make the parser of options for `accelerate launch`; its help lists the recipes."""
    names = "\n".join(f"  {name:<7} {data}" for name, data in DATA.items())
    parser = OneLineParser(
        prog=PROG,
        usage=f"{PROG} NAME [arguments]",
        description=f"{names}\n\n{__doc__}",
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
        ValueError: if the config does not exist.
    """
    if options.config_file is not None:
        options.config_file = resolve_config("--config_file", options.config_file, configs)
    flags = {name: value for name, value in vars(options).items() if value is not None}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


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
