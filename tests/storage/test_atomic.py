"""Saves are whole or absent: through errors, kills, concurrent saves and full disks."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpt2.errors import FileAccessError
from gpt2.storage import atomic
from gpt2.storage.atomic import recover, staged_directory

ROOT = Path(__file__).parents[2]


def content(directory: Path) -> dict[str, str]:
    """Relative name -> text of every file below."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def save(target: Path, files: dict[str, str], *replaces: str) -> None:
    with staged_directory(target, replaces=replaces) as stage:
        for name, text in files.items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_text(text)


@pytest.fixture(params=["exchange", "two renames"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path to save to, where the system can exchange directories and where it cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    return tmp_path / "parent" / "model"


def test_new_directory(target: Path) -> None:
    save(target, {"config.json": "1", "deep/a": "2"})
    assert content(target) == {"config.json": "1", "deep/a": "2"}
    assert os.listdir(target.parent) == ["model"]


def test_replaces_and_carries_over(target: Path) -> None:
    save(target, {"config.json": "old", "model-1.bin": "old", "sub/a": "a", "sub/b": "b"})
    (target / "notes.txt").write_text("mine")
    (target / "link").symlink_to("notes.txt")
    (target / "dangling").symlink_to("nowhere")
    notes = (target / "notes.txt").stat().st_ino
    save(target, {"config.json": "new", "model.bin": "new", "sub/b": "B"}, "model*.bin", "*.idx")
    assert content(target) == {
        "config.json": "new",
        "model.bin": "new",
        "sub/a": "a",
        "sub/b": "B",
        "notes.txt": "mine",
        "link": "mine",
    }
    assert os.readlink(target / "link") == "notes.txt"
    assert os.readlink(target / "dangling") == "nowhere"
    assert (target / "notes.txt").stat().st_ino == notes  # linked, not copied
    assert os.listdir(target.parent) == ["model"]


def test_copies_where_linking_fails(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    save(target, {"config.json": "old", "notes": "mine"})
    os.utime(target / "notes", (1, 1))
    monkeypatch.setattr(os, "link", no_links)
    save(target, {"config.json": "new"})
    assert content(target) == {"config.json": "new", "notes": "mine"}
    assert (target / "notes").stat().st_mtime == 1


def test_exception_leaves_everything(target: Path) -> None:
    save(target, {"config.json": "old"})

    def interrupted() -> None:
        with staged_directory(target) as stage:
            (stage / "config.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert content(target) == {"config.json": "old"}
    assert os.listdir(target.parent) == ["model"]


def test_failed_swap_leaves_everything(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(target, {"config.json": "old"})
    real = os.rename

    def fail_for_stage(source: Path, goal: Path) -> None:
        if ".saving-" in str(source):
            raise OSError(5, "I/O error")
        real(source, goal)

    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", fail_for_stage)
    with pytest.raises(FileAccessError, match="I/O error"):
        save(target, {"config.json": "new"})
    assert content(target) == {"config.json": "old"}
    assert os.listdir(target.parent) == ["model"]


def test_saving_over_what_is_being_read(target: Path) -> None:
    save(target, {"weights": "old"})
    with open(target / "weights") as reader:
        with staged_directory(target) as stage:
            (stage / "weights").write_text((target / "weights").read_text() + " and new")
        assert reader.read() == "old"
    assert content(target) == {"weights": "old and new"}


def test_mode_is_as_the_umask_says(target: Path) -> None:
    before = os.umask(0o027)
    try:
        save(target, {"a": "1"})
        assert stat.S_IMODE(target.stat().st_mode) == 0o750
        assert stat.S_IMODE((target / "a").stat().st_mode) == 0o640
        target.chmod(0o775)
        save(target, {"a": "2"})
        assert stat.S_IMODE(target.stat().st_mode) == 0o775  # a replaced directory keeps its own
    finally:
        os.umask(before)


def test_link_to_the_target_stays_a_link(target: Path) -> None:
    save(target, {"a": "1"})
    link = target.parent / "link"
    link.symlink_to("model")
    save(link, {"a": "2"})
    assert link.is_symlink()
    assert content(target) == {"a": "2"}


def test_a_process_that_stands_in_the_target_stays_there(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(target, {"a": "1", "sub/b": "1"})
    monkeypatch.chdir(target / "sub")
    save(target, {"a": "2"})
    assert Path("../a").read_text() == "2"
    monkeypatch.chdir(target)
    save(Path(), {"a": "3"})
    assert Path("a").read_text() == "3"


def test_unusable_targets(target: Path) -> None:
    target.parent.mkdir()
    target.write_text("a file")
    with pytest.raises(FileAccessError, match="it is a file"):
        save(target, {"a": "1"})
    with pytest.raises(FileAccessError, match="cannot save"):
        save(target / "below", {"a": "1"})
    target.unlink()
    target.mkdir()
    target.chmod(0o555)
    with pytest.raises(FileAccessError, match="read-only"):
        save(target, {"a": "1"})
    target.chmod(0o755)
    assert os.listdir(target.parent) == ["model"]
    with pytest.raises(FileAccessError, match="mount point"):
        save(Path("/"), {"a": "1"})


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_unwritable_parent(target: Path) -> None:
    target.parent.mkdir()
    target.parent.chmod(0o555)
    with pytest.raises(FileAccessError, match="must be writable too"):
        save(target, {"a": "1"})
    target.parent.chmod(0o755)


FULL_DISK = """
    import resource, sys
    from gpt2.errors import FileAccessError
    from gpt2.storage.atomic import staged_directory
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        with staged_directory(sys.argv[1]) as stage:
            (stage / "config.json").write_text("new")
            (stage / "weights").write_text("x" * 2000)
    except FileAccessError as error:
        print(error)
"""


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_full_disk(tmp_path: Path) -> None:
    target = tmp_path / "model"
    save(target, {"config.json": "old", "weights": "old"})
    done = run(FULL_DISK, target)
    assert "File too large" in done.stdout, done.stderr
    assert "unchanged" in done.stdout
    assert content(target) == {"config.json": "old", "weights": "old"}
    assert os.listdir(tmp_path) == ["model"]


# The process kills itself at the n-th call that changes the file system.
KILLED = """
    import builtins, os, shutil, signal, sys
    from gpt2.storage import atomic
    target, fatal, after, way = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after", sys.argv[4]
    calls = 0
    def deadly(function):
        def call(*arguments, **options):
            global calls
            calls += 1
            if calls == fatal and not after:
                os.kill(os.getpid(), 9)
            try:
                return function(*arguments, **options)
            finally:
                if calls == fatal:
                    os.kill(os.getpid(), 9)
        return call
    for name in ("mkdir", "rename", "link", "fsync", "unlink", "rmdir", "symlink"):
        setattr(os, name, deadly(getattr(os, name)))
    atomic._exchange = deadly(atomic._exchange if way == "exchange" else lambda one, other: False)
    with atomic.staged_directory(target, replaces=["model*"]) as stage:
        for name in ("config.json", "model.bin", "vocab.json"):
            open(stage / name, "w").write("new")
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_killed_at_any_step(tmp_path: Path, way: str) -> None:
    old = {"config.json": "old", "model-1.bin": "old", "vocab.json": "old", "notes": "mine"}
    new = {"config.json": "new", "model.bin": "new", "vocab.json": "new", "notes": "mine"}
    seen = set()
    for fatal in range(1, 100):
        target = tmp_path / f"{fatal}" / "model"
        save(target, old)
        done = run(KILLED, target, fatal, "after" if fatal % 2 else "before", way)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        recover(target)
        state = content(target)
        assert state in (old, new), fatal
        seen.add(state == new)
        save(target, {"config.json": "newer"}, "model*")  # clears what the dead left behind
        assert os.listdir(target.parent) == ["model"], fatal
        if done.returncode == 0:
            break
    assert done.returncode == 0  # it came through alive, so every step was met
    assert fatal > 12
    assert seen == {True, False}


def test_recovery_between_the_two_renames(tmp_path: Path) -> None:
    target = tmp_path / "model"
    save(target, {"a": "old"})
    recover(target)
    assert content(target) == {"a": "old"}
    os.rename(target, tmp_path / ".model.previous")
    recover(target)
    assert content(target) == {"a": "old"}
    (tmp_path / ".model.previous").mkdir()  # killed after the second: the old is superfluous
    save(target, {"a": "new"})
    assert content(target) == {"a": "new"}
    assert os.listdir(tmp_path) == ["model"]


def test_stage_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with staged_directory(target) as first:
        (first / "a").write_text("first")
        save(target, {"a": "second"})
        assert (first / "a").read_text() == "first"
    assert content(target) == {"a": "first"}
    assert os.listdir(tmp_path) == ["model"]


SAVER = """
    import sys
    from gpt2.storage.atomic import staged_directory
    target, mark = sys.argv[1], sys.argv[2]
    for _ in range(40):
        with staged_directory(target) as stage:
            (stage / "one").write_text(mark)
            (stage / "two").write_text(mark)
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    target = tmp_path / "model"
    script = textwrap.dedent(SAVER)
    savers = [
        subprocess.Popen([sys.executable, "-c", script, str(target), mark], cwd=ROOT)
        for mark in "AB"
    ]
    assert [saver.wait(60) for saver in savers] == [0, 0]
    files = content(target)
    assert files in ({"one": "A", "two": "A"}, {"one": "B", "two": "B"})
    assert os.listdir(tmp_path) == ["model"]
