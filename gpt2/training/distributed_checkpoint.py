"""Saving a run and going on, also on another number of processes: torch.distributed.checkpoint.

Every rank writes its own part. Names, shapes and the order of rows in the files are those of the
model on one device, so that a checkpoint saved in one mode, or by two ranks, is read in any other.
A save is staged beside its target and takes its place as a whole.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from gpt2.errors import ArgumentError, ArgumentTypeError, ConfigError, FileFormatError
from gpt2.modeling.pretrained import GPT2PreTrainedModel
from gpt2.storage.atomic import recover, staged_directory
from gpt2.storage.jsonfiles import read_json_object, write_json
from gpt2.training.checkpointfiles import read_failure, read_index, write_failure
from gpt2.training.sharded import local, own_part, together, whole
from gpt2.training.tensor_parallel import fused_orders

Path_ = str | os.PathLike[str]

_RUN = "run.json"
# Config fields that say nothing of what the weights mean; a run may change them.
_FREE = frozenset(
    {
        "architectures", "attn_implementation", "attn_pdrop", "embd_pdrop", "id2label", "label2id",
        "output_attentions", "output_hidden_states", "resid_pdrop", "return_dict", "torch_dtype",
        "transformers_version", "use_cache",
    }
)  # fmt: skip


def save_checkpoint(
    directory: Path_,
    model: GPT2PreTrainedModel,
    optimizer: Optimizer | None = None,
    *,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write model, optimizer and ``extra`` into ``directory``; all ranks must call it.

    The directory, which all ranks must see, is replaced as a whole: whatever is
    killed while saving, what was there before is unchanged. ``extra``: what JSON
    can hold, such as the step and a schedule's state; rank 0's is written.

    Raises ArgumentTypeError for an ``extra`` that JSON cannot hold, and
    FileAccessError where the disk refuses; all ranks raise where one does.
    """
    content = together(lambda: _content(extra, optimizer, model))
    with ExitStack() as stack:
        stage = _told(together(lambda: _stage(stack, directory)))
        with torch.no_grad():
            tensors = {
                key: _as_documented(tensor, order)
                for key, (tensor, order) in _tensors(model, optimizer).items()
            }
        try:
            together(lambda: _write(stage, tensors, content))
        except CheckpointException as error:  # raised on all ranks
            raise write_failure(Path(directory), error) from error
        together(stack.close)  # every rank has written: the stage takes its place


def load_checkpoint(
    directory: Path_, model: GPT2PreTrainedModel, optimizer: Optimizer | None = None
) -> dict[str, Any]:
    """Read what save_checkpoint wrote into a model and its optimizer; returns its ``extra``.

    On any number of processes, in any mode, also without parallelize or a
    process group; all ranks must call it. The model must have memory
    (`initialise_sharded`), the optimizer must have been made for it, with the same
    parameters in its groups; their settings (lr …) are those saved.

    Raises ConfigError, with both values, where the config is another one,
    ArgumentError where the optimizer's parameters are others, and
    FileAccessError or FileFormatError where there is no whole checkpoint. Until
    then nothing is changed.
    """
    path = Path(directory)
    run, known = together(lambda: _read_run(path, model, optimizer))
    if optimizer is not None:
        _allocate_state(optimizer, model, known)
    goals = _tensors(model, optimizer)
    state = {
        key: goal.detach() if order is None else torch.empty_like(goal.detach())
        for key, (goal, order) in goals.items()
    }
    try:
        together(lambda: _with_torch(load, state, path))
    except CheckpointException as error:  # raised on all ranks
        raise read_failure(path, error) from error
    with torch.no_grad():
        for key, (goal, order) in goals.items():
            if order is not None:
                local(goal).copy_(own_part(whole(state[key]), goal, order))
    if optimizer is not None:
        for group, saved in zip(optimizer.param_groups, run["groups"], strict=True):
            for name, value in saved["settings"].items():
                group[name] = tuple(value) if isinstance(value, list) else value
    extra: dict[str, Any] = run["extra"]
    return extra


def _content(
    extra: dict[str, Any] | None, optimizer: Optimizer | None, model: GPT2PreTrainedModel
) -> dict[str, Any]:
    """What stands in run.json, and is checked before the first tensor is read."""
    content = {
        "config": model.config.to_dict(),
        "groups": None if optimizer is None else _groups(optimizer, model),
        "extra": extra or {},
    }
    try:
        json.dumps(content)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"extra and the settings of the optimizer's groups must be what JSON can hold: {error}"
        ) from error
    return content


def _groups(optimizer: Optimizer, model: GPT2PreTrainedModel) -> list[dict[str, Any]]:
    names = {p: name for name, p in model.named_parameters()}
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        if any(p not in names for p in group["params"]):
            raise ArgumentError(
                f"optimizer: group {number} has a parameter that is not the model's; make the "
                "optimizer after parallelize, load_sharded and initialise_sharded"
            )
        settings = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        groups.append({"names": [names[p] for p in group["params"]], "settings": settings})
    return groups


def _tensors(
    model: GPT2PreTrainedModel, optimizer: Optimizer | None
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Key in the checkpoint -> tensor, and the order of its rows where they have another."""
    orders = fused_orders(model)
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, parameter in model.named_parameters():
        order = orders.get(name)
        found[f"model.{name}"] = (parameter, order)
        state = {} if optimizer is None else optimizer.state.get(parameter, {})
        for key, value in sorted(state.items()):
            if not isinstance(value, Tensor) or value.shape not in (parameter.shape, ()):
                raise ArgumentError(
                    f"optimizer: its state {key!r} of {name} is no tensor of the parameter's shape "
                    f"{tuple(parameter.shape)} or a single number, and cannot be saved"
                )
            found[f"optimizer.{name}.{key}"] = (value, order if value.dim() else None)
    return found


def _as_documented(tensor: Tensor, order: Tensor | None) -> Tensor:
    """The tensor, or where its rows have another order a copy in the documented one."""
    tensor = tensor.detach()
    if order is None:
        return tensor
    part = own_part(whole(tensor, order), tensor).clone()
    if not isinstance(tensor, DTensor):
        return part
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False,
        shape=tensor.shape, stride=tensor.stride(),
    )  # fmt: skip


def _stage(stack: ExitStack, directory: Path_) -> Path | None:
    """Rank 0 opens the directory to write into."""
    if dist.is_initialized() and dist.get_rank() != 0:
        return None
    return stack.enter_context(staged_directory(directory, replaces=["*"]))


def _told(stage: Path | None) -> Path:
    """Rank 0's directory, on every rank."""
    told = [stage]
    if dist.is_initialized():
        dist.broadcast_object_list(told, 0)
    assert told[0] is not None
    return told[0]


def _write(stage: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    _with_torch(save, tensors, stage)
    if not dist.is_initialized() or dist.get_rank() == 0:
        write_json(stage / _RUN, content)


def _with_torch(action: Callable[..., Any], tensors: dict[str, Tensor], path: Path) -> None:
    """torch's ``save`` or ``load``, without its warning that there is one process: so it is."""
    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        if alone:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        action(tensors, checkpoint_id=path, no_dist=alone)


def _read_run(
    path: Path, model: GPT2PreTrainedModel, optimizer: Optimizer | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json, and what the checkpoint has by key; refuses what does not fit."""
    recover(path)
    run = read_json_object(path / _RUN)
    if set(run) != {"config", "groups", "extra"}:
        raise FileFormatError(f"{path / _RUN} is not what save_checkpoint writes: it has {[*run]}")
    if not isinstance(run["config"], dict):
        raise FileFormatError(f"{path / _RUN}: config is no JSON object, but {run['config']!r:.80}")
    ours, theirs = model.config.to_dict(), run["config"]
    differing = [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted({*ours, *theirs} - _FREE)
        # Through JSON, which has lists and names where Python has tuples and numbers.
        if json.dumps(theirs.get(name)) != json.dumps(ours.get(name))
    ]
    if differing:
        raise ConfigError(
            f"{path} was saved with another config: {'; '.join(differing)}; make the model with "
            "the config of the run"
        )
    known = read_index(path)
    missing = [n for n, _ in model.named_parameters() if f"model.{n}" not in known]
    if missing:
        raise FileFormatError(f"{path} has no {', '.join(missing[:5])}, which the model has")
    if optimizer is not None:
        groups = _groups(optimizer, model)
        if run["groups"] is None:
            raise ArgumentError(f"{path} was saved without an optimizer; leave optimizer out")
        if [g["names"] for g in groups] != [g["names"] for g in run["groups"]]:
            raise ArgumentError(
                f"optimizer: its groups have {[len(g['names']) for g in groups]} parameters, those "
                f"in {path} {[len(g['names']) for g in run['groups']]}, or others; make it from "
                "the same parameter_groups"
            )
    return run, known


def _allocate_state(
    optimizer: Optimizer, model: GPT2PreTrainedModel, known: dict[str, Any]
) -> None:
    """Give the optimizer memory for all that the checkpoint has for it."""
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        for key, stored in known.items():
            if key.startswith(prefix):
                assert isinstance(stored, TensorStorageMetadata)
                like = parameter.detach() if len(stored.size) else torch.zeros(())
                empty = torch.zeros_like(like, dtype=stored.properties.dtype)
                optimizer.state[parameter][key.removeprefix(prefix)] = empty
