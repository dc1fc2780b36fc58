"""prepare_for_inference: a copy of a model whose weights are stored for fast decoding.

The copy is of the same class, with the same forward and generate. Its linear
layers are `PackedLinear` (gpt2/modeling/linear.py, which has the figures); with
``compile=True`` a step of one token runs each block as one compiled function
over the growing cache. On a GPU, where F.linear is as fast as memory, the
modules stay and ``generate`` compiles the whole step
(gpt2/generation/static_decoder.py).

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

import copy
import os
import shutil
from typing import Any, TypeVar, get_args

import torch
from torch import nn

from gpt2.errors import ArgumentError, BackendError
from gpt2.fieldchecks import check_choice
from gpt2.modeling import flash
from gpt2.modeling.activations import gelu_tanh, get_activation, unchanged
from gpt2.modeling.attention import GPT2Attention
from gpt2.modeling.backends import attend_sdpa, attend_sdpa_rounded
from gpt2.modeling.linear import PackedEmbedding, PackedLinear, Storage
from gpt2.modeling.mlp import GPT2MLP

#: a GPT2PreTrainedModel, which this module may not know: that one's method calls it
Model = TypeVar("Model", bound=nn.Module)


def prepare_for_inference(
    model: Model, *, weights: Storage = "float32", compile: bool = False
) -> Model:
    """A copy of ``model`` for inference; see GPT2PreTrainedModel.prepare_for_inference."""
    check_choice(ArgumentError, "weights", weights, get_args(Storage))
    packed: Any = model.packed
    if packed and not packed == weights == "int8":
        raise ArgumentError(
            f"the model is prepared already, with {packed} weights; prepare the original"
        )
    device = next(model.parameters()).device
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"prepare_for_inference knows CPU and CUDA; the model is on {device}")
    _refuse_changed_layers(model)
    if device.type == "cuda":
        return _for_cuda(model, weights, compile)
    if compile:
        _require_compiler()
    if packed:  # as an int8 checkpoint is loaded
        prepared = copy.deepcopy(model)
    else:
        prepared = packed_copy(model, weights, by_rows=compile)
    if compile:
        _arrange(prepared, compiled=True)
        _switch_on(prepared)
    return prepared


def _for_cuda(model: Model, weights: Storage, compile: bool) -> Model:
    if weights == "int8":
        raise BackendError(
            "weights='int8' is for CPU, where the model is not; on a GPU give weights='bfloat16'"
        )
    facts: Any = model
    if compile and facts.config.attn_implementation == flash.NAME:
        raise BackendError(
            f"compile=True on a GPU decodes over a cache of fixed shape, which {flash.NAME} cannot "
            "read; build the model with attn_implementation='sdpa', or leave out compile"
        )
    prepared = copy.deepcopy(model).eval().requires_grad_(False).to(getattr(torch, weights))
    if compile and hasattr(prepared, "step_compile_mode"):
        vars(prepared)["step_compile_mode"] = "reduce-overhead"
    return prepared


def packed_copy(model: Model, weights: Storage, *, by_rows: bool) -> Model:
    """A copy in eval mode with its linear layers and token embedding packed; ``model`` stays.

    ``by_rows``: keep every weight by rows as well, which compiled products read.
    """
    facts: Any = model
    ties = facts.tied_weights if facts.config.tie_word_embeddings else {}
    tied = {name.rpartition(".")[0]: source.rpartition(".")[0] for name, source in ties.items()}
    replaced: dict[str, nn.Module] = {}
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            replaced[name] = PackedLinear.pack(module, weights, keep_rows=by_rows or name in tied)
        elif (
            isinstance(module, nn.Embedding) and name.endswith("wte") and name not in tied.values()
        ):
            replaced[name] = PackedEmbedding.pack(module, weights)
    for name, source in tied.items():
        head = replaced[name]
        assert isinstance(head, PackedLinear)
        assert head.weight is not None
        replaced[source] = PackedEmbedding(head.weight, head.scale)
    for name, new in replaced.items():
        memo[id(model.get_submodule(name))] = new  # so that no weight is copied in vain
    prepared = copy.deepcopy(model, memo)
    _arrange(prepared, compiled=False)
    for module in prepared.modules() if weights != "float32" else ():
        if isinstance(module, GPT2Attention) and module.attend is attend_sdpa:
            module.attend = attend_sdpa_rounded
    core: Any = prepared.base_model
    vars(prepared)["packed"] = vars(core)["packed"] = weights
    vars(prepared).pop("vocabulary_multiple", None)  # see GenerativeModel.pad_vocabulary
    return prepared.eval().requires_grad_(False)


def _arrange(prepared: nn.Module, *, compiled: bool) -> None:
    """What each packed layer gives, for steps that are compiled or not.

    Not compiled, attention is in float32: torch's bfloat16 kernel takes as long
    for a prompt, and 4 times as long for a token (8 rows at 64 columns 331 µs,
    not 74). The compiled step reads a bfloat16 cache at its full speed. gelu_new
    is c_fc's own.
    """
    config: Any = prepared.config
    activation = get_activation(config.activation_function)
    fused = activation is gelu_tanh
    for name, module in prepared.named_modules():
        if isinstance(module, PackedLinear):
            in_block = ".h." in f".{name}"
            module.in_float32 = not in_block or (name.endswith("_attn") and not compiled)
        elif isinstance(module, GPT2MLP):
            c_fc: Any = module.c_fc
            c_fc.gelu, module.act = fused, unchanged if fused else activation


def _refuse_changed_layers(model: nn.Module) -> None:
    plain = nn.Linear, nn.Embedding
    for name, module in model.named_modules():
        if isinstance(module, plain) and type(module) not in plain:
            raise ArgumentError(
                f"{name} is a {type(module).__name__}, which cannot be packed; merge adapters, or "
                "remove what has replaced the layer, before prepare_for_inference"
            )


def _switch_on(model: Any) -> None:
    """Use the compiled step; compile it for one row at once, so that no first token waits."""
    core, head = model.base_model, model.get_output_embeddings()
    core.compiled = True
    if isinstance(head, PackedLinear):
        head.compiled = True
    if model.config.n_positions < 3:
        return  # no room for a step behind two tokens
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad():  # as generate
        past = core(ids, use_cache=True, return_dict=True).past_key_values
        step = core(ids[:, :1], past_key_values=past, use_cache=True, return_dict=True)
        if head is not None:
            head(step.last_hidden_state)


def _require_compiler() -> None:
    wanted = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(map(shutil.which, wanted)):
        raise BackendError(
            f"compile=True needs a C++ compiler, and {' or '.join(wanted)} is not on the PATH; "
            "install one (Debian: apt install g++), name one in CXX, or leave out compile"
        )
