"""Calls of the tokenizer with all their arguments equal transformers' fast class."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2 import BatchEncoding, GPT2Tokenizer
from gpt2.tokenization.added import AddedToken

VOCAB = Path(__file__).parents[3] / "shared" / "gpt2-vocab"
END = "<|endoftext|>"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not VOCAB.is_dir(), reason="needs ../shared/gpt2-vocab"),
]

# Words that end in the middle of characters, words of several tokens, and all kinds of added ones.
PIECES = [
    *("the", " hat", " unbelievably", "x=1;", "don't", "'ll", " 1987", "!!", "…", "ﬃ", "½"),
    *(" ", "  ", "\n", "\n\n ", "\t", "\u3000", "\x85", "\u2028 ", "\0", "\ufeff"),
    *(
        "é",
        "e\u0301",
        "日本語",
        " 日",
        "한국",
        "עברית",
        "👩‍👩‍👧",
        " 👍🏽",
        "🇩🇪",
        "𝟙",
        "𐍈",
        "\U0010ffff",
        "ไทย",
    ),
    *(END, f" {END} ", "<pad>", "<left>", "<right>", " <right>  ", "<plain>", "word", "swords"),
]
ADDED = ("<left>", "<right>")


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def plain() -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(VOCAB)


@pytest.fixture(scope="module")
def pairs_of_tokenizers(transformers: Any, plain: GPT2Tokenizer) -> list[tuple[Any, Any]]:
    """(ours, theirs) in four settings, with the same added tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    major = int(transformers.__version__.split(".")[0])
    pairs = []
    for settings in (
        {},
        {"add_prefix_space": True},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True},
    ):
        if major < 5 and "add_bos_token" in settings:
            continue  # the fast class of 4.48 passes them over
        files = [str(VOCAB / "vocab.json"), str(VOCAB / "merges.txt")]
        theirs = transformers.GPT2TokenizerFast(*files, **settings)
        mine = GPT2Tokenizer.from_pretrained(VOCAB, **settings)
        for tokenizer, added in ((mine, AddedToken), (theirs, tokenizers.AddedToken)):
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
            tokenizer.add_tokens(["<plain>", added("<left>", lstrip=True, normalized=False)])
            tokenizer.add_tokens([added("<right>", rstrip=True), added("word", single_word=True)])
        pairs.append((mine, theirs))
    return pairs


def random_text(rng: random.Random, most: int = 9) -> str:
    return "".join(rng.choices(PIECES, k=rng.randrange(most)))


def random_texts(rng: random.Random, split: bool) -> tuple[Any, ...]:
    """(text,) or (text, text_pair), one or a batch."""

    def one() -> Any:
        return [random_text(rng, 4) for _ in range(rng.randrange(6))] if split else random_text(rng)

    count = rng.choice((1, 2))
    if rng.random() < 0.4:
        texts = [one() for _ in range(count)]
        # An empty pair of a single text is no pair in transformers, but is one in a batch.
        return tuple(text or (["a"] if split else "a") for text in texts)
    size = rng.randrange(1, 5)
    return tuple([one() for _ in range(size)] for _ in range(count))


def random_arguments(rng: random.Random, texts: tuple[Any, ...], specials: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name in (
        "return_token_type_ids",
        "return_special_tokens_mask",
        "return_offsets_mapping",
        "return_length",
        "return_overflowing_tokens",
    ):
        if rng.random() < 0.5:
            arguments[name] = True
    for name in ("return_attention_mask", "add_special_tokens"):
        if rng.random() < 0.2:
            arguments[name] = False
    strategies = [True, "longest_first", "only_first", "do_not_truncate", False]
    if len(texts) == 2:
        strategies.append("only_second")
    truncation = rng.choice(strategies)
    arguments["truncation"] = truncation
    cuts = truncation not in (False, "do_not_truncate")
    padding = rng.choice([False, "do_not_pad", True, "longest", "max_length"])
    arguments["padding"] = padding
    pads = padding not in (False, "do_not_pad")
    multiple = rng.choice([2, 4, 8]) if pads and rng.random() < 0.3 else None
    if multiple:
        arguments["pad_to_multiple_of"] = multiple
    if cuts or padding == "max_length":
        length = rng.randrange(specials + 1, 24)
        arguments["max_length"] = -(-length // multiple) * multiple if multiple else length
    if cuts and "return_overflowing_tokens" in arguments and rng.random() < 0.7:
        arguments["stride"] = rng.randrange(arguments["max_length"] - specials)
    if pads and rng.random() < 0.3:
        arguments["padding_side"] = rng.choice(["left", "right"])
    return arguments


def outcome(tokenizer: Any, texts: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
    try:
        return tokenizer(*texts, **arguments)
    except Exception as error:
        return error
    except BaseException as error:
        # Of a batch that it refuses for two reasons, in threads, tokenizers gives either: one is
        # an error, the other (a stride that leaves no room) a panic of its Rust code.
        if type(error).__name__ != "PanicException":
            raise
        return RuntimeError(str(error))


def assert_rows_are_equal(mine: BatchEncoding, theirs: Any, context: Any) -> None:
    assert len(mine.encodings or ()) == len(theirs.encodings), context
    for index, expected in enumerate(theirs.encodings):
        row = mine[index]
        for name in (
            *("ids", "type_ids", "offsets", "attention_mask"),
            *("special_tokens_mask", "word_ids", "sequence_ids"),
        ):
            assert getattr(row, name) == getattr(expected, name), (name, index, context)
        assert row.tokens == expected.tokens, (index, context)
        for token in range(len(row)):
            assert mine.token_to_word(index, token) == theirs.token_to_word(index, token), context
            if expected.sequence_ids[token] is not None:
                chars = mine.token_to_chars(index, token)
                assert chars == tuple(theirs.token_to_chars(index, token)), context
        for text in {0, *row.sequence_ids} - {None}:
            for place in range(12):
                for name in ("char_to_token", "char_to_word", "word_to_tokens", "word_to_chars"):
                    got = getattr(mine, name)(index, place, text)
                    want = getattr(expected, name)(place, text)
                    assert got == want, (name, index, place, text, context)


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(pairs_of_tokenizers: list[tuple[Any, Any]], seed: int) -> None:
    rng = random.Random(seed)
    compared = refused = 0
    for _ in range(1000):  # 4 000 in all
        mine, theirs = rng.choice(pairs_of_tokenizers)
        split = rng.random() < 0.3
        texts = random_texts(rng, split)
        specials = mine.num_special_tokens_to_add(pair=len(texts) == 2)
        arguments = random_arguments(rng, texts, specials)
        if split:
            arguments["is_split_into_words"] = True
            if not mine.add_prefix_space and not is_version_5():
                continue  # transformers 4.48 asks for add_prefix_space there
        for tokenizer in (mine, theirs):
            tokenizer.padding_side = "left" if seed % 2 else "right"
            tokenizer.truncation_side = "left" if seed // 2 else "right"
        context = (texts, arguments)
        got = outcome(mine, texts, arguments)
        # Theirs panics where the stride is too long for what a row has room for, and makes rows
        # longer than max_length where there is no room at all.
        if "return_overflowing_tokens" in arguments and isinstance(got, ValueError):
            reasons = ("must be less than the", "leaves no room in a row")
            if any(reason in str(got) for reason in reasons):
                continue
        expected = outcome(theirs, texts, arguments)
        if isinstance(expected, Exception) or isinstance(got, Exception):
            # A text that is too short for only_first or only_second.
            assert isinstance(expected, Exception), (got, context)
            assert isinstance(got, ValueError), (expected, context)
            refused += 1
            continue
        assert dict(got) == dict(expected), context
        assert_rows_are_equal(got, expected, context)
        compared += 1
    assert compared > (600 if is_version_5() else 300)
    assert refused > 10


def test_special_text_as_plain_text(pairs_of_tokenizers: list[tuple[Any, Any]]) -> None:
    rng = random.Random(9)
    if not is_version_5():
        pytest.skip("transformers 4.48 takes no split_special_tokens in a call")
    for _ in range(500):
        mine, theirs = rng.choice(pairs_of_tokenizers)
        text = random_text(rng)
        got = mine(text, special_text="plain", return_offsets_mapping=True)
        expected = theirs(text, split_special_tokens=True, return_offsets_mapping=True)
        assert dict(got) == dict(expected), text


def test_special_text_as_plain_text_by_its_documented_name(
    pairs_of_tokenizers: list[tuple[Any, Any]],
) -> None:
    rng = random.Random(10)
    if not is_version_5():
        pytest.skip("transformers 4.48 takes no split_special_tokens in a call")
    for pair in pairs_of_tokenizers:
        mine, theirs = (copy.deepcopy(tokenizer) for tokenizer in pair)
        texts = [random_text(rng) for _ in range(100)]
        split = {"split_special_tokens": True}
        assert mine(texts, **split)["input_ids"] == theirs(texts, **split)["input_ids"]
        mine.special_text, theirs.split_special_tokens = "plain", True
        assert mine(texts)["input_ids"] == theirs(texts)["input_ids"]
        for text in texts:
            assert mine.tokenize(text) == theirs.tokenize(text)


def test_targets(pairs_of_tokenizers: list[tuple[Any, Any]]) -> None:
    rng = random.Random(12)
    for mine, theirs in pairs_of_tokenizers:
        for kind in (None, "pt"):
            given: dict[str, Any] = {
                name: [random_text(rng) or "a" for _ in range(3)]
                for name in ("text", "text_pair", "text_target", "text_pair_target")
            }
            arguments = {"padding": True, "return_tensors": kind}
            for left_out in ((), ("text_pair",), ("text", "text_pair"), ("text_pair_target",)):
                some = {name: t for name, t in given.items() if name not in left_out}
                got, expected = (t(**some, **arguments) for t in (mine, theirs))
                assert list(got) == list(expected)
                for name in expected:
                    got_values, values = got[name], expected[name]
                    if kind:
                        got_values, values = got_values.tolist(), values.tolist()
                    assert got_values == values, (name, some)
        one = {"text": "the hat", "text_target": "the hen"}
        assert dict(mine(**one)) == dict(theirs(**one))


def equal_batches(mine: Any, theirs: Any) -> bool:
    assert list(mine) == list(theirs)
    return all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name])
        for name in theirs
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_collators(
    transformers: Any, pairs_of_tokenizers: list[tuple[Any, Any]], side: str
) -> None:
    rng = random.Random(11)
    for pair in pairs_of_tokenizers:
        mine, theirs = (copy.deepcopy(tokenizer) for tokenizer in pair)
        mine.padding_side = theirs.padding_side = side
        for tokenizer in (mine, theirs):
            tokenizer.add_special_tokens({"mask_token": "<mask>"})
        for _ in range(5):
            texts = [random_text(rng) or "a" for _ in range(4)]
            rows = [[{**t(x), "label": n % 2} for n, x in enumerate(texts)] for t in (mine, theirs)]
            for multiple in (None, 8):
                collate = transformers.DataCollatorWithPadding
                batches = [
                    collate(t, pad_to_multiple_of=multiple)(r)
                    for t, r in zip((mine, theirs), rows, strict=True)
                ]
                assert equal_batches(*batches)
            for mlm in (False, True):
                plain = [[t(x) for x in texts] for t in (mine, theirs)]
                batches = []
                for t, r in zip((mine, theirs), plain, strict=True):
                    torch.manual_seed(0)
                    collate = transformers.DataCollatorForLanguageModeling
                    batches.append(collate(t, mlm=mlm, mlm_probability=0.4)(r))
                assert equal_batches(*batches)
                assert (batches[0]["labels"] != -100).any()


def test_pad(pairs_of_tokenizers: list[tuple[Any, Any]]) -> None:
    rng = random.Random(13)
    for _ in range(200):
        mine, theirs = rng.choice(pairs_of_tokenizers)
        texts = [random_text(rng) for _ in range(rng.randrange(1, 5))]
        arguments: dict[str, Any] = {"padding_side": rng.choice(["left", "right"])}
        if rng.random() < 0.4:
            arguments |= {"padding": "max_length", "max_length": 40}
        if rng.random() < 0.4:
            arguments["pad_to_multiple_of"] = 8
        if rng.random() < 0.4:
            arguments["return_tensors"] = "pt"
        extra = {"return_token_type_ids": True, "return_special_tokens_mask": True}
        if rng.random() < 0.2:
            arguments |= {"padding": "max_length", "max_length": 40}
            got, expected = (
                t.pad(t(texts[0] or "a", **extra), **arguments) for t in (mine, theirs)
            )
        else:
            got, expected = (t.pad(t(texts, **extra), **arguments) for t in (mine, theirs))
        assert list(got) == list(expected)
        for name in expected:
            mine_values, their_values = got[name], expected[name]
            if "return_tensors" in arguments:
                assert mine_values.shape == their_values.shape
                mine_values, their_values = mine_values.tolist(), their_values.tolist()
            assert mine_values == their_values


def is_version_5() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5
