"""Where the files of a model come from: a local directory, or a repository of the hub.

Both answer the same two questions, `Repository.find` and `Repository.require`, and a hub
repository answers all of them from one commit. huggingface_hub is imported when a hub
repository is first asked for a file, never before.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any

from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError, HubError
from gpt2.storage.atomic import recover
from gpt2.storage.names import (
    checked_filename,
    checked_revision,
    checked_subfolder,
    checked_token,
    is_repo_id,
)
from gpt2.storage.trust import check_download, check_etag, check_inside

_COMMIT = re.compile(r"[0-9a-f]{40}")


def open_repository(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Repository:
    """The repository of that name: the directory if there is one, else the hub's.

    Nothing is fetched yet. ``subfolder`` holds the files inside the repository; ``revision`` is
    a branch, tag or commit (a directory has none); ``local_files_only`` uses only what the
    hub's cache (``cache_dir``, else the one that HF_HOME tells) already has; ``token`` is a
    token, True for the stored one, False for none, None for the stored one if there is one.

    Raises:
        ArgumentError: an argument cannot be used, or two contradict each other.
        FileAccessError: ``name_or_path`` is neither a directory nor the form of a repository
            name, or has no such ``subfolder``.
    """
    try:
        name = os.fspath(name_or_path)
    except TypeError:
        name = b""  # type: ignore[assignment]
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"name_or_path must be a repository name or a path, not {name_or_path!r}"
        )
    if "\0" in name or not name:
        raise ArgumentError(f"name_or_path must be a repository name or a path, not {name!r}")
    folder = checked_subfolder(subfolder)
    directory = Path(name)
    if not directory.is_dir():
        recover(directory)
    if directory.is_dir():
        if revision not in (None, "main"):
            raise ArgumentError(
                f"revision={revision!r} cannot be honoured: {name!r} is a local directory, "
                "which has no revisions; leave revision out, or name a repository of the hub"
            )
        return _Directory(name, folder)
    if os.path.lexists(directory):
        raise FileAccessError(
            f"{name!r} is not a directory; give the directory that holds the model's files, "
            "or the name of a repository of the hub"
        )
    if not is_repo_id(name):
        raise FileAccessError(
            f"{name!r} is neither an existing directory nor the name of a repository of the hub "
            "('name' or 'owner/name', of letters, digits, '-', '_' and '.')"
        )
    return _HubRepository(
        name,
        folder,
        revision=checked_revision(revision),
        cache_dir=cache_dir,
        token=checked_token(token),
        local_files_only=local_files_only,
        force_download=force_download,
    )


class Repository(ABC):
    """The files of one model, all of one version. Made by `open_repository`."""

    name: str
    """The path or the repository name, as it was given."""

    @abstractmethod
    def find(self, filename: str) -> Path | None:
        """The local path of a file, or None when the repository exists and has no such file.

        Raises:
            ArgumentError: ``filename`` is not a plain file name.
            HubError: the hub or its cache could not be asked; names repository, revision, file.
            FileAccessError: what lies under the name is no file, or a link that leads outside.
        """

    @abstractmethod
    def require(self, filename: str) -> Path:
        """As `find`, but a file that is not there is an error too.

        Raises:
            FileAccessError: (a HubError for a hub repository) there is no such file.
        """


class _Directory(Repository):
    def __init__(self, name: str, subfolder: PurePosixPath) -> None:
        self.name = name
        self._directory = Path(name) / subfolder
        if not self._directory.is_dir():
            raise FileAccessError(f"{name!r} has no subfolder {str(subfolder)!r}")
        self._identity = _identity(self._directory)

    def find(self, filename: str) -> Path | None:
        path = self._directory / checked_filename(filename)
        if _identity(self._directory) != self._identity:
            # Saves replace whole directories (storage.atomic); files of both would not fit.
            raise FileAccessError(
                f"{self._directory} was replaced or removed while it was being read; load it again"
            )
        if not os.path.lexists(path):
            return None
        allowed = [Path(self.name).resolve()]
        for folder in (allowed[0], *allowed[0].parents):
            storage = folder.parent.parent
            if folder.parent.name == "snapshots" and storage.name.startswith("models--"):
                # A snapshot in the hub's cache holds links into the cache's own stores of blobs.
                allowed += [storage / "blobs", storage.parent / "blobs"]
        check_inside(path, allowed)
        return path

    def require(self, filename: str) -> Path:
        path = self.find(filename)
        if path is None:
            hint = (
                f"; the local directory {self.name!r} was taken, not the hub's repository of "
                "that name: to mean that one, work in another directory"
                if is_repo_id(self.name)
                else ""
            )
            raise FileAccessError(f"{self._directory} has no file {filename!r}{hint}")
        return path


class _HubRepository(Repository):
    def __init__(
        self,
        name: str,
        subfolder: PurePosixPath,
        *,
        revision: str | None,
        cache_dir: str | os.PathLike[str] | None,
        token: str | bool | None,
        local_files_only: bool,
        force_download: bool,
    ) -> None:
        from huggingface_hub import constants

        self.name = name
        self._subfolder = subfolder
        self._revision = revision or "main"
        self._commit: str | None = None
        self._cache = Path(cache_dir or constants.HF_HUB_CACHE)
        self._token = token
        self._offline = ""  # the reason why the network is not to be used
        if local_files_only:
            self._offline = "local_files_only=True was given"
        elif constants.HF_HUB_OFFLINE:
            self._offline = "HF_HUB_OFFLINE is set"
        if force_download and self._offline:
            raise ArgumentError(f"force_download=True needs the network, but {self._offline}")
        self._force_download = force_download
        self._answers: dict[str, Path | None] = {}

    def find(self, filename: str) -> Path | None:
        checked_filename(filename)
        if filename not in self._answers:
            path = self._fetch(filename)
            if path is not None:
                storage = path.parents[len(self._subfolder.parts) + 2]
                check_inside(path, [storage.resolve(), storage.parent.resolve()])
            self._answers[filename] = path
        return self._answers[filename]

    def require(self, filename: str) -> Path:
        path = self.find(filename)
        if path is None:
            if self._offline:
                raise HubError(
                    f"{self._where(filename)}: the cached copy in {self._cache} does not have "
                    f"it, and {self._offline}. {_ONCE_ONLINE}"
                )
            raise HubError(f"{self._where(filename)}: the repository has no such file")
        return path

    def _fetch(self, filename: str) -> Path | None:
        from huggingface_hub import hf_hub_download

        hub = _hub_errors()
        entry = str(self._subfolder / filename)
        held = None if self._force_download else self._cached_file(entry)
        if self._commit and not self._force_download and self._known_absent(entry):
            return None  # a commit never changes, so the hub need not be asked again
        if not self._offline and not (self._commit and held):
            check_etag(self._stated_etag(entry), self._where(filename))
        try:
            path = Path(
                hf_hub_download(
                    self.name,
                    entry,
                    # Once one answer has told the commit, a push between two downloads
                    # cannot mix the files of two versions.
                    revision=self._commit or self._revision,
                    cache_dir=self._cache,
                    token=self._token,
                    local_files_only=bool(self._offline),
                    force_download=self._force_download,
                    library_name="gpt2",
                )
            )
        except hub.LocalEntryNotFoundError as error:
            # A kind of EntryNotFoundError, but it means "not cached and not to be had", not
            # "does not exist": unless the cache remembers that it does not.
            if self._known_absent(entry):
                return None
            if self._offline:
                if self._cached_snapshot() is not None:
                    return None
                raise HubError(
                    f"{self._where(filename)}: it is not in the cache {self._cache}, and "
                    f"{self._offline}. {_ONCE_ONLINE}"
                ) from error
            raise HubError(
                f"{self._where(filename)}: it is not in the cache {self._cache}, and the hub "
                f"gave no answer ({reason_of(error.__cause__ or error)}). Check the connection "
                "(and HF_ENDPOINT, if set) and try again, or pass the path of a directory that "
                "holds the files. local_files_only=True uses only what is cached"
            ) from error
        except hub.EntryNotFoundError as error:
            self._pin(_header(error, "X-Repo-Commit"))
            return None
        except Exception as error:
            # huggingface_hub lets through whatever its HTTP library raises (requests in 0.x,
            # httpx later), so there is no narrower base to name.
            raise self._explained(filename, error) from error
        if str(path) != held:
            check_download(path, self._where(filename))
        self._pin(path.parents[len(self._subfolder.parts)].name)
        return path

    def _stated_etag(self, entry: str) -> str | None:
        """The ETag that the hub states for a file.

        Costs one request of headers for each file that is not cached. None where it
        fails: so will the download, which says why.
        """
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.name, entry, revision=self._commit or self._revision)
        try:
            return get_hf_file_metadata(
                url, token=self._token, timeout=constants.HF_HUB_ETAG_TIMEOUT
            ).etag
        except Exception:
            return None

    def _explained(self, filename: str, error: Exception) -> HubError:
        hub = _hub_errors()
        # With force_download the hub's library wraps the reason in a bare ValueError.
        if type(error) is ValueError and isinstance(error.__cause__, Exception):
            error = error.__cause__
        where = self._where(filename)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, hub.GatedRepoError):
            return HubError(
                f"{where}: the repository is gated. Ask for access on its page, then pass "
                "token=... of an account that has it, or log in with 'hf auth login'"
            )
        if isinstance(error, hub.RevisionNotFoundError):
            return HubError(
                f"{where}: the repository has no revision {self._revision!r}; give a branch, a "
                "tag or a full commit hash, or leave revision out for 'main'"
            )
        if isinstance(error, hub.RepositoryNotFoundError) or status == 401:
            return HubError(
                f"{where}: the hub has no such repository, or it is private and "
                f"{'the token given' if isinstance(self._token, str) else 'this login'} may not "
                "see it. Check the spelling, pass token=..., or, if a local directory was "
                "meant, check the path: there is none of this name here"
            )
        if isinstance(error, hub.LocalTokenNotFoundError):
            return HubError(
                f"{where}: token=True asks for the stored token, and there is none; log in "
                "with 'hf auth login', or pass the token itself"
            )
        return HubError(f"{where}: the download failed ({reason_of(error)}); try again")

    def _pin(self, commit: str | None) -> None:
        if self._commit is None and commit is not None and _COMMIT.fullmatch(commit):
            self._commit = commit

    def _known_absent(self, entry: str) -> bool:
        """Whether the cache remembers the hub's answer that there is no such file."""
        answer = self._in_cache(entry)
        return answer is not None and not isinstance(answer, str)

    def _cached_file(self, entry: str) -> str | None:
        """The path of the file, if the cache has it."""
        answer = self._in_cache(entry)
        return answer if isinstance(answer, str) else None

    def _in_cache(self, entry: str) -> Any:
        """The path, the mark of a file that is known not to exist, or None: nothing known."""
        from huggingface_hub import try_to_load_from_cache

        return try_to_load_from_cache(
            self.name, entry, cache_dir=self._cache, revision=self._commit or self._revision
        )

    def _cached_snapshot(self) -> Path | None:
        """The snapshot of this revision, if the cache has one.

        Offline, a file that is not in it counts as one that the repository does not have:
        a whole repository fetched with the hub's own tools leaves no note of what it lacks.
        """
        storage = self._cache / f"models--{self.name.replace('/', '--')}"
        commit = self._commit or self._revision
        if not _COMMIT.fullmatch(commit):
            try:
                commit = (storage / "refs" / commit).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                return None
        snapshot = storage / "snapshots" / commit
        return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None

    def _where(self, filename: str) -> str:
        entry = self._subfolder / filename
        commit = f", commit {self._commit}" if self._commit not in (None, self._revision) else ""
        return (
            f"cannot load {str(entry)!r} of repository {self.name!r} "
            f"(revision {self._revision!r}{commit})"
        )


_ONCE_ONLINE = (
    "Load it once with a connection, so that it is cached, or pass the path of a directory that "
    "holds the files"
)


def _hub_errors() -> Any:
    # The one place that has had the error classes in every version since 0.24.
    from huggingface_hub import utils

    return utils


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _header(error: Any, name: str) -> str | None:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return headers.get(name) if headers is not None else None


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its type: the hub's messages go on for paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__
