"""Text without added tokens -> ids: split into words, look each up, merge those that are new."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any

from gpt2.errors import ArgumentError
from gpt2.tokenization.bpe import BytePairEncoder
from gpt2.tokenization.pretokenization import split_words

# Bounds of the table; `examples/benchmark.py tokenizer` measures what a full one takes.
MAX_WORDS = 1 << 17
MAX_WORD_LENGTH = 32
MAX_WORD_IDS = 32

_SURROGATE = re.compile("[\ud800-\udfff]")


class WordTable(dict[str, tuple[int, ...]]):
    """word -> its ids, filled as words are first met; emptied when it has `MAX_WORDS`.

    Its memory is bounded: 22 MB when full of English words, under 80 MB whatever the words are.

    A plain dictionary otherwise, so that a known word costs one look-up in C. Threads may share
    it: each step is a single operation of the dictionary, and two that meet the same new word
    at once store equal ids.
    """

    def __init__(self, encoder: BytePairEncoder) -> None:
        super().__init__()
        self._encoder = encoder

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._encoder.encode(word.encode("utf-8")))
        if len(word) <= MAX_WORD_LENGTH and len(ids) <= MAX_WORD_IDS:
            if len(self) >= MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def __reduce__(self) -> tuple[Any, ...]:
        return WordTable, (self._encoder,)  # what was learnt by the way stays here


class TextEncoder:
    """Ids of plain text.

    Args:
        encoder: merges the bytes of one word.
        replace_surrogates: what to do with lone surrogates, which have no UTF-8 form: False
            refuses them, True reads each as U+FFFD (and two that make a pair as the character
            that they mean), as tiktoken does.
    """

    def __init__(self, encoder: BytePairEncoder, *, replace_surrogates: bool = False) -> None:
        self._table = WordTable(encoder)
        self._replace_surrogates = replace_surrogates

    def encode(self, text: str) -> list[int]:
        """The ids of the text; a byte without a token of its own comes as ``-1 - byte``.

        Raises:
            ArgumentError: lone surrogates in the text, unless they are to be replaced.
        """
        try:
            return self._lookup(text)
        except UnicodeEncodeError:
            if not self._replace_surrogates:
                raise _lone_surrogate(text) from None
        repaired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return self._lookup(repaired)

    def _lookup(self, text: str) -> list[int]:
        return list(chain.from_iterable(map(self._table.__getitem__, split_words(text))))


def _lone_surrogate(text: str) -> ArgumentError:
    found = _SURROGATE.search(text)
    assert found is not None
    return ArgumentError(
        f"text has a lone surrogate, U+{ord(found.group()):04X}, at character {found.start()}: it "
        "is half a character and has no UTF-8 form; repair the text where it was read (it was "
        'likely decoded wrongly), or build the tokenizer with surrogates="replace" to read it as '
        "U+FFFD"
    )
