"""Rows of a data set -> one padded batch of tensors, with the labels that the losses want.

A row is a mapping with ``input_ids``, as a tokenizer, ``datasets`` or the
functions here make it. Padding is told by the attention mask, never by an id:
EOS is learned also where it doubles as the filler. Shapes: B rows, T columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.fieldchecks import check_bool, check_choice, check_whole
from gpt2.modeling.inputs import IGNORE_INDEX

if TYPE_CHECKING:
    import numpy

    from gpt2.tokenization.tokenizer import GPT2Tokenizer

# What stands at padding columns, per entry of a row; input_ids get the collator's own filler.
_AT_PADDING = {"attention_mask": 0, "labels": IGNORE_INDEX, "document_ids": 0, "token_type_ids": 0}


def pad_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    filler: int = 0,
    padding_side: str = "right",
    pad_to_multiple_of: int | None = None,
) -> dict[str, Tensor]:
    """Rows of any lengths as int64 tensors (B, T): input_ids, attention_mask, labels and more.

    >>> pad_rows([{"input_ids": [15496, 995]}, {"input_ids": [15496]}])["labels"]
    tensor([[15496,   995],
            [15496,  -100]])

    ``attention_mask`` and ``labels`` (the ids themselves) are made where a row
    has none; a position that a row's own mask hides gets no label. Entries that
    the rows have besides, ``document_ids`` and ``token_type_ids``, are padded
    too. ``filler`` is the id at padding columns; nobody reads it.

    Raises ArgumentTypeError for what is no row, and ArgumentError for an empty
    row, one that is all padding or all prompt (labels of −100 only), entries of
    different lengths, or entries that only some rows have.
    """
    check_choice(ArgumentError, "padding_side", padding_side, ("left", "right"))
    check_whole(ArgumentError, "filler", filler, 0)
    if not rows:
        raise ArgumentError("there are no rows to make a batch of")
    plain = [checked_row(row, number) for number, row in enumerate(rows)]
    for number, row in enumerate(plain):
        if row.keys() != plain[0].keys():
            raise ArgumentError(
                f"row 0 has {', '.join(plain[0])}, row {number} has {', '.join(row)}; "
                "the rows of a batch must have the same entries"
            )
    width = max(len(row["input_ids"]) for row in plain)
    if pad_to_multiple_of is not None:
        check_whole(ArgumentError, "pad_to_multiple_of", pad_to_multiple_of, 1)
        width += -width % pad_to_multiple_of
    batch = {}
    for name in plain[0]:
        at_padding = filler if name == "input_ids" else _AT_PADDING[name]
        padded = torch.full((len(plain), width), at_padding, dtype=torch.int64)
        for target, row in zip(padded, plain, strict=True):
            values = row[name]
            start = width - len(values) if padding_side == "left" else 0
            target[start : start + len(values)] = values
        batch[name] = padded
    return batch


def checked_row(row: Any, number: int) -> dict[str, Tensor]:
    """The row's entries as int64 tensors (T,), mask and labels added where they are missing."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        raise ArgumentTypeError(
            f"row {number} must be a mapping with input_ids, not {type(row).__name__}"
            + (f" with {', '.join(map(str, row))}" if isinstance(row, Mapping) else "")
        )
    known = ("input_ids", *_AT_PADDING)
    entries = {name: _vector(row[name], name, number) for name in known if name in row}
    for name in row:
        if name not in entries:
            raise ArgumentError(
                f"row {number} has an entry {name!r}, which is not padded here; "
                f"leave it out (known: {', '.join(known)})"
            )
    ids = entries["input_ids"]
    if not len(ids):
        raise ArgumentError(f"row {number} is empty")
    for name, values in entries.items():
        if len(values) != len(ids):
            raise ArgumentError(
                f"row {number}: {name} has {len(values)} values, input_ids {len(ids)}"
            )
    mask = entries.setdefault("attention_mask", torch.ones_like(ids))
    if ((mask != 0) & (mask != 1)).any():
        raise ArgumentError(
            f"row {number}: attention_mask must be of 0 and 1, but has values from "
            f"{mask.min()} to {mask.max()}"
        )
    if not mask.any():
        raise ArgumentError(f"row {number} is all padding: its attention_mask is 0 throughout")
    labels = entries.get("labels", ids).masked_fill(mask == 0, IGNORE_INDEX)
    if (labels == IGNORE_INDEX).all():
        raise ArgumentError(
            f"row {number} has nothing to learn from: its labels are all {IGNORE_INDEX}, as over a "
            "prompt; leave the row out"
        )
    entries["labels"] = labels
    return entries


def _vector(values: Any, name: str, number: int) -> Tensor:
    try:
        vector = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(f"row {number}: {name} must be a list of whole numbers") from None
    if not vector.numel():
        return vector.new_empty(0, dtype=torch.int64)
    flags = vector.dtype == torch.bool and name != "attention_mask"
    if vector.dim() != 1 or vector.is_floating_point() or flags:
        raise ArgumentTypeError(
            f"row {number}: {name} must be a list of whole numbers, not of shape "
            f"{tuple(vector.shape)} and {vector.dtype}"
        )
    return vector.long()


@dataclass(frozen=True)
class PaddingCollator:
    """``collate_fn`` of a DataLoader over rows of ids: `pad_rows`, with a tokenizer's filler.

    Plain language modelling: the labels are the ids, unless a row has its own.
    """

    tokenizer: GPT2Tokenizer
    padding_side: str | None = None  # None: the tokenizer's
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        _check_tokenizer(self.tokenizer)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The rows as one batch; see `pad_rows`."""
        return pad_rows(
            rows,
            filler=_filler(self.tokenizer),
            padding_side=self.padding_side or self.tokenizer.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )


def _check_tokenizer(tokenizer: object) -> None:
    # By its attributes: importing the class would import all of the tokenization.
    if not hasattr(tokenizer, "padding_side") or not hasattr(tokenizer, "eos_token_id"):
        raise ArgumentTypeError(
            f"tokenizer must be a GPT2Tokenizer, not a {type(tokenizer).__name__}"
        )


def _filler(tokenizer: GPT2Tokenizer) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(id_ for id_ in candidates if id_ is not None)


# Prompts and completions -------------------------------------------------------------------


@dataclass(frozen=True)
class CompletionCollator:
    """``collate_fn`` over rows with a ``prompt`` and a ``completion``: learn only the latter.

    Each is a text, or ids (a list, an array or a tensor). They are tokenized apart, so that the
    model meets the very ids that it will be asked with; a completion that goes
    on behind a word therefore begins with its own space. The tokenizer's BOS,
    if it adds one, comes first; EOS comes last and is learned, also where it
    doubles as the filler.

    A row longer than ``max_length`` (default: the tokenizer's
    model_max_length) is an error, or with ``truncation="prompt"`` loses the
    beginning of its prompt. A completion is never cut.

    Raises ArgumentTypeError for what is no such row, and ArgumentError for an
    empty completion, a row that is too long, and ``append_eos`` without an EOS.
    """

    tokenizer: GPT2Tokenizer
    max_length: int | None = None
    truncation: str = "error"
    append_eos: bool = True
    padding_side: str | None = None  # None: the tokenizer's
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        _check_tokenizer(self.tokenizer)
        check_choice(ArgumentError, "truncation", self.truncation, ("error", "prompt"))
        check_bool(ArgumentError, "append_eos", self.append_eos)
        if self.max_length is not None:
            check_whole(ArgumentError, "max_length", self.max_length, 2)
        if self.append_eos and self.tokenizer.eos_token_id is None:
            raise ArgumentError(
                "append_eos=True, but the tokenizer has no eos_token; set one, or pass "
                "append_eos=False"
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The rows as one batch: input_ids, attention_mask, labels, each (B, T)."""
        return pad_rows(
            [self.encode(row, number) for number, row in enumerate(rows)],
            filler=_filler(self.tokenizer),
            padding_side=self.padding_side or self.tokenizer.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )

    def encode(self, row: Mapping[str, Any], number: int = 0) -> dict[str, list[int]]:
        """One row's ``input_ids`` and ``labels`` (−100 over the prompt), as ``datasets.map`` wants.

        ``number`` names the row in errors.
        """
        if not isinstance(row, Mapping) or not {"prompt", "completion"} <= row.keys():
            raise ArgumentTypeError(
                f"row {number} must be a mapping with a prompt and a completion, not {row!r:.200}"
            )
        prompt = self._ids(row["prompt"], "prompt", number)
        completion = self._ids(row["completion"], "completion", number)
        if not completion:
            raise ArgumentError(
                f"row {number} has an empty completion: there is nothing to learn from it"
            )
        bos = self.tokenizer.bos_token_id
        before = [bos] if self.tokenizer.add_bos_token and bos is not None else []
        if self.append_eos:
            assert self.tokenizer.eos_token_id is not None
            completion = [*completion, self.tokenizer.eos_token_id]
        prompt = self._fitting(before, prompt, completion, number)
        ignored = [IGNORE_INDEX] * (len(before) + len(prompt))
        return {
            "input_ids": [*before, *prompt, *completion],
            "labels": [*ignored, *completion],
        }

    def _ids(self, text: Any, name: str, number: int) -> list[int]:
        if isinstance(text, str):
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
            return ids
        # datasets gives lists, or with set_format arrays and tensors
        values = text.tolist() if hasattr(text, "tolist") else text
        if isinstance(values, list | tuple) and all(type(id_) is int for id_ in values):
            return list(values)
        raise ArgumentTypeError(
            f"row {number}: {name} must be a text or a list of ids, not {text!r:.200}"
        )

    def _fitting(
        self, before: list[int], prompt: list[int], completion: list[int], number: int
    ) -> list[int]:
        """The prompt, or as much of its end as there is room for."""
        most = self.tokenizer.model_max_length if self.max_length is None else self.max_length
        over = len(before) + len(prompt) + len(completion) - most
        if over <= 0:
            return prompt
        sizes = (
            f"row {number} has {len(prompt)} tokens of prompt and {len(completion)} of completion "
            f"(EOS included); max_length is {most}"
        )
        if self.truncation == "error":
            raise ArgumentError(
                f'{sizes}. Shorten it, raise max_length, or pass truncation="prompt" to drop the '
                "beginning of the prompt"
            )
        if over >= len(prompt):
            raise ArgumentError(f"{sizes}, which leaves no room for a prompt; completions are not "
                                "cut. Shorten it, or raise max_length")  # fmt: skip
        return prompt[over:]


# Plain text --------------------------------------------------------------------------------


class TokenBlocks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """A long array of ids as a data set of fixed blocks, {"input_ids": (block_size,)}.

    ``ids`` (N,) is any array of whole numbers, `GPT2Tokenizer.encode_to_array`'s
    or a numpy.memmap of it: only the block that is asked for is read. The last
    block is shorter where N is no multiple; ``drop_last`` leaves it out.
    """

    def __init__(
        self, ids: numpy.ndarray[Any, Any] | Tensor, block_size: int, *, drop_last: bool = False
    ) -> None:
        check_whole(ArgumentError, "block_size", block_size, 2)
        check_bool(ArgumentError, "drop_last", drop_last)
        if getattr(ids, "ndim", None) != 1 or "int" not in str(ids.dtype):
            raise ArgumentTypeError(
                "ids must be one array of whole numbers, (N,); GPT2Tokenizer.encode_to_array "
                f"makes one. Found {type(ids).__name__}"
            )
        self.ids, self.block_size = ids, block_size
        last = len(ids) % block_size
        # A single token has neither a source nor a target.
        self._blocks = len(ids) // block_size + int(last > 1 and not drop_last)
        if not self._blocks:
            raise ArgumentError(f"{len(ids)} ids do not make a block of {block_size}")

    def __len__(self) -> int:
        return self._blocks

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if not -self._blocks <= number < self._blocks:
            raise IndexError(f"there are {self._blocks} blocks, no block {number}")
        start = number % self._blocks * self.block_size
        block = self.ids[start : start + self.block_size]
        # torch knows few unsigned types; a copy, so that no map of a file is handed out
        wide = (
            block.long() if isinstance(block, Tensor) else torch.from_numpy(block.astype("int64"))
        )
        return {"input_ids": wide}
