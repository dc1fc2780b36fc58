"""A tiny model's names, shapes and tensors, for the tests of checkpoints."""

from __future__ import annotations

from typing import Any

import torch

from gpt2.checkpoints.load import LoadedTensors
from gpt2.checkpoints.load import load_tensors as load
from gpt2.checkpoints.match import Rules
from gpt2.checkpoints.weightfiles import WeightFiles
from gpt2.storage.hub import Repository

D, F, V, P = 4, 8, 11, 6  # hidden, inner, vocabulary, positions
PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
CROSS_PROJECTIONS = ("crossattention.c_attn", "crossattention.q_attn", "crossattention.c_proj")
TIED = {"lm_head.weight": "transformer.wte.weight"}

Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]


def core_shapes(layers: int = 2, *, cross: bool = False) -> Shapes:
    """Names and shapes (``nn.Linear`` orientation) of a bare core."""
    shapes: Shapes = {"wte.weight": (V, D), "wpe.weight": (P, D)}
    sizes = {
        "attn.c_attn": (3 * D, D),
        "attn.c_proj": (D, D),
        "mlp.c_fc": (F, D),
        "mlp.c_proj": (D, F),
    }
    if cross:
        sizes |= {
            "crossattention.c_attn": (2 * D, D),
            "crossattention.q_attn": (D, D),
            "crossattention.c_proj": (D, D),
        }
    for n in range(layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{n}.{norm}.weight": (D,), f"h.{n}.{norm}.bias": (D,)}
        for module, (rows, columns) in sizes.items():
            shapes[f"h.{n}.{module}.weight"] = (rows, columns)
            shapes[f"h.{n}.{module}.bias"] = (rows,)
    return shapes | {"ln_f.weight": (D,), "ln_f.bias": (D,)}


def lm_shapes(layers: int = 2, *, cross: bool = False) -> Shapes:
    """Those of a core with an LM head."""
    core = core_shapes(layers, cross=cross)
    return {f"transformer.{name}": shape for name, shape in core.items()} | {
        "lm_head.weight": (V, D)
    }


def random_tensors(shapes: Shapes, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Asymmetric contents for every name but the tied head's."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
        if name not in TIED
    }


def as_conv1d(tensors: Tensors) -> Tensors:
    """As Hugging Face stores it. Written out by hand, so as not to trust the table under test."""
    modules = PROJECTIONS + CROSS_PROJECTIONS
    return {
        name: tensor.t().contiguous()
        if any(name.endswith(f".{module}.weight") for module in modules)
        else tensor
        for name, tensor in tensors.items()
    }


def assert_same(found: Tensors, expected: Tensors) -> None:
    """The same names, and the same bits in contiguous tensors."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].is_contiguous(), name
        assert torch.equal(found[name], tensor), name


def load_tensors(
    repository: Repository,
    expected: Shapes,
    *,
    dtype: Any = None,
    device: str = "cpu",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    **rules: Any,
) -> LoadedTensors:
    """Load the weight files of a repository."""
    with WeightFiles(repository, variant=variant, use_safetensors=use_safetensors) as weights:
        return load(weights, expected, Rules(**rules), dtype=dtype, device=device)


def normalize_state_dict(
    tensors: Tensors, expected: Shapes, *, dtype: Any = None, **rules: Any
) -> LoadedTensors:
    """Load a state dict at hand."""
    return load(tensors, expected, Rules(**rules), dtype=dtype)
