"""Processes that need not import torch: they are forked from one that has, which costs 3 s once."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.multiprocessing as mp


def forkserver() -> mp.context.ForkServerContext:
    """multiprocessing's context; as with spawn, a process has nothing of this one."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "gpt2.training.distributed_checkpoint"])
    return context


def run_script(
    script: Path, arguments: Sequence[str], environment: dict[str, str], output: Path
) -> None:
    """``python script arguments`` in a process of `forkserver`; what it prints goes to a file."""
    os.environ.update(environment)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, sys.stdout.fileno())
    os.dup2(printed, sys.stderr.fileno())
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
