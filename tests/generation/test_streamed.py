"""generate with the streamers: each row's pieces are the text of its ids, by every method."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer, TextIteratorStreamer, TextStreamer
from gpt2.errors import ArgumentError, TokenIdError
from tests.helpers import tiny_model

TOKENIZER = GPT2Tokenizer.train(["the hat é é 日本 日本 😀😀"] * 2, 275, show_progress=False)
EOS = TOKENIZER.eos_token_id
TEXTS = ["the hat é", "日本", "hat the hat the hat"]
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalised": {"repetition_penalty": 1.3},
    "sampled": {"do_sample": True, "seed": [1, 2, 3], "top_k": 0},
    "returning states": {"return_dict_in_generate": True},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return tiny_model(
        vocab_size=len(TOKENIZER), n_positions=64, bos_token_id=EOS, eos_token_id=EOS, seed=3
    )


def batch(side: str) -> dict[str, torch.Tensor]:
    return dict(TOKENIZER(TEXTS, padding=True, padding_side=side, return_tensors="pt"))


def read_all(streamer: TextIteratorStreamer, rows: int) -> list[str]:
    texts = [""] * rows
    for piece in streamer:
        texts[piece.row] += piece
    return texts


def ends_in_turn(model: GPT2LMHeadModel, settings: dict[str, Any]) -> list[int]:
    """Tokens that end the rows at different steps: what each row says at one of them."""
    free = model.generate(
        **batch("left"), **settings, eos_token_id=None, max_new_tokens=20, pad_token_id=EOS
    )
    new = (free.sequences if settings.get("return_dict_in_generate") else free)[:, -20:]
    return [int(new[0, 3]), int(new[1, 9])]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS)
def test_the_stream_of_a_batch_is_what_is_returned(
    model: GPT2LMHeadModel, method: str, side: str
) -> None:
    settings = METHODS[method]
    ends = ends_in_turn(model, settings)
    inputs = batch(side)
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    found = model.generate(
        **inputs, **settings, eos_token_id=ends, max_new_tokens=20, streamer=streamer
    )
    ids = found.sequences if settings.get("return_dict_in_generate") else found
    new = ids[:, inputs["input_ids"].shape[1] :].tolist()
    lengths = [next((i + 1 for i, x in enumerate(row) if x in ends), len(row)) for row in new]
    assert len(set(lengths)) > 1  # rows that end before others are what this is about
    expected = [
        text + TOKENIZER.decode(row[:length])
        for text, row, length in zip(TEXTS, new, lengths, strict=True)
    ]
    assert read_all(streamer, 3) == expected


def test_returned_sequences_are_rows(model: GPT2LMHeadModel) -> None:
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=60)
    torch.manual_seed(0)
    found = model.generate(
        **batch("left"), do_sample=True, num_return_sequences=2, max_new_tokens=5,
        eos_token_id=None, pad_token_id=EOS, return_only_new_tokens=True, streamer=streamer,
    )  # fmt: skip
    assert read_all(streamer, 6) == TOKENIZER.batch_decode(found)


def test_embeddings_have_no_prompt_to_print(model: GPT2LMHeadModel) -> None:
    embeds = model.get_input_embeddings()(batch("left")["input_ids"])
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    found = model.generate(
        inputs_embeds=embeds, max_new_tokens=4, eos_token_id=None, streamer=streamer
    )
    assert read_all(streamer, 3) == TOKENIZER.batch_decode(found)


def test_from_a_thread(model: GPT2LMHeadModel) -> None:
    inputs = TOKENIZER("the hat", return_tensors="pt")
    settings = {"max_new_tokens": 12, "eos_token_id": None}
    expected = TOKENIZER.decode(model.generate(**inputs, **settings)[0])
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    thread = Thread(target=model.generate, kwargs={**inputs, **settings, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tempearture": 2}, TypeError, "did you mean 'temperature'"),
        ({"num_beams": 2}, ArgumentError, "streamer does not go with num_beams"),
        ({"max_new_tokens": 500}, ArgumentError, "n_positions"),
    ],
)
def test_an_error_before_the_first_step_reaches_the_reader(
    model: GPT2LMHeadModel, settings: dict[str, Any], error: type, message: str
) -> None:
    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    kwargs = {**TOKENIZER("the", return_tensors="pt"), **settings, "streamer": streamer}
    thread = Thread(target=model.generate, kwargs=kwargs)
    thread.start()
    with pytest.raises(error, match=message):
        next(streamer)
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_on_the_way_reaches_the_reader_behind_the_text(model: GPT2LMHeadModel) -> None:
    def fail_at_the_third(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == 3:
            raise RuntimeError("no more")
        return scores

    streamer = TextIteratorStreamer(TOKENIZER, timeout=60)
    ids = torch.tensor([TOKENIZER.encode("t")])
    kwargs = {"logits_processor": [fail_at_the_third], "eos_token_id": None, "streamer": streamer}
    thread = Thread(target=model.generate, args=(ids,), kwargs=kwargs)
    thread.start()
    assert next(streamer) == "t"
    with pytest.raises(RuntimeError, match="no more"):
        list(streamer)
    thread.join()


def test_ids_that_the_tokenizer_has_not_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Models are often wider than their vocabulary; the streamer can be used again afterwards."""
    model = tiny_model(vocab_size=4000)
    streamer = TextStreamer(TOKENIZER, skip_prompt=True)
    with pytest.raises(TokenIdError, match="the vocabulary has the ids 0 to"):
        model.generate(torch.tensor([[1, 2]]), streamer=streamer)
    capsys.readouterr()
    streamer.put([[1, 2]])
    streamer.put(TOKENIZER.encode("the"))
    streamer.end()
    assert capsys.readouterr().out == "the\n"
