"""Code blocks of a page of documentation, run in order, as a reader runs them.

Comments in front of a block steer its test and are invisible to readers:

    <!-- test: skip REASON -->       the block is not run
    <!-- test: fails -->             it must end with an error
    <!-- test: output -->            it is what the block before it printed, but for numbers and "..."
    <!-- test: replace "A" "B" -->   it is run, or compared, with B in place of A
    <!-- test: prepare NAME -->      anywhere: the preparation NAME makes what the page needs in its folder
    <!-- test: slow -->              anywhere: the page takes long
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from helpers.doc_sessions import Session

RUN = ("bash", "python")
MISTAKEN = ("console", "doctest", "ipython", "py", "pycon", "python3", "sh", "shell")  # would look as if they were run
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>.*)$")
NUMBER = re.compile(r"(?:(?<![\w.])[-+])?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
DIRECTIVE = re.compile(r"^\s*<!--\s*test:\s*(?P<text>.*?)\s*-->\s*$")


class PageError(Exception):
    """A page that is not what it says; the message names the page and the line."""


@dataclass
class Block:
    """A fenced block, `line` being that of its fence, and what its comments ask for."""

    line: int
    language: str
    text: str
    skip: str | None = None
    fails: bool = False
    output: bool = False
    replacements: list[tuple[str, str]] = field(default_factory=list)

    def replaced(self, page: str) -> str:
        """The text with all replacements, of whole words: "data" leaves "--dataset" as it is.

        Raises:
            PageError: if one of them replaces nothing.
        """
        text = self.text
        for old, new in self.replacements:
            starts, ends = (r"(?<!\w)" if old[0].isalnum() else ""), (r"(?!\w)" if old[-1].isalnum() else "")
            text, times = re.subn(f"{starts}{re.escape(old)}{ends}", lambda _, new=new: new, text)  # type: ignore[misc]
            if not times:
                raise PageError(f"{page}:{self.line}: replaces {old!r}, which is no whole word of the block")
        return text


@dataclass
class Page:
    """The blocks of a page, and what it needs."""

    name: str
    blocks: list[Block] = field(default_factory=list)
    preparations: list[str] = field(default_factory=list)
    slow: bool = False

    @property
    def runs(self) -> bool:
        """Whether any block is run."""
        return any(block.language in RUN and block.skip is None for block in self.blocks)


def read_page(text: str, name: str) -> Page:
    """Read the blocks of a page, and check the comments that steer them.

    Raises:
        PageError: for a comment that is unknown or stands in front of no block, a skip without a reason, an output
            that follows no block that is run, or a language that is not run although it looks like it.
    """
    page = Page(name)
    lines = text.splitlines()
    waiting: list[tuple[int, str]] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if directive := DIRECTIVE.match(line):
            _read_directive(page, number, directive["text"], waiting)
        elif fence := FENCE.match(line):
            end = _find_end(lines, number, fence["fence"])
            if end is None:
                raise PageError(f"{name}:{number}: the block has no end")
            indent = len(fence["indent"])
            body = "".join(line[min(indent, len(line) - len(line.lstrip())) :] + "\n" for line in lines[number:end])
            block = Block(number, fence["language"].strip(), body)
            for at, steering in waiting:
                _steer(page, block, at, steering)
            _check(page, block)
            page.blocks.append(block)
            waiting = []
            number = end + 1
        elif line.strip() and waiting:
            raise PageError(f"{name}:{waiting[0][0]}: no block follows {waiting[0][1]!r}")
    if waiting:
        raise PageError(f"{name}:{waiting[0][0]}: no block follows {waiting[0][1]!r}")
    return page


def _find_end(lines: list[str], start: int, fence: str) -> int | None:
    for number in range(start, len(lines)):
        line = lines[number].strip()
        if line.startswith(fence) and not line.strip(fence[0]):
            return number
    return None


def _read_directive(page: Page, number: int, text: str, waiting: list[tuple[int, str]]) -> None:
    word, _, rest = text.partition(" ")
    if word == "prepare" and rest.strip():
        page.preparations += rest.split()
    elif text == "slow":
        page.slow = True
    else:
        waiting.append((number, text))


def _steer(page: Page, block: Block, number: int, text: str) -> None:
    word, _, rest = text.partition(" ")
    if word == "skip":
        if not rest.strip():
            raise PageError(f"{page.name}:{number}: a skip needs a reason")
        block.skip = rest.strip()
    elif word == "replace":
        words = shlex.split(rest)
        if len(words) != 2 or not words[0]:
            raise PageError(f'{page.name}:{number}: write replace "A" "B", not {text!r}')
        block.replacements.append((words[0], words[1]))
    elif text == "fails":
        block.fails = True
    elif text == "output":
        block.output = True
    else:
        raise PageError(f"{page.name}:{number}: unknown: {text!r}")


def _check(page: Page, block: Block) -> None:
    place = f"{page.name}:{block.line}"
    if block.language in MISTAKEN:
        raise PageError(f"{place}: write bash or python in place of {block.language}, or the block is not run")
    if block.output:
        if block.language in RUN:
            raise PageError(f"{place}: an output is a block of text, not of {block.language}")
        if not any(before.language in RUN for before in page.blocks):
            raise PageError(f"{place}: an output of which block?")
        if not block.text.strip():
            raise PageError(f"{place}: an empty output shows nothing")
    elif block.language not in RUN and (block.fails or block.replacements or block.skip):
        raise PageError(f"{place}: is not run, so that there is nothing to steer")


def run_page(page: Page, folder: Path, preparations: dict[str, Callable[[Path], None]]) -> int:
    """Run the blocks of a page in a folder, in order; returns how many ran.

    Raises:
        PageError: if a block fails that should not, or the other way round, if an output is another one, or if there
            is no such preparation.
    """
    for name in page.preparations:
        if name not in preparations:
            raise PageError(f"{page.name}: there is no preparation {name!r}")
        preparations[name](folder)
    ran = 0
    printed: str | None = None
    with Session(folder) as session:
        for block in page.blocks:
            if block.output:
                if printed is not None:
                    compare(block.replaced(page.name), printed, f"{page.name}:{block.line}")
            elif block.language in RUN and block.skip is not None:
                printed = None  # what it prints is not known
            elif block.language in RUN:
                place = f"{page.name}:{block.line}"
                succeeded, printed = session.run(block.language, block.replaced(page.name), place)
                if succeeded == block.fails:
                    what = "succeeds, and should fail" if succeeded else "fails"
                    raise PageError(f"{place}: {what}:\n{block.text}\n{printed}")
                ran += 1
    return ran


def compare(quoted: str, printed: str, place: str) -> None:
    """Look the lines of a quoted output up in what was printed, in order; numbers may differ, "..." is anything.

    Raises:
        PageError: if a line is missing or stands elsewhere.
    """
    lines = [normalize(line) for line in printed.splitlines()]
    at = 0
    for line in quoted.splitlines():
        wanted = normalize(line)
        if wanted in ("", "..."):
            continue
        pattern = re.compile(".*".join(map(re.escape, wanted.split("..."))))
        matches = [number for number, text in enumerate(lines) if pattern.fullmatch(text)]
        later = [number for number in matches if number >= at]
        if not later:
            where = "earlier" if matches else "nowhere"
            raise PageError(f"{place}: {line!r} is {where} in what the block printed:\n{printed}")
        at = later[0] + 1


def normalize(line: str) -> str:
    """A line with N for every number and for every list of numbers, and one space for several.

    >>> normalize("cluster  7:  1,797 samples, -0.25%,  3, 5, 12")
    'cluster N: N samples, N%, N'
    """
    line = re.sub(r"\s+", " ", NUMBER.sub("N", line.split("\r")[-1]))
    return re.sub(r"N(, N)+", "N", line).strip()
