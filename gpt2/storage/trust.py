"""What is checked of a repository's files: where the cache keeps them, their bytes, their links.

The hub, its cache and the directories that people pass on are not trusted: none of them may
write or read outside its own folders, or hand over other bytes than it says.
"""

from __future__ import annotations

import re
from pathlib import Path

from gpt2.errors import FileAccessError, HubError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[\w-][\w.+=-]*", re.ASCII)


def check_etag(etag: str | None, where: str) -> None:
    """Refuse an ETag that is a path: the cache names a file by it, and would write there.

    ``where`` opens the message: the file and its repository.
    """
    if etag is not None and not _ETAG.fullmatch(etag):
        raise HubError(
            f"{where}: the hub's ETag {etag!r:.200} is no name of a file; "
            "nothing was downloaded. Check HF_ENDPOINT: this is not how a hub answers"
        )


def check_download(path: Path, where: str) -> None:
    """Refuse, and remove, a download whose bytes are not those that the hub's SHA-256 names.

    The cache calls a large file by that hash; the hub's own library compares sizes only.
    """
    import hashlib  # costs milliseconds that nobody but a downloader should pay

    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    with open(blob, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise HubError(
            f"{where}: the download is corrupt: its SHA-256 is {found}, the "
            f"hub states {blob.name}. It was removed from the cache; try again"
        )


def check_inside(path: Path, allowed: list[Path]) -> None:
    """Refuse what is not a regular file, or is a link that leads out of the allowed folders."""
    try:
        end = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before 3.13
        raise FileAccessError(f"{path} is a link that leads nowhere: {error}") from None
    if not any(end.is_relative_to(folder) for folder in allowed):
        raise FileAccessError(
            f"{path} is a link that leads outside its directory, to {end}; it is not followed. "
            "Copy the file itself into the directory"
        )
    if not end.is_file():
        raise FileAccessError(f"{path} is not a regular file")
