"""Command-line arguments of the recipes: dataclasses, a YAML file, flags."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from hf_plr.recipe_tools.config_file import as_numbers, read_yaml

SHOWN_OF_TRANSFORMERS = {
    *("output_dir", "seed", "bf16", "report_to", "use_cpu", "max_steps"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
}
OWN_HELP = {  # of arguments of transformers that take fewer values here
    "hub_strategy": "When to push with push_to_hub: 'end' (once, at the end of the run) or 'every_save' (with each "
    "checkpoint). Neither pushes a checkpoint.",
}


class RecipeParser(HfArgumentParser):
    """Parser of a recipe: flags win over `--config FILE`, the file over `adjust`, `adjust` over the defaults.

    `--help` lists the recipe's own arguments; `--help_all` adds those of `TrainingArguments`.

    Args:
        dataclass_types: the dataclasses to fill.
        description: purpose of the recipe, for `--help`.
        adjust: called with the values of file and flags, returns defaults that depend on them. Its ValueErrors are
            shown as errors.
        hidden: arguments that `--help` leaves out, because they are not for this recipe.
        choose: called with the values of file and flags, returns the dataclasses to fill, if these depend on an
            argument. `dataclass_types` then has the arguments of all of them.
        defaults: values that `adjust` always returns, for `--help`: they stand in place of the defaults that the
            dataclasses and their help tell.
    """

    def __init__(
        self,
        dataclass_types: Sequence[Any],
        description: str,
        adjust: Callable[[dict[str, Any]], dict[str, Any]],
        hidden: Sequence[str] = (),
        choose: Callable[[dict[str, Any]], Sequence[Any]] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        super().__init__(dataclass_types, description=description, add_help=False, allow_abbrev=False)
        self.adjust = adjust
        self.choose = choose
        self.hidden = set(hidden)
        self.is_help_complete = False
        self.hints: dict[str, Any] = {}
        for dataclass_type in dataclass_types:
            self.hints |= get_type_hints(dataclass_type)
        # Only given values are parsed: the dataclasses have the defaults. Reversed: --name before --no_name.
        self.shown_defaults = {action.dest: action.default for action in reversed(self._actions)}
        for action in self._actions:
            action.default = argparse.SUPPRESS
            action.help = OWN_HELP.get(action.dest, action.help)
            if defaults is not None and action.dest in defaults:
                self.shown_defaults[action.dest] = defaults[action.dest]
                action.help = _leave_default_out(action.help or "")
        self.add_argument("-h", "--help", action="help", help="Show this help.")
        self.add_argument("--help_all", action="help", help="Show all arguments.")
        self.add_argument(
            "--config",
            metavar="FILE",
            action="append",
            default=argparse.SUPPRESS,
            help="YAML file with arguments; of several the later ones win, and flags over all.",
        )

    def parse_args_and_config(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Fill the dataclasses from `argv` (by default the command line).

        Exits with a message if an argument is unknown or cannot be read, or after --help.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        self.is_help_complete = "--help_all" in argv
        flags = vars(self.parse_args(argv))
        paths = flags.pop("config", [])
        values = {name: value for path in paths for name, value in self._read_config(path).items()} | flags
        values = {name: self._as_given(name, value) for name, value in values.items()}
        try:
            if self.choose is not None:
                self.dataclass_types = list(self.choose(values))
            filled: tuple[Any, ...] = self.parse_dict({**self.adjust(values), **values}, allow_extra_keys=True)
        except (ValueError, TypeError, AttributeError, OSError, ImportError) as error:  # including transformers' errors
            files = " and ".join(f"--config {path}" for path in paths)
            self.error(f"{error} (arguments are from flags and from {files})" if files else str(error))
        return filled

    def error(self, message: str) -> NoReturn:
        """Exit with an error in one line; an unknown flag is told with the most similar one."""
        for word in re.findall(r"--\w+", message.partition("unrecognized arguments:")[2]):
            for name in difflib.get_close_matches(word, self._option_string_actions, 1):
                message += f"; did you mean {name}?"
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def format_help(self) -> str:
        """Format the description and the arguments: those of the recipe, or all of them after `--help_all`."""
        lines = [(self.description or "").strip(), "", "options:"]
        for action in self.list_actions():
            default = self.shown_defaults.get(action.dest)
            is_told = default is None or (not default and "efault" in (action.help or ""))
            suffix = "" if is_told else f" (default: {default})"
            names = ", ".join(option for option in action.option_strings if "-" not in option[2:])
            lines += [f"  {names}", f"        {(action.help or '').strip()}{suffix}"]
        if not self.is_help_complete:
            lines += ["", "All arguments of transformers.TrainingArguments work too: --help_all lists them."]
        return "\n".join(lines) + "\n"

    def list_actions(self) -> list[argparse.Action]:
        """List the arguments that the help shows, in order."""
        shown = {"help", "help_all", "config"} | SHOWN_OF_TRANSFORMERS
        for dataclass_type in self.dataclass_types:
            classes = set(dataclass_type.__mro__) - set(TrainingArguments.__mro__)
            shown |= {name for ancestor in classes for name in getattr(ancestor, "__annotations__", {})}
        shown -= self.hidden
        return [
            action
            for action in self._actions
            if not action.option_strings[0].startswith("--no_") and (self.is_help_complete or action.dest in shown)
        ]

    def _read_config(self, path: str) -> dict[str, Any]:
        try:
            values = read_yaml(path)
            unknown = sorted(str(name) for name in values if name not in self.shown_defaults)
            if unknown:
                raise ValueError(f"unknown argument{'s' * (len(unknown) > 1)}: {', '.join(unknown)}")
            return {name: self._as_flag(name, value) for name, value in values.items()}
        except Exception as error:  # yaml raises several kinds for dates, numbers and nesting
            self.error(f"--config {path}: {' '.join(str(error).split())}")  # yaml's errors have several lines

    def _as_flag(self, name: str, value: Any) -> Any:
        """Convert a value as a flag of the same text would be: YAML reads 1e-3 as text, and 2 as a number."""
        action, hint = self._option_string_actions[f"--{name}"], self.hints[name]
        accepted = {get_origin(part) or part for part in (hint, *get_args(hint))} - {str}
        if value is None or type(value) in accepted:
            return as_numbers(value)
        if isinstance(value, (list, dict)):
            raise ValueError(f"{name} takes one value, not a {type(value).__name__}")
        if isinstance(value, bool) and _has_optional_text(action):
            return str(value)
        if not isinstance(value, (str, int, float)) or (isinstance(value, bool) and action.type not in (int, float)):
            raise ValueError(f"{name} is read as a {type(value).__name__}: put it in quotes")
        value = self._get_value(action, str(value))
        self._check_value(action, value)  # raises if it is not among its choices
        return value

    def _as_given(self, name: str, value: Any) -> Any:
        """Read "true" and "false" of a flag with an optional text, as of one without: it is given, or it is not."""
        action = self._option_string_actions[f"--{name}"]
        if isinstance(value, str) and _has_optional_text(action) and value.lower() in ("true", "false"):
            return action.const if value.lower() == "true" else None
        return value


def _leave_default_out(text: str) -> str:
    """A help without the default that it tells, in its last sentence or in brackets."""
    return re.sub(r"the default; ", "", text.partition(" Default: ")[0])


def _has_optional_text(action: argparse.Action) -> bool:
    return action.nargs == "?" and isinstance(action.const, str)
