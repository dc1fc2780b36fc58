"""Ids -> text as they arrive, never half a character."""

from __future__ import annotations

import codecs
import queue
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, StreamTimeoutError, unknown_argument

if TYPE_CHECKING:
    from gpt2.tokenization.tokenizer import GPT2Tokenizer


class StreamDecoder:
    """Decodes ids one by one or in groups; O(1) per id.

    What `put` and `finish` return, put together, is ``tokenizer.decode`` of all the ids, with
    ``clean_up_tokenization_spaces=False``: bytes that may be the beginning of a character (three
    at most) are held back until it is whole or cannot be.

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


class RowText(str):
    """A piece of text of one row of a batch.

    Attributes:
        row: the number of the row, 0 where there is only one.
    """

    row: int

    def __new__(cls, text: str, row: int) -> RowText:
        piece = super().__new__(cls, text)
        piece.row = row
        return piece


class TextStreamer:
    """Prints generated text to stdout as it comes.

    A single text is printed piece by piece. Of a batch every row is printed by lines, each behind
    its row's number as in ``[2] She went home.``, as soon as a line, or some `LINE` characters of
    it up to a space, are there. The work per token does not grow with the text.

    Anything with `put` and `end` can be a streamer: generation calls `put` with the ids of the
    prompt (R, W), then with the new ids of each step (R,), and `end` once; or `fail`, where there
    is such a method, if it is ended by an error. −1 stands for padding, and for a row that has
    ended before the others.

    Args:
        tokenizer: whose ids they are.
        skip_prompt: do not print the prompt.
        decode_kwargs: skip_special_tokens; clean_up_tokenization_spaces=False, which always holds
            here. No other argument of `decode` can be honoured for a text that is not yet whole.

    Raises:
        ArgumentTypeError: any other argument.
        ArgumentError: clean_up_tokenization_spaces=True.
    """

    LINE = 72  # characters

    def __init__(
        self, tokenizer: GPT2Tokenizer, skip_prompt: bool = False, **decode_kwargs: Any
    ) -> None:
        known = ("skip_prompt", "skip_special_tokens", "clean_up_tokenization_spaces")
        for name in decode_kwargs:
            if name not in known:
                raise unknown_argument(type(self).__name__, name, known)
        if decode_kwargs.get("clean_up_tokenization_spaces"):
            raise ArgumentError(
                "clean_up_tokenization_spaces=True needs the whole text, which a streamer never "
                "has; leave it out"
            )
        self._tokenizer = tokenizer
        self._skip_prompt = skip_prompt
        self._skip_special_tokens = bool(decode_kwargs.get("skip_special_tokens", False))
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._decoders: list[StreamDecoder] = []  # one per row, from the prompt on
        self._ended: set[int] = set()
        self._lines: list[str] = []  # of each row of a batch, what is not yet printed

    def put(self, value: Any) -> None:
        """Take the prompt's ids, or those of a step, and print what they complete.

        The prompt is (R, W), or (W,) for a single row; a step is (R,), or (R, n) where it gives
        several ids to a row; of a single row also (n,) or (). Tensor, array or list.

        Raises:
            ArgumentError: a step that has not as many rows as the prompt.
            TokenIdError: an id that the vocabulary does not have.
        """
        ids = value.tolist() if hasattr(value, "tolist") else value
        is_prompt = not self._decoders
        if is_prompt:
            rows = self._rows(ids, 1)
            skip = self._skip_special_tokens
            self._decoders = [
                StreamDecoder(self._tokenizer, skip_special_tokens=skip) for _ in rows
            ]
            self._lines = [""] * len(rows)
        else:
            rows = self._rows(ids, len(self._decoders))
            if len(rows) != len(self._decoders):
                raise ArgumentError(
                    f"the prompt had {len(self._decoders)} rows, this step has {len(rows)}; a new "
                    "text begins after end()"
                )
        for row, of_row in enumerate(rows):
            real = [id_ for id_ in of_row if id_ != -1]
            if is_prompt and self._skip_prompt:
                continue
            if real or is_prompt:
                self.on_finalized_text(RowText(self._decoders[row].put(real), row))
            elif row not in self._ended:
                self._end_row(row)

    @staticmethod
    def _rows(ids: Any, count: int) -> list[Any]:
        """``ids`` as one list per row, where ``count`` rows are expected."""
        rows = list(ids) if isinstance(ids, list | tuple) else [ids]
        if rows and isinstance(rows[0], list | tuple):
            return rows
        return [rows] if count == 1 else [[id_] for id_ in rows]

    def _end_row(self, row: int) -> None:
        self._ended.add(row)
        self.on_finalized_text(RowText(self._decoders[row].finish(), row), stream_end=True)

    def end(self) -> None:
        """Print what was held back, and a newline; afterwards a new prompt can come."""
        for row in range(len(self._decoders)):
            if row not in self._ended:
                self._end_row(row)
        self._begin_anew()

    def fail(self, error: BaseException) -> None:
        """Generation has ended by ``error``, which its caller gets; a new prompt can come."""
        self._begin_anew()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text. Override it to send the text elsewhere.

        Args:
            text: a `RowText`, which knows its row; may be empty.
            stream_end: it is the last of its row.
        """
        if len(self._lines) <= 1:
            print(text, end="\n" if stream_end else "", flush=True)
            return
        row = text.row  # type: ignore[attr-defined]
        *lines, rest = (self._lines[row] + text).split("\n")
        if len(rest) >= self.LINE:
            line, _, rest = rest.rpartition(" ")
            lines, rest = ([*lines, line], rest) if line else ([*lines, rest], "")
        if stream_end and rest:
            lines, rest = [*lines, rest], ""
        self._lines[row] = rest
        for line in lines:
            print(f"[{row}] {line}", flush=True)


class TextIteratorStreamer(TextStreamer):
    """Generated text as an iterator, for a thread other than the one that generates.

    >>> streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    >>> thread = Thread(target=model.generate, kwargs={**inputs, "streamer": streamer})
    >>> thread.start()
    >>> for piece in streamer:
    ...     print(piece, end="")

    The pieces are `RowText`, text that also knows its ``row``: ``texts[piece.row] += piece`` puts a
    batch together. None is empty. If generation fails, the iteration raises its error.

    Args:
        tokenizer, skip_prompt, decode_kwargs: as of `TextStreamer`.
        timeout: raise StreamTimeoutError where no piece comes for so many seconds; None: wait.
    """

    def __init__(
        self,
        tokenizer: GPT2Tokenizer,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        # pieces; None at the end, the error where generation failed
        self.text_queue: queue.SimpleQueue[RowText | BaseException | None] = queue.SimpleQueue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand a piece to the reader."""
        if text:
            self.text_queue.put(text)  # type: ignore[arg-type]

    def end(self) -> None:
        """Let the iteration end."""
        super().end()
        self.text_queue.put(None)

    def fail(self, error: BaseException) -> None:
        """Let the iteration raise ``error``."""
        super().fail(error)
        self.text_queue.put(error)

    def __iter__(self) -> Iterator[RowText]:
        return self

    def __next__(self) -> RowText:
        try:
            piece = self.text_queue.get(timeout=self.timeout)
        except queue.Empty:
            raise StreamTimeoutError(
                f"no text came for timeout={self.timeout} seconds; generation may be slower, or "
                "may never have begun"
            ) from None
        if piece is None:
            raise StopIteration
        if isinstance(piece, BaseException):
            raise piece
        return piece
