"""What of a run goes to the Hugging Face Hub, how it gets there, and what is said where it does not.

Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from hf_plr.report.file_names import METRICS_FILE, TRAINED_EPOCHS

logger = logging.getLogger(__name__)
T = TypeVar("T")

# All that is ever pushed, from the top of the folder alone. What a run needs to go on (optimizer, random states, labels
# of all epochs, pickled arguments) is of no use to anybody else, and is not in this list.
PUBLISHED = (
    "README.md",
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "metrics.json",
    "*.png",
    "pseudo_labels.parquet",
    "prototypes.safetensors",
    "units.parquet",
    "centroids.safetensors",
)
HOW_TO_LOG_IN = "`hf auth login`, or set HF_TOKEN to a token that may write"
TRY_AGAIN = (408, 429)
PAUSES = (1.0, 5.0)  # seconds, before it is tried again
PATIENCE = 30.0  # seconds; what took longer to fail has been tried again and again by the client
SHOWN = 300  # characters of what the Hub or its client says


class HubError(RuntimeError):
    """Something did not get to the Hub.

    Attributes:
        refused: whether the Hub, or its client, said no; otherwise it could not be reached, or failed.
    """

    def __init__(self, message: str, refused: bool = False):
        super().__init__(message)
        self.refused = refused


@dataclass(frozen=True)
class PushResult:
    """What is on the Hub now.

    Attributes:
        repo_id: user/name.
        url: where it can be seen.
        files: the files that were pushed; those that the Hub had are among them.
        commit: the commit that they are in.
        tag: the tag that this commit has; None for none.
    """

    repo_id: str
    url: str
    files: list[Path]
    commit: CommitInfo
    tag: str | None = None


def list_published_files(folder: str | Path) -> list[Path]:
    """The files of an output folder that a push takes, by name.

    Raises:
        ValueError: if there is no trained backbone among them.
    """
    names = {path.name: path for path in Path(folder).glob("*") if path.is_file()}
    found = [names[name] for name in sorted(names) if any(fnmatch.fnmatchcase(name, one) for one in PUBLISHED)]
    if "config.json" not in names or not any(path.match("model*.safetensors") for path in found):
        raise ValueError(f"{folder} holds no trained backbone: no config.json and model.safetensors")
    return found


def format_epoch_tag(epochs: float | None) -> str | None:
    """The tag of weights that were trained for so many epochs, such as epoch-30; None where that is not known."""
    return None if not epochs else f"epoch-{epochs:g}"


def read_trained_epochs(folder: str | Path) -> float | None:
    """Epochs that a run in this folder has trained; None if its metrics.json does not say."""
    try:
        epochs = json.loads((Path(folder) / METRICS_FILE).read_text(encoding="utf-8")).get(TRAINED_EPOCHS)
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
    """Push what is to be published of an output folder to a model repository, which is made if it is not there.

    Args:
        folder: the output folder of a run.
        repo_id: user/name, or a name of one's own.
        private: whether the repository is private; None leaves that to the Hub.
        revision: branch to push to, made if it is not there; None for the main one.
        token: a token that may write; None takes the one of `hf auth login` or HF_TOKEN.
        message: of the commit.
        tag: a tag for the commit; one of this name moves to it.

    Raises:
        ValueError: if the folder holds no trained backbone.
        HubError: if it did not get there. Pushing it once more is safe.
    """
    files = list_published_files(folder)
    # Labels beside a model are no data set in the wrong place.
    warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")

    def push(api: HfApi) -> PushResult:
        name, url = open_repo(api, repo_id, private=private)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(path.name, _content(path, name)) for path in files]
        commit = api.create_commit(name, operations, commit_message=message, revision=revision)
        if tag is not None:
            _move_tag(api, name, tag, commit.oid)
        return PushResult(name, url, files, commit, tag)

    return push_with_retries(push, repo_id, token)


def push_with_retries(push: Callable[[HfApi], T], repo_id: str, token: str | None) -> T:
    """Call something with the Hub's client, again after a pause where the Hub failed or could not be reached.

    Args:
        push: what to do; it must do no harm if it is done again.
        repo_id: what is pushed to, for messages.
        token: a token that may write; None takes the one of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: if it does not work, saying why in one line.
    """
    for pause in (*PAUSES, None):
        started = time.monotonic()
        try:
            with open_client(token, repo_id) as api:
                return push(api)
        except HubError as error:
            patient = time.monotonic() - started > PATIENCE
            if error.refused or pause is None or patient:
                raise
            logger.warning("Not pushed yet: %s. Once more in %g s.", error, pause)
            time.sleep(pause)
    raise AssertionError


def _content(path: Path, repo_id: str) -> Path | bytes:
    """What is uploaded of a file: the card says how to load the model from where it is now."""
    if path.name != "README.md":
        return path
    card = path.read_text(encoding="utf-8")
    for name in set(re.findall(r'from_pretrained\("([^"]+)"', card)):
        card = card.replace(f'from_pretrained("{name}"', f'from_pretrained("{repo_id}"')
        for before in ("# ", "model-index:\n- name: "):
            card = re.sub(rf"^{before}{re.escape(name)}$", before + repo_id, card, count=1, flags=re.MULTILINE)
    return card.encode()


def open_repo(api: HfApi, repo_id: str, *, private: bool | None, repo_type: str = "model") -> tuple[str, str]:
    """Make a repository if it is not there; returns its full name and where it can be seen.

    Raises:
        HubError: if it is to be private, and is there already and public.
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
    """Find out whether the token may write to a repository: of another's that is there, the client says nothing.

    Nothing is written; the Hub is asked how a file would be uploaded.
    """
    api.preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"-")])


@contextlib.contextmanager
def open_client(token: str | None, repo_id: str) -> Iterator[HfApi]:
    """The Hub's client, whose failures inside become a `HubError` that says in one line what is wrong.

    Args:
        token: a token that may write; None takes the one of `hf auth login` or HF_TOKEN.
        repo_id: what is pushed to, for the message.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE=1 keeps this process away from the Hub")
        found = get_token() if token is None else token
        if not found:
            raise LocalTokenNotFoundError(f"there is no token for the Hub: {HOW_TO_LOG_IN}")
        if not (found.isascii() and found.isprintable()):  # errors of HTTP would show it
            raise ValueError(f"the token has characters in it that no token has: {HOW_TO_LOG_IN}")
        yield HfApi(token=found)
    except HubError:
        raise
    except Exception as error:  # of the client's own kinds, of HTTP, of files, of Xet
        raise HubError(*_told(error, repo_id)) from error


def _told(error: Exception, repo_id: str) -> tuple[str, bool]:
    """What is wrong, and whether the Hub or its client said no."""
    answered = next((one for one in _causes(error) if isinstance(one, HfHubHTTPError)), None)
    if answered is None:
        refused = isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled, ValueError))
        if refused:
            return _one_line(error), True
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        what = f"the connection to {constants.ENDPOINT}" if _is_http(cause) else f"the push to {repo_id}"
        return f"{what} failed ({type(cause).__name__}: {_one_line(cause)})", False
    status = answered.response.status_code
    said = _one_line(answered.server_message or "")
    if status == 401:
        return f"the Hub does not accept the token (401): {HOW_TO_LOG_IN}", True
    if status == 403:
        return f"the token may not write to {repo_id} (403: {said})", True
    if status >= 500 or status in TRY_AGAIN:
        return f"the Hub failed ({status}: {said})", False
    return f"the Hub refused {repo_id} ({status}: {said or _one_line(answered)})", True


def _is_http(error: BaseException) -> bool:
    return type(error).__module__.startswith("http")  # httpx, by whatever name the client has it


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(words: Any) -> str:
    text = " ".join(str(words).split()).rstrip(".")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _move_tag(api: HfApi, repo_id: str, tag: str, commit: str) -> None:
    """Set a tag, which may be at another commit from an earlier push."""
    try:
        api.create_tag(repo_id, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        api.delete_tag(repo_id, tag=tag)
        api.create_tag(repo_id, tag=tag, revision=commit)
