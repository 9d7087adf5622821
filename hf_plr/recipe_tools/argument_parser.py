"""Command-line arguments of the recipes: dataclasses, a YAML file, flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser, TrainingArguments

YAML_STARTS = (
    *(yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken),
    *(yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken),
)
YAML_ENDS = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
YAML_DEPTH = 20


class RecipeParser:
    """Parse a recipe's arguments: `--config FILE` sets defaults, flags win, unknown keys are refused.

    `--help` lists what is particular to the recipe; `--help_all` adds everything that `TrainingArguments` has.

    Args:
        dataclass_types: the dataclasses to fill.
        description: what the recipe does, for `--help`.
        adjust: called with the values given by file and flags, returns defaults that depend on them; what it raises
            as a ValueError is shown as an error.
        hidden: arguments that `--help` leaves out: they are not for this recipe.
    """

    def __init__(
        self,
        dataclass_types: Sequence[Any],
        description: str,
        adjust: Callable[[dict[str, Any]], dict[str, Any]],
        hidden: Sequence[str] = (),
    ):
        self.hidden = set(hidden)
        self.types = list(dataclass_types)
        self._containers = _containers(self.types)
        self.adjust = adjust
        self.parser = HfArgumentParser(self.types, description=description, add_help=False, allow_abbrev=False)
        self.parser.usage = "%(prog)s [arguments]; --help lists them"
        self.parser.add_argument("-h", "--help", action="store_true", help="Show this help.")
        self.parser.add_argument("--help_all", action="store_true", help="Show every argument there is.")
        self.parser.add_argument("--config", metavar="FILE", help="YAML file with arguments; flags win over it.")

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Fill the dataclasses from `argv` (by default the command line).

        Exits with a message if an argument is unknown or cannot be read, or if help is asked for.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        if {"-h", "--help", "--help_all"} & set(argv):
            self._print_help(everything="--help_all" in argv)
            raise SystemExit(0)
        given = self._given(argv)
        try:
            defaults = self.adjust(given)
        except ValueError as error:
            self._fail(error)
        self.parser.set_defaults(**{**defaults, **{k: v for k, v in given.items() if k in self._from_file}})
        namespace = self.parser.parse_args(argv)
        for name in ("help", "help_all", "config"):
            delattr(namespace, name)
        try:
            filled: tuple[Any, ...] = self.parser.parse_dict(vars(namespace))
        except (ValueError, TypeError, AttributeError, OSError, ImportError) as error:  # also what transformers raises
            self._fail(error)
        return filled

    def _fail(self, error: Exception) -> NoReturn:
        source = f" (arguments are from flags and from --config {self._config})" if self._config else ""
        print(f"{self.parser.prog}: error: {error}{source}", file=sys.stderr)
        raise SystemExit(2)

    def _given(self, argv: list[str]) -> dict[str, Any]:
        """Values that the file and the flags set, the flags winning."""
        bare = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        bare.add_argument("--config")
        self._config = vars(bare.parse_known_args(argv)[0]).get("config")
        from_file = self._read_config(self._config) if self._config else {}
        self._from_file = set(from_file)
        kept = [action.default for action in self.parser._actions]
        for action in self.parser._actions:
            action.default = argparse.SUPPRESS
        flags = vars(self.parser.parse_args(argv))
        for action, default in zip(self.parser._actions, kept, strict=True):
            action.default = default
        return {**from_file, **flags}

    def _read_config(self, path: str) -> dict[str, Any]:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            _check_plain(text)
            values = yaml.safe_load(text) or {}
        except Exception as error:  # besides its own errors, yaml has others for dates, numbers and nesting
            self.parser.error(f"--config {path}: {error}")
        if not isinstance(values, dict):
            self.parser.error(f"--config {path}: expected 'name: value' lines, got {type(values).__name__}")
        # Reversed: --name, where there is --no_name too.
        actions = {each.dest: each for each in reversed(self.parser._actions) if each.dest in self._containers}
        unknown = sorted(str(name) for name in values if name not in actions)
        if unknown:
            self.parser.error(f"--config {path}: unknown argument{'s' * (len(unknown) > 1)}: {', '.join(unknown)}")
        try:
            converted = {name: self._converted(actions[name], value) for name, value in values.items()}
        except (argparse.ArgumentError, ValueError) as error:
            self.parser.error(f"--config {path}: {error}")
        return converted

    def _converted(self, action: argparse.Action, value: Any) -> Any:
        """A value as a flag with the same text would give it: YAML reads 1e-3 as text, and 2 where text is wanted."""
        if isinstance(value, (list, dict)):
            if type(value) not in self._containers[action.dest]:
                raise ValueError(f"{action.dest} takes one value, not a {type(value).__name__}")
            return value
        if value is None or (isinstance(value, bool) and action.type not in (int, float)):
            return value
        if not isinstance(value, (str, int, float)):
            raise ValueError(f"{action.dest} is read as a {type(value).__name__}: put it in quotes")
        return value if action.type is None else self.parser._get_value(action, str(value))

    def _print_help(self, everything: bool) -> None:
        usual = {"output_dir", "seed", "bf16", "report_to", "use_cpu", "max_steps"}
        usual |= {"push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"}
        own = {"help", "help_all", "config"}
        for dataclass_type in self.types:
            classes = set(dataclass_type.__mro__) - set(TrainingArguments.__mro__)
            own |= {name for each in classes for name in getattr(each, "__annotations__", {})}
        for action in self.parser._actions:
            if action.dest not in (own | usual) - self.hidden and not everything:
                action.help = argparse.SUPPRESS
        print((self.parser.description or "").strip() + "\n\noptions:")
        for action in self.parser._actions:
            if action.help is argparse.SUPPRESS or action.option_strings[0].startswith("--no_"):
                continue
            default = "" if action.default in (None, argparse.SUPPRESS, False) else f" (default: {action.default})"
            names = ", ".join(option for option in action.option_strings if "-" not in option[2:])
            print(f"  {names}\n        {(action.help or '').strip()}{default}")
        if not everything:
            print("\nAll arguments of transformers.TrainingArguments work too: --help_all lists them.")


def _check_plain(text: str) -> None:
    """Refuse YAML that a few kilobytes can make gigabytes or hours of.

    Raises:
        ValueError: if there are aliases, or deep nesting.
    """
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ValueError("aliases (*name) are not taken")
        depth += isinstance(token, YAML_STARTS) - isinstance(token, YAML_ENDS)
        if depth > YAML_DEPTH:
            raise ValueError(f"it is nested more than {YAML_DEPTH} deep")


def _containers(dataclass_types: Sequence[Any]) -> dict[str, set[type]]:
    """Which of list and dict each argument takes."""
    hints = {name: hint for each in dataclass_types for name, hint in get_type_hints(each).items()}
    return {
        name: {get_origin(part) or part for part in (hint, *get_args(hint))} & {list, dict}
        for name, hint in hints.items()
    }
