"""Requests to the Hub on localhost, as the Hub's clients make them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from helpers.hub_repos import Commit, Refused, Repo, StoredFile, file_entry, folder_entry, slashes

if TYPE_CHECKING:
    from helpers.hub_server import HubServer

LFS_ENDINGS = (".safetensors", ".parquet", ".bin", ".pt")
DATE = "2026-01-01T00:00:00.000Z"
KINDS = {"models": "", "datasets": "datasets/"}
REPO = r"/(?P<kind>models|datasets)/(?P<id>[\w.-]+/[\w.-]+)"
FILES = r"/(?P<datasets>datasets/)?(?P<id>[\w.-]+/[\w.-]+)"


class HubRequest(BaseHTTPRequestHandler):
    """A request to `HubServer`, and its answer."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        length = int(self.headers.get("Content-Length") or 0)
        request = f"{self.command} {unquote(split.path)}"
        fault = next((fault for fault in self.hub.faults if re.search(fault.pattern, request)), None)
        if fault is not None:
            fault.times -= 1
            if fault.times == 0:
                self.hub.faults.remove(fault)
            self.hub.requests.append(f"{request} {fault.status or 'cut'}")
            if fault.status is None:
                self.rfile.read(length // 2)
                self.close_connection = True
                return
        self.body = self.rfile.read(length)
        try:
            if fault is not None and fault.status is not None:
                raise Refused(fault.status, fault.message)
            with self.hub.lock:
                status, content, headers = self._routed(split.path)
        except Refused as refused:
            status, content = refused.status, json.dumps({"error": refused.message}).encode()
            headers = {"X-Error-Message": refused.message, "Content-Type": "application/json"}
            headers |= {} if refused.code is None else {"X-Error-Code": refused.code}
        if fault is None:
            self.hub.requests.append(f"{request} {status}")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _routed(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        for pattern, name in ROUTES:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                parts = {key: None if value is None else unquote(value) for key, value in found.groupdict().items()}
                result = getattr(self, name)(**parts)
                if isinstance(result, tuple):
                    return result
                return 200, json.dumps(result).encode(), {"Content-Type": "application/json"}
        raise Refused(404, f"{self.command} {path} is not known here")

    # ---- who may do what -----------------------------------------------------------------------------------------

    def _user(self, needed: bool = True) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        if not given and needed:
            raise Refused(401, "Invalid username or password.")
        return self.hub.tokens.get(given)

    def _repo(self, kind: str, id: str, write: bool = False) -> Repo:
        user = self._user(needed=write)
        repo = self.hub.repos.get(f"{kind}/{id}")
        owner = id.split("/")[0]
        if repo is None or (repo.private and user != owner):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise Refused(403, f"you have no right to write to {id}")
        return repo

    def _commit_of(self, repo: Repo, revision: str | None) -> Commit:
        commit = repo.at(revision or "main")
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # ---- repositories --------------------------------------------------------------------------------------------

    def whoami(self) -> Any:
        return {
            "type": "user",
            "name": self._user(),
            "fullname": self._user(),
            "orgs": [],
            "auth": {"type": "access_token"},
        }

    def create(self) -> Any:
        user = self._user()
        asked = json.loads(self.body)
        kind, owner = f"{asked.get('type') or 'model'}s", asked.get("organization") or user
        if owner != user:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        id = f"{owner}/{asked['name']}"
        answer = {"url": f"{self.hub.url}/{KINDS[kind]}{id}", "name": id}
        if f"{kind}/{id}" in self.hub.repos:
            error = {**answer, "error": "You already created this repo"}
            return 409, json.dumps(error).encode(), {"Content-Type": "application/json"}
        self.hub.repos[f"{kind}/{id}"] = Repo(id, asked.get("visibility") == "private")
        return answer

    def info(self, kind: str, id: str, revision: str | None) -> Any:
        repo = self._repo(kind, id)
        commit = self._commit_of(repo, revision)
        return {
            "_id": "1",
            "id": id,
            "author": id.split("/")[0],
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "sha": commit.oid,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "createdAt": DATE,
            "lastModified": DATE,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    def refs(self, kind: str, id: str) -> Any:
        repo = self._repo(kind, id)

        def listed(refs: dict[str, str], under: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{under}/{name}", "targetCommit": oid} for name, oid in refs.items()]

        return {"branches": listed(repo.branches, "heads"), "converts": [], "tags": listed(repo.tags, "tags")}

    def create_branch(self, kind: str, id: str, name: str) -> Any:
        repo = self._repo(kind, id, write=True)
        if name in repo.branches:
            raise Refused(409, f"the branch {name} exists")
        repo.branches[name] = self._commit_of(repo, json.loads(self.body or b"{}").get("startingPoint")).oid
        return {}

    def create_tag(self, kind: str, id: str, revision: str) -> Any:
        repo = self._repo(kind, id, write=True)
        name = json.loads(self.body)["tag"]
        if name in repo.tags:
            raise Refused(409, f"the tag {name} exists")
        repo.tags[name] = self._commit_of(repo, revision).oid
        return {}

    def delete_tag(self, kind: str, id: str, name: str) -> Any:
        if self._repo(kind, id, write=True).tags.pop(name, None) is None:
            raise Refused(404, f"there is no tag {name}", "RevisionNotFound")
        return {}

    # ---- uploads -------------------------------------------------------------------------------------------------

    def validate_yaml(self) -> Any:
        content = json.loads(self.body)["content"]
        front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(front.group(1)) if front else None
        except yaml.YAMLError as error:
            answer = {"errors": [{"message": str(error)}], "warnings": []}
            return 400, json.dumps(answer).encode(), {"Content-Type": "application/json"}
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def preupload(self, kind: str, id: str, revision: str) -> Any:
        present = self._commit_of(self._repo(kind, id, write=True), revision).files
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
                "shouldIgnore": False,
                "oid": present[file["path"]].etag if file["path"] in present else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        return {"files": files}

    def lfs_batch(self, datasets: str | None, id: str) -> Any:
        self._repo("datasets" if datasets else "models", id, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/lfs/verify", "header": {}},
            }
            known = asked["oid"] in self.hub.blobs
            objects.append({**asked, "authenticated": True, **({} if known else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content is not what was announced")
        self.hub.blobs[oid] = self.body
        return 200, b"", {"ETag": oid}

    def lfs_verify(self) -> Any:
        asked = json.loads(self.body)
        if len(self.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "there is no such object")
        return {}

    def xet_token(self, kind: str, id: str) -> Any:
        self._repo(kind, id, write=True)
        endpoint = self.hub.xet_endpoint
        if endpoint is None:
            raise Refused(404, "there is no Xet storage here")
        expires = int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": endpoint,
            "X-Xet-Access-Token": "for-the-storage",
            "X-Xet-Token-Expiration": str(expires),
            "Content-Type": "application/json",
        }
        answer = {"casUrl": endpoint, "accessToken": "for-the-storage", "exp": expires}
        return 200, json.dumps(answer).encode(), headers

    def commit(self, kind: str, id: str, revision: str) -> Any:
        repo = self._repo(kind, id, write=True)
        if revision not in repo.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(self._commit_of(repo, revision).files)
        title = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                files[value["path"]] = StoredFile(self.hub.blob(value["oid"]), value["oid"])
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"{item['key']} is not known here")
        oid = hashlib.sha1(f"{id} {len(repo.commits)} {title}".encode()).hexdigest()
        repo.commits.append(Commit(oid, title, files))
        repo.branches[revision] = oid
        return {"commitUrl": f"{self.hub.url}/{KINDS[kind]}{id}/commit/{oid}", "commitOid": oid, "success": True}

    # ---- downloads -----------------------------------------------------------------------------------------------

    def tree(self, kind: str, id: str, revision: str, folder: str | None) -> Any:
        commit = self._commit_of(self._repo(kind, id), revision)
        inside = f"{folder}/" if folder else ""
        found = {path: file for path, file in commit.files.items() if path.startswith(inside)}
        if folder and not found:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        folders = sorted({path[: i + len(inside)] for path in found for i in slashes(path[len(inside) :])})
        entries = [folder_entry(path) for path in folders] + [file_entry(path, file) for path, file in found.items()]
        if self.query.get("recursive", ["False"])[0].lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"][len(inside) :]]
        return entries

    def paths_info(self, kind: str, id: str, revision: str) -> Any:
        commit = self._commit_of(self._repo(kind, id), revision)
        sent = self.headers.get("Content-Type", "")
        asked = json.loads(self.body) if "json" in sent else parse_qs(self.body.decode())
        entries = []
        for path in asked.get("paths", []):
            if path in commit.files:
                entries.append(file_entry(path, commit.files[path]))
            elif any(name.startswith(f"{path}/") for name in commit.files):
                entries.append(folder_entry(path))
        return entries

    def resolve(self, datasets: str | None, id: str, revision: str, path: str) -> Any:
        commit = self._commit_of(self._repo("datasets" if datasets else "models", id), revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        file = commit.files[path]
        headers = {
            "ETag": f'"{file.etag}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}",
        }
        if file.sha256 is not None:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return 200, file.content, headers
        first, last = int(part.group(1)), int(part.group(2) or len(file.content) - 1)
        if first >= len(file.content):
            raise Refused(416, "the range is not satisfiable")
        content = file.content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{len(file.content)}"
        return 206, content, headers


ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"GET /api{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
    (rf"GET /api{REPO}/refs", "refs"),
    (rf"POST /api{REPO}/branch/(?P<name>[^/]+)", "create_branch"),
    (rf"POST /api{REPO}/tag/(?P<revision>[^/]+)", "create_tag"),
    (rf"DELETE /api{REPO}/tag/(?P<name>[^/]+)", "delete_tag"),
    (rf"POST /api{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    (rf"POST /api{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    (rf"GET /api{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
    (rf"POST /api{REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (rf"GET /api{REPO}/xet-write-token/[^/]+", "xet_token"),
    (rf"POST {FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    (r"POST /lfs/verify", "lfs_verify"),
    (rf"(GET|HEAD) {FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
