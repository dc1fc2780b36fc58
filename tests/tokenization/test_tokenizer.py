"""Text to ids and back: calls, batches, padding, truncation, what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2 import GPT2Tokenizer, GPT2TokenizerFast
from gpt2.errors import ArgumentError, ArgumentTypeError, TokenIdError
from gpt2.tokenization import words

ROOT = Path(__file__).parents[2]


def test_published_ids(gpt2_tokenizer: GPT2Tokenizer) -> None:
    assert gpt2_tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert gpt2_tokenizer(" Hello world").input_ids == [18435, 995]
    assert gpt2_tokenizer.encode("a <|endoftext|> b") == [64, 220, 50256, 275]
    assert gpt2_tokenizer.tokenize("Hello world") == ["Hello", "Ġworld"]
    assert gpt2_tokenizer.decode([15496, 995]) == "Hello world"
    assert gpt2_tokenizer.token_bytes(995) == b" world"
    assert (len(gpt2_tokenizer), gpt2_tokenizer.vocab_size) == (50257, 50257)
    assert gpt2_tokenizer.eos_token_id == gpt2_tokenizer.bos_token_id == 50256
    assert gpt2_tokenizer.pad_token_id is None


def test_the_fast_name_is_the_same_class() -> None:
    assert GPT2TokenizerFast is GPT2Tokenizer


TOKENIZER = GPT2Tokenizer.train(["the hat and the hen é 日本 日本"] * 2, 290, show_progress=False)


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "\0\0a",
        "  \n\n ",
        "\u202eabc\u202c",
        "👩‍👩‍👧‍👦",
        "🇩🇪",
        "e\u0301",
        "\uffff\U0010ffff",
        "<|endoftext|>",
    ],
)
def test_odd_texts_come_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.batch_decode([ids, []]) == [text, ""]


# ----------------------------------------------------------------------------------- calls


def test_one_text_and_several(tokenizer: GPT2Tokenizer) -> None:
    one = tokenizer("the hat")
    assert one.keys() == {"input_ids", "attention_mask"}
    assert one["attention_mask"] == [1] * len(one["input_ids"])
    both = tokenizer(["the hat", "the"])
    assert both["input_ids"] == [one["input_ids"], tokenizer.encode("the")]
    assert both["attention_mask"] == [[1] * len(row) for row in both["input_ids"]]
    assert tokenizer(("the hat",))["input_ids"] == [one["input_ids"]]
    assert tokenizer([]) == {"input_ids": [], "attention_mask": []}
    assert tokenizer("the", return_attention_mask=False) == {"input_ids": tokenizer.encode("the")}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["pt", "np"])
def test_padding_to_tensors(tokenizer: GPT2Tokenizer, side: str, kind: Any) -> None:
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    short, long = tokenizer.encode("the"), tokenizer.encode("the red river")
    batch = tokenizer(
        ["the", "the red river"], padding=True, padding_side=side, return_tensors=kind
    )
    pad = [tokenizer.pad_token_id] * (len(long) - len(short))
    zeros, ones = [0] * len(pad), [1] * len(short)
    first, mask = (pad + short, zeros + ones) if side == "left" else (short + pad, ones + zeros)
    assert batch["input_ids"].tolist() == [first, long]
    assert batch["attention_mask"].tolist() == [mask, [1] * len(long)]
    expected = torch.int64 if kind == "pt" else numpy.int64
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == expected


def test_padding_without_a_pad_token_takes_eos_and_masks_it(tokenizer: GPT2Tokenizer) -> None:
    assert tokenizer.pad_token is None
    batch = tokenizer(["the", "the red river"], padding=True)
    assert batch["input_ids"][0][-1] == tokenizer.eos_token_id
    assert batch["attention_mask"][0][-1] == 0
    tokenizer.eos_token = None
    assert tokenizer(["the", "the red river"], padding=True)["input_ids"][0][-1] == 0


def test_the_side_is_an_attribute_too(tokenizer: GPT2Tokenizer) -> None:
    tokenizer.padding_side = "left"
    assert tokenizer(["the", "the red"], padding=True)["attention_mask"][0][0] == 0
    tokenizer.padding_side = "middle"
    with pytest.raises(
        ArgumentError, match='padding_side must be "left" or "right", not \'middle\''
    ):
        tokenizer("the")


def test_padding_to_a_length(tokenizer: GPT2Tokenizer) -> None:
    assert len(tokenizer("the", padding="max_length", max_length=9)["input_ids"]) == 9
    assert len(tokenizer("the", padding=True, pad_to_multiple_of=8)["input_ids"]) == 8
    tokenizer.model_max_length = 7
    assert tokenizer("the", padding="max_length")["attention_mask"].count(0) == 7 - len(
        tokenizer.encode("the")
    )
    long = "the red river froze over"
    assert len(tokenizer.encode(long)) > 7
    assert tokenizer(long, padding="max_length")["input_ids"] == tokenizer.encode(long)
    assert len(tokenizer(long, truncation=True)["input_ids"]) == 7


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [0, 1, 3, 100])
def test_truncation(tokenizer: GPT2Tokenizer, side: str, length: int) -> None:
    ids = tokenizer.encode("the red river froze")
    tokenizer.truncation_side = side
    kept = ids[:length] if side == "right" else ids[max(len(ids) - length, 0) :]
    assert tokenizer("the red river froze", truncation=True, max_length=length).input_ids == kept
    padded = tokenizer(
        ["the red river froze"], truncation=True, padding="max_length", max_length=length
    )
    assert len(padded["input_ids"][0]) == length


def test_bos_and_eos_around_a_text(tokenizer: GPT2Tokenizer) -> None:
    plain = tokenizer.encode("the red river")
    end = tokenizer.eos_token_id
    tokenizer.add_bos_token = True
    assert tokenizer("the red river")["input_ids"] == [end, *plain]
    assert tokenizer.encode("the red river", add_special_tokens=False) == plain
    tokenizer.add_eos_token = True
    assert tokenizer.encode("the red river") == [end, *plain, end]
    assert tokenizer.encode("") == [end, end]
    cut = tokenizer("the red river", truncation=True, max_length=4)["input_ids"]
    assert cut == [end, *plain[:2], end]
    with pytest.raises(ArgumentError, match="max_length=1 leaves no room for the BOS and EOS"):
        tokenizer("the", truncation=True, max_length=1)
    tokenizer.bos_token = None
    with pytest.raises(ArgumentError, match="add_bos_token is set, but the tokenizer has no bos"):
        tokenizer("the")


def test_prefix_space_goes_before_every_stretch_of_text(tokenizer: GPT2Tokenizer) -> None:
    end = tokenizer.eos_token_id
    spaced = tokenizer.encode(" hat")
    tokenizer.add_prefix_space = True
    assert tokenizer.encode("hat") == tokenizer.encode(" hat") == spaced
    assert tokenizer.encode("hat<|endoftext|>hat") == [*spaced, end, *spaced]
    assert tokenizer.encode("") == []
    assert tokenizer.encode("<|endoftext|>") == [end]


def test_encode_takes_the_arguments_of_a_call(tokenizer: GPT2Tokenizer) -> None:
    ids = tokenizer.encode("the hat")
    tensor = tokenizer.encode("the hat", return_tensors="pt")
    assert tensor.shape == (1, len(ids))
    assert tensor.tolist() == [ids]
    assert tokenizer.encode("", return_tensors="pt").shape == (1, 0)
    assert tokenizer.encode("", return_tensors="pt").dtype == torch.int64
    assert tokenizer([], return_tensors="pt")["input_ids"].shape == (0, 0)


# --------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"paddding": True}, ArgumentTypeError, "no argument 'paddding'; did you mean 'padding'"),
        ({"stride": 2}, ArgumentError, "stride=2 has no effect without truncation"),
        ({"padding": "longst"}, ArgumentError, "padding must be True, .* not 'longst'"),
        ({"padding": 7}, ArgumentError, "padding must be True, .* not 7"),
        ({"truncation": "only_3rd"}, ArgumentError, "truncation must be True, .* 'only_3rd'"),
        ({"max_length": 5}, ArgumentError, "max_length=5 has no effect here; add truncation=True"),
        ({"max_length": 5, "padding": True}, ArgumentError, "max_length=5 has no effect"),
        ({"max_length": -1, "truncation": True}, ArgumentError, "max_length must be .* not -1"),
        ({"max_length": 2.0, "truncation": True}, ArgumentError, "max_length must be .* not 2.0"),
        ({"truncation": True}, ArgumentError, "truncation=True needs a length"),
        ({"padding": "max_length"}, ArgumentError, 'padding="max_length" needs a length'),
        ({"pad_to_multiple_of": 8}, ArgumentError, "pad_to_multiple_of=8 needs padding"),
        ({"pad_to_multiple_of": 0, "padding": True}, ArgumentError, "from 1 up, not 0"),
        ({"padding_side": "up"}, ArgumentError, 'padding_side must be "left" or "right"'),
        ({"return_tensors": "tf"}, ArgumentTypeError, "return_tensors must be \"pt\" .* not 'tf'"),
    ],
)
def test_bad_arguments(
    tokenizer: GPT2Tokenizer, arguments: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        tokenizer("the hat", **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text must be a string or a list of strings, not NoneType"),
        (b"the", "not bytes"),
        (3, "not int"),
        ({"the"}, "not set"),
        (["the", None], r"text\[1\] must be a string, not NoneType"),
        ([["the", "hat"]], r"text\[0\] must be a string, not list"),
    ],
)
def test_text_that_is_none(tokenizer: GPT2Tokenizer, text: Any, message: str) -> None:
    with pytest.raises(ArgumentTypeError, match=message):
        tokenizer(text)
    if not isinstance(text, list):
        with pytest.raises(ArgumentTypeError, match="takes one text"):
            tokenizer.encode(text)
        with pytest.raises(ArgumentTypeError, match="takes one text"):
            tokenizer.tokenize(text)


def test_ragged_rows_are_no_tensor(tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(ArgumentError, match=r"input_ids cannot be one tensor.*add padding=True"):
        tokenizer(["the", "the red river"], return_tensors="pt")


def test_lone_surrogates() -> None:
    with pytest.raises(ArgumentError, match=r"U\+DC80, at character 4"):
        TOKENIZER("the \udc80 hat")
    replacing = GPT2Tokenizer.train(["the"], 260, surrogates="replace")
    assert replacing.encode("the \udc80!") == replacing.encode("the \ufffd!")
    assert replacing.encode("\ud83d\ude00") == replacing.encode("😀")  # a pair is whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"errors": "sometimes"}, "errors must be a way of bytes.decode .* not 'sometimes'"),
        ({"errors": None}, "errors must be a way"),
        ({"padding_side": "up"}, 'padding_side must be "left" or "right", not \'up\''),
        ({"truncation_side": 1}, "truncation_side must be"),
        ({"model_max_length": 0}, "model_max_length must be an integer from 1 up, or None, not 0"),
        ({"model_max_length": "many"}, "model_max_length must be"),
        ({"add_bos_token": 1}, "add_bos_token must be True or False, not 1"),
        ({"surrogates": "pass"}, 'surrogates must be "strict" or "replace"'),
        ({"pad_token": ""}, "a token must not be empty"),
        ({"pad_token": 7}, "a token must be text or an AddedToken, not 7"),
        ({"additional_special_tokens": "<a>"}, "must be a list of tokens, not '<a>'"),
        ({"pad_tokn": "<pad>"}, "no argument 'pad_tokn'; did you mean 'pad_token'"),
        ({"add_bos_token": True, "bos_token": None}, None),
    ],
)
def test_bad_settings(arguments: dict[str, Any], message: str | None) -> None:
    if message is None:
        tokenizer = GPT2Tokenizer.train(["the"], 260, **arguments)
        with pytest.raises(ArgumentError, match="no bos_token"):
            tokenizer("the")
        return
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        GPT2Tokenizer.train(["the"], 260, **arguments)


# ------------------------------------------------------------------------------- decoding


def test_decode_takes_what_holds_ids(tokenizer: GPT2Tokenizer) -> None:
    ids = tokenizer.encode("the red hat")
    for held in (ids, tuple(ids), iter(ids), torch.tensor(ids), numpy.array(ids, numpy.uint16)):
        assert tokenizer.decode(held) == "the red hat"
    hat = tokenizer.convert_tokens_to_ids("Ġhat")
    assert tokenizer.decode(hat) == tokenizer.decode(torch.tensor(hat)) == " hat"
    assert tokenizer.decode([numpy.int64(hat)]) == " hat"
    assert tokenizer.decode([]) == ""
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == ["the red hat"] * 2


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([5, -1], TokenIdError, r"token id -1: the vocabulary has the ids 0 to \d+"),
        ([100000], TokenIdError, "token id 100000"),
        ([1.0], ArgumentTypeError, "a token id must be an integer, not 1.0"),
        (torch.tensor([1.0]), ArgumentTypeError, "must be an integer, not 1.0"),
        ("the", ArgumentTypeError, "must be an integer, not 'the'"),
        ([True], ArgumentTypeError, "not True"),
        (None, ArgumentTypeError, "not None"),
        ([[1, 2]], ArgumentTypeError, "batch_decode takes a batch"),
        (torch.tensor([[1, 2]]), ArgumentTypeError, "batch_decode takes a batch"),
    ],
)
def test_what_are_no_ids(tokenizer: GPT2Tokenizer, ids: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        tokenizer.decode(ids)
    with pytest.raises(error, match=message):
        tokenizer.convert_ids_to_tokens(ids)


def test_decode_takes_no_unknown_argument(tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(ArgumentTypeError, match="decode has no argument 'skip_special_token'; did"):
        tokenizer.decode([0], skip_special_token=True)
    with pytest.raises(ArgumentTypeError, match="batch_decode has no argument 'spaces_between_sp"):
        tokenizer.batch_decode([[0]], spaces_between_special_tokens=True)
    with pytest.raises(ArgumentTypeError, match="has no argument 'add_special_token'; did you"):
        tokenizer.encode("the", add_special_token=True)


def test_what_are_no_tokens(tokenizer: GPT2Tokenizer) -> None:
    wrong: Any
    for wrong in (None, 3, ["the", 3]):
        with pytest.raises(ArgumentTypeError, match=r"a token must be text, not (None|3)"):
            tokenizer.convert_tokens_to_ids(wrong)
    with pytest.raises(ArgumentTypeError, match="a token must be text, not 3"):
        tokenizer.convert_tokens_to_string(["the", 3])  # type: ignore[list-item]
    assert tokenizer.convert_tokens_to_string("Ġé") == "Ġé".replace("Ġ", " ").replace("é", "\ufffd")
    for wrong in (3, "the", torch.tensor(3)):
        with pytest.raises(ArgumentTypeError, match="sequences must be the ids of several texts"):
            tokenizer.batch_decode(wrong)


def test_bytes_that_are_no_text(tokenizer: GPT2Tokenizer) -> None:
    half = tokenizer.encode("é")[:1]
    assert tokenizer.decode([*half, *tokenizer.encode("the")]) == "\ufffdthe"
    tokenizer.errors = "ignore"
    assert tokenizer.decode([*half, *tokenizer.encode("the")]) == "the"
    tokenizer.errors = "strict"
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode(half)


def test_skipping_special_tokens(tokenizer: GPT2Tokenizer) -> None:
    tokenizer.add_tokens(["<sep>"], special_tokens=True)
    tokenizer.add_tokens(["<kept>"])
    ids = tokenizer.encode("the<|endoftext|><sep><kept>hat")
    assert tokenizer.decode(ids) == "the<|endoftext|><sep><kept>hat"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the<kept>hat"
    assert tokenizer.batch_decode([ids], skip_special_tokens=True) == ["the<kept>hat"]
    assert "<sep>" not in tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)


def test_cleaning_up_spaces_is_asked_for(tokenizer: GPT2Tokenizer) -> None:
    ids = tokenizer.encode("Well , I do n't know , it 's old .")
    assert tokenizer.decode(ids) == "Well , I do n't know , it 's old ."
    cleaned = "Well, I don't know, it's old."
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == cleaned
    tokenizer.clean_up_tokenization_spaces = True
    assert tokenizer.decode(ids) == cleaned


# --------------------------------------------------------------------------- the environment


def test_pickles_and_copies(tokenizer: GPT2Tokenizer) -> None:
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.encode("the hat")
    for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert twin.get_vocab() == tokenizer.get_vocab()
        assert twin("a <|pad|> hat") == tokenizer("a <|pad|> hat")
        twin.add_tokens(["<new>"])
        assert len(twin) == len(tokenizer) + 1


def test_threads_share_one(tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 50)  # so that the table is emptied all the time
    texts = [f"the hat {n} of the hen {n * 7919 % 1000} é{n}" for n in range(400)]
    expected = [tokenizer.encode(text) for text in texts]
    got: list[list[list[int]]] = []

    def work() -> None:
        got.append([tokenizer.encode(text) for text in texts])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 4


def test_the_word_table_is_bounded(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 10)
    table = tokenizer._encoder._table
    for n in range(100):
        tokenizer.encode(f"word{n} {'x' * 1000} {'日' * 31}")
        assert len(table) <= 10
        assert all(len(word) <= words.MAX_WORD_LENGTH for word in table)
        assert all(len(ids) <= words.MAX_WORD_IDS for ids in table.values())


def test_importing_the_tokenizer_imports_no_heavy_package() -> None:
    code = (
        "import sys; from gpt2 import GPT2Tokenizer; "
        "GPT2Tokenizer.train(['the hat'], 260)('the hat'); "
        "print([m for m in ('torch', 'numpy', 'huggingface_hub', 'regex') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_it_says_what_it_is(tokenizer: GPT2Tokenizer) -> None:
    assert "300 tokens" in repr(tokenizer)
    assert "<|endoftext|>" in repr(tokenizer)
