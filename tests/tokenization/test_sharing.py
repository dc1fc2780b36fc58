"""One tokenizer in many threads and processes; pickles that are equal for equal tokenizers."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from gpt2 import BatchEncoding, GPT2Tokenizer
from gpt2.tokenization import vocabulary, words
from gpt2.tokenization.added import AddedToken

TEXTS = [f"The fox's hat {n}, é<|endoftext|>" for n in range(40)]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_of_a_data_loader(tokenizer: GPT2Tokenizer, start_method: str) -> None:
    collate = functools.partial(tokenizer, padding=True, return_tensors="pt")
    loader = DataLoader(
        TEXTS,  # type: ignore[arg-type]
        batch_size=8,
        num_workers=2,
        collate_fn=collate,
        multiprocessing_context=start_method,
    )
    batches = list(loader)
    assert len(batches) == 5
    for number, batch in enumerate(batches):
        expected = collate(TEXTS[8 * number : 8 * number + 8])
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_threads_share_one_tokenizer(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 20)  # the table is emptied under the others' feet
    texts = [f"{text} {chr(945 + n)}{n}" for n, text in enumerate(TEXTS)] * 5
    expected = [copy.deepcopy(tokenizer).encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected
        assert list(pool.map(tokenizer.decode, expected)) == texts


def test_tokens_added_while_another_thread_makes_the_table_of_bytes(
    tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other thread's turn, here between two entries of the table, must not leave it stale."""
    plain = vocabulary.to_bytes

    def interrupted(token: str) -> bytes:
        monkeypatch.setattr(vocabulary, "to_bytes", plain)
        tokenizer.add_tokens(["<new>"])
        return plain(token)

    monkeypatch.setattr(vocabulary, "to_bytes", interrupted)
    assert tokenizer.decode(tokenizer.encode("the hat")) == "the hat"
    assert tokenizer.decode(tokenizer.encode("the <new> hat")) == "the <new> hat"


def test_a_pickle_does_not_tell_what_was_done_before(tokenizer: GPT2Tokenizer) -> None:
    before = pickle.dumps(tokenizer)
    for text in TEXTS:
        tokenizer.decode(tokenizer(text, return_offsets_mapping=True)["input_ids"])
    tokenizer.tokenize("hat")
    assert pickle.dumps(tokenizer) == before
    restored = pickle.loads(before)
    assert pickle.dumps(restored) == before
    assert pickle.dumps(copy.deepcopy(tokenizer)) == before


def test_other_processes_make_the_same_pickle(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    """Strings hash differently in each; a cache on disk must be found again all the same."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>", "<c>"]})
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import hashlib, pickle, sys; from gpt2 import GPT2Tokenizer; "
        "tokenizer = GPT2Tokenizer.from_pretrained(sys.argv[1]); "
        "tokenizer('the hat', return_offsets_mapping=True); "
        "print(hashlib.sha256(pickle.dumps(tokenizer)).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    mine = pickle.dumps(GPT2Tokenizer.from_pretrained(tmp_path))
    assert digests == {hashlib.sha256(mine).hexdigest()}


def test_the_fingerprint_of_datasets_map(tokenizer: GPT2Tokenizer) -> None:
    fingerprint = pytest.importorskip("datasets.fingerprint").Hasher.hash
    before = fingerprint(tokenizer)

    def encode(batch: dict[str, list[str]]) -> BatchEncoding:
        return tokenizer(batch["text"])

    of_function = fingerprint(encode)
    tokenizer.batch_decode(encode({"text": TEXTS})["input_ids"], skip_special_tokens=True)
    assert fingerprint(tokenizer) == fingerprint(copy.deepcopy(tokenizer)) == before
    assert fingerprint(encode) == of_function
    tokenizer.add_prefix_space = True
    assert fingerprint(tokenizer) != before


def test_equal_tokenizers_have_equal_pickles(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<a>"]})
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True)])
    tokenizer.save_pretrained(tmp_path)
    first = GPT2Tokenizer.from_pretrained(tmp_path)
    data = pickle.dumps(first)
    assert pickle.dumps(GPT2Tokenizer.from_pretrained(tmp_path)) == data
    (tmp_path / "tokenizer.json").unlink()  # now from vocab.json and merges.txt
    assert pickle.dumps(GPT2Tokenizer.from_pretrained(tmp_path)) == data
    first.padding_side = "left"
    assert pickle.dumps(first) != data
    first.padding_side = "right"
    assert pickle.dumps(first) == data
    first.add_tokens(["<y>"])
    assert pickle.dumps(first) != data


def test_pickles_do_not_tell_which_strings_were_the_same_object(tokenizer: GPT2Tokenizer) -> None:
    def build(*ends: str) -> bytes:
        vocab, merges = tokenizer.get_vocab(), tokenizer._vocabulary.merges
        return pickle.dumps(GPT2Tokenizer(vocab, merges, "replace", *ends))

    end = "<|endoftext|>"
    copies = [bytes(end, "ascii").decode() for _ in range(3)]
    assert build(*copies) == build(end, end, end)


def test_a_restored_tokenizer_is_the_same_and_can_grow(tokenizer: GPT2Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<x>", rstrip=True)])
    restored = pickle.loads(pickle.dumps(tokenizer))
    text = "The fox's <x> hat<|endoftext|>\ud83d\ude00".encode("utf-16", "surrogatepass").decode(
        "utf-16"
    )
    assert restored.encode(text) == tokenizer.encode(text)
    assert restored.get_vocab() == tokenizer.get_vocab()
    assert restored.get_added_vocab() == tokenizer.get_added_vocab()
    assert restored.add_tokens(["<z>"]) == 1
    assert restored.encode("<z>") == [len(tokenizer)]
    assert tokenizer.encode("<z>") != [len(tokenizer)]


def test_a_pickle_of_gpt2s_is_small(gpt2_tokenizer: GPT2Tokenizer) -> None:
    data = pickle.dumps(gpt2_tokenizer)
    assert len(data) < 3_000_000
    assert pickle.loads(data).encode("Hello world") == [15496, 995]
