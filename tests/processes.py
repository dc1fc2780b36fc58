"""Processes that need not import torch: they are forked from one that has, which costs 3 s once."""

from __future__ import annotations

import torch.multiprocessing as mp


def forkserver() -> mp.context.ForkServerContext:
    """multiprocessing's context; as with spawn, a process has nothing of this one."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "gpt2.training.distributed_checkpoint"])
    return context
