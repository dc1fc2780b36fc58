"""A directory, as one commit in a repository of the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, HubError
from gpt2.storage.hub import reason_of
from gpt2.storage.names import checked_token, is_repo_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


def upload_directory(
    directory: Path,
    repo_id: str,
    *,
    if_absent: Mapping[str, Callable[[str], str]],
    supersedes: Iterable[str],
    commit_message: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Make the repository if need be, commit the directory's files to it, and return the URL.

    Args:
        if_absent: name -> text, given the repository's full name, of files to add where the
            repository has none of that name.
        supersedes: patterns of files in the repository to delete where the directory has none of
            that name.

    Raises:
        ArgumentError: ``repo_id`` or ``token`` cannot be one.
        HubError: the hub refused, or could not be reached; names the repository.
    """
    if not isinstance(repo_id, str) or not is_repo_id(repo_id):
        raise ArgumentError(
            f"repo_id is {repo_id!r}; give 'name' or 'owner/name', of letters, digits, '-', '_' "
            "and '.'"
        )
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise HubError(f"cannot upload to {repo_id!r}: HF_HUB_OFFLINE is set")
    api: Any = HfApi(token=checked_token(token), library_name="gpt2")
    try:
        # Its full name: one without an owner is put under the user's.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        for name, text in if_absent.items():
            if not api.file_exists(repo_id, name, revision=revision):
                (directory / name).write_text(text(repo_id), encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=list(supersedes),
        )
    except Exception as error:
        # As for downloads: the HTTP library's errors come through, and have no narrower base.
        raise HubError(f"cannot upload to {repo_id!r}: {_advice(error)}") from error
    return str(commit.commit_url)


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub does not let this login write there ({reason_of(error)}); log in with "
            "'hf auth login', or pass token=... of an account that may"
        )
    return f"{reason_of(error)}; nothing, or all of it, was uploaded: try again"
