"""Encode many texts: over several processes, as lists or as one array to train on."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sized
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.progress import Progress

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy

    from gpt2.tokenization.reading import TextReader

# Characters that go to a worker at once: a tenth of a second of work, so that sending it there
# and the ids back is little beside it, and the last worker is not waited for long.
_CHUNK = 1 << 20
_TEXTS_IN_CHUNK = 1 << 14


class CorpusEncoder:
    """Encodes text after text, in order.

    Args:
        reader: ids of one text.
        before, after: ids that are put around every text.
        workers: processes that share the work; 1 for this one alone.
        start_method: how they are started, "fork", "spawn" or "forkserver"; None for what the
            program or the platform has chosen.
        show_progress: tell on stderr how far it is, where it takes more than a few seconds.

    Raises:
        ArgumentError: ``workers`` is no positive integer, or there is no such start method.
    """

    def __init__(
        self,
        reader: TextReader,
        before: list[int],
        after: list[int],
        *,
        workers: int = 1,
        start_method: str | None = None,
        show_progress: bool = True,
    ) -> None:
        if type(workers) is not int or workers < 1:
            raise ArgumentError(f"workers must be an integer from 1 up, not {workers!r}")
        if start_method is not None:
            _check_start_method(start_method)
        self._task = _Task(reader, before, after)
        self._workers = workers
        self._start_method = start_method
        self._show_progress = show_progress

    def lists(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each text."""
        rows: list[list[int]] = []
        with closing(self._chunks(texts)) as chunks:
            for ids, lengths in chunks:
                numbers = ids.tolist()
                end = 0
                for length in lengths:
                    rows.append(numbers[end : end + length])
                    end += length
        return rows

    def array(self, texts: Iterable[str], vocabulary_size: int) -> numpy.ndarray[Any, Any]:
        """The ids of all texts one behind the other, (N,): uint16 if every id fits, else uint32."""
        import numpy

        dtype = numpy.uint16 if vocabulary_size <= 1 << 16 else numpy.uint32
        # Grows in place, so that the ids are never in memory twice.
        grown = array("H" if dtype is numpy.uint16 else "I")
        with closing(self._chunks(texts)) as chunks:
            for ids, _ in chunks:
                grown.frombytes(numpy.frombuffer(ids, dtype=numpy.uint32).astype(dtype).tobytes())
        return numpy.frombuffer(grown, dtype=dtype)

    def _chunks(self, texts: Iterable[str]) -> Generator[_Chunk, None, None]:
        total = len(texts) if isinstance(texts, Sized) else None
        progress = Progress("encoding", "texts", total, self._show_progress)
        done = 0
        pieces = _cut(texts)
        for chunk in map(self._task, pieces) if self._workers == 1 else self._spread(pieces):
            yield chunk
            done += len(chunk[1])
            progress.show(done)
        progress.close()

    def _spread(self, pieces: Iterator[_Piece]) -> Iterator[_Chunk]:
        """The chunks as workers hand them in, in order, with few pieces under way at a time."""
        import multiprocessing  # here, so that `import gpt2` does not pay for it
        from concurrent.futures import ProcessPoolExecutor

        pool = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context(self._start_method),
            initializer=_start_worker,
            initargs=(self._task,),
        )
        under_way: deque[Future[_Chunk]] = deque()
        try:
            for piece in pieces:
                under_way.append(pool.submit(_work, piece))
                if len(under_way) > 2 * self._workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_start_method(name: str) -> None:
    import multiprocessing

    methods = multiprocessing.get_all_start_methods()
    if name not in methods:
        raise ArgumentError(f"start_method must be one of {', '.join(methods)}, not {name!r}")


_Piece = tuple[int, list[str]]
"""The number of the first text, and the texts."""

_Chunk = tuple["array[int]", "array[int]"]
"""The ids of some texts one behind the other, and how many each text has."""


class _Task:
    """What is done to each piece; travels to the workers."""

    def __init__(self, reader: TextReader, before: list[int], after: list[int]) -> None:
        self._reader, self._before, self._after = reader, before, after

    def __call__(self, piece: _Piece) -> _Chunk:
        ids, ends = array("I"), array("Q", [0])
        number, texts = piece
        for text in texts:
            ids.extend(self._before)
            try:
                ids.extend(self._reader.ids(text))
            except ArgumentError as error:
                raise ArgumentError(f"texts[{number + len(ends) - 1}]: {error}") from None
            ids.extend(self._after)
            ends.append(len(ids))
        return ids, array("Q", [end - start for start, end in pairwise(ends)])


_task: _Task  # in a worker: what it was started for


def _start_worker(task: _Task) -> None:
    global _task
    _task = task


def _work(piece: _Piece) -> _Chunk:
    return _task(piece)


def _cut(texts: Iterable[str]) -> Iterator[_Piece]:
    """The texts in pieces of about equal size.

    Raises:
        ArgumentTypeError: one is no text, or all of it is one.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise ArgumentTypeError(
            f"texts must be an iterable of texts, not {type(texts).__name__}; "
            "for a single text, [text]"
        )
    first, piece, size = 0, list[str](), 0
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ArgumentTypeError(f"texts[{number}] must be a string, not {type(text).__name__}")
        piece.append(text)
        size += len(text)
        if size >= _CHUNK or len(piece) >= _TEXTS_IN_CHUNK:
            yield first, piece
            first, piece, size = number + 1, [], 0
    if piece:
        yield first, piece
