"""The head's product over a padded vocabulary, of which nothing shows.

GPT-2 has 50257 tokens, an odd number, and a GPU's fast kernels for products want
rows that begin at multiples of 16 bytes. nanoGPT's author reports about 25 % more
speed of a whole training step from a vocabulary of 50304 = 64 · 786 tokens. Here
the weight keeps its rows. A copy of it gets rows of zeros up to the multiple, the
product is of that, and the columns that the zeros make are cut off, from the
logits here and from the softmax in linear_loss.py.

The copy of 124M's weight reads and writes 77 MB each in bfloat16, which by the
data sheet is 0.05 ms of an H100, as long as the product over 400 rows takes it.
So a few rows, such as a step of decoding, are computed over the weight as it is.
On a CPU it hardly matters: head and loss of 1024 tokens, forward and backward on 2
cores, take 1.51 s instead of 1.62 in float32, and in bfloat16 1.27 instead of 1.30.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.errors import ArgumentError
from gpt2.modeling import onednn
from gpt2.modeling.linear import PackedLinear

#: from so many rows of input on the vocabulary is padded: backward has two more such products
_FEWEST_ROWS = 256


def logits_of(head: nn.Module, x: Tensor, multiple: int | None) -> Tensor:
    """``head(x)``, (…, V), over a vocabulary padded to ``multiple``; see `padding_rows`."""
    # not counted where nobody asks: that would fix the sizes of an exported graph
    extra = 0 if multiple is None else padding_rows(head, x.shape[:-1].numel(), multiple)
    if not extra:
        packed = isinstance(head, PackedLinear)  # which has products of its own
        with nullcontext() if packed else onednn.products(x)():
            logits: Tensor = head(x)
        return logits
    weight = weight_of(head, x)
    # The copy of the logits, so that not even their strides show it.
    return F.linear(x, padded(weight, extra))[..., : len(weight)].contiguous()


def padding_rows(head: nn.Module, rows: int, multiple: int | None) -> int:
    """How many rows of zeros the weight of ``head`` gets for ``rows`` rows of input.

    0 where ``multiple`` is None, where it divides V, and for less than 256 rows.
    Raises ArgumentError where the head is not `is_plain`, since the product that
    is padded would pass by what has been added to it.
    """
    if multiple is None:
        return 0
    if not is_plain(head):
        raise ArgumentError(
            f"pad_vocabulary({multiple}) is for an lm_head that is a plain nn.Linear, and it is "
            f"{_description(head)}; call model.pad_vocabulary(None), or remove what was added "
            "(adapters: merge_lora, drop_lora)"
        )
    assert isinstance(head.weight, Tensor)
    return -len(head.weight) % multiple if rows >= _FEWEST_ROWS else 0


def padded(weight: Tensor, extra: int) -> Tensor:
    """``weight`` (V, D) with ``extra`` rows of zeros behind it, (V + extra, D)."""
    return F.pad(weight, (0, 0, 0, extra)) if extra else weight


def weight_of(head: nn.Module, x: Tensor) -> Tensor:
    """The weight (V, D) of a plain head, in the dtype that autocast would give its product."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    if torch.is_autocast_enabled(x.device.type):
        weight = weight.to(torch.get_autocast_dtype(x.device.type))
    return weight


def is_plain(head: nn.Module) -> bool:
    """Whether calling the head is x Wᵀ and nothing else."""
    plain = type(head) is nn.Linear and type(head.weight) in (nn.Parameter, Tensor)
    return plain and getattr(head, "bias", None) is None and not _is_watched(head)


def _is_watched(head: nn.Module) -> bool:
    hooks = (
        head._forward_hooks, head._forward_pre_hooks,
        head._backward_hooks, head._backward_pre_hooks,
    )  # fmt: skip
    return any(hooks) or "forward" in vars(head)  # accelerate's hooks replace forward


def _description(head: nn.Module) -> str:
    if type(head) is not nn.Linear:
        return f"a {type(head).__name__}"
    if type(head.weight) is not nn.Parameter:
        return f"one whose weight is a {type(head.weight).__name__}"
    return "one with hooks" if _is_watched(head) else "one with a bias"
