"""What the Hub on localhost keeps: repositories, their commits and files, and faults on demand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StoredFile:
    """A file of a commit; `sha256` is set where it came by LFS or Xet."""

    content: bytes
    sha256: str | None = None

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass
class Commit:
    """What a branch or a tag points to."""

    oid: str
    title: str
    files: dict[str, StoredFile]


@dataclass
class Repo:
    """A repository with its history, the first commit first."""

    id: str
    private: bool
    commits: list[Commit] = field(default_factory=lambda: [Commit("0" * 40, "initial commit", {})])
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        revision = revision.removeprefix("refs/heads/")
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return next((commit for commit in self.commits if commit.oid == oid), None)


@dataclass
class Fault:
    """What goes wrong at requests whose "METHOD path" a pattern is found in.

    Attributes:
        pattern: a regular expression.
        status: answer with this status; None cuts the connection when half of the body has been read.
        message: what the answer says.
        times: how often; the last time it is removed.
    """

    pattern: str
    status: int | None = None
    message: str = "fault on demand"
    times: int = 1_000_000


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, code: str | None = None):
        self.status, self.message, self.code = status, message, code
        super().__init__(message)


def slashes(path: str) -> list[int]:
    return [i for i, character in enumerate(path) if character == "/"]


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}


def file_entry(path: str, file: StoredFile) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": len(file.content), "path": path}
    if file.sha256 is not None:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry
