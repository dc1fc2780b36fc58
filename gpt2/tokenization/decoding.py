"""Ids -> text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpt2.errors import ArgumentTypeError, unknown_argument
from gpt2.tokenization.byte_alphabet import to_bytes
from gpt2.tokenization.lookup import TokenLookup

# English spacing that word-level tokenizers leave behind, and what it is cleaned up to.
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")

_ARGUMENTS = ("skip_special_tokens", "clean_up_tokenization_spaces")


class TokenDecoder(TokenLookup):
    """The half of the tokenizer that turns ids into text.

    Attributes:
        errors: what to do with bytes that are not UTF-8, as in ``bytes.decode``.
        clean_up_tokenization_spaces: default of that argument of `decode`.
    """

    errors: str
    clean_up_tokenization_spaces: bool

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **unknown: Any,
    ) -> str:
        """The text of ids; bytes that are no UTF-8 are treated as ``errors`` says.

        >>> tokenizer.decode([15496, 995])
        'Hello world'

        Args:
            token_ids: a list, a one-dimensional tensor or array, or a single id.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: take out the spaces before English punctuation and
                contractions; None for the tokenizer's own setting.

        Raises:
            TokenIdError: an id that the vocabulary does not have.
            ArgumentTypeError: not ids, or a batch of them; an unknown argument.
        """
        for name in unknown:
            raise unknown_argument("GPT2Tokenizer.decode", name, _ARGUMENTS)
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if not isinstance(ids, list):
            ids = self._checked_ids(ids)
        skipped = self._special_ids() if skip_special_tokens else set[int]()
        try:
            data = self._vocabulary.bytes_of(ids, skipped)
        except (IndexError, OverflowError, TypeError):
            data = self._vocabulary.bytes_of(self._checked_ids(ids), skipped)  # says what is wrong
        text = data.decode("utf-8", self.errors)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return _clean_up(text) if clean_up_tokenization_spaces else text

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **unknown: Any,
    ) -> list[str]:
        """`decode` of each row of a list, tensor or array (B, T).

        Raises:
            TokenIdError: an id that the vocabulary does not have.
            ArgumentTypeError: no batch of ids; an unknown argument.
        """
        for name in unknown:
            raise unknown_argument("GPT2Tokenizer.batch_decode", name, _ARGUMENTS)
        rows = sequences.tolist() if hasattr(sequences, "tolist") else sequences
        if isinstance(rows, str) or not isinstance(rows, Iterable):
            raise ArgumentTypeError(
                f"sequences must be the ids of several texts, not {sequences!r:.200}"
            )
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text that tokens, spelt as in the vocabulary file, stand for.

        >>> tokenizer.convert_tokens_to_string(["Hello", "Ġworld"])
        'Hello world'
        """
        spelt = [tokens] if isinstance(tokens, str) else list(tokens)
        for token in spelt:
            if not isinstance(token, str):
                raise ArgumentTypeError(f"a token must be text, not {token!r:.200}")
        return b"".join(map(to_bytes, spelt)).decode("utf-8", self.errors)


def _clean_up(text: str) -> str:
    for spaced in _CLEAN_UP:
        text = text.replace(spaced, spaced.strip())
    return text
