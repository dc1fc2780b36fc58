"""Rows of ids -> what a model takes: truncated, padded, with a mask, as lists or tensors."""

from __future__ import annotations

from collections import UserDict
from typing import Any, Literal

from gpt2.errors import ArgumentError, ArgumentTypeError

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
Truncation = bool | Literal["longest_first", "only_first", "do_not_truncate"]
Side = Literal["left", "right"]
TensorKind = Literal["pt", "np"]

# What `model_max_length` is where no limit is known: the documented stand-in for infinity.
NO_LIMIT = int(1e30)


class BatchEncoding(UserDict[str, Any]):
    """What a tokenizer returns: a dictionary whose entries are attributes as well.

    ``model(**encoding)`` takes it apart, ``encoding.to("cuda")`` moves its tensors.
    """

    def __getattr__(self, name: str) -> Any:
        # "data" itself is asked for while a copy or a pickle is not yet filled
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"BatchEncoding has no attribute or entry {name!r}")

    def to(self, device: Any, *, non_blocking: bool = False) -> BatchEncoding:
        """Move every tensor to the device (in place), and return this encoding.

        Raises:
            ArgumentError: it holds lists or arrays, which are on no device.
        """
        for name, value in self.data.items():
            if not hasattr(value, "to"):
                raise ArgumentError(
                    f"{name!r} is a {type(value).__name__}, which cannot be moved to a device; "
                    'ask the tokenizer for tensors with return_tensors="pt"'
                )
        for name, value in self.data.items():
            self.data[name] = value.to(device, non_blocking=non_blocking)
        return self


def check_side(name: str, side: object) -> Side:
    """``side`` if it is one.

    Raises:
        ArgumentError: it is neither "left" nor "right".
    """
    if side == "left":
        return "left"
    if side == "right":
        return "right"
    raise ArgumentError(f'{name} must be "left" or "right", not {side!r}')


def length_limit(
    padding: Any, truncation: Any, max_length: int | None, model_max_length: int
) -> tuple[int | None, int | Literal["longest"] | None]:
    """Check the arguments against each other: (truncate to, pad to), None for not at all.

    Raises:
        ArgumentError: an unknown strategy; a length without a use or a use without a length.
    """
    pads = {True: "longest", False: None, "longest": "longest", "do_not_pad": None}
    if isinstance(padding, str | bool) and padding in pads:
        pad_to = pads[padding]
    elif padding == "max_length":
        pad_to = "max_length"
    else:
        raise ArgumentError(
            'padding must be True or "longest", "max_length", or False or "do_not_pad", '
            f"not {padding!r}"
        )
    if truncation in (True, "longest_first", "only_first"):
        truncate = True
    elif truncation in (False, None, "do_not_truncate"):
        truncate = False
    else:
        raise ArgumentError(
            'truncation must be True (or "longest_first" or "only_first", the same for single '
            f'texts), or False or "do_not_truncate", not {truncation!r}'
        )
    if max_length is not None and (type(max_length) is not int or max_length < 0):
        raise ArgumentError(f"max_length must be an integer from 0 up, not {max_length!r}")
    if not truncate and pad_to != "max_length":
        if max_length is not None:
            raise ArgumentError(
                f"max_length={max_length} has no effect here; add truncation=True to cut longer "
                'texts, padding="max_length" to pad shorter ones, or both'
            )
        return None, _longest(pad_to)
    if max_length is None:
        if model_max_length >= NO_LIMIT:
            use = "truncation=True" if truncate else 'padding="max_length"'
            raise ArgumentError(
                f"{use} needs a length: pass max_length, or set the tokenizer's model_max_length"
            )
        max_length = model_max_length
    return (
        max_length if truncate else None,
        max_length if pad_to == "max_length" else _longest(pad_to),
    )


def _longest(pad_to: str | None) -> Literal["longest"] | None:
    return "longest" if pad_to == "longest" else None


def pad_rows(
    rows: list[list[int]],
    *,
    pad_to: int | Literal["longest"] | None,
    multiple_of: int | None,
    filler: int,
    side: Side,
) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask): rows made equally long with ``filler``, mask 1 at their own tokens, else 0.

    A row that is longer than a numeric ``pad_to`` stays as it is.

    Raises:
        ArgumentError: ``multiple_of`` is no positive integer, or there is no padding to round.
    """
    if multiple_of is not None:
        if type(multiple_of) is not int or multiple_of < 1:
            raise ArgumentError(
                f"pad_to_multiple_of must be an integer from 1 up, not {multiple_of!r}"
            )
        if pad_to is None:
            raise ArgumentError("pad_to_multiple_of needs padding; add padding=True")
    if pad_to is None:
        return rows, [[1] * len(row) for row in rows]
    width = max(map(len, rows), default=0) if pad_to == "longest" else pad_to
    if multiple_of is not None:
        width = -(-width // multiple_of) * multiple_of
    ids, mask = [], []
    for row in rows:
        missing = max(width - len(row), 0)
        pad, ones, zeros = [filler] * missing, [1] * len(row), [0] * missing
        ids.append(pad + row if side == "left" else row + pad)
        mask.append(zeros + ones if side == "left" else ones + zeros)
    return ids, mask


def to_tensor(name: str, rows: list[list[int]], kind: TensorKind) -> Any:
    """An int64 tensor (B, T) of torch ("pt") or numpy ("np").

    Raises:
        ArgumentError: the rows differ in length.
        ArgumentTypeError: ``kind`` is neither.
    """
    if kind not in ("pt", "np"):
        raise ArgumentTypeError(
            f'return_tensors must be "pt" (torch), "np" (numpy) or None (lists), not {kind!r}'
        )
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ArgumentError(
            f"{name} cannot be one tensor: its rows are from {min(lengths)} to {max(lengths)} "
            "tokens long; add padding=True (and truncation=True with a max_length, if need be)"
        )
    shape = (len(rows), *lengths) if rows else (0, 0)
    if kind == "np":
        import numpy

        return numpy.array(rows, dtype=numpy.int64).reshape(shape)
    import torch

    return torch.tensor(rows, dtype=torch.int64).reshape(shape)
