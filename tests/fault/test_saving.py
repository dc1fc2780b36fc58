"""Rows 21 to 23: full disks, kills and read-only targets while a whole model is saved."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from gpt2.errors import FileAccessError

ROOT = Path(__file__).resolve().parents[2]
IDS = torch.tensor([[1, 2, 3, 4]])


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# A model and a tokenizer that do not fit the checkpoint they came from.
CHANGED = """
    import os, resource, signal, sys
    import torch
    from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
    from gpt2.errors import GPT2Error
    from gpt2.storage import atomic
    model = GPT2LMHeadModel.from_pretrained(sys.argv[1])
    tokenizer = GPT2Tokenizer.from_pretrained(sys.argv[1])
    tokenizer.add_tokens(["<new>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.max_new_tokens = 7
"""
FULL = (
    CHANGED
    + """
    for most in map(int, sys.argv[2:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        try:
            model.save_pretrained(sys.argv[1], tokenizer=tokenizer)
        except GPT2Error as error:
            print(type(error).__name__, error)
"""
)


def test_row_21_a_full_disk_changes_nothing(checkpoint: Path) -> None:
    before = content(checkpoint)
    done = run(FULL, checkpoint, 10, 1000, 20_000, 60_000)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 4
    for line in told:
        assert line.startswith(f"FileAccessError cannot save to {checkpoint}: File too large")
        assert "what was there before is unchanged" in line
    assert content(checkpoint) == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


# Saves to one directory after the other, each in a child that dies at the n-th call that changes
# the file system: the first directory's at the first call, and so on until one comes through.
KILLED = (
    CHANGED
    + """
    calls = 0
    def deadly(function):
        def call(*arguments, **options):
            global calls
            calls += 1
            if calls == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    import builtins
    for name in ("mkdir", "rename", "link", "fsync", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))
    builtins.open = deadly(builtins.open)
    atomic._exchange = deadly(atomic._exchange)
    for fatal, target in enumerate(sys.argv[2:], 1):
        child = os.fork()
        if child == 0:
            model.save_pretrained(target, tokenizer=tokenizer)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code)
        if code == 0:
            break
"""
)


def test_row_22_killed_at_any_write_or_rename_all_is_old_or_all_is_new(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Config, weights, generation config and tokenizer, over a checkpoint that is there."""
    targets = [
        Path(shutil.copytree(checkpoint, tmp_path / f"{fatal}" / "model")) for fatal in range(1, 80)
    ]
    done = run(KILLED, checkpoint, *targets)
    assert done.returncode == 0, done.stderr
    *killed, last = map(int, done.stdout.splitlines())
    assert last == 0  # it came through alive, so every step was met
    assert set(killed) == {-signal.SIGKILL}
    assert len(killed) > 20
    states = []
    for fatal, target in enumerate(targets[: len(killed) + 1], 1):
        tokenizer = GPT2Tokenizer.from_pretrained(target)
        model = GPT2LMHeadModel.from_pretrained(target)
        facts = (
            len(tokenizer) == 269,
            model.config.vocab_size == 269,
            model.transformer.wte.weight.shape[0] == 269,
            model.generation_config.max_new_tokens == 7,
        )
        assert len(set(facts)) == 1, (fatal, facts)
        states.append(facts[0])
    assert states == sorted(states)  # old before the swap, new from there on
    assert set(states) == {True, False}


def test_row_23_read_only_targets_the_umask_and_saving_over_what_was_loaded(
    checkpoint: Path,
) -> None:
    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    expected = model(IDS).logits
    before = content(checkpoint)
    checkpoint.chmod(0o555)
    with pytest.raises(FileAccessError, match="read-only"):
        model.save_pretrained(checkpoint)
    checkpoint.chmod(0o755)
    assert content(checkpoint) == before

    old = os.umask(0o027)
    try:
        model.save_pretrained(checkpoint)
    finally:
        os.umask(old)
    assert stat.S_IMODE((checkpoint / "model.safetensors").stat().st_mode) == 0o640
    assert torch.equal(model(IDS).logits, expected)  # it does not read from the file any more
    assert torch.equal(GPT2LMHeadModel.from_pretrained(checkpoint)(IDS).logits, expected)
