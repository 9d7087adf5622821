"""Sections of the reference that are read off the programs: commands of `hf-plr`, and arguments of the recipes.

A page says where by a line `<!-- generated: commands -->` or `<!-- generated: recipe NAME -->`. The paragraph right
below it, for who reads the page before it is built, is replaced too.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from hf_plr.cli import finetune, make_parser, train
from hf_plr.recipe_tools.argument_parser import RecipeParser
from hf_plr.utils.shipped_files import find_shipped

MARKER = re.compile(r"^<!-- generated: (?P<what>.*?) -->(?:\n.+)*$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Let Sphinx fill the marked places before it reads the pages; autodoc then imports modules in its own way."""
    pages: dict[str, str] = {}

    def make(app: Sphinx) -> None:
        for docname in ("reference/command_line", "reference/recipes"):
            pages[docname] = fill((Path(app.srcdir) / f"{docname}.md").read_text(encoding="utf-8"))

    def give(app: Sphinx, docname: str, source: list[str]) -> None:
        source[0] = pages.get(docname, source[0])

    app.connect("builder-inited", make)
    app.connect("source-read", give)
    return {"parallel_read_safe": True}


def fill(page: str) -> str:
    """A page with its marked places filled.

    Raises:
        ValueError: if a marker asks for something unknown.
    """

    def make(match: re.Match[str]) -> str:
        what, _, name = match["what"].partition(" ")
        if what == "commands":
            return "\n".join(describe_commands())
        if what == "recipe":
            return "\n".join(describe_recipe(name))
        raise ValueError(f"{match[0]}: write commands or recipe NAME")

    return MARKER.sub(make, page)


def describe_commands() -> Iterator[str]:
    """A section per command of `hf-plr`."""
    for action in make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                # These are made apart, as they leave the recipe's arguments alone.
                launcher = {"train": train, "finetune": finetune}.get(choice.dest)
                parser = action.choices[choice.dest] if launcher is None else launcher.make_parser()
                yield from (f"## hf-plr {choice.dest}", "", escape(choice.help or ""), "")
                if parser.description:
                    yield from ("```text", parser.description.strip(), "```", "")
                for argument in parser._actions:
                    if argument.help is not argparse.SUPPRESS:
                        yield from describe(usage(argument), argument.help, argument.default)


def describe_recipe(name: str) -> Iterator[str]:
    """The arguments that the recipe's own `--help` lists."""
    parser = read_parser(name)
    for action in parser.list_actions():
        options = ", ".join(option for option in action.option_strings if "-" not in option[2:])
        values = "" if not action.choices else " {" + ",".join(map(str, action.choices)) + "}"
        yield from describe(options + values, action.help, parser.shown_defaults.get(action.dest))


def read_parser(name: str) -> RecipeParser:
    """The parser that a recipe makes, which is never asked to parse."""

    class Made(Exception):
        pass

    def stop(parser: RecipeParser, argv: Sequence[str] | None = None) -> None:
        raise Made(parser)

    spec = importlib.util.spec_from_file_location(name, find_shipped("recipes") / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parse, RecipeParser.parse_args_and_config = RecipeParser.parse_args_and_config, stop  # type: ignore
    try:
        module.main([])
    except Made as made:
        return made.args[0]
    finally:
        RecipeParser.parse_args_and_config = parse  # type: ignore
        del sys.modules[name]
    raise ValueError(f"recipes/{name}.py reads no arguments")


def usage(argument: argparse.Action) -> str:
    """How an argument is written, as `--output FILE`."""
    if argument.choices is not None:
        value = "{" + ",".join(map(str, argument.choices)) + "}"
    elif argument.metavar is not None:
        value = " ".join(argument.metavar) if isinstance(argument.metavar, tuple) else argument.metavar
    else:
        value = argument.dest.upper()
    if not argument.option_strings:
        return value
    names = ", ".join(argument.option_strings)
    return names if argument.nargs == 0 else f"{names} {value}"


def describe(name: str, help_text: str | None, default: Any) -> Iterator[str]:
    """An entry of a definition list."""
    text = " ".join((help_text or "").split())
    if default is not None and default is not False and default != argparse.SUPPRESS and "efault" not in text:
        text += f" Default: {default}."
    yield from (f"`{name}`", f": {escape(text)}", "")


def escape(text: str) -> str:
    """Plain text in Markdown; flags are code."""
    text = re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", text)
    return re.sub(r"(?<![\w-])--\w[\w\\-]*", lambda flag: f"`{flag[0]}`".replace("\\", ""), text)
