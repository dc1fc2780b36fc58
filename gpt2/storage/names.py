"""What may name a repository, a revision, a folder or a file in it, and what may be a token.

They become parts of paths and of URLs: each is refused here that could lead elsewhere.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from gpt2.errors import ArgumentError, ArgumentTypeError

_REPO_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)


def is_repo_id(name: str) -> bool:
    """Whether the hub could have a repository of this name: 'name' or 'owner/name'."""
    return (
        _REPO_ID.fullmatch(name) is not None
        and not any(part[0] in ".-" or part[-1] in ".-" for part in name.split("/"))
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


def checked_filename(filename: str) -> str:
    """A name that opens a file in the repository's folder and nowhere else."""
    if (
        not isinstance(filename, str)
        or filename in ("", ".", "..")
        or any(sign in filename for sign in "/\\\0:")
        or not filename.isprintable()
    ):
        raise ArgumentError(
            f"{filename!r} is not a plain file name: no '/', '\\', ':', '..' or control characters"
        )
    return filename


def checked_subfolder(subfolder: str | None) -> PurePosixPath:
    """A path below the repository's own folder."""
    if subfolder is None:
        return PurePosixPath()
    if not isinstance(subfolder, str):
        raise ArgumentTypeError(f"subfolder must be a string, not {subfolder!r}")
    parts = PurePosixPath(subfolder).parts
    if any(part == ".." or any(sign in part for sign in "/\\\0:") for part in parts):
        raise ArgumentError(
            f"subfolder={subfolder!r} must be a relative path inside the repository, with '/' "
            "between its parts and without '..'"
        )
    return PurePosixPath(*parts)


def checked_revision(revision: str | None) -> str | None:
    """The name of a branch, tag or commit, part of a URL and of a path in the cache."""
    if revision is None:
        return None
    if (
        not isinstance(revision, str)
        or not revision.isprintable()
        or "\\" in revision
        or any(part in ("", ".", "..") for part in revision.split("/"))
    ):
        raise ArgumentError(
            f"revision={revision!r} must be the name of a branch or tag, or a commit hash"
        )
    return revision


def checked_token(token: str | bool | None) -> str | bool | None:
    """A token, or the choice between the stored one (True, None) and none (False)."""
    # Never quoted: it is a secret. HTTP libraries quote a header that they refuse.
    if isinstance(token, str) and not (token.isascii() and token.isprintable() and token.strip()):
        raise ArgumentError("token is empty or holds characters that no token has")
    if token is not None and not isinstance(token, str | bool):
        raise ArgumentTypeError(f"token must be a string, a bool or None, not {type(token)}")
    return token
