"""Files of repositories on the Hub that may not be there."""

from __future__ import annotations


def download_if_there(repo: str, name: str) -> str | None:
    """Download a file of a model's repository.

    Args:
        repo: id of the repository.
        name: name of the file in it.

    Returns:
        Its path in the cache; None if the repository has no such file, or had none when the Hub was last asked.

    Raises:
        ValueError: if the Hub cannot be reached and the cache cannot tell either, or the id is malformed.
        RepositoryNotFoundError: if there is no such repository.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return hf_hub_download(repo, name)
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError too, which says nothing of the repository
        if try_to_load_from_cache(repo, name) is _CACHED_NO_EXIST:
            return None
        raise ValueError(
            f"{repo} is not a folder here, the Hub cannot be reached, and {name} of {repo} is not in the cache"
        ) from error
    except EntryNotFoundError:
        return None
