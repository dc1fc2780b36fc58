"""What a tokenizer returns, as lists or tensors; and padding of what was tokenized before."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.tokenization.alignment import Aligned, Encoding

if TYPE_CHECKING:
    from gpt2.tokenization.arguments import PadTo

TensorKind = Literal["pt", "np"]

# The entries of a batch that have one number per row.
_FLAT = ("length", "overflow_to_sample_mapping")


class BatchEncoding(UserDict[str, Any], Aligned):
    """What a tokenizer returns: a dictionary whose entries are attributes as well.

    ``model(**encoding)`` takes it apart, ``encoding.to("cuda")`` moves its tensors,
    ``encoding[0]`` is all that is known of the first row, `word_ids`, `char_to_token` and the like
    lead from tokens to the text and back.

    Args:
        data: the entries.
        encodings: what is known of the rows, or a function that works it out when first asked.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encodings: list[Encoding] | Callable[[], list[Encoding]] | None = None,
    ) -> None:
        super().__init__(data or {})
        self._encodings = encodings

    def __getitem__(self, key: Any) -> Any:
        """The entry of a name; the `Encoding` of a row, or those of a slice of rows."""
        if not isinstance(key, int | slice):
            return self.data[key]
        if isinstance(key, int):
            return self._encoding(key)
        if self.encodings is None:
            return {name: value[key] for name, value in self.data.items()}
        return self.encodings[key]

    def __getattr__(self, name: str) -> Any:
        # "data" itself is asked for while a copy or a pickle is not yet filled
        if name != "data" and name in self.data:
            return self.data[name]
        raise AttributeError(f"BatchEncoding has no attribute or entry {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        # The tokenizer, of which the look-ups are worked out, does not travel along.
        return {"data": self.data, "_encodings": self.encodings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

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

    def convert_to_tensors(
        self, tensor_type: TensorKind | None = None, prepend_batch_axis: bool = False
    ) -> BatchEncoding:
        """Make tensors ("pt") or arrays ("np") of the entries (in place); returns this encoding.

        None leaves them as they are. ``prepend_batch_axis`` makes a batch of one row of each.

        Raises:
            ArgumentError: rows of an entry differ in length, or hold no numbers.
            ArgumentTypeError: ``tensor_type`` is neither.
        """
        if tensor_type is None:
            return self
        plain = {name: _plain(value) for name, value in self.data.items()}
        self.data = {
            name: to_tensor(name, [value] if prepend_batch_axis else value, tensor_type)
            for name, value in plain.items()
        }
        return self


def to_tensor(name: str, rows: list[Any], kind: TensorKind) -> Any:
    """A tensor of torch ("pt") or numpy ("np"); of whole numbers int64, (B, T) for ids.

    Raises:
        ArgumentError: the rows differ in length, or are not numbers.
        ArgumentTypeError: ``kind`` is neither.
    """
    if kind not in ("pt", "np"):
        raise ArgumentTypeError(
            f'return_tensors must be "pt" (torch), "np" (numpy) or None (lists), not {kind!r:.200}'
        )
    lengths = {len(row) for row in rows if isinstance(row, list)}
    if len(lengths) > 1:
        raise ArgumentError(
            f"{name} cannot be one tensor: its rows are from {min(lengths)} to {max(lengths)} "
            "tokens long; add padding=True (and truncation=True with a max_length, if need be)"
        )
    import numpy

    try:
        array = numpy.array(rows)
    except ValueError as error:
        raise ArgumentError(f"{name} cannot be one tensor: {error}") from None
    if array.size == 0:
        array = numpy.zeros(array.shape if rows or name in _FLAT else (0, 0), dtype=numpy.int64)
    if array.dtype.kind not in "biuf":
        raise ArgumentError(f"{name} cannot be a tensor: it does not hold numbers")
    if array.dtype.kind in "iu":
        array = array.astype(numpy.int64)
    if kind == "np":
        return array
    import torch

    tensor = torch.from_numpy(array)
    return tensor.to(torch.get_default_dtype()) if array.dtype.kind == "f" else tensor


def batch_of(
    columns: dict[str, list[Any]],
    *,
    single: bool,
    return_tensors: TensorKind | None,
    encodings: Callable[[], list[Encoding]] | None = None,
) -> BatchEncoding:
    """The columns as tensors; or as lists, without the axis of rows where there is only one.

    As the reference has it, the entries with a number per row keep that axis.
    """
    if return_tensors is not None:
        return BatchEncoding(
            {name: to_tensor(name, column, return_tensors) for name, column in columns.items()},
            encodings,
        )
    if single:
        return BatchEncoding(
            {name: col if name in _FLAT else col[0] for name, col in columns.items()}, encodings
        )
    return BatchEncoding(columns, encodings)


# --------------------------------------------------------- padding what was tokenized before


def pad_columns(
    encoded_inputs: Any,
    pad_to: PadTo | None,
    *,
    filler: int,
    return_attention_mask: bool,
    return_tensors: TensorKind | None,
) -> BatchEncoding:
    """Make the rows of a batch equally long; see the tokenizer's ``pad``."""
    data = _columns(encoded_inputs)
    if "input_ids" not in data:
        raise ArgumentError(
            f"pad needs input_ids, but encoded_inputs has {', '.join(map(str, data)) or 'nothing'}"
        )
    kind = return_tensors or _tensor_kind(data["input_ids"])
    columns = {name: _plain(value) for name, value in data.items()}
    ids = columns["input_ids"]
    if not isinstance(ids, list):
        raise ArgumentTypeError(f"input_ids must be a list of ids, not {type(ids).__name__}")
    single = not (ids and isinstance(ids[0], list))
    if single:
        columns = {name: [value] for name, value in columns.items()}
        ids = columns["input_ids"]
    lengths = [len(row) for row in ids]
    if not return_attention_mask:
        columns.pop("attention_mask", None)
    elif "attention_mask" not in columns:
        columns["attention_mask"] = [[1] * length for length in lengths]
    fillers = {
        "input_ids": filler,
        "attention_mask": 0,
        "token_type_ids": 0,
        "special_tokens_mask": 1,
    }
    width = 0 if pad_to is None else pad_to.places(lengths)
    for name, value in fillers.items():
        if name in columns:
            _check_lengths(name, columns[name], lengths)
            left = pad_to is not None and pad_to.side == "left"
            padded = []
            for row in columns[name]:
                padding = [value] * (width - len(row))
                padded.append(padding + row if left else row + padding)
            columns[name] = padded
    if single and kind is not None:
        # A single text stays one row here, (T,): only a call makes a batch of it.
        return BatchEncoding(
            {name: to_tensor(name, column, kind)[0] for name, column in columns.items()}
        )
    if single:
        return BatchEncoding({name: column[0] for name, column in columns.items()})
    return batch_of(columns, single=False, return_tensors=kind)


def _columns(encoded_inputs: Any) -> dict[str, Any]:
    """Entry -> its rows, of a batch or of a list of rows."""
    if isinstance(encoded_inputs, Mapping):
        return dict(encoded_inputs)
    rows = encoded_inputs
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        raise ArgumentTypeError(
            "encoded_inputs must be what the tokenizer returns, or a list of it, not "
            f"{type(rows).__name__}: {rows!r:.100}"
        )
    for number, row in enumerate(rows):
        if set(row) != set(rows[0]):
            name = sorted(map(str, set(row) ^ set(rows[0])))[0]
            raise ArgumentError(
                f"encoded_inputs[{number}] and encoded_inputs[0] differ: only one has {name!r}"
            )
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _tensor_kind(value: Any) -> TensorKind | None:
    """What the ids came in: tensors, arrays, or lists of either; None for plain lists."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    if not hasattr(value, "tolist"):
        return None
    return "pt" if type(value).__module__.startswith("torch") else "np"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(entry) for entry in value]
    return value


def _check_lengths(name: str, rows: Any, lengths: list[int]) -> None:
    found = [len(row) if isinstance(row, list) else None for row in rows]
    if found != lengths:
        raise ArgumentError(
            f"{name} has rows of the lengths {found!s:.100}, but input_ids of {lengths!s:.100}"
        )
