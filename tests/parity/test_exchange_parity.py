"""Files go both ways: what transformers writes we load, what we write transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from gpt2 import GPT2Config, GPT2Tokenizer
from gpt2.errors import StateDictError
from tests.helpers import tiny_model
from tests.parity.record import compare, count
from tests.parity.reference import (
    SIZES,
    load_ours,
    load_theirs,
    make_theirs,
    random_ids,
    random_states,
    transformers,
    writes_pickled,
)

pytestmark = pytest.mark.parity

CLASSES = ("GPT2Model", "GPT2LMHeadModel")
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "cross-attention": {"add_cross_attention": True},
    "odd": {
        "n_inner": 48,
        "n_head": 2,
        "n_layer": 3,
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-3,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "reorder_and_upcast_attn": True,
        "n_positions": 20,
        "vocab_size": 103,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "initializer_range": 0.03,
        "resid_pdrop": 0.2,
        "embd_pdrop": 0.3,
        "attn_pdrop": 0.4,
        "summary_type": "mean",
        "summary_use_proj": False,
        "summary_activation": "tanh",
        "summary_first_dropout": 0.3,
    },
}
SHARD = "20KB"  # a tiny model has about 100 KB


def output(model: Any) -> torch.Tensor:
    """Logits, or last hidden state, for one fixed input."""
    arguments: dict[str, Any] = {"input_ids": random_ids(1, 2, 7)}
    if model.config.add_cross_attention:
        arguments["encoder_hidden_states"] = random_states(2, 2, 3, SIZES["n_embd"])
    with torch.no_grad():
        return model(**arguments)[0].float()


def weight_files(directory: Path) -> list[str]:
    return sorted(
        file.name for file in directory.iterdir() if file.suffix in (".safetensors", ".bin")
    )


def check_files(directory: Path, how: str) -> None:
    """The checkpoint is of the kind that the test is about."""
    files = weight_files(directory)
    ending = ".bin" if how.endswith("bin") else ".safetensors"
    assert all(file.endswith(ending) for file in files)
    assert (len(files) > 1) == how.startswith("sharded")


SAVED: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "sharded safetensors": {"max_shard_size": SHARD},
    "bin": {"safe_serialization": False},
    "sharded bin": {"safe_serialization": False, "max_shard_size": SHARD},
}


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", MODELS)
def test_we_load_what_they_save(tmp_path: Path, name: str, cls: str, how: str) -> None:
    if how.endswith("bin") and not writes_pickled():
        pytest.skip("this transformers writes no .bin files (no safe_serialization argument)")
    theirs = make_theirs(cls, **MODELS[name])
    theirs.save_pretrained(tmp_path, **SAVED[how])
    check_files(tmp_path, how)
    ours = load_ours(cls, tmp_path)
    for field, value in MODELS[name].items():
        assert getattr(ours.config, field) == value
    compare("logits, their files", output(ours), output(theirs), where=f"{cls} {name} {how}")
    count("files of theirs loaded by us")


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", MODELS)
def test_they_load_what_we_save(tmp_path: Path, name: str, cls: str, how: str) -> None:
    make_theirs(cls, **MODELS[name]).save_pretrained(tmp_path / "first")
    ours = load_ours(cls, tmp_path / "first")
    ours.save_pretrained(tmp_path / "second", **SAVED[how])
    check_files(tmp_path / "second", how)
    theirs, info = load_theirs(cls, tmp_path / "second")
    assert_complete(info)
    for field, value in MODELS[name].items():
        assert getattr(theirs.config, field) == value
    compare("logits, our files", output(ours), output(theirs), where=f"{cls} {name} {how}")
    count("files of ours loaded by them")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_they_load_our_half_precision(tmp_path: Path, cls: str, dtype: torch.dtype) -> None:
    make_theirs(cls).save_pretrained(tmp_path / "first")
    ours = load_ours(cls, tmp_path / "first", dtype=dtype)
    ours.save_pretrained(tmp_path / "second")
    theirs, info = load_theirs(cls, tmp_path / "second")
    assert_complete(info)
    stored = load_ours(cls, tmp_path / "second", dtype="auto")
    assert stored.dtype == dtype
    compare("logits, our files", output(stored.float()), output(theirs), where=f"{cls} {dtype}")
    count("files of ours loaded by them")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_we_load_their_half_precision(tmp_path: Path, cls: str, dtype: torch.dtype) -> None:
    theirs = make_theirs(cls).to(dtype)
    theirs.save_pretrained(tmp_path)
    assert load_ours(cls, tmp_path, dtype="auto").dtype == dtype
    ours = load_ours(cls, tmp_path)  # float32 unless told
    assert ours.dtype == torch.float32
    where = f"{cls} {dtype}"
    compare("logits, their files", output(ours), output(theirs.float()), where=where)
    count("files of theirs loaded by us")


@pytest.mark.parametrize("name", ["tied", "odd"])
def test_bare_and_headed_checkpoints_load_into_each_other(tmp_path: Path, name: str) -> None:
    """A tied head needs no tensor of its own, and the core's prefix may be there or not."""
    headed, bare = (make_theirs(cls, **MODELS[name]) for cls in ("GPT2LMHeadModel", "GPT2Model"))
    headed.save_pretrained(tmp_path / "headed")
    bare.save_pretrained(tmp_path / "bare")
    core = load_ours("GPT2Model", tmp_path / "headed")
    compare("logits, their files", output(core), output(headed.transformer), where="headed to bare")
    with_head = load_ours("GPT2LMHeadModel", tmp_path / "bare")
    reference, _ = load_theirs("GPT2LMHeadModel", tmp_path / "bare")
    compare("logits, their files", output(with_head), output(reference), where="bare to headed")


def test_an_untied_head_is_not_made_up(tmp_path: Path) -> None:
    """transformers fills the missing head with noise; we refuse."""
    make_theirs("GPT2Model", tie_word_embeddings=False).save_pretrained(tmp_path)
    with pytest.raises(StateDictError, match=r"lm_head\.weight"):
        load_ours("GPT2LMHeadModel", tmp_path)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_pruned_model_goes_both_ways(tmp_path: Path, cls: str) -> None:
    theirs = make_theirs(cls)
    if not hasattr(theirs, "prune_heads"):
        pytest.skip("this transformers has no pruned heads; the golden files have")
    theirs.prune_heads({0: [1], 1: [0, 3]})
    theirs.save_pretrained(tmp_path / "first")
    ours = load_ours(cls, tmp_path / "first")
    compare("logits, their files", output(ours), output(theirs), where=f"{cls} pruned")
    ours.save_pretrained(tmp_path / "second")
    again, info = load_theirs(cls, tmp_path / "second")
    assert_complete(info)
    compare("logits, our files", output(ours), output(again), where=f"{cls} pruned")


@pytest.mark.parametrize("name", MODELS)
def test_a_config_goes_there_and_back(tmp_path: Path, name: str) -> None:
    """No field is lost or changed on the way through our config and theirs."""
    config = transformers.GPT2Config(**{**SIZES, **MODELS[name]})
    config.save_pretrained(tmp_path / "theirs")
    ours = GPT2Config.from_pretrained(tmp_path / "theirs", local_files_only=True)
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.GPT2Config.from_pretrained(tmp_path / "ours", local_files_only=True)
    before, after = config.to_dict(), again.to_dict()
    # None in their file means the default, which ours spells out
    lost = {k: (v, after.get(k)) for k, v in before.items() if v is not None and after.get(k) != v}
    assert not lost


@pytest.mark.parametrize("sharded", [False, True])
def test_ctranslate2_converts_what_we_save(tmp_path: Path, sharded: bool) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2")
    tokenizer = GPT2Tokenizer.train(["a hen and a hat"] * 9, vocab_size=270, show_progress=False)
    ours = tiny_model(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    ours.save_pretrained(
        tmp_path / "ours", tokenizer=tokenizer, max_shard_size=SHARD if sharded else "5GB"
    )
    converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "ours"))
    converter.convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), device="cpu", intra_threads=1)
    ids = random_ids(1, 2, 7)
    logits = generator.forward_batch(ids.tolist(), return_log_probs=False)
    compare(
        "logits, CTranslate2 of our files",
        torch.from_numpy(numpy.array(logits)),
        ours(ids).logits,
        where="sharded" if sharded else "one file",
    )


def test_model_settings_and_tokenizer_in_one_save(tmp_path: Path) -> None:
    """transformers reads all three from the one directory that one call wrote."""
    tokenizer = GPT2Tokenizer.train(["a hen and a hat"] * 9, vocab_size=270, show_progress=False)
    ours = tiny_model(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    ours.generation_config.max_new_tokens = 5
    ours.generation_config.eos_token_id = [0, 3]
    ours.save_pretrained(tmp_path, tokenizer=tokenizer, max_shard_size=SHARD)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    settings = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (settings.max_new_tokens, settings.eos_token_id) == (5, [0, 3])
    ids = their_tokenizer("a hen", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokenizer("a hen", return_tensors="pt")["input_ids"])
    compare("logits, our files", output(ours), output(theirs), where="one save")
    mask = torch.ones_like(ids)
    made = theirs.generate(ids, attention_mask=mask, pad_token_id=0)
    assert torch.equal(made, ours.generate(ids, attention_mask=mask, pad_token_id=0))


def assert_complete(info: dict[str, Any]) -> None:
    """Nothing missing but the tied head, nothing unexpected, nothing of another shape."""
    assert set(info["missing_keys"]) <= {"lm_head.weight"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert not info["error_msgs"]
