"""How a checkpoint names and orients its tensors, as tables that read both ways.

The Hugging Face layout of GPT-2 has our names. Its one peculiarity: the projections of the
blocks were a layer called Conv1D, stored [in, out]; ours are ``nn.Linear``, [out, in]. The table
`HUGGING_FACE` says which, once; loading and saving both read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CORE_PREFIX = "transformer."
"""The name of the core inside a model with a head, and so the prefix of its tensors there."""

_CORE_PARTS = ("wte.", "wpe.", "h.", "ln_f.")


@dataclass(frozen=True)
class Row:
    """One kind of tensor: ``{n}`` stands for the number of the block."""

    stored: str
    ours: str
    transposed: bool = False


@dataclass(frozen=True)
class Layout:
    """A table of rows, and the names that carry no weight and are left out.

    A tensor that no row names is stored under our name as it is. Names in the table are those of
    the core, without `CORE_PREFIX`.
    """

    name: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()

    def to_ours(self, stored: str) -> Row:
        """The row of a stored name, its ``{n}`` filled in."""
        return _look_up(self._by_stored, stored)

    def to_stored(self, ours: str) -> Row:
        """The row of one of our names, its ``{n}`` filled in: the table read backwards."""
        return _look_up(self._by_ours, ours)

    def ignores(self, stored: str) -> bool:
        """Whether the name is of a buffer that old versions stored, never of a weight."""
        template, _ = _split_number(core_name(stored))
        return template in self.ignored

    @cached_property
    def _by_stored(self) -> Mapping[str, Row]:
        return {row.stored: row for row in self.rows}

    @cached_property
    def _by_ours(self) -> Mapping[str, Row]:
        return {row.ours: row for row in self.rows}


def _conv1d(*modules: str) -> tuple[Row, ...]:
    names = [f"h.{{n}}.{module}.weight" for module in modules]
    return tuple(Row(stored=name, ours=name, transposed=True) for name in names)


HUGGING_FACE = Layout(
    name="huggingface",
    rows=_conv1d(
        "attn.c_attn",  # stored [D, 3D]
        "attn.c_proj",  # stored [D, D]: its shape never tells its orientation
        "mlp.c_fc",  # stored [D, F]
        "mlp.c_proj",  # stored [F, D]
        "crossattention.c_attn",  # stored [D, 2D]
        "crossattention.q_attn",  # stored [D, D]
        "crossattention.c_proj",  # stored [D, D]
    ),
    # The causal mask and its fill value, which early versions saved with the weights.
    ignored=(
        "h.{n}.attn.bias",
        "h.{n}.attn.masked_bias",
        "h.{n}.crossattention.bias",
        "h.{n}.crossattention.masked_bias",
    ),
)


def core_name(name: str) -> str:
    """A core tensor's name without `CORE_PREFIX`; any other name as it is."""
    bare = name.removeprefix(CORE_PREFIX)
    return bare if bare.startswith(_CORE_PARTS) else name


def model_name(name: str, *, prefixed: bool) -> str:
    """The name of a tensor in a model with a head (``prefixed``), or in the bare core."""
    bare = core_name(name)
    return CORE_PREFIX + bare if prefixed and bare.startswith(_CORE_PARTS) else bare


def block_numbers(names: Iterable[str]) -> set[int]:
    """The numbers of the blocks that tensors of these names belong to."""
    numbers = (_split_number(core_name(name))[1] for name in names)
    return {number for number in numbers if number is not None}


_NUMBERED = re.compile(r"h\.(0|[1-9][0-9]{0,5})\.(.+)", re.DOTALL)


def _split_number(name: str) -> tuple[str, int | None]:
    """``h.7.ln_1.bias`` -> (``h.{n}.ln_1.bias``, 7); other names have no number."""
    match = _NUMBERED.fullmatch(name)
    return (f"h.{{n}}.{match[2]}", int(match[1])) if match else (name, None)


def _look_up(table: Mapping[str, Row], name: str) -> Row:
    template, number = _split_number(core_name(name))
    row = table.get(template)
    if row is None:
        return Row(stored=name, ours=name)
    prefix = name[: len(name) - len(core_name(name))]

    def fill(text: str) -> str:
        return prefix + text.replace("{n}", str(number))

    return Row(fill(row.stored), fill(row.ours), row.transposed)
