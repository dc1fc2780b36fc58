"""Batches for the user's own loop: what is learned, what is padding, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.training.collate import CompletionCollator, PaddingCollator, TokenBlocks, pad_rows
from tests.helpers import tiny_model

ROWS = [
    {"prompt": "Who has the lamp?", "completion": " Mia"},
    {"prompt": "Who?", "completion": " The old goat has it"},
]


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    texts = ["Who has the lamp? Mia has it. The old goat has the lamp."] * 3
    return GPT2Tokenizer.train(texts, 300, show_progress=False, model_max_length=64)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pad_rows_puts_entries_where_the_ids_are(side: str) -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "document_ids": [1, 2, 2]},
        {"input_ids": [8], "labels": [8], "document_ids": [3]},
    ]
    batch = pad_rows(rows, filler=9, padding_side=side, pad_to_multiple_of=4)
    assert all(values.shape == (2, 4) for values in batch.values())
    for number, row in enumerate(rows):
        real = batch["attention_mask"][number].bool()
        assert real.sum() == len(row["input_ids"])
        assert bool(real[0]) == (side == "right")
        for name, values in row.items():
            assert batch[name][number][real].tolist() == values
        assert (batch["input_ids"][number][~real] == 9).all()
        assert (batch["labels"][number][~real] == -100).all()


def test_a_rows_own_padding_is_not_learned_but_its_filler_ids_are() -> None:
    batch = pad_rows([{"input_ids": [0, 0, 4], "attention_mask": [0, 1, 1]}])
    assert batch["labels"].tolist() == [[-100, 0, 4]]  # the second 0 is a real token


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([], ArgumentError, "no rows"),
        ([{"ids": [1]}], ArgumentTypeError, "row 0 must be a mapping with input_ids"),
        ([{"input_ids": [1]}, {"input_ids": []}], ArgumentError, "row 1 is empty"),
        ([{"input_ids": [1, 2], "labels": [1]}], ArgumentError, "labels has 1 values, input_ids 2"),
        ([{"input_ids": [1], "text": "a"}], ArgumentError, "'text'"),
        ([{"input_ids": [1.5]}], ArgumentTypeError, "whole numbers"),
        ([{"input_ids": [[1]]}], ArgumentTypeError, "whole numbers"),
        ([{"input_ids": [True]}], ArgumentTypeError, "whole numbers, not of .* torch.bool"),
        ([{"input_ids": [1, 2], "labels": [2.0, 1]}], ArgumentTypeError, "labels must be a list"),
        ([{"input_ids": [1], "labels": None}], ArgumentTypeError, "labels must be a list"),
        ([{"input_ids": [1, 2], "attention_mask": [2, 1]}], ArgumentError, "from 1 to 2"),
        ([{"input_ids": [1], "attention_mask": [0]}], ArgumentError, "row 0 is all padding"),
        (
            [{"input_ids": [1]}, {"input_ids": [1, 2], "labels": [-100, -100]}],
            ArgumentError,
            "row 1 has nothing to learn from: its labels are all -100",
        ),
        (
            [{"input_ids": [1]}, {"input_ids": [1], "document_ids": [1]}],
            ArgumentError,
            "row 1 has .*document_ids",
        ),
    ],
)
def test_pad_rows_names_what_is_wrong(rows: list, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pad_rows(rows)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_ids_come_as_lists_arrays_and_tensors(tokenizer: GPT2Tokenizer, kind: Callable) -> None:
    row = CompletionCollator(tokenizer).encode({"prompt": kind([5, 6]), "completion": kind([7])})
    eos = tokenizer.eos_token_id
    assert row == {"input_ids": [5, 6, 7, eos], "labels": [-100, -100, 7, eos]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_completion_is_learned_and_its_eos_too(
    tokenizer: GPT2Tokenizer, side: str
) -> None:
    assert tokenizer.pad_token_id is None  # EOS is the filler
    batch = CompletionCollator(tokenizer, padding_side=side)(ROWS)
    for number, row in enumerate(ROWS):
        real = batch["attention_mask"][number].bool()
        prompt = tokenizer.encode(row["prompt"])
        completion = [*tokenizer.encode(row["completion"]), tokenizer.eos_token_id]
        assert batch["input_ids"][number][real].tolist() == prompt + completion
        assert batch["labels"][number][real].tolist() == [-100] * len(prompt) + completion
        assert (batch["labels"][number][~real] == -100).all()


def test_the_loss_of_a_batch_is_that_of_its_completions_alone(tokenizer: GPT2Tokenizer) -> None:
    model = tiny_model(vocab_size=len(tokenizer), n_positions=64).eval()
    batch = CompletionCollator(tokenizer, padding_side="left")(ROWS)
    alone = 0.0
    for row in ROWS:
        prompt = tokenizer.encode(row["prompt"])
        completion = [*tokenizer.encode(row["completion"]), tokenizer.eos_token_id]
        ids = torch.tensor([prompt + completion])
        logs = model(ids).logits[0].log_softmax(-1)
        alone -= sum(logs[len(prompt) - 1 + i, t].item() for i, t in enumerate(completion))
    terms = int((batch["labels"] != -100).sum())
    assert model(**batch).loss.item() * terms == pytest.approx(alone, rel=1e-5)


def test_a_long_row_is_an_error_or_loses_the_beginning_of_its_prompt(
    tokenizer: GPT2Tokenizer,
) -> None:
    row = {"prompt": list(range(20)), "completion": [30, 31, 32]}
    with pytest.raises(ArgumentError, match="20 tokens of prompt and 4 of completion"):
        CompletionCollator(tokenizer, max_length=10).encode(row)
    cut = CompletionCollator(tokenizer, max_length=10, truncation="prompt").encode(row)
    assert cut["input_ids"] == [14, 15, 16, 17, 18, 19, 30, 31, 32, tokenizer.eos_token_id]
    assert cut["labels"][:6] == [-100] * 6
    with pytest.raises(ArgumentError, match="no room for a prompt; completions are not cut"):
        CompletionCollator(tokenizer, max_length=4, truncation="prompt").encode(row)
    with pytest.raises(ArgumentError, match="max_length is 64"):  # the tokenizer's own
        CompletionCollator(tokenizer).encode({"prompt": [1] * 70, "completion": [2]})


def test_bos_comes_first_where_the_tokenizer_adds_it() -> None:
    tokenizer = GPT2Tokenizer.train(["a b c"], 260, show_progress=False, add_bos_token=True)
    row = CompletionCollator(tokenizer, append_eos=False).encode({"prompt": "", "completion": "a"})
    assert row["input_ids"] == [tokenizer.bos_token_id, *tokenizer.encode("a")[1:]]
    assert row["labels"][0] == -100


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ({"prompt": "a"}, ArgumentTypeError, "row 1 must be a mapping with a prompt and a comp"),
        ({"prompt": "a", "completion": ""}, ArgumentError, "row 1 has an empty completion"),
        ({"prompt": "a", "completion": None}, ArgumentTypeError, "row 1: completion must be"),
        ({"prompt": ["a"], "completion": "b"}, ArgumentTypeError, "row 1: prompt must be"),
        ({"prompt": b"a", "completion": "b"}, ArgumentTypeError, "row 1: prompt must be"),
        ({"prompt": np.ones(2), "completion": "b"}, ArgumentTypeError, "row 1: prompt must be"),
        ({"prompt": "a", "completion": []}, ArgumentError, "row 1 has an empty completion"),
    ],
)
def test_bad_completion_rows_are_named(
    tokenizer: GPT2Tokenizer, row: dict, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        CompletionCollator(tokenizer)([ROWS[0], row])


def test_settings_that_cannot_be_are_refused(tokenizer: GPT2Tokenizer) -> None:
    with pytest.raises(ArgumentError, match="truncation is 'completion'"):
        CompletionCollator(tokenizer, truncation="completion")
    with pytest.raises(ArgumentError, match="padding_side"):
        PaddingCollator(tokenizer, padding_side="top")([{"input_ids": [1]}])
    for collator in (PaddingCollator, CompletionCollator):
        with pytest.raises(ArgumentTypeError, match="tokenizer must be a GPT2Tokenizer, not a int"):
            collator(512)
    for filler in (-1, 1.5, None):
        with pytest.raises(ArgumentError, match="filler must be a whole number"):
            pad_rows([{"input_ids": [1]}], filler=filler)  # type: ignore[arg-type]


def test_blocks_cover_an_array_and_a_map_of_a_file(tmp_path) -> None:
    ids = np.arange(10, dtype=np.uint16)
    path = tmp_path / "ids.bin"
    ids.tofile(path)
    for source in (ids, np.memmap(path, dtype=np.uint16, mode="r"), torch.arange(10)):
        blocks = TokenBlocks(source, 4)
        assert [b["input_ids"].tolist() for b in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert blocks[-1]["input_ids"].dtype == torch.int64
        assert len(TokenBlocks(source, 4, drop_last=True)) == 2
    assert len(TokenBlocks(ids[:9], 4)) == 2  # one token alone can teach nothing
    with pytest.raises(ArgumentError, match="1 ids do not make a block of 4"):
        TokenBlocks(ids[:1], 4)
    with pytest.raises(ArgumentTypeError, match="encode_to_array"):
        TokenBlocks([1, 2, 3], 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_collators_work_in_workers(tokenizer: GPT2Tokenizer, start: str) -> None:
    collator = CompletionCollator(tokenizer)
    loader = DataLoader(
        ROWS * 2,  # type: ignore[arg-type]
        batch_size=2,
        num_workers=1,
        collate_fn=collator,
        multiprocessing_context=start,
    )
    expected = collator(ROWS)
    for batch in loader:
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    blocks = pickle.loads(pickle.dumps(TokenBlocks(np.arange(8), 4)))
    assert blocks[1]["input_ids"].tolist() == [4, 5, 6, 7]
