"""The arguments of a call of the tokenizer, checked against each other before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.tokenization.layout import Cut, Row, Side, Strategy
from gpt2.tokenization.settings import complaint_about

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
Truncation = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"]
SpecialText = Literal["allow", "plain", "error"]
Text = str | list[str]

# What `model_max_length` is where no limit is known: the documented stand-in for infinity.
NO_LIMIT = int(1e30)

_PADDING: dict[Any, str | None] = {
    True: "longest",
    False: None,
    "longest": "longest",
    "max_length": "max_length",
    "do_not_pad": None,
}
_TRUNCATION: dict[Any, Strategy | None] = {
    True: "longest_first",
    False: None,
    None: None,
    "longest_first": "longest_first",
    "only_first": "only_first",
    "only_second": "only_second",
    "do_not_truncate": None,
}


@dataclass(frozen=True)
class PadTo:
    """How rows are made equally long.

    Attributes:
        width: a number of places; None for those of the longest row.
        multiple_of: round the width up to a multiple of it.
        side: where the padding stands.
    """

    width: int | None
    multiple_of: int | None
    side: Side

    def apply(self, rows: Sequence[Row]) -> None:
        """Set the padding of each row."""
        width = self.places(map(len, rows))
        for row in rows:
            row.pad(width, self.side)

    def places(self, lengths: Any) -> int:
        """The width for rows of these lengths."""
        width = max(lengths, default=0) if self.width is None else self.width
        return (
            width if self.multiple_of is None else -(-width // self.multiple_of) * self.multiple_of
        )


def check_side(name: str, side: object) -> Side:
    """``side`` if it is one.

    Raises:
        ArgumentError: it is neither "left" nor "right".
    """
    if side == "left":
        return "left"
    if side == "right":
        return "right"
    raise ArgumentError(f'{name} must be "left" or "right", not {side!r:.200}')


def check_lengths(
    *,
    padding: Any,
    truncation: Any = False,
    max_length: int | None,
    model_max_length: int,
    pad_to_multiple_of: int | None,
    padding_side: str,
    truncation_side: str = "right",
    stride: int = 0,
    return_overflowing_tokens: bool = False,
) -> tuple[Cut | None, PadTo | None]:
    """(how to cut, how to pad), None for not at all.

    Raises:
        ArgumentError: an unknown strategy; a length without a use or a use without a length;
            arguments that contradict each other.
    """
    pads = _choice("padding", padding, _PADDING)
    strategy: Strategy | None = _choice("truncation", truncation, _TRUNCATION)
    _check_integer("max_length", max_length, 0)
    _check_integer("pad_to_multiple_of", pad_to_multiple_of, 1)
    _check_integer("stride", stride, 0)
    side = check_side("padding_side", padding_side)
    if strategy is None and pads != "max_length":
        if max_length is not None:
            raise ArgumentError(
                f"max_length={max_length} has no effect here; add truncation=True to cut longer "
                'texts, padding="max_length" to pad shorter ones, or both'
            )
    elif max_length is None:
        if model_max_length >= NO_LIMIT:
            use = f"truncation={truncation!r}" if strategy else 'padding="max_length"'
            raise ArgumentError(
                f"{use} needs a length: pass max_length, or set the tokenizer's model_max_length"
            )
        max_length = model_max_length
    if pad_to_multiple_of is not None:
        if pads is None:
            raise ArgumentError(
                f"pad_to_multiple_of={pad_to_multiple_of} needs padding; add padding=True"
            )
        if strategy and max_length is not None and max_length % pad_to_multiple_of:
            raise ArgumentError(
                f"max_length={max_length} is no multiple of pad_to_multiple_of="
                f"{pad_to_multiple_of}: texts cut to the one would be padded beyond it again"
            )
    if stride and not (strategy and return_overflowing_tokens):
        raise ArgumentError(
            f"stride={stride} has no effect without truncation and return_overflowing_tokens=True: "
            "it is what the further rows of a long text repeat"
        )
    cut = None
    if strategy is not None and max_length is not None:
        if stride >= max(max_length, 1):
            raise ArgumentError(f"stride={stride} must be less than max_length={max_length}")
        cut_side = check_side("truncation_side", truncation_side)
        cut = Cut(max_length, strategy, cut_side, stride, return_overflowing_tokens)
    width = max_length if pads == "max_length" else None
    return cut, None if pads is None else PadTo(width, pad_to_multiple_of, side)


def _choice(name: str, value: Any, choices: dict[Any, Any]) -> Any:
    if isinstance(value, str | bool | None) and value in choices:
        return choices[value]
    strategies = ", ".join(f'"{key}"' for key in choices if isinstance(key, str))
    raise ArgumentError(f"{name} must be True, False, or one of {strategies}, not {value!r:.200}")


def _check_integer(name: str, value: Any, least: int) -> None:
    if value is not None and (type(value) is not int or value < least):
        raise ArgumentError(f"{name} must be an integer from {least} up, not {value!r:.200}")


def special_text_policy(
    special_text: SpecialText | None, split_special_tokens: bool | None, default: SpecialText
) -> SpecialText:
    """Of our argument and the documented one of the same meaning, what is asked for.

    Raises:
        ArgumentError: ``split_special_tokens`` is no bool, or they contradict each other.
    """
    if complaint := complaint_about("split_special_tokens", split_special_tokens):
        raise ArgumentError(complaint)
    if split_special_tokens is None:
        return default if special_text is None else special_text
    if special_text is None:
        return "plain" if split_special_tokens else "allow"
    if split_special_tokens != (special_text == "plain"):
        raise ArgumentError(
            f"special_text={special_text!r} and split_special_tokens={split_special_tokens} "
            "contradict each other; give only one of them"
        )
    return special_text


# ------------------------------------------------------------------------------------- texts


def samples_of(
    text: Any,
    text_pair: Any,
    is_split_into_words: bool,
    names: tuple[str, str] = ("text", "text_pair"),
) -> tuple[list[tuple[Text, ...]], bool]:
    """([(text,) or (text, pair), …], whether it is a batch).

    Args:
        names: what messages call the two.

    Raises:
        ArgumentTypeError: something is no text where one is expected; names the entry.
        ArgumentError: the two lists differ in length.
    """
    name, pair_name = names
    if is_split_into_words:
        _check_list(name, text, "a list of words or a list of such lists")
        is_batch = bool(text) and isinstance(text[0], list | tuple)
        expected = "a list of words"
    else:
        is_batch = not isinstance(text, str)
        if is_batch:
            _check_list(name, text, "a string or a list of strings")
        expected = "a string"
    if not is_batch:
        firsts, seconds = [text], None if text_pair is None else [text_pair]
    else:
        firsts, seconds = list(text), text_pair
        if seconds is not None:
            _check_list(pair_name, seconds, f"a list of {len(firsts)} texts, as {name} is a list")
            if len(seconds) != len(firsts):
                raise ArgumentError(
                    f"{name} has {len(firsts)} entries, but {pair_name} has {len(seconds)}"
                )
        elif not is_split_into_words:
            return [_sample(f"{name}[{index}]", entry) for index, entry in enumerate(firsts)], True
    samples: list[tuple[Text, ...]] = []
    for index, first in enumerate(firsts):
        place = f"[{index}]" if is_batch else ""
        sample = [_text(f"{name}{place}", first, is_split_into_words, expected)]
        if seconds is not None:
            pair = seconds[index]
            sample.append(_text(f"{pair_name}{place}", pair, is_split_into_words, expected))
        samples.append(tuple(sample))
    return samples, is_batch


def _sample(name: str, entry: Any) -> tuple[Text, ...]:
    """An entry of a list without text_pair: a text, or a tuple of a text and its pair."""
    if isinstance(entry, str):
        return (entry,)
    if isinstance(entry, tuple) and len(entry) == 2:
        return tuple(_text(f"{name}[{i}]", text, False, "a string") for i, text in enumerate(entry))
    hint = "; for lists of words add is_split_into_words=True" if isinstance(entry, list) else ""
    raise ArgumentTypeError(
        f"{name} must be a string, not {type(entry).__name__}: {entry!r:.100}{hint}"
    )


def _text(name: str, text: Any, is_split_into_words: bool, expected: str) -> Text:
    if not is_split_into_words:
        if isinstance(text, str):
            return text
    elif isinstance(text, list | tuple):
        for index, word in enumerate(text):
            if not isinstance(word, str):
                raise ArgumentTypeError(
                    f"{name}[{index}] must be a string, as is_split_into_words=True says, not "
                    f"{type(word).__name__}: {word!r:.100}"
                )
        return list(text)
    raise ArgumentTypeError(f"{name} must be {expected}, not {type(text).__name__}: {text!r:.100}")


def _check_list(name: str, value: Any, expected: str) -> None:
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, Sequence):
        raise ArgumentTypeError(f"{name} must be {expected}, not {type(value).__name__}")
