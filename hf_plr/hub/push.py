"""Pushes to the Hugging Face Hub: the files of a run, retries, and error messages, without torch."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import yaml_dump

from hf_plr.hub.errors import HubError
from hf_plr.hub.markdown import escape_markdown
from hf_plr.report.file_names import METRICS_FILE, TRAINED_EPOCHS, WEIGHTS_EPOCH
from hf_plr.utils.run_files import FILES_OF_RUNS, PUBLISHED, PUBLISHED_OF_WEIGHTS, matches

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ADAPTER_FILES = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")  # where adapters were trained
LOGIN_REMEDY = "`hf auth login`, or set HF_TOKEN to a token that may write"
RETRIED_STATUSES = (408, 429)
PAUSES = (1.0, 5.0)  # seconds before each retry
RETRY_SECONDS = 30.0  # a push that took longer to fail was retried by the client
METADATA = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)  # at the beginning of a card
LOAD = re.compile(r"""(from_pretrained\()("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')""")
MAX_CHARACTERS = 300  # of messages of the Hub or its client


@dataclass(frozen=True)
class PushResult:
    """Result of a push.

    Attributes:
        repo_id: user/name.
        url: URL of the repository.
        files: pushed files, including unchanged ones.
        removed: paths of an earlier run's files, which the folder does not have.
        commit: commit of the files.
        tag: tag of the commit, or None.
    """

    repo_id: str
    url: str
    files: list[Path]
    commit: CommitInfo
    tag: str | None = None
    removed: tuple[str, ...] = ()


def list_published_files(folder: str | Path) -> list[Path]:
    """List the files of an output folder that a push takes, by name.

    Raises:
        ValueError: if they contain no trained backbone.
    """
    names = {path.name: path for path in Path(folder).glob("*") if path.is_file()}
    published = [names[name] for name in sorted(names) if matches(name, PUBLISHED)]
    if "config.json" not in names or not any(path.match("model*.safetensors") for path in published):
        raise ValueError(f"{folder} holds no trained backbone: no config.json and model.safetensors")
    return published + [path for name in ADAPTER_FILES if (path := Path(folder) / name).is_file()]


def format_epoch_tag(epochs: float | None) -> str | None:
    """Format the tag of weights by their trained epochs, such as epoch-30; None where these are unknown."""
    return None if not epochs else f"epoch-{epochs:g}"


def read_trained_epochs(folder: str | Path) -> float | None:
    """Read for how many epochs a run's weights were trained from its metrics.json; None if that is missing."""
    try:
        metrics = json.loads((Path(folder) / METRICS_FILE).read_text(encoding="utf-8"))
        epochs = metrics.get(WEIGHTS_EPOCH, metrics.get(TRAINED_EPOCHS))
    except (OSError, ValueError, AttributeError):
        return None
    return float(epochs) if isinstance(epochs, (int, float)) else None


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload a trained backbone",
    tag: str | None = None,
) -> PushResult:
    """Push the published files of an output folder to a model repository, which is created if it does not exist.

    Where a run was pushed before, its weights, labels, clusters, names and metrics that the folder does not have are
    removed in the same commit, since they would be read as those of these weights. Card and other files stay.

    Args:
        folder: the output folder of a run.
        repo_id: user/name, or a name in the user's own namespace.
        private: True for a private repository; None leaves that to the Hub.
        revision: branch to push to, created if it does not exist; None for the main one.
        token: a token with write access; None takes the one of `hf auth login` or HF_TOKEN.
        message: message of the commit.
        tag: tag of the commit; an existing tag of this name moves.

    Raises:
        ValueError: if the folder holds no trained backbone.
        HubError: if the push failed. It is safe to repeat it.
    """
    files = list_published_files(folder)
    # Labels beside a model are not a misplaced data set.
    warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")

    def push(api: HfApi) -> PushResult:
        name, url = open_repo(api, repo_id, private=private)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        added = {path.relative_to(folder).as_posix(): path for path in files}
        removed = [path for path in _list_files_of_weights(api, name, revision) if path not in added]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(target, _read_content(path, name)) for target, path in added.items()),
            *(CommitOperationDelete(path) for path in removed),
        ]
        commit = api.create_commit(name, operations, commit_message=message, revision=revision)
        if tag is not None:
            _move_tag(api, name, tag, commit.oid)
        return PushResult(name, url, files, commit, tag, tuple(removed))

    return push_with_retries(push, repo_id, token)


def _list_files_of_weights(api: HfApi, repo_id: str, revision: str | None) -> list[str]:
    """List what belongs to the weights of a run that was pushed to a repository; nothing where none was."""
    try:
        paths = api.list_repo_files(repo_id, revision=revision)
    except RevisionNotFoundError:  # it has no commit yet
        return []
    if not any(matches(path, FILES_OF_RUNS) for path in paths if "/" not in path):
        return []
    return [
        path for path in paths if path in ADAPTER_FILES or ("/" not in path and matches(path, PUBLISHED_OF_WEIGHTS))
    ]


def push_with_retries(push: Callable[[HfApi], Result], repo_id: str, token: str | None) -> Result:
    """Push with the Hub's client, with retries after pauses where the Hub fails or is unreachable.

    Args:
        push: pushes; it must be safe to repeat.
        repo_id: repository, for messages.
        token: a token with write access; None takes the one of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: if all attempts failed, with the reason in one line.
    """
    for pause in (*PAUSES, None):
        start = time.monotonic()
        try:
            with open_client(token, repo_id) as api:
                return push(api)
        except HubError as error:
            is_timeout = time.monotonic() - start > RETRY_SECONDS
            if error.refused or pause is None or is_timeout:
                raise
            logger.warning("Not pushed yet: %s. Once more in %g s.", error, pause)
            time.sleep(pause)
    raise AssertionError


def _read_content(path: Path, repo_id: str) -> Path | bytes:
    """Read the content to upload; the card gets the repository's name in its code for loading the model."""
    if path.name != "README.md":
        return path
    return rename_model(path.read_text(encoding="utf-8"), repo_id).encode()


def rename_model(card: str, repo_id: str) -> str:
    """Replace the name that a model card was written with by that of a repository: metadata, title, code that loads it.

    Other names in it stay, such as those of models that people compare with. A card without metadata stays as it is.
    """
    name = _read_model_name(card)
    if name is None:
        return card

    def rename_load(match: re.Match[str]) -> str:
        return f'{match[1]}"{repo_id}"' if _evaluate(match[2]) == name else match[0]

    for describe in (_index_by_name, lambda name: yaml_dump({"model_name": name})):
        card = card.replace(f"\n{describe(name)}", f"\n{describe(repo_id)}", 1)
    title, new_title = (f"\n# {escape_markdown(text)}\n" for text in (name, repo_id))
    return LOAD.sub(rename_load, card.replace(title, new_title, 1))


def _read_model_name(card: str) -> str | None:
    """Read the name that a card was written with from its metadata."""
    header = METADATA.match(card)
    try:
        metadata: Any = yaml.safe_load(header[1]) if header is not None else None
        name = metadata["model_name"] if "model_name" in metadata else metadata["model-index"][0]["name"]
    except (yaml.YAMLError, TypeError, LookupError):
        return None
    return str(name) if name else None


def _index_by_name(name: str) -> str:
    return yaml_dump({"model-index": [{"name": name}]})


def _evaluate(literal: str) -> object:
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return None


def open_repo(api: HfApi, repo_id: str, *, private: bool | None, repo_type: str = "model") -> tuple[str, str]:
    """Open a repository, which is created if it does not exist; returns its full name and its URL.

    Raises:
        HubError: if it should be private, but exists and is public.
    """
    url = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise HubError(
            f"{url.repo_id} is there already and is public, so nothing was pushed: private=True (--private) makes no "
            "repository private that is there. Take another name, or make it private in its settings",
            refused=True,
        )
    return url.repo_id, str(url)


def check_write_access(api: HfApi, repo_id: str) -> None:
    """Check that the token has write access, which the client does not for an existing repository of others.

    Nothing is written: the request asks how a file would be uploaded.
    """
    api.preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"-")])


@contextlib.contextmanager
def open_client(token: str | None, repo_id: str) -> Iterator[HfApi]:
    """Open the Hub's client; exceptions inside the context become a `HubError` with a message of one line.

    Args:
        token: a token with write access; None takes the one of `hf auth login` or HF_TOKEN.
        repo_id: repository, for the message.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE=1 keeps this process away from the Hub")
        resolved_token = get_token() if token is None else token
        if not resolved_token:
            raise LocalTokenNotFoundError(f"there is no token for the Hub: {LOGIN_REMEDY}")
        if not (resolved_token.isascii() and resolved_token.isprintable()):  # HTTP errors would show the token
            raise ValueError(f"the token has characters in it that no token has: {LOGIN_REMEDY}")
        yield HfApi(token=resolved_token)
    except HubError:
        raise
    except Exception as error:  # of the client's own kinds, of HTTP, of files, of Xet
        raise HubError(*_describe_error(error, repo_id)) from error


def _describe_error(error: Exception, repo_id: str) -> tuple[str, bool]:
    """Describe an error; returns the message, and True if the Hub or its client refused."""
    response_error = next((cause for cause in _iterate_causes(error) if isinstance(cause, HfHubHTTPError)), None)
    if response_error is None:
        refused = isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled, ValueError))
        if refused:
            return _shorten(error), True
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        action = f"the connection to {constants.ENDPOINT}" if _is_http(cause) else f"the push to {repo_id}"
        return f"{action} failed ({type(cause).__name__}: {_shorten(cause)})", False
    status = response_error.response.status_code
    server_message = _shorten(response_error.server_message or "")
    if status == 401:
        return f"the Hub does not accept the token (401): {LOGIN_REMEDY}", True
    if status == 403:
        return f"the token may not write to {repo_id} (403: {server_message})", True
    if status >= 500 or status in RETRIED_STATUSES:
        return f"the Hub failed ({status}: {server_message})", False
    return f"the Hub refused {repo_id} ({status}: {server_message or _shorten(response_error)})", True


def _is_http(error: BaseException) -> bool:
    return type(error).__module__.startswith("http")  # httpx, whose name the client may change


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shorten(words: Any) -> str:
    text = " ".join(str(words).split()).rstrip(".")
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def _move_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Move a tag, which an earlier push may have set on another commit."""
    try:
        api.create_tag(repo_id, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        api.delete_tag(repo_id, tag=tag)
        api.create_tag(repo_id, tag=tag, revision=commit)
