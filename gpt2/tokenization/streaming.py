"""Ids -> text as they arrive, never half a character."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, unknown_argument

if TYPE_CHECKING:
    from gpt2.tokenization.tokenizer import GPT2Tokenizer


class StreamDecoder:
    """Decodes ids one by one or in groups; O(1) per id.

    What `put` and `finish` return, put together, is ``tokenizer.decode`` of all the ids: bytes
    that may be the beginning of a character are held back until it is whole or cannot be.

    >>> decoder = StreamDecoder(tokenizer)
    >>> [decoder.put(id_) for id_ in tokenizer.encode("é☕")] + [decoder.finish()]
    ['é', '', '☕', '']

    Args:
        tokenizer: whose ids they are.
        skip_special_tokens: leave special tokens out.
    """

    def __init__(self, tokenizer: GPT2Tokenizer, *, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = frozenset(tokenizer._special_ids() if skip_special_tokens else ())
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokenizer.errors)

    def put(self, token_ids: Any) -> str:
        """The text that these ids (one, a list, a one-dimensional tensor or array) complete.

        Raises:
            TokenIdError: an id that the vocabulary does not have.
        """
        table = self._tokenizer._vocabulary.token_bytes
        ids = self._tokenizer._checked_ids(token_ids)
        return self._utf8.decode(b"".join(table[id_] for id_ in ids if id_ not in self._skipped))

    def finish(self) -> str:
        """The text of what was held back; afterwards a new text can begin."""
        rest = self._utf8.decode(b"", True)
        self._utf8.reset()
        return rest


class TextStreamer:
    """Prints generated text to stdout as it comes.

    Anything with these two methods can be a streamer: generation calls `put` with the prompt's
    ids, then with the new ids of each step, and `end` once.

    Args:
        tokenizer: whose ids they are.
        skip_prompt: do not print the prompt.
        decode_kwargs: skip_special_tokens; no other argument of `decode` can be honoured for a
            text that is not yet whole.

    Raises:
        ArgumentTypeError: any other argument.
    """

    def __init__(
        self, tokenizer: GPT2Tokenizer, skip_prompt: bool = False, **decode_kwargs: Any
    ) -> None:
        for name in decode_kwargs:
            if name != "skip_special_tokens":
                raise unknown_argument("TextStreamer", name, ("skip_prompt", "skip_special_tokens"))
        self._decoder = StreamDecoder(tokenizer, **decode_kwargs)
        self._skip_prompt = skip_prompt
        self._next_is_prompt = True

    def put(self, value: Any) -> None:
        """Print what these ids complete: shape (), (T,) or (1, T), tensor, array or list.

        Raises:
            ArgumentError: several rows; print them after generation instead.
        """
        ids = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(ids, Iterable):
            ids = list(ids)
            if ids and isinstance(ids[0], list | tuple):
                if len(ids) > 1:
                    raise ArgumentError(
                        f"TextStreamer prints one text at a time, but got a batch of {len(ids)}"
                    )
                ids = ids[0]
        is_prompt, self._next_is_prompt = self._next_is_prompt, False
        if not (is_prompt and self._skip_prompt):
            self.on_finalized_text(self._decoder.put(ids))

    def end(self) -> None:
        """Print what was held back, and a newline; afterwards a new prompt can come."""
        self.on_finalized_text(self._decoder.finish(), stream_end=True)
        self._next_is_prompt = True

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text. Override it to send the text elsewhere."""
        print(text, end="\n" if stream_end else "", flush=True, file=sys.stdout)
