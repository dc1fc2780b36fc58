"""Streams: the pieces put together are the decoded whole, and never half a character."""

from __future__ import annotations

import queue
from threading import Thread
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2 import GPT2Tokenizer, TextIteratorStreamer, TextStreamer
from gpt2.errors import ArgumentError, ArgumentTypeError, StreamTimeoutError, TokenIdError
from gpt2.tokenization.streaming import RowText, StreamDecoder

TOKENIZER = GPT2Tokenizer.train(["the hat é é 日本 日本 😀😀"] * 2, 275, show_progress=False)
TOKENIZER.add_tokens(["<日>"])


@given(st.lists(st.integers(0, len(TOKENIZER) - 1)), st.booleans())
def test_pieces_make_the_whole(ids: list[int], skip: bool) -> None:
    decoder = StreamDecoder(TOKENIZER, skip_special_tokens=skip)
    pieces = [decoder.put(id_) for id_ in ids] + [decoder.finish()]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special_tokens=skip)
    # and again with the same decoder, in one go
    assert decoder.put(ids) + decoder.finish() == TOKENIZER.decode(ids, skip_special_tokens=skip)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_half_characters_of_whole_text(text: str) -> None:
    decoder = StreamDecoder(TOKENIZER)
    so_far = ""
    for id_ in TOKENIZER.encode(text):
        so_far += decoder.put(id_)
        assert text.startswith(so_far)
    assert decoder.finish() == ""
    assert so_far == text


def test_what_may_become_a_character_is_held_back() -> None:
    ids = [TOKENIZER.convert_tokens_to_ids(character) for character in ("ð", "Ł", "ĺ", "Ĥ")]
    assert b"".join(map(TOKENIZER.token_bytes, ids)).decode() == "😂"
    decoder = StreamDecoder(TOKENIZER)
    assert [decoder.put(id_) for id_ in ids] == ["", "", "", "😂"]
    assert decoder.put(ids[:2]) == ""
    assert decoder.put(TOKENIZER.encode("t")) == "\ufffdt"
    assert decoder.put(ids[0]) == ""
    assert decoder.finish() == "\ufffd"


def test_the_errors_policy_is_the_tokenizers() -> None:
    tokenizer = GPT2Tokenizer.train(["a"], 257, errors="ignore")
    decoder = StreamDecoder(tokenizer)
    assert decoder.put(tokenizer.encode("é")[:1]) + decoder.finish() == ""


def test_bad_ids_are_refused_and_change_nothing() -> None:
    decoder = StreamDecoder(TOKENIZER)
    decoder.put(TOKENIZER.encode("é")[:1])
    for bad, error in ((10**6, TokenIdError), (-1, TokenIdError), (0.5, ArgumentTypeError)):
        with pytest.raises(error):
            decoder.put(bad)
    assert decoder.put(TOKENIZER.encode("é")[1:] or [TOKENIZER.encode("t")[0]])


# ------------------------------------------------------------------------------ TextStreamer


@pytest.mark.parametrize("hold", [list, torch.tensor, numpy.array], ids=["list", "torch", "numpy"])
@pytest.mark.parametrize("skip_prompt", [False, True])
def test_streamer_prints_as_text_comes(
    capsys: pytest.CaptureFixture[str], hold: Any, skip_prompt: bool
) -> None:
    streamer = TextStreamer(TOKENIZER, skip_prompt=skip_prompt, skip_special_tokens=True)
    prompt, answer = TOKENIZER.encode("the hat"), TOKENIZER.encode(" é😂")
    for _ in range(2):  # a second generation begins with a prompt again
        streamer.put(hold([prompt]))
        for id_ in answer:
            streamer.put(hold([id_]))
        streamer.put(hold([TOKENIZER.eos_token_id]))
        streamer.end()
        assert capsys.readouterr().out == (" é😂\n" if skip_prompt else "the hat é😂\n")


def test_streamer_prints_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(TOKENIZER)
    streamer.put(TOKENIZER.encode("the"))
    assert capsys.readouterr().out == "the"


def test_streamer_refuses_what_it_cannot_honour() -> None:
    with pytest.raises(ArgumentTypeError, match="TextStreamer has no argument 'skip_specials'"):
        TextStreamer(TOKENIZER, skip_specials=True)
    with pytest.raises(ArgumentTypeError, match="TextIteratorStreamer has no argument 'time'"):
        TextIteratorStreamer(TOKENIZER, time=3)
    TextStreamer(TOKENIZER, clean_up_tokenization_spaces=False)
    with pytest.raises(ArgumentError, match="clean_up_tokenization_spaces=True needs the whole"):
        TextStreamer(TOKENIZER, clean_up_tokenization_spaces=True)


# ------------------------------------------------------------------------------ batches


class Collecting(TextStreamer):
    """Keeps what it is given: the pieces of each row, and the rows in the order of their ends."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.texts: dict[int, str] = {}
        self.ends: list[int] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        assert isinstance(text, RowText)
        assert text.row not in self.ends
        self.texts[text.row] = self.texts.get(text.row, "") + text
        self.ends += [text.row] if stream_end else []


def steps_of(rows: list[list[int]]) -> list[list[int]]:
    """The step-by-step columns of rows that end at different times, −1 behind the ends."""
    width = max(map(len, rows))
    return [[row[i] if i < len(row) else -1 for row in rows] for i in range(width)]


ROWS = st.lists(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1), min_size=2, max_size=5)


@given(ROWS, ROWS, st.booleans(), st.booleans(), st.sampled_from([list, torch.tensor]))
def test_each_row_of_a_batch_is_as_alone(
    prompts: list[list[int]], rows: list[list[int]], skip_prompt: bool, skip: bool, hold: Any
) -> None:
    count = min(len(prompts), len(rows))
    prompts, rows = prompts[:count], rows[:count]
    width = max(map(len, prompts))
    streamer = Collecting(TOKENIZER, skip_prompt, skip_special_tokens=skip)
    for _ in range(2):  # it can be used again
        streamer.texts, streamer.ends = {}, []
        streamer.put(hold([[-1] * (width - len(row)) + row for row in prompts]))
        for step in steps_of(rows):
            streamer.put(hold(step))
        streamer.end()
        for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            whole = row if skip_prompt else prompt + row
            assert streamer.texts[i] == TOKENIZER.decode(whole, skip_special_tokens=skip)
        # a row ends when its −1 comes, not when the batch does
        assert streamer.ends == sorted(range(count), key=lambda i: len(rows[i]))


def test_a_step_may_hold_several_ids_per_row() -> None:
    streamer = Collecting(TOKENIZER)
    the, hat = TOKENIZER.encode("the"), TOKENIZER.encode(" hat é")
    streamer.put(torch.tensor([the, the]))
    streamer.put(torch.tensor([hat, [hat[0]] + [-1] * (len(hat) - 1)]))
    assert streamer.ends == []
    streamer.put(torch.tensor([[-1], [hat[1]]]))
    assert streamer.ends == [0]
    streamer.end()
    assert streamer.texts == {0: "the hat é", 1: "the" + TOKENIZER.decode(hat[:2])}
    single = Collecting(TOKENIZER)
    single.put([the])
    single.put(torch.tensor(hat))  # of one row: (n,), or () for a single id
    single.put(torch.tensor(the[0]))
    assert single.texts == {0: "the hat é" + TOKENIZER.decode(the[0])}


def test_a_batch_keeps_its_number_of_rows() -> None:
    streamer = TextStreamer(TOKENIZER)
    streamer.put(torch.tensor([[1, 2], [3, 4]]))
    for wrong in ([1], [1, 2, 3], [[1], [2], [3]]):
        with pytest.raises(ArgumentError, match="the prompt had 2 rows, this step has"):
            streamer.put(wrong)
    one = TextStreamer(TOKENIZER)
    one.put([1, 2])
    with pytest.raises(ArgumentError, match="the prompt had 1 rows, this step has 2"):
        one.put([[1], [2]])


def test_a_batch_is_printed_by_lines(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(TOKENIZER)
    streamer.LINE = 12
    texts = ["the hat\n\nthe hat the hat é the", "the", "é" * 30]
    rows = [TOKENIZER.encode(text) for text in texts]
    streamer.put([row[:1] for row in rows])
    assert capsys.readouterr().out == ""
    for step in steps_of([row[1:] for row in rows]):
        streamer.put(step)
    lines = capsys.readouterr().out.splitlines()
    streamer.end()
    lines += capsys.readouterr().out.splitlines()
    assert [line[4:] for line in lines if line.startswith("[0] ")] == [
        "the hat", "", "the hat the", "hat é the",
    ]  # fmt: skip
    assert [line for line in lines if line.startswith("[1]")] == ["[1] the"]
    long = [line[4:] for line in lines if line.startswith("[2]")]  # no space to break at
    assert "".join(long) == texts[2]
    assert len(long) > 1
    assert all(line[:4] in ("[0] ", "[1] ", "[2] ") for line in lines)


def test_a_failure_lets_a_new_text_begin(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(TOKENIZER, skip_prompt=True)
    streamer.put(TOKENIZER.encode("the"))
    streamer.put(TOKENIZER.encode("é")[:1])
    streamer.fail(RuntimeError())
    capsys.readouterr()
    streamer.put(TOKENIZER.encode("the"))
    streamer.put(TOKENIZER.encode(" hat"))
    streamer.end()
    assert capsys.readouterr().out == " hat\n"


def test_what_is_held_does_not_grow_with_the_text() -> None:
    """O(1) per token: neither the decoder nor the lines of a batch keep what is done with."""
    streamer = TextStreamer(TOKENIZER, skip_prompt=True)
    streamer.put([[1], [1]])
    ids = TOKENIZER.encode("the hat é 日本" * 50)
    held = set()
    for id_ in ids:
        streamer.put([id_, id_])
        held.add(len(streamer._lines[0]))
        pending, _ = streamer._decoders[0]._utf8.getstate()
        assert len(pending) <= 3
    assert max(held) <= streamer.LINE
    streamer.end()


# ---------------------------------------------------------------------------- TextIteratorStreamer


def test_the_iterator_gives_what_is_put_from_another_thread() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=20)
    rows = [TOKENIZER.encode(text) for text in ("the hat é😂", "日本 the")]

    def generate() -> None:
        streamer.put([[1], [1]])
        for step in steps_of(rows):
            streamer.put(step)
        streamer.end()

    for _ in range(2):
        thread = Thread(target=generate)
        thread.start()
        texts = ["", ""]
        for piece in streamer:
            assert piece  # never empty
            texts[piece.row] += piece
        thread.join()
        assert texts == ["the hat é😂", "日本 the"]


def test_of_a_single_text_the_pieces_are_plain() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=20)
    streamer.put([TOKENIZER.encode("the")])
    for id_ in TOKENIZER.encode(" hat"):
        streamer.put([id_])
    streamer.end()
    pieces = list(streamer)
    assert "".join(pieces) == "the hat"
    assert {piece.row for piece in pieces} == {0}


def test_the_readers_patience_ends() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=0.01)
    with pytest.raises(StreamTimeoutError, match=r"no text came for timeout=0\.01 seconds"):
        next(streamer)
    with pytest.raises(queue.Empty):  # what code written for the reference catches
        next(streamer)


def test_the_error_of_the_generating_thread_reaches_the_reader() -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=20)
    streamer.put([TOKENIZER.encode("the")])
    streamer.fail(RuntimeError("out of memory"))
    assert next(streamer) == "the"
    with pytest.raises(RuntimeError, match="out of memory"):
        next(streamer)
    streamer.put([TOKENIZER.encode("the")])  # and it can be used again
    streamer.end()
    assert list(streamer) == ["the"]
