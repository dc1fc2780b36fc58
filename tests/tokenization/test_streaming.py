"""Streams: the pieces put together are the decoded whole, and never half a character."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2 import GPT2Tokenizer, TextStreamer
from gpt2.errors import ArgumentError, ArgumentTypeError, TokenIdError
from gpt2.tokenization.streaming import StreamDecoder

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


def test_streamer_takes_one_text() -> None:
    with pytest.raises(ArgumentError, match="one text at a time, but got a batch of 2"):
        TextStreamer(TOKENIZER).put(torch.tensor([[1, 2], [3, 4]]))


def test_streamer_refuses_what_it_cannot_honour() -> None:
    with pytest.raises(ArgumentTypeError, match="TextStreamer has no argument 'skip_specials'"):
        TextStreamer(TOKENIZER, skip_specials=True)
