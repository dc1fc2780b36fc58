"""Whole tensors and a rank's parts of them: loading into a parallel model, and exporting it.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate

from gpt2.checkpoints.load import TensorReader
from gpt2.checkpoints.match import Match
from gpt2.checkpoints.report import LoadReport
from gpt2.checkpoints.weightfiles import WeightFiles, open_checkpoint
from gpt2.errors import ArgumentError, DistributedError
from gpt2.modeling.pretrained import GPT2PreTrainedModel
from gpt2.training.tensor_parallel import fused_orders

Path_ = str | os.PathLike[str]
T = TypeVar("T")


def whole(tensor: Tensor, order: Tensor | None = None) -> Tensor:
    """The whole of a tensor that is spread over ranks, on each of them; rows as documented.

    All ranks must call it. ``order``: of the rows, from `fused_orders`.
    """
    full = tensor.detach()
    if isinstance(full, DTensor):
        # FSDP's cut first: it is a cut of what tensor parallelism has left to a rank.
        full = full.redistribute(placements=[Replicate(), *full.placements[1:]]).full_tensor()
    if order is None:
        return full
    rows = torch.empty_like(full)
    rows[order.to(full.device)] = full
    return rows


def own_part(full: Tensor, like: Tensor, order: Tensor | None = None) -> Tensor:
    """What this rank has of ``full``, by the placements of ``like``: a view. Sends nothing."""
    part = full if order is None else full[order.to(full.device)]
    if not isinstance(like, DTensor):
        return part
    mesh = like.device_mesh
    # FSDP cuts what tensor parallelism has left to a rank, so the last dimension comes first.
    for dimension, placement in reversed(list(enumerate(like.placements))):
        along = getattr(placement, "dim", None)
        if along is not None:
            pieces = part.chunk(mesh.size(dimension), along)
            rank = mesh.get_local_rank(dimension)
            part = pieces[rank] if rank < len(pieces) else part.narrow(along, 0, 0)
    return part


def local(tensor: Tensor) -> Tensor:
    """This rank's memory of a tensor."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor of every parameter, a tied one once. All ranks must go through it."""
    orders = fused_orders(model)
    for name, parameter in model.named_parameters():
        yield name, whole(parameter, orders.get(name))


def load_sharded(
    model: GPT2PreTrainedModel,
    name_or_path: Path_,
    *,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    **where: Any,
) -> LoadReport:
    """Give a parallel model on the meta device its part of the weights of a checkpoint.

        config = GPT2Config.from_pretrained(path)
        model = parallelize(GPT2LMHeadModel.from_config(config, device="meta"), mesh, ...)
        load_sharded(model, path, device="cuda")

    Every rank reads the files by itself, one tensor at a time, and keeps its part: the peak is
    the rank's own parameters and the largest stored tensor (wte), whatever the model's size.
    Nothing is sent, but for heads that the checkpoint lacks: rank 0 initialises those.
    ``where``: revision, subfolder, cache_dir, local_files_only, token. The report and the errors
    are from_pretrained's; all ranks raise where one does.
    """
    _require_meta(model)
    weights, reader = together(lambda: _open(model, name_or_path, variant, where))

    def fill(missing: dict[str, Tensor]) -> None:
        orders = fused_orders(model)
        for name, full in reader.tensors(model.dtype, torch.device("cpu")):
            mine = missing.pop(name)
            local(mine).copy_(own_part(full, mine, orders.get(name)))

    with weights:
        _materialise(model, device, fill)
    reader.report.model_class = _own_class(model).__name__
    reader.report.config = model.config
    return reader.report


def _open(
    model: GPT2PreTrainedModel, name_or_path: Path_, variant: str | None, where: dict[str, Any]
) -> tuple[WeightFiles, TensorReader]:
    """The files of a checkpoint, and what reads them in the model's names."""
    repository, file = open_checkpoint(name_or_path, **where)
    weights = WeightFiles(repository, variant=variant, file=file)
    rules = model.loading_rules(weights=weights)
    match = Match(weights.sources, model.expected_shapes(), rules)
    return weights, TensorReader(weights.sources, match, repr(repository.name))


def initialise_sharded(model: GPT2PreTrainedModel, *, device: torch.device | str = "cpu") -> None:
    """Give a parallel model on the meta device fresh weights, drawn by rank 0.

    The peak is the rank's own parameters and the largest tensor.
    """
    _require_meta(model)
    _materialise(model, device, lambda missing: None)


def export_pretrained(model: GPT2PreTrainedModel, directory: Path_, **how: Any) -> None:
    """Write a parallel model as one Hugging Face directory, from rank 0; all ranks must call it.

    Tensors are gathered one at a time; rank 0 keeps them in its main memory until they are
    written. ``how``: what save_pretrained takes (tokenizer, max_shard_size, dtype stays the
    model's). An error of rank 0 is raised by all ranks.
    """
    first = _rank() == 0
    tensors: dict[str, Tensor] = {}
    for name, full in gathered_state(model):
        if first:
            tensors[name] = full.cpu()

    def write() -> None:
        if first:
            plain = _own_class(model).from_config(model.config, device="meta", dtype=model.dtype)
            if "generation_config" in vars(model):
                plain.generation_config = vars(model)["generation_config"]
            plain.save_pretrained(directory, state_dict=tensors, **how)

    together(write)


def _own_class(model: GPT2PreTrainedModel) -> type[GPT2PreTrainedModel]:
    """The model's class without the one that FSDP puts before it."""
    return next(
        c
        for c in type(model).__mro__
        if issubclass(c, GPT2PreTrainedModel) and not issubclass(c, FSDPModule)
    )


def together(step: Callable[[], T]) -> T:
    """Do ``step`` on every rank; where one fails, all raise, so that none waits for ever."""
    error: Exception | None = None
    result: T | None = None
    try:
        result = step()
    except Exception as raised:
        error = raised
    failures: list[str | None] = [None] * (dist.get_world_size() if dist.is_initialized() else 0)
    if dist.is_initialized():
        dist.all_gather_object(failures, None if error is None else f"{error}")
    if error is not None:
        raise error
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise DistributedError(f"rank {rank} failed, and so all do: {failure}")
    return cast(T, result)


def _materialise(
    model: GPT2PreTrainedModel,
    device: torch.device | str,
    fill: Callable[[dict[str, Tensor]], None],
) -> None:
    """Allocate the parts, ``fill`` them, and initialise those that it leaves in its argument."""
    model.to_empty(device=device)
    missing: dict[str, Tensor] = dict(model.named_parameters())
    together(lambda: fill(missing))
    orders = fused_orders(model)
    for name, mine in list(missing.items()):
        fresh = _fresh(model, name, mine)
        if dist.is_initialized():
            dist.broadcast(fresh, 0)
        local(mine).copy_(own_part(fresh, mine, orders.get(name)))


def _fresh(model: GPT2PreTrainedModel, name: str, like: Tensor) -> Tensor:
    """A whole tensor with the initial values of that parameter."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    full = nn.Parameter(torch.empty(like.shape, dtype=like.dtype, device=local(like).device))
    held = module._parameters[leaf]
    module._parameters[leaf] = full
    try:
        model._init_parameter(name)
    finally:
        module._parameters[leaf] = held
    return full.detach()


def _require_meta(model: nn.Module) -> None:
    if not all(p.is_meta for p in model.parameters()):
        raise ArgumentError(
            "model has weights already; make it with from_config(config, device='meta'), and "
            "parallelize it, before its weights are loaded"
        )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
