"""How a checkpoint names and places its tensors: tables that read both ways.

A `Layout` is a table of `Row`s: which stored tensor is which of ours, and how it is laid out
there. Loading looks stored names up, saving looks ours up in the same rows, so that what one
does the other undoes. The tables themselves are in gpt2_tables.py and opt.py; detect.py chooses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

Shape = tuple[int, ...]

CORE_PREFIX = "transformer."
"""The name of the core inside a model with a head, and so the prefix of its tensors there."""

_CORE_PARTS = ("wte.", "wpe.", "h.", "ln_f.")


@dataclass(frozen=True)
class Row:
    """One kind of tensor. ``{n}`` stands for the number of the block; names are the core's own.

    The stored tensor may be the transpose of ours, one of ``parts`` equal pieces of which ours
    is the stack (q, k and v), or have ``skipped`` rows before those that ours has.
    """

    stored: str
    ours: str
    transposed: bool = False
    part: int = 0
    parts: int = 1
    skipped: int = 0

    def stored_shape(self, ours: Shape) -> Shape:
        """The shape that is stored for a tensor of ours of this shape."""
        if self.parts > 1 or self.skipped:
            return (ours[0] // self.parts + self.skipped, *ours[1:])
        return ours[::-1] if self.transposed else ours

    def in_ours(self, tensor: Tensor) -> Tensor:
        """The part of our tensor that the stored one fills: a view."""
        if self.parts == 1:
            return tensor
        length = tensor.shape[0] // self.parts
        return tensor.narrow(0, self.part * length, length)

    def in_stored(self, tensor: Tensor) -> Tensor:
        """The part of the stored tensor that ours has, in our orientation: a view."""
        return tensor.t() if self.transposed else tensor[self.skipped :] if self.skipped else tensor

    def as_stored(self, tensor: Tensor) -> Tensor:
        """What to store of our tensor. Rows that ours does not have are zeros."""
        piece = self.in_ours(tensor)
        if self.skipped:
            stored = piece.new_zeros(piece.shape[0] + self.skipped, *piece.shape[1:])
            stored[self.skipped :] = piece
            return stored
        return piece.t() if self.transposed else piece

    @property
    def action(self) -> str:
        """What is done to the stored tensor, in a word or two for reports."""
        if self.parts > 1:
            return f"fused, part {self.part + 1} of {self.parts}"
        if self.skipped:
            return f"first {self.skipped} rows cut"
        return "transposed" if self.transposed else "as it is"


@dataclass(frozen=True)
class Fill:
    """Tensors that some checkpoints leave out together, and the value that they then have.

    ``names`` matches our names in the core. Leaving all of them out means the value; leaving
    out some is a gap like any other.
    """

    names: re.Pattern[str]
    value: float
    why: str


@dataclass(frozen=True)
class Layout:
    """A table of rows, and what else there is to know of a kind of checkpoint.

    A tensor that no row names (a head's) is stored under our name as it is.
    """

    name: str
    rows: tuple[Row, ...]
    prefixes: tuple[str, ...] = (CORE_PREFIX,)
    """What may stand before the core's stored names, besides nothing. The first is written."""
    bare_prefix: str = ""
    """What is written before them for a core without a head."""
    ignored: tuple[str, ...] = ()
    """Stored names that carry no weight."""
    older: Mapping[str, str] = field(default_factory=dict)
    """Stored names (or endings, with a dot before them) of old -> those that the rows have."""
    fills: tuple[Fill, ...] = ()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields of our config that the layout's own program has no choice about: what they may be."""
    heads: tuple[str, ...] | None = None
    """The tensors besides the core's that it can hold; None for any head's."""
    file: str | None = None
    """The one file that it is saved in; None for those of the Hugging Face layout."""

    def to_ours(self, stored: str) -> Row:
        """The row of a stored name, its ``{n}`` filled in; ours as it is in the bare core."""
        name = unwrapped(stored)
        for prefix in (*self.prefixes, ""):
            if name.startswith(prefix):
                template, number = split_number(self._renewed(name[len(prefix) :]))
                row = self._by_stored.get(template)
                if row is not None:
                    return _filled(row, number, "")
        return Row(stored=name, ours=self._renewed(name))

    def to_stored(self, ours: str) -> list[Row]:
        """The rows of one of our names, filled in: the table read backwards."""
        bare = core_name(ours)
        template, number = split_number(bare)
        rows = self._by_ours.get(template)
        if rows is None:
            return [Row(stored=ours, ours=ours)]
        prefix = self.bare_prefix if bare == ours else self.prefixes[0]
        return [replace(_filled(row, number, prefix), ours=ours) for row in rows]

    def has_place_for(self, ours: str) -> bool:
        """Whether our tensor can be stored."""
        if core_name(ours).startswith(_CORE_PARTS):
            return split_number(core_name(ours))[0] in self._by_ours
        return self.heads is None or ours in self.heads

    def recognises(self, stored: str) -> bool:
        """Whether a row names the stored tensor."""
        return split_number(self.to_ours(stored).ours)[0] in self._by_ours

    def ignores(self, stored: str) -> bool:
        """Whether the name is of a buffer that old versions stored, never of a weight."""
        name = unwrapped(stored)
        return any(
            name.startswith(prefix) and split_number(name[len(prefix) :])[0] in self.ignored
            for prefix in (*self.prefixes, "")
        )

    def _renewed(self, name: str) -> str:
        for old, new in self.older.items():
            if name == old or (old[0] == "." and name.endswith(old)):
                return name[: len(name) - len(old)] + new
        return name

    @cached_property
    def _by_stored(self) -> dict[str, Row]:
        return {row.stored: row for row in self.rows}

    @cached_property
    def _by_ours(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.ours, []).append(row)
        return found


def core_name(name: str) -> str:
    """A core tensor's name without `CORE_PREFIX`; any other name as it is."""
    bare = name.removeprefix(CORE_PREFIX)
    return bare if bare.startswith(_CORE_PARTS) else name


def model_name(name: str, *, prefixed: bool) -> str:
    """The name of a tensor in a model with a head (``prefixed``), or in the bare core."""
    bare = core_name(name)
    return CORE_PREFIX + bare if prefixed and bare.startswith(_CORE_PARTS) else bare


def block_numbers(names: Iterable[str]) -> set[int]:
    """The numbers of the blocks that tensors of these names (ours) belong to."""
    numbers = (split_number(core_name(name)) for name in names)
    return {number for template, number in numbers if number is not None and template[0] == "h"}


# What torch.compile, DataParallel, DDP, FSDP and activation checkpointing put into the names of
# the modules that they wrap. None of it is a name that a GPT-2 has.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def unwrapped(name: str) -> str:
    """The name without what wrappers put into it, wherever and however often."""
    return _WRAPPERS.sub("", name)


_NUMBERED = re.compile(r"([a-z]+)\.(0|[1-9][0-9]{0,5})\.(.+)", re.DOTALL)


def split_number(name: str) -> tuple[str, int | None]:
    """``h.7.ln_1.bias`` -> (``h.{n}.ln_1.bias``, 7); other names have no number."""
    match = _NUMBERED.fullmatch(name)
    return (f"{match[1]}.{{n}}.{match[3]}", int(match[2])) if match else (name, None)


def _filled(row: Row, number: int | None, prefix: str) -> Row:
    def fill(text: str) -> str:
        return text.replace("{n}", str(number))

    return replace(row, stored=prefix + fill(row.stored), ours=fill(row.ours))
