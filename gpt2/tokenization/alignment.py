"""From tokens to characters and words of the text, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gpt2.errors import ArgumentError


class CharSpan(NamedTuple):
    """Characters ``start`` to ``end`` (not included) of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens ``start`` to ``end`` (not included) of a row."""

    start: int
    end: int


@dataclass(frozen=True)
class Encoding:
    """Everything that is known of one row; all lists have one entry per place.

    Attributes:
        ids: the ids.
        type_ids: 1 for the second text of a pair, else 0.
        tokens: as the vocabulary file spells them, added ones as the text has them (with the white
            space that they take along).
        offsets: (first character, the one behind the last) in the text; (0, 0) for special tokens
            and padding. Where words were given, they count from the start of each word.
        attention_mask: 0 for padding.
        special_tokens_mask: 1 for special tokens put around texts, and for padding.
        word_ids: the number of the word within its text, None for special tokens and padding.
        sequence_ids: 0 for the first text, 1 for the second, None for neither.
    """

    ids: list[int]
    type_ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    word_ids: list[int | None]
    sequence_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def token_to_chars(self, token: int) -> CharSpan | None:
        """The characters of a token; None for a special token or padding."""
        _check_token(token, len(self))
        if self.sequence_ids[token] is None:
            return None
        return CharSpan(*self.offsets[token])

    def char_to_token(self, char: int, sequence_index: int = 0) -> int | None:
        """The first token that has the character; None where it was cut off."""
        _check_place("char_index", char)
        for token, (text, (start, end)) in enumerate(
            zip(self.sequence_ids, self.offsets, strict=True)
        ):
            if text == sequence_index and start <= char < end:
                return token
        return None

    def word_to_tokens(self, word: int, sequence_index: int = 0) -> TokenSpan | None:
        """The tokens of a word; None where it was cut off, or is empty."""
        _check_place("word_index", word)
        places = [
            token
            for token, at in enumerate(zip(self.sequence_ids, self.word_ids, strict=True))
            if at == (sequence_index, word)
        ]
        return TokenSpan(places[0], places[-1] + 1) if places else None

    def word_to_chars(self, word: int, sequence_index: int = 0) -> CharSpan | None:
        """The characters of a word; None where it was cut off, or is empty."""
        tokens = self.word_to_tokens(word, sequence_index)
        if tokens is None:
            return None
        return CharSpan(self.offsets[tokens.start][0], self.offsets[tokens.end - 1][1])

    def char_to_word(self, char: int, sequence_index: int = 0) -> int | None:
        """The word that has the character."""
        token = self.char_to_token(char, sequence_index)
        return None if token is None else self.word_ids[token]


class Aligned:
    """Look-ups in the rows of a batch.

    They are made when first asked for, since most batches are never asked: until then only how to
    make them is kept. Where an index of the row may be left out, it is 0; it comes first. A row
    or token below 0 counts from the end, as in a list; a character or word below 0 is refused.

    Raises:
        ArgumentError: (each method) the batch was not made from texts by a call of the tokenizer,
            or has no such row, token or place.
    """

    _encodings: list[Encoding] | Callable[[], list[Encoding]] | None

    @property
    def encodings(self) -> list[Encoding] | None:
        """Each row with all that is known of it; None if the batch was not made from texts."""
        if callable(self._encodings):
            self._encodings = self._encodings()
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the methods below can be used (the reference's name for it)."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for rows of one text each, 2 for pairs; None if not made from texts."""
        if not self.encodings:
            return None
        numbers = {number for row in self.encodings for number in row.sequence_ids}
        return 2 if 1 in numbers else 1

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row as the vocabulary file spells them; see `Encoding` for added ones."""
        return self._encoding(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The number of each token's word; None for special tokens and padding.

        Words are those that were given with ``is_split_into_words=True``, else those that the
        pattern cuts, each added token being one.
        """
        return self._encoding(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for tokens of the text, 1 for those of the pair, None for the others."""
        return self._encoding(batch_index).sequence_ids

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """The text (0 or 1) that a token is of."""
        encoding, token = self._token(batch_or_token_index, token_index)
        return encoding.sequence_ids[token]

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """The number of the word that a token is of."""
        encoding, token = self._token(batch_or_token_index, token_index)
        return encoding.word_ids[token]

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """The characters of a token; None for special tokens and padding."""
        encoding, token = self._token(batch_or_token_index, token_index)
        return encoding.token_to_chars(token)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The first token that has a character of the text (or of the pair)."""
        encoding, char = self._row(batch_or_char_index, char_index)
        return encoding.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that has a character."""
        encoding, char = self._row(batch_or_char_index, char_index)
        return encoding.char_to_word(char, sequence_index)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word."""
        encoding, word = self._row(batch_or_word_index, word_index)
        return encoding.word_to_tokens(word, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word."""
        encoding, word = self._row(batch_or_word_index, word_index)
        return encoding.word_to_chars(word, sequence_index)

    def _encoding(self, batch_index: int) -> Encoding:
        encodings = self.encodings
        if encodings is None:
            raise ArgumentError(
                "this batch knows nothing of characters and words: it was not made from texts by a "
                "call of the tokenizer (pad and prepare_for_model see ids alone)"
            )
        if not -len(encodings) <= batch_index < len(encodings):
            raise ArgumentError(f"batch_index={batch_index}: the batch has {len(encodings)} rows")
        return encodings[batch_index]

    def _row(self, first: int, second: int | None) -> tuple[Encoding, int]:
        """The row and the index within it, of ``(row, index)`` or ``(index,)``."""
        return (self._encoding(0), first) if second is None else (self._encoding(first), second)

    def _token(self, first: int, second: int | None) -> tuple[Encoding, int]:
        encoding, token = self._row(first, second)
        _check_token(token, len(encoding))
        return encoding, token


def _check_token(token: int, length: int) -> None:
    if not -length <= token < length:
        raise ArgumentError(f"token_index={token}: the row has {length} tokens")


def _check_place(name: str, place: int) -> None:
    if place < 0:
        raise ArgumentError(f"{name} must be at least 0, not {place}")
