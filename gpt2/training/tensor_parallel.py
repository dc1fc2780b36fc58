"""Tensor parallelism for GPT-2: which rank holds which part of a weight, by torch's DTensor.

Each rank of the mesh dimension has H / tp heads, F / tp inner features and V / tp tokens
(arXiv:1909.08053). Blocks begin and end with activations that are the same on all ranks.

The fused projection c_attn needs care: cut as it is, the first of two ranks would hold all
queries and half of the keys. Its rows are put into another order first, so that the rank's own
slice is [its queries, its keys, its values]. `fused_orders` tells the order, for whoever reads or
writes whole tensors.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from gpt2.errors import ArgumentError
from gpt2.modeling.attention import GPT2Attention
from gpt2.modeling.losses import SUMMED_BY_TYPE
from gpt2.modeling.mlp import GPT2MLP
from gpt2.modeling.outputs import ModelOutput
from gpt2.modeling.pretrained import GPT2PreTrainedModel
from gpt2.training.vocab_parallel import summed_vocab_parallel_cross_entropy


def apply_tensor_parallel(model: GPT2PreTrainedModel, mesh: DeviceMesh) -> None:
    """Cut the model, in place, over the one-dimensional ``mesh``.

    Every parameter becomes a DTensor: the projections, the token embedding and
    the language-modelling head are cut, the rest is the same on all ranks.
    Raises ArgumentError, with the numbers, where something does not divide.
    """
    ranks = mesh.size()
    _require_divisible(model, ranks)
    plan: dict[str, ParallelStyle] = {}
    for path, module in model.named_modules():
        if isinstance(module, GPT2Attention):
            _reorder_rows(module, ranks)
            module.num_heads //= ranks
            module.register_forward_pre_hook(_refuse_whole_heads, with_kwargs=True)
            plan |= {f"{path}.c_attn": ColwiseParallel(), f"{path}.c_proj": RowwiseParallel()}
            if module.is_cross_attention:
                plan[f"{path}.q_attn"] = ColwiseParallel()
        elif isinstance(module, GPT2MLP):
            plan |= {f"{path}.c_fc": ColwiseParallel(), f"{path}.c_proj": RowwiseParallel()}
    embedding, head = _token_modules(model)
    plan[embedding] = RowwiseParallel(input_layouts=Replicate())
    if head is not None:
        plan[head] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
        # The loss looks its function up by the type of the logits.
        SUMMED_BY_TYPE[DTensor] = summed_vocab_parallel_cross_entropy
        model.register_forward_hook(_gather_logits)
    # src_data_rank None: every rank has the whole tensor, and cuts its own part out of it.
    parallelize_module(model, mesh, plan, src_data_rank=None)
    for module in list(model.modules()):
        if any(not isinstance(p, DTensor) for p in module.parameters(recurse=False)):
            distribute_module(module, mesh, None, _as_replicated, _as_local)
    model.tie_weights()  # parallelize_module makes a parameter for each module


def fused_orders(model: nn.Module) -> dict[str, Tensor]:
    """Name of a parameter whose rows are in another order -> that order, (rows,) int64.

    ``whole[order]`` is what the parallel model has of the documented ``whole``.
    """
    orders: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        order = getattr(module, "fused_order", None)
        if isinstance(order, Tensor):
            orders |= {f"{path}.c_attn.weight": order, f"{path}.c_attn.bias": order}
    return orders


def _reorder_rows(attention: GPT2Attention, ranks: int) -> None:
    """Put the rows of c_attn in the order (rank, part, feature); they are (part, rank, feature)."""
    parts = 2 if attention.is_cross_attention else 3
    c_attn = attention.c_attn
    order = torch.arange(c_attn.out_features, device="cpu")
    order = order.view(parts, ranks, -1).transpose(0, 1).flatten()
    for leaf in ("weight", "bias"):
        parameter = getattr(c_attn, leaf)
        reordered = parameter.detach()[order.to(parameter.device)]
        setattr(c_attn, leaf, nn.Parameter(reordered, requires_grad=parameter.requires_grad))
    attention.fused_order = order


def _require_divisible(model: GPT2PreTrainedModel, ranks: int) -> None:
    for path, module in model.named_modules():
        if isinstance(module, GPT2Attention) and module.num_heads % ranks:
            raise ArgumentError(
                f"tensor_parallel: {path} has {module.num_heads} heads, which {ranks} ranks cannot "
                "share equally; use a 'tp' dimension that divides the number of heads"
            )
        for leaf in ("c_attn", "q_attn", "c_fc", "c_proj", "lm_head", "wte", "wpe"):
            layer = getattr(module, leaf, None)
            if isinstance(layer, nn.Module) and type(layer) not in (nn.Linear, nn.Embedding):
                name = f"{path}.{leaf}".lstrip(".")
                raise ArgumentError(
                    f"tensor_parallel: {name} is a {type(layer).__name__}, which cannot be "
                    "cut; merge adapters (merge_lora, drop_lora), or use fully_shard alone"
                )
    inner, vocabulary = model.config.inner_dim, model.config.vocab_size
    if inner % ranks:
        raise ArgumentError(
            f"tensor_parallel: the MLP has {inner} inner features, which {ranks} ranks cannot "
            "share equally; use a 'tp' dimension that divides them"
        )
    rows = -(-vocabulary // ranks)  # of each rank but the last, which has what is left
    if rows * (ranks - 1) >= vocabulary:
        raise ArgumentError(
            f"tensor_parallel: {vocabulary} tokens in parts of {rows} leave none for the last of "
            f"{ranks} ranks; use a smaller 'tp' dimension"
        )


def _token_modules(model: GPT2PreTrainedModel) -> tuple[str, str | None]:
    """The paths of the token embedding and of the language-modelling head, if there is one."""
    prefix = f"{model.base_model_prefix}."
    embedding = f"{prefix}wte" if hasattr(model, model.base_model_prefix) else "wte"
    return embedding, "lm_head" if hasattr(model, "lm_head") else None


def _as_replicated(_module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
    return tuple(
        DTensor.from_local(x, mesh, [Replicate()], run_check=False)
        if isinstance(x, Tensor) and not isinstance(x, DTensor)
        else x
        for x in inputs
    )


def _as_local(_module: nn.Module, output: Any, _mesh: DeviceMesh) -> Any:
    return output.to_local() if isinstance(output, DTensor) else output


def _gather_logits(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    """The caller sees whole logits (B, T, V); return_logits=False spares gathering them."""
    if isinstance(output, tuple):
        return tuple(_gathered(x) for x in output)
    assert isinstance(output, ModelOutput)
    output.logits = _gathered(output.logits)  # type: ignore[attr-defined]
    return output


def _gathered(x: Any) -> Any:
    # A copy, since what full_tensor gives is a view, which FSDP warns of.
    return x.full_tensor().clone() if isinstance(x, DTensor) else x


def _refuse_whole_heads(_module: nn.Module, _inputs: Any, arguments: dict[str, Any]) -> None:
    """A rank has some of the heads only, and cannot speak of all of them."""
    if arguments.get("head_mask") is not None:
        raise ArgumentError("head_mask cannot be had with tensor_parallel; leave it out")
    if arguments.get("output_attentions"):
        raise ArgumentError("output_attentions cannot be had with tensor_parallel; leave it out")
