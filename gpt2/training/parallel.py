"""From one device to many: a model cut over a torch.distributed mesh, by torch's own parts.

    torchrun --nproc-per-node 8 train.py

    mesh = init_device_mesh("cuda", (4, 2), mesh_dim_names=("dp", "tp"))
    parallelize(model, mesh, tensor_parallel=True, fully_shard=True)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=3e-4)  # behind parallelize
    loss = model(**batch, return_logits=False).loss
    loss.backward()

The ranks of one "tp" group get the same batch, those along "dp" each their own. The training
loop stays the caller's.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.fsdp as fsdp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.fieldchecks import check_bool
from gpt2.modeling.pretrained import GPT2PreTrainedModel
from gpt2.modeling.transformer import GPT2Model
from gpt2.training.tensor_parallel import apply_tensor_parallel

Model = TypeVar("Model", bound=GPT2PreTrainedModel)

DIMENSIONS = ("dp", "tp")
"""The names that a mesh's dimensions may have, in this order: fully_shard cuts over "dp",
tensor_parallel over "tp"."""


def parallelize(
    model: Model,
    mesh: DeviceMesh,
    *,
    tensor_parallel: bool = False,
    fully_shard: bool | MixedPrecisionPolicy = False,
    activation_checkpointing: bool = False,
    compile: bool = False,
) -> Model:
    """Cut ``model``, in place, over ``mesh``, which spans all processes; returns it.

    Call it on every rank, before the optimizer is made. Parameters become
    DTensors of the same names and shapes. A model on the meta device gets its
    weights afterwards, see `gpt2.training.sharded.load_sharded`; else rank 0's
    weights are sent to all.

    ``tensor_parallel``: over the dimension "tp", each rank has its heads, inner
    features and tokens; all ranks of a group must get the same batch. Rows of
    c_attn are then in another order; `gpt2.training.sharded` undoes it. Logits
    are gathered for the caller, which return_logits=False spares. Seed the ranks
    of a group alike: their dropout must be the same (so heads at the same place
    of two ranks share their attention dropout).
    ``fully_shard``: FSDP2 over the dimension "dp"; each rank has its part of
    every parameter, gradient and optimizer state. True, or a
    MixedPrecisionPolicy. Gradients are averaged over "dp": where ranks have
    unequal numbers of targets, give num_items_in_batch = (those of all
    ranks) / (size of "dp").
    ``activation_checkpointing``: gradient_checkpointing_enable().
    ``compile``: torch.compile of each block.

    Raises ArgumentError for a mesh whose names or size do not fit, and for heads,
    inner features or tokens that cannot be shared out.
    """
    _check_model(model)
    for name, flag in (
        ("tensor_parallel", tensor_parallel),
        ("activation_checkpointing", activation_checkpointing),
        ("compile", compile),
    ):
        check_bool(ArgumentError, name, flag)
    if not isinstance(fully_shard, bool | MixedPrecisionPolicy):
        raise ArgumentTypeError(
            f"fully_shard must be True, False or a MixedPrecisionPolicy, not {fully_shard!r}"
        )
    names = _check_mesh(mesh, tensor_parallel, bool(fully_shard))
    if not next(model.parameters()).is_meta:
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.detach(), 0)
    if tensor_parallel:
        _check_seeds(model, mesh["tp"])
        apply_tensor_parallel(model, mesh["tp"] if len(names) > 1 else mesh)
    if fully_shard:
        policy = fully_shard if fully_shard is not True else MixedPrecisionPolicy()
        # The root keeps the embeddings and a tied head: one group, so that the tie holds.
        along = mesh["dp"] if len(names) > 1 else mesh
        for block in _core(model).h:
            fsdp.fully_shard(block, mesh=along, mp_policy=policy)
        fsdp.fully_shard(model, mesh=along, mp_policy=policy)
    if activation_checkpointing:
        model.gradient_checkpointing_enable()
    if compile:
        for block in _core(model).h:
            block.compile()
    return model


def _core(model: GPT2PreTrainedModel) -> GPT2Model:
    core = getattr(model, model.base_model_prefix, model)
    assert isinstance(core, GPT2Model)
    return core


def _check_model(model: object) -> None:
    if not isinstance(model, GPT2PreTrainedModel):
        raise ArgumentTypeError(f"model must be one of gpt2's, not a {type(model).__name__}")
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise ArgumentError("the model is parallel already; parallelize a model once")


def _check_mesh(mesh: object, tensor_parallel: bool, fully_shard: bool) -> tuple[str, ...]:
    if not isinstance(mesh, DeviceMesh):
        raise ArgumentTypeError(f"mesh must be a DeviceMesh, not a {type(mesh).__name__}")
    names, shape = mesh.mesh_dim_names, tuple(mesh.shape)
    if names is None or tuple(n for n in DIMENSIONS if n in names) != tuple(names):
        raise ArgumentError(
            f"mesh has the shape {shape} and the names {names}; its dimensions must be named "
            '("dp",), ("tp",) or ("dp", "tp")'
        )
    if mesh.size() != dist.get_world_size():
        raise ArgumentError(
            f"mesh has {mesh.size()} ranks, of shape {shape}, but there are "
            f"{dist.get_world_size()} processes; it must span them all"
        )
    for name, argument, wanted in (
        ("tp", "tensor_parallel", tensor_parallel),
        ("dp", "fully_shard", fully_shard),
    ):
        size = shape[names.index(name)] if name in names else 0
        if wanted and not size:
            raise ArgumentError(f"{argument} needs a dimension {name!r}; mesh has {names}")
        if size > 1 and not wanted:
            raise ArgumentError(
                f"mesh has {size} ranks along {name!r}, which {argument}=False leaves without "
                f"use; give {argument}, or a mesh without {name!r}"
            )
    return tuple(names)


def _check_seeds(model: GPT2PreTrainedModel, mesh: DeviceMesh) -> None:
    """Dropout outside the heads must be the same on all ranks of a group."""
    config = model.config
    if not any((config.resid_pdrop, config.embd_pdrop, config.attn_pdrop)):
        return
    seeds: list[int | None] = [None] * mesh.size()
    dist.all_gather_object(seeds, torch.initial_seed(), group=mesh.get_group())
    if len(set(seeds)) > 1:
        raise ArgumentError(
            f"tensor_parallel with dropout: the ranks of one 'tp' group have the seeds {seeds}, so "
            "that their activations would part; call torch.manual_seed with one seed per group, "
            'such as seed + mesh.get_local_rank("dp")'
        )
