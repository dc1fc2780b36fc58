"""Which layout a checkpoint has: read off its names and shapes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gpt2.checkpoints.gpt2_tables import HUGGING_FACE, LINEAR, MINGPT, NANOGPT
from gpt2.checkpoints.opt import OPT
from gpt2.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpt2.checkpoints.layouts import Layout
    from gpt2.checkpoints.tensorfiles import Stored

LAYOUTS = {layout.name: layout for layout in (HUGGING_FACE, NANOGPT, MINGPT, OPT, LINEAR)}
WRITTEN = tuple(name for name in LAYOUTS if name != LINEAR.name)
"""The layouts that a model can be saved in."""


def layout_to_write(name: str) -> Layout:
    """The layout of this name; ArgumentError with the list where there is none."""
    if name not in WRITTEN:
        raise ArgumentError(f"layout={name!r} is none of {', '.join(map(repr, WRITTEN))}")
    return LAYOUTS[name]


def detect_layout(
    entries: Mapping[str, Stored], container: Mapping[str, Any], width: int | None = None
) -> Layout:
    """The layout of tensors of these names and shapes.

    OPT has names of its own. With GPT-2's, Hugging Face's files have their projections
    [in, out]. Of those with [out, in], nanoGPT's and minGPT's always have a head; nanoGPT keeps
    the model's arguments beside the weights (``container``), minGPT the causal masks among them.

    ``width`` is n_embd, if known; it helps where the file has nothing that tells.
    """
    if sum(map(OPT.recognises, entries)) > sum(map(HUGGING_FACE.recognises, entries)):
        return OPT
    if _orientation(entries, width) == "conv1d":
        return HUGGING_FACE
    ours = {LINEAR.to_ours(name).ours for name in entries}
    if "model_args" in container:
        return NANOGPT
    if "lm_head.weight" not in ours:
        return LINEAR
    return MINGPT if any(map(LINEAR.ignores, entries)) else NANOGPT


def _orientation(entries: Mapping[str, Stored], width: int | None) -> str:
    """That of the first projection whose shape tells: h.0.attn.c_attn, in a whole model."""
    by_name = {HUGGING_FACE.to_ours(name).ours: s.shape for name, s in entries.items()}
    widths = (shape[-1] for name, shape in by_name.items() if shape and _WIDE.fullmatch(name))
    width = next(widths, width)
    inwards = sorted(
        (int(match[1]), match[2], shape)  # c_attn before c_fc
        for name, shape in by_name.items()
        if (match := _INWARDS.fullmatch(name)) and len(shape) == 2 and shape[0] != shape[1]
    )
    for _, _, shape in inwards:
        if width in shape:
            return "conv1d" if shape[0] == width else "linear"
    return "conv1d"


# Tensors whose last dimension is n_embd, and projections that read from the residual stream.
_WIDE = re.compile(r"w[tp]e\.weight|ln_f\.weight|h\.\d+\.ln_[12]\.weight")
_INWARDS = re.compile(r"h\.(\d+)\.(attn\.c_attn|mlp\.c_fc)\.weight")
