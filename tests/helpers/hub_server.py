"""A small Hub on localhost: what huggingface_hub, transformers and datasets ask of the real one, in memory.

It speaks HTTP as the Hub does, so that the real client pushes and loads through it. Faults are made on demand.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

from helpers.hub_repos import Fault, Refused, Repo
from helpers.hub_requests import HubRequest


class HubServer:
    """The server, in a thread, while the context lasts.

    Args:
        tokens: user of each token.
        xet: take uploads by Xet, into a folder; otherwise only by LFS.

    Attributes:
        repos: by "models/user/name" or "datasets/user/name".
        faults: what goes wrong.
        requests: "METHOD path status" of every request.
    """

    def __init__(self, tokens: dict[str, str], xet: bool = False):
        self.tokens = tokens
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="hub-xet-") if xet else None

    def __enter__(self) -> HubServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), HubRequest)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, token: str | None) -> dict[str, str]:
        """Variables that send a client here, with an empty cache; they are read when it is imported."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "0" if self._folder else "1",
            "NO_PROXY": "127.0.0.1",
            **({} if token is None else {"HF_TOKEN": token}),
        }

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Contents of a repository's files, by path."""
        commit = self.repos[repo].at(revision)
        assert commit is not None
        return {path: file.content for path, file in commit.files.items()}

    def everything(self) -> Iterator[bytes]:
        """All bytes that were ever stored here, by any way."""
        yield from self.blobs.values()
        for name, repo in self.repos.items():
            yield name.encode()
            for commit in repo.commits:
                yield commit.title.encode()
                for path, file in commit.files.items():
                    yield path.encode()
                    yield file.content

    # ---- large files ---------------------------------------------------------------------------------------------

    def blob(self, sha256: str) -> bytes:
        """What was uploaded by LFS or Xet."""
        if sha256 not in self.blobs and self._folder is not None:
            self.blobs[sha256] = self._from_xet(sha256)
        if sha256 not in self.blobs:
            raise Refused(400, f"LFS pointer {sha256} has no file")
        return self.blobs[sha256]

    @property
    def xet_endpoint(self) -> str | None:
        """hf_xet takes a folder in place of a storage server."""
        return None if self._folder is None else f"local://{self._folder.name}"

    def _from_xet(self, sha256: str) -> bytes:
        import hf_xet

        assert self._folder is not None
        with tempfile.TemporaryDirectory(prefix="hub-xet-") as copied:  # the client has locked its own
            shutil.copytree(self._folder.name, copied, dirs_exist_ok=True)
            for shard in Path(copied).rglob("xorbs/shards/*.mdb"):
                found = dict(_files_of_shard(shard.read_bytes()))
                if sha256 in found:
                    group = hf_xet.XetSession().new_file_download_group(endpoint=f"local://{copied}")
                    target = Path(copied) / sha256
                    group.start_download_file(hf_xet.XetFileInfo(found[sha256]), str(target))
                    group.wait_to_finish()
                    return target.read_bytes()
        raise Refused(400, f"Xet holds no file {sha256}")


def _files_of_shard(shard: bytes) -> Iterator[tuple[str, str]]:
    """(sha256, Xet hash) of the files that a Xet shard describes."""

    def text(raw: bytes) -> str:
        return "".join(f"{part:016x}" for part in struct.unpack("<4Q", raw))

    at = 48  # after the header; all entries have 48 bytes
    while shard[at : at + 32] != b"\xff" * 32:
        xet_hash = text(shard[at : at + 32])
        flags, entries = struct.unpack("<II", shard[at + 32 : at + 40])
        at += 48 * (1 + entries * (2 if flags & 0x80000000 else 1))
        if flags & 0x40000000:
            yield text(shard[at : at + 32]), xet_hash
            at += 48
