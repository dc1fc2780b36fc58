"""Which stretch of which text makes a row of ids: pairs, special tokens, windows, padding.

Lengths only: everything that is told of a row (ids, masks, spans, words) is read off the same
layout, so that its columns cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from gpt2.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

Strategy = Literal["longest_first", "only_first", "only_second"]
Side = Literal["left", "right"]
Value = TypeVar("Value")


class Part(NamedTuple):
    """Places ``start`` to ``stop`` of a text (0, or 1 for the pair), or one special token.

    Attributes:
        text: which text; also the type id of every place.
        special: the id of the special token, None for a stretch of the text itself.
    """

    text: int
    start: int
    stop: int
    special: int | None = None


@dataclass
class Row:
    """One row: the parts in order, and how many places of padding stand around them.

    Attributes:
        sample: the number of the text, or pair of texts, that it was made of.
    """

    sample: int
    parts: Sequence[Part]
    left: int = 0
    right: int = 0

    def __len__(self) -> int:
        """The number of places without padding."""
        return sum(part.stop - part.start for part in self.parts)

    def pad(self, width: int, side: Side) -> None:
        """Stand at ``width`` places; a longer row stays as it is."""
        missing = max(width - len(self), 0)
        self.left, self.right = (missing, 0) if side == "left" else (0, missing)

    def ids(self, texts: Sequence[Sequence[int]], filler: int) -> list[int]:
        """The ids of the row, ``filler`` for padding."""
        if len(self.parts) == 1 and self.left == self.right == 0:
            ids, part = texts[0], self.parts[0]  # most rows are one text as it is
            return list(ids[part.start : part.stop])
        values = [filler] * self.left
        for part in self.parts:
            if part.special is None:
                values += texts[part.text][part.start : part.stop]
            else:
                values.append(part.special)
        return values + [filler] * self.right

    def column(self, texts: Sequence[Sequence[Value]], other: Value) -> list[Value]:
        """What each text says of its places, ``other`` for special tokens and padding."""
        values = [other] * self.left
        for part in self.parts:
            if part.special is None:
                values += texts[part.text][part.start : part.stop]
            else:
                values.append(other)
        return values + [other] * self.right

    def text_numbers(self) -> list[int | None]:
        """0 and 1 for places of the texts, None for special tokens and padding."""
        texts = [part.text if part.special is None else None for part in self.parts]
        return self._spread(texts, None)

    def attention_mask(self) -> list[int]:
        """1 for tokens, 0 for padding."""
        mask = [1] * len(self)
        return [0] * self.left + mask + [0] * self.right if self.left or self.right else mask

    def token_type_ids(self) -> list[int]:
        """0 for the first text and its special tokens, 1 for the pair and its; 0 for padding."""
        return self._spread([part.text for part in self.parts], 0)

    def special_tokens_mask(self) -> list[int]:
        """0 for places of the texts, 1 for special tokens put around them and for padding."""
        return self._spread([int(part.special is not None) for part in self.parts], 1)

    def _spread(self, of_parts: Sequence[Value], padding: Value) -> list[Value]:
        values = [padding] * self.left
        for part, value in zip(self.parts, of_parts, strict=True):
            values += [value] * (part.stop - part.start)
        return values + [padding] * self.right


@dataclass(frozen=True)
class Cut:
    """How rows that are too long are cut.

    Attributes:
        limit: the greatest length of a row, special tokens included.
        strategy: which of two texts gives way: "longest_first" the longer, and both alike where
            that is not enough.
        side: the side on which tokens are taken off.
        stride: how many tokens each further window repeats of the one before.
        all_windows: make rows of what is cut off, too.
    """

    limit: int
    strategy: Strategy
    side: Side
    stride: int = 0
    all_windows: bool = False


def lay_out(
    sample: int,
    lengths: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    cut: Cut | None,
) -> list[Row]:
    """The rows of one text or pair: one, and the further windows where they are asked for.

    Args:
        sample: its number.
        lengths: the number of ids of each of its texts, one or two.
        before, after: the special tokens put around each text.
        cut: how to shorten it; None for not at all.

    Raises:
        ArgumentError: it cannot be cut to the length in the way that is asked for.
    """
    if cut is None:
        if len(lengths) == 1 and not before and not after:
            return [Row(sample, (Part(0, 0, lengths[0]),))]
        windows = [[(0, length)] for length in lengths]
    else:
        room = cut.limit - len(lengths) * (len(before) + len(after))
        if room < 0:
            raise ArgumentError(
                f"max_length={cut.limit} leaves no room for the BOS and EOS tokens that are added"
            )
        windows = [
            _windows(length, size, cut)
            for length, size in zip(lengths, _sizes(lengths, room, cut), strict=True)
        ]
        if not cut.all_windows:
            windows = [of_text[:1] for of_text in windows]
    rows = []
    for first in windows[0]:
        for second in windows[1] if len(windows) > 1 else (None,):
            parts: list[Part] = []
            for text, window in enumerate((first, second)):
                if window is not None:
                    parts += [Part(text, 0, 1, id_) for id_ in before]
                    parts.append(Part(text, *window))
                    parts += [Part(text, 0, 1, id_) for id_ in after]
            rows.append(Row(sample, parts))
    # The tokenizers library gives the first windows of both, then the others of the first text
    # with every window of the second, and at last the first window with the others.
    others = len(windows[1]) if len(windows) > 1 else 1
    return [rows[0], *rows[others:], *rows[1:others]]


def _sizes(lengths: Sequence[int], room: int, cut: Cut) -> list[int]:
    """How many ids each text keeps."""
    excess = sum(lengths) - room
    if cut.strategy == "only_second" and len(lengths) == 1:
        raise ArgumentError('truncation="only_second" needs a text_pair, and there is none')
    if excess <= 0:
        return list(lengths)
    if room == 0:
        return [0] * len(lengths)
    if cut.strategy == "longest_first":
        if len(lengths) == 1:
            return [room]
        return _share(lengths, room)
    target = 0 if cut.strategy == "only_first" else 1
    if lengths[target] <= excess:
        raise ArgumentError(
            f'truncation="{cut.strategy}" has {lengths[target]} tokens to cut from, but '
            f'max_length={cut.limit} asks for {excess} fewer; use truncation="longest_first", or '
            "a larger max_length"
        )
    sizes = list(lengths)
    sizes[target] -= excess
    return sizes


def _share(lengths: Sequence[int], room: int) -> list[int]:
    """The shorter text whole beside the rest of the longer; halves where it is longer than one."""
    short = min(lengths)
    rest = max(short, room - short)
    if short + rest > room:
        short, rest = room // 2, room - room // 2
    return [short, rest] if lengths[0] <= lengths[1] else [rest, short]


def _windows(length: int, size: int, cut: Cut) -> list[tuple[int, int]]:
    """(start, stop) of each window of ``size`` over ``length`` ids, the one that is kept first."""
    if size >= length:
        return [(0, length)]
    if not cut.all_windows:
        return [(0, size)] if cut.side == "right" else [(length - size, length)]
    if size == 0:
        # The tokenizers library makes a second row of the whole text here, longer than the limit.
        raise ArgumentError(
            f"max_length={cut.limit} leaves no room in a row for the {length} tokens of a text, so "
            "that return_overflowing_tokens=True cannot spread them over rows; use a larger one"
        )
    if cut.stride >= size:
        raise ArgumentError(
            f"stride={cut.stride} must be less than the {size} tokens of the text that "
            f"max_length={cut.limit} leaves in a row"
        )
    # Each window ends ``step`` further in, as seen from the side where the first one stands.
    step = size - cut.stride
    windows = [(start, min(start + size, length)) for start in range(0, length - cut.stride, step)]
    if cut.side == "left":
        windows = [(length - stop, length - start) for start, stop in windows]
    return windows
