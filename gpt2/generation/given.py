"""What scoring is given: a text, ids, or a list of either, read as rows of ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, ArgumentTypeError, TokenIdError
from gpt2.fieldchecks import check_bool
from gpt2.generation.prompt import CausalLM

if TYPE_CHECKING:
    from gpt2.tokenization.tokenizer import GPT2Tokenizer


@dataclass(frozen=True)
class Given:
    """``rows`` of ids without padding, and the ``columns`` (of ``width``) where each id stood."""

    rows: list[list[int]]
    columns: list[list[int]]
    width: int
    #: the texts that the rows were encoded from, empty where ids were given
    texts: list[str]
    #: a list was given, not a single text
    is_batch: bool

    @property
    def is_text(self) -> bool:
        return bool(self.texts)


def read_given(
    name: str,
    given: Any,
    tokenizer: GPT2Tokenizer | None,
    vocab_size: int,
    attention_mask: Any = None,
) -> Given:
    """Read ``given``, the argument called ``name``.

    Raises ArgumentTypeError and ArgumentError for what is neither text nor ids,
    for text without a tokenizer and a mask that does not fit, and TokenIdError.
    """
    given = _plain(given)
    if not isinstance(given, str | list | tuple):
        raise ArgumentTypeError(
            f"{name} must be text, ids, or a list of one of them, not {type(given).__name__}"
        )
    is_batch = not isinstance(given, str) and not (given and isinstance(given[0], int))
    items: list[Any] = [_plain(item) for item in given] if is_batch else [given]
    if not items:
        raise ArgumentError(f"{name} is empty; give at least one text or list of ids")
    is_text = isinstance(items[0], str)
    for i, item in enumerate(items):
        if isinstance(item, str) != is_text or not isinstance(item, str | list | tuple):
            raise ArgumentTypeError(
                f"{name} must hold only texts, or only lists of ids; item {i} is "
                f"{type(item).__name__}, the first {type(items[0]).__name__}"
            )
    if is_text:
        if tokenizer is None:
            raise ArgumentTypeError(f"{name} is text: give tokenizer=…, or ids in its place")
        if attention_mask is not None:
            raise ArgumentError(f"attention_mask is for ids, but {name} is text")
        rows = [tokenizer.encode(text, add_special_tokens=False) for text in items]
    else:
        rows = [list(ids) for ids in items]
    width = max(map(len, rows))
    columns = [list(range(len(row))) for row in rows]
    if attention_mask is not None:
        columns = _real_columns(name, attention_mask, [len(row) for row in rows])
        rows = [[row[c] for c in real] for row, real in zip(rows, columns, strict=True)]
    for i, row in enumerate(rows):
        _check_ids(f"row {i} of {name}", row, vocab_size)
    return Given(rows, columns, width, items if is_text else [], is_batch)


def _plain(x: Any) -> Any:
    """A tensor or an array as lists."""
    return x.tolist() if hasattr(x, "tolist") else x


def _real_columns(name: str, attention_mask: Any, lengths: list[int]) -> list[list[int]]:
    mask = _plain(attention_mask)
    mask = list(map(_plain, mask)) if isinstance(mask, list | tuple) else []
    if not any(isinstance(row, list | tuple) for row in mask):
        mask = [mask]  # of a single row
    if [len(row) if isinstance(row, list | tuple) else None for row in mask] != lengths:
        raise ArgumentError(
            f"attention_mask must have the shape of {name}: {len(lengths)} rows of "
            f"{' or '.join(map(str, sorted(set(lengths))))} columns"
        )
    for row in mask:
        for value in row:
            if value not in (0, 1):
                raise ArgumentError(
                    "attention_mask must hold only 0 (padding) and 1 (real token), not "
                    f"{value!r:.200}"
                )
    return [[column for column, real in enumerate(row) if real] for row in mask]


def _check_ids(name: str, ids: list[Any], vocab_size: int) -> None:
    for id_ in ids:
        if isinstance(id_, bool) or not isinstance(id_, int):
            raise ArgumentTypeError(f"{name}: a token id must be a whole number, not {id_!r:.200}")
        if not 0 <= id_ < vocab_size:
            raise TokenIdError(f"{name} has id {id_}; ids must be from 0 to {vocab_size - 1}")


def bos_ids(
    model: CausalLM, tokenizer: GPT2Tokenizer | None, add_bos: bool | None, is_text: bool
) -> list[int]:
    """What stands before every row, as ``add_bos`` says: BOS, or nothing."""
    if add_bos is None:
        add_bos = is_text and bool(getattr(tokenizer, "add_bos_token", False))
    check_bool(ArgumentError, "add_bos", add_bos)
    if not add_bos:
        return []
    bos = model.generation_config.bos_token_id if tokenizer is None else tokenizer.bos_token_id
    if bos is None:
        raise ArgumentError(
            f"BOS is needed, but the {'model' if tokenizer is None else 'tokenizer'} has no "
            "bos_token_id; set it"
        )
    _check_ids("BOS", [bos], model.config.vocab_size)
    return [bos]


def byte_lengths(name: str, given: Given, tokenizer: GPT2Tokenizer | None) -> list[int]:
    """How many bytes (UTF-8) each row's text has."""
    if given.is_text:
        return [len(text.encode("utf-8", "surrogatepass")) for text in given.texts]
    if tokenizer is None:
        raise ArgumentTypeError(f"{name} holds ids: to count their bytes give tokenizer=…")
    return [sum(len(tokenizer.token_bytes(id_)) for id_ in row) for row in given.rows]
