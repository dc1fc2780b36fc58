"""Text -> ids, and where in the text each id comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from gpt2.errors import ArgumentError
from gpt2.tokenization.pretokenization import split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2.tokenization.added import AddedTokens
    from gpt2.tokenization.words import TextEncoder

Span = tuple[int, int]


@dataclass
class Traced:
    """The ids of a text with their origin; lists of one length.

    Attributes:
        ids: the ids.
        spans: first character and the one behind the last that an id has bytes of. Ids that share
            a character of several bytes share its span.
        words: the number of the word (as the pattern cuts them, or as they were given) of each id.
        tokens: as the vocabulary file spells each; an added token as the text has it, with the
            white space that it takes along.
    """

    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)


@dataclass(slots=True)
class TextReader:
    """How a tokenizer reads text at one moment: what is added to it later changes nothing here.

    Attributes:
        finder: the tokens that are kept whole.
        encoder: ids of the text between them.
        tokens: id -> token, in the byte alphabet: one character per byte.
        add_prefix_space: begin every stretch of text with a space, unless it has one.
        unknown: the id in place of bytes that have none; None where there is none.
        lacks_bytes: whether some byte has no id.
        forbidden: ids of tokens that a text may not contain.
    """

    finder: AddedTokens
    encoder: TextEncoder
    tokens: Sequence[str]
    add_prefix_space: bool
    unknown: int | None
    lacks_bytes: bool = False
    forbidden: frozenset[int] = frozenset()
    _known: dict[str, tuple[list[int], list[Span]]] = field(default_factory=dict)

    def ids(self, text: str | Sequence[str]) -> list[int]:
        """The ids of a text, or of words that are encoded one by one.

        Raises:
            ArgumentError: a lone surrogate, a byte without id, or a forbidden token.
        """
        if not isinstance(text, str):
            return [id_ for word in text for id_ in self.ids(word)]
        if self.forbidden:
            self._refuse_forbidden(text)
        ids: list[int] = []
        for piece in self.finder.split(text):
            if isinstance(piece, int):
                ids.append(piece)
            elif self.add_prefix_space and not piece.startswith(" "):
                ids += self.encoder.encode(" " + piece)
            else:
                ids += self.encoder.encode(piece)
        return self._without_unknown(ids) if self.lacks_bytes else ids

    def trace(self, text: str | Sequence[str]) -> Traced:
        """The ids as `ids` has them, each with its span and its word.

        The spans of words that are encoded one by one count from the start of each word.
        """
        traced = Traced()
        added: dict[int, str] = {}  # place among the ids -> an added token as the text has it
        if isinstance(text, str):
            self._trace(text, traced, added)
        else:
            for number, word in enumerate(text):
                self._trace(word, traced, added, number)
        if self.lacks_bytes:
            traced.ids = self._without_unknown(traced.ids)
        traced.tokens = [self.tokens[id_] for id_ in traced.ids]
        for place, token in added.items():
            traced.tokens[place] = token
        return traced

    def _trace(
        self, text: str, traced: Traced, added: dict[int, str], word_number: int | None = None
    ) -> None:
        before = len(traced.ids)
        number = 0
        for start, end, id_ in self.finder.spans(text):
            if id_ is None:
                number = self._trace_piece(text[start:end], start, number, traced)
            else:
                added[len(traced.ids)] = text[start:end]
                traced.ids.append(id_)
                traced.spans.append((start, end))
                traced.words.append(number)
                number += 1
        if word_number is not None:
            traced.words[before:] = [word_number] * (len(traced.ids) - before)

    def _trace_piece(self, piece: str, start: int, number: int, traced: Traced) -> int:
        """Trace text without added tokens; returns the number of the word behind it."""
        readable = piece
        try:
            piece.encode("utf-8")
        except UnicodeEncodeError:
            self.encoder.encode(piece)  # refuses it, unless surrogates are to be replaced
            readable = piece.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        prefix = self.add_prefix_space and not piece.startswith(" ")
        words = split_words(" " + readable if prefix else readable)
        for word in words:
            if word not in self._known:
                ids = self.encoder.encode(word)
                self._known[word] = ids, self._spans_in(word, ids)
        known = [self._known[word] for word in words]
        # Places in ``readable``; a space that was put before it stands outside.
        places = accumulate(map(len, words), initial=-1 if prefix else 0)
        first = len(traced.spans)
        traced.ids += [id_ for ids, _ in known for id_ in ids]
        traced.words += [word for word, (ids, _) in enumerate(known, number) for _ in ids]
        traced.spans += [
            (at + begin, at + end)
            for at, (_, spans) in zip(places, known, strict=False)  # one place more: the end
            for begin, end in spans
        ]
        if prefix:  # it counts as part of the first character
            traced.spans[first:] = [
                (max(begin, 0), max(end, 1)) for begin, end in traced.spans[first:]
            ]
        if start or readable is not piece:
            origins = _origins(piece, readable)
            traced.spans[first:] = [
                (start + origins[begin], start + origins[end])
                for begin, end in traced.spans[first:]
            ]
        return number + len(words)

    def _spans_in(self, word: str, ids: list[int]) -> list[Span]:
        """The characters of the word that each of its ids has bytes of."""
        ends = accumulate((len(self.tokens[id_]) if id_ >= 0 else 1 for id_ in ids), initial=0)
        if word.isascii():
            return list(pairwise(ends))
        places = [
            place
            for place, character in enumerate(word)
            for _ in range(len(character.encode("utf-8")))
        ]
        return [(places[begin], places[end - 1] + 1) for begin, end in pairwise(ends)]

    def _refuse_forbidden(self, text: str) -> None:
        for start, end, id_ in self.finder.spans(text):
            if id_ in self.forbidden:
                raise ArgumentError(
                    f'special_text="error", and the text has the special token '
                    f'{text[start:end]!r:.200} at character {start}; pass special_text="plain" to '
                    'read it as plain text, or "allow" where the text is to be trusted'
                )

    def _without_unknown(self, ids: list[int]) -> list[int]:
        if min(ids, default=0) >= 0:
            return ids
        if self.unknown is None:
            raise ArgumentError(
                f"the vocabulary has no token for the byte 0x{-1 - min(ids):02x} of the text, and "
                "there is no unk_token to stand in for it"
            )
        return [self.unknown if id_ < 0 else id_ for id_ in ids]


def _origins(text: str, readable: str) -> Sequence[int]:
    """Place in ``readable`` -> place in the ``text`` whose surrogates were repaired for it."""
    if len(text) == len(readable):
        return range(len(text) + 1)
    origins = [0]
    for character in readable:
        place = origins[-1]
        joined = "\ud800" <= text[place] <= "\udfff" and character != "\ufffd"
        origins.append(place + (2 if joined else 1))
    return origins
