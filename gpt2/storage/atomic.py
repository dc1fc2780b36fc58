"""Save a directory whole or not at all.

A save fills a staging directory beside the target; when it is complete and flushed, the two
change places in one step. Whoever looks at the target, at any moment and after any crash, sees
all of the old files or all of the new ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import stat
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.errors import FileAccessError, GPT2Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@contextlib.contextmanager
def staged_directory(
    target: str | os.PathLike[str], *, replaces: Iterable[str] = ()
) -> Iterator[Path]:
    """An empty directory to write into, which becomes ``target`` when the block ends.

    What an existing target holds is carried over (files as hard links), except what was
    written anew and the top-level names that match a pattern of ``replaces``: the files that a
    save supersedes even where it writes no successor (an old shard beside fewer new ones).
    Parents are created; a target that is a link keeps being one, and its end is replaced. A new
    directory gets the mode that the umask says, a replaced one keeps its own.

    An exception in the block, or a failure of the save, leaves the target as it was.

    Raises:
        FileAccessError: the target is a file, read-only, or a mount point; a disk is full; or
            any other refusal of the operating system, also one met inside the block.
    """
    path = Path(os.path.realpath(target))
    patterns = tuple(replaces)
    try:
        _check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent):
            _recover(path)
            _remove_stale_stages(path)
            stage = path.parent / f"{_stage_prefix(path)}{os.urandom(6).hex()}"
            stage.mkdir()
            alive = _hold(stage)
    except OSError as error:
        raise _failure(path, error) from error
    try:
        yield stage
        _flush_files(stage)
        with _lock(path.parent):
            if path.exists():
                _carry_over(path, stage, lambda name: any(fnmatchcase(name, p) for p in patterns))
                shutil.copymode(path, stage)
            _flush_directories(stage)
            _put_in_place(stage, path)
    except OSError as error:
        # A writer's error names a file of the stage, which nobody knows.
        cause = error.__cause__ if isinstance(error, GPT2Error) else error
        if not isinstance(cause, OSError):
            raise
        raise _failure(path, cause) from error
    finally:
        # After an exchange the old files are under the stage's name, and go with it.
        shutil.rmtree(stage, ignore_errors=True)
        if alive is not None:
            os.close(alive)


def recover(target: str | os.PathLike[str]) -> None:
    """Finish what a save that was killed between its two renames left behind.

    Only file systems that cannot exchange two directories need it. Does nothing, at the cost of
    one look at the directory, where there is nothing to do.

    Raises:
        FileAccessError: the only copy lies under its interim name and cannot be moved back.
    """
    path = Path(os.path.realpath(target))
    try:
        if os.path.lexists(_interim(path)):
            with _lock(path.parent):
                _recover(path)
    except OSError as error:
        if not path.exists():
            raise FileAccessError(
                f"a save of {path} was interrupted; its old files are whole in "
                f"{_interim(path)}, but cannot be moved back: {error.strerror or error}"
            ) from error


# ---------------------------------------------------------------- names beside the target


def _stage_prefix(path: Path) -> str:
    return f".{path.name}.saving-"


def _interim(path: Path) -> Path:
    """Where the old directory is between the two renames."""
    return path.parent / f".{path.name}.previous"


def _recover(path: Path) -> None:
    interim = _interim(path)
    if os.path.lexists(interim):
        if os.path.lexists(path):
            shutil.rmtree(interim, ignore_errors=True)  # killed after the second rename
        else:
            os.rename(interim, path)  # killed between the two


def _remove_stale_stages(path: Path) -> None:
    """Remove the stages of processes that died: those on which nobody holds a lock."""
    for entry in list(os.scandir(path.parent)):
        if entry.name.startswith(_stage_prefix(path)) and entry.is_dir(follow_symlinks=False):
            holder = _hold(Path(entry.path))
            if holder is not None:
                shutil.rmtree(entry.path, ignore_errors=True)
                os.close(holder)


# ---------------------------------------------------------------- locks
# flock is released by the kernel however its holder ends, so there is no stale lock. Where there
# is none (Windows, some network file systems) saves still are whole; only two of them at the same
# target and the same moment are not kept apart, and a killed one's stage is left lying.


def _flock(path: Path, *, wait: bool) -> int | None:
    try:
        import fcntl
    except ImportError:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, FileNotFoundError):  # another save may just have removed its stage
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _hold(stage: Path) -> int | None:
    """Mark a stage as in use; None where another process does, or locks do not exist."""
    return _flock(stage, wait=False)


@contextlib.contextmanager
def _lock(parent: Path) -> Iterator[None]:
    """Keep the short steps of concurrent saves in one directory apart."""
    descriptor = _flock(parent, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


# ---------------------------------------------------------------- the steps


def _check_target(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise FileAccessError(f"cannot save to {path}: it is a file, and must be a directory")
    if os.path.ismount(path):
        raise FileAccessError(
            f"cannot save to {path}: it is a mount point, which cannot be replaced in one step; "
            "save to a directory inside it"
        )
    # The mode is asked as well, because the superuser may write everywhere.
    if not os.access(path, os.W_OK) or not path.stat().st_mode & 0o222:
        raise FileAccessError(f"cannot save to {path}: the directory is read-only")


def _carry_over(old: Path, new: Path, superseded: Callable[[str], bool]) -> None:
    """Give ``new`` every entry of ``old`` that it does not have and that is not superseded."""
    device = old.stat().st_dev
    for entry in os.scandir(old):
        goal = new / entry.name
        if superseded(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_dev != device:
                raise FileAccessError(
                    f"cannot replace {old}: {entry.path} is a mount point; unmount it, or save "
                    "to another directory"
                )
            fresh = not os.path.lexists(goal)
            if fresh:
                goal.mkdir()
            if goal.is_dir() and not goal.is_symlink():
                _carry_over(Path(entry.path), goal, lambda name: False)
            if fresh:
                shutil.copystat(entry.path, goal)
        elif not os.path.lexists(goal):
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), goal)
            else:
                _link(Path(entry.path), goal)


def _link(source: Path, goal: Path) -> None:
    try:
        os.link(source, goal, follow_symlinks=False)
    except OSError:  # the file system has no hard links, or the file has as many as it may
        shutil.copy2(source, goal)
        _flush(goal)


def _flush_files(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            if stat.S_ISREG(path.lstat().st_mode):
                _flush(path)


def _flush_directories(folder: Path) -> None:
    for root, _, _ in os.walk(folder):
        _flush(Path(root))


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # has no such operation
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot flush a directory; a full disk is another matter.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _put_in_place(stage: Path, path: Path) -> None:
    standing = _working_directory()
    if not os.path.lexists(path):
        os.rename(stage, path)
    elif not _exchange(stage, path):
        interim = _interim(path)
        os.rename(path, interim)
        try:
            os.rename(stage, path)
        except BaseException:
            os.rename(interim, path)
            raise
        with contextlib.suppress(OSError):  # the save is done; the next one clears it away
            os.rename(interim, stage)
    with contextlib.suppress(OSError):
        _flush(path.parent)
    if standing is not None and standing.is_relative_to(path):
        # The process stands in the directory that was just taken away: step into its successor.
        with contextlib.suppress(OSError):
            os.chdir(standing)


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
_SYS_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories change places in one step; False where the system cannot.

    By the number of the system call, since older C libraries have no name for it.
    """
    number = _SYS_RENAMEAT2.get(platform.machine())
    if sys.platform != "linux" or number is None or sys.maxsize < 2**32:
        return False
    import ctypes  # at its only use: it takes a while to import

    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(
        ctypes.c_long(number),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(one)),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(other)),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False  # an old kernel, a file system without it, a sandbox
    raise OSError(code, os.strerror(code), str(other))


def _failure(path: Path, error: OSError) -> FileAccessError:
    if isinstance(error, FileAccessError):
        return error
    reason = error.strerror or str(error)
    what = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space, or ask for a larger quota",
        errno.EFBIG: "the file system or a limit of the process refuses files of this size",
        errno.EACCES: f"saving replaces the directory, so {path.parent} must be writable too",
        errno.EROFS: "choose another place",
    }.get(error.errno or 0)
    return FileAccessError(
        f"cannot save to {path}: {reason}"
        + (f" ({error.filename})" if error.filename else "")
        + (f"; {what}" if what else "")
        + "; what was there before is unchanged"
    )
