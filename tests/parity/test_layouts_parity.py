"""OPT's checkpoints, as transformers writes and computes them, with the tokenizer's BOS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model, GPT2Tokenizer
from gpt2.errors import ConfigError
from tests.helpers import at_attended, randomise, tiny_model
from tests.parity.record import compare, count
from tests.parity.reference import transformers, writes_pickled

pytestmark = pytest.mark.parity

CORPUS = ["The fox had a hat, and a pen. The hen had the fox's hat. é"] * 3
TEXTS = ["The fox's hat", "a hen", "", " two  spaces and a pen and a fox and more of them"]
MODELS: dict[str, dict[str, Any]] = {
    "as published": {},
    "untied": {"tie_word_embeddings": False},
    "gelu": {"activation_function": "gelu"},
    "without biases": {"enable_bias": False},
    "without affine norms": {"layer_norm_elementwise_affine": False},
    "odd": {"ffn_dim": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 333},
}


def make_opt(cls: str = "OPTForCausalLM", **overrides: Any) -> Any:
    config = transformers.OPTConfig(
        **{
            "vocab_size": 330,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 40,
            "dropout": 0.0,
            "word_embed_proj_dim": 32,
            **overrides,
        }
    )
    config._attn_implementation = "eager"
    model = getattr(transformers, cls)(config)
    randomise(model)
    return model.eval()


def opt_tokenizer(directory: Path) -> None:
    """Saved as OPT's repositories have it: </s> before every text."""
    trained = GPT2Tokenizer.train(
        CORPUS,
        320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
    )
    trained.save_pretrained(directory)


def check(ours: GPT2LMHeadModel, theirs: Any, directory: Path, where: str) -> None:
    """The logits of a padded batch, each model with its own tokenizer."""
    our_batch = GPT2Tokenizer.from_pretrained(directory)(TEXTS, padding=True, return_tensors="pt")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = their_tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(our_batch["input_ids"], batch["input_ids"])
    assert batch["input_ids"][2, 0] == 2  # a BOS even before no text
    with torch.no_grad():
        expected, found = theirs(**batch).logits, ours(**our_batch).logits
    mask = batch["attention_mask"]
    compare("logits, OPT", at_attended(found, mask), at_attended(expected, mask), where=where)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_opt_causal_lm(tmp_path: Path, name: str, sharded: bool) -> None:
    theirs = make_opt(**MODELS[name])
    theirs.save_pretrained(tmp_path, **({"max_shard_size": "20KB"} if sharded else {}))
    opt_tokenizer(tmp_path)
    ours, report = GPT2LMHeadModel.from_pretrained(tmp_path, return_report=True)
    assert report.layout == "opt"
    assert bool(report.filled) == name.startswith("without")
    check(ours, theirs, tmp_path, name)
    count("OPT checkpoints of theirs loaded by us")


@pytest.mark.parametrize("name", ["as published", "untied", "odd"])
def test_opt_goes_back(tmp_path: Path, name: str) -> None:
    """In OPT's own layout transformers' OPT reads it, in ours its GPT-2 does."""
    theirs = make_opt(**MODELS[name])
    theirs.save_pretrained(tmp_path / "first")
    opt_tokenizer(tmp_path / "first")
    ours = GPT2LMHeadModel.from_pretrained(tmp_path / "first")
    tokenizer = GPT2Tokenizer.from_pretrained(tmp_path / "first")
    ours.save_pretrained(tmp_path / "opt", layout="opt", tokenizer=tokenizer)
    again = transformers.OPTForCausalLM.from_pretrained(tmp_path / "opt").eval()
    check(ours, again, tmp_path / "opt", f"{name}, back")
    with torch.no_grad():
        for (key, one), (_, other) in zip(
            theirs.state_dict().items(), again.state_dict().items(), strict=True
        ):
            offset = 2 if "embed_positions" in key else 0  # two rows that no token uses
            assert torch.equal(one[offset:], other[offset:]), key
    before = json.loads((tmp_path / "first" / "config.json").read_text())
    after = json.loads((tmp_path / "opt" / "config.json").read_text())
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed <= {"transformers_version"}
    assert {"ffn_dim", "word_embed_proj_dim", "dropout", "eos_token_id"} <= after.keys()
    ours.save_pretrained(tmp_path / "gpt2", tokenizer=tokenizer)
    as_gpt2 = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "gpt2", attn_implementation="eager"
    ).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = theirs(ids).logits
        compare("logits, OPT", as_gpt2(ids).logits, expected, where=f"{name}, their GPT-2")


def test_opt_core_and_classifier(tmp_path: Path) -> None:
    ids = torch.arange(5, 25).view(2, 10)
    core = make_opt("OPTModel")
    core.save_pretrained(tmp_path / "core")
    for cls in (GPT2Model, GPT2LMHeadModel):
        ours = cls.from_pretrained(tmp_path / "core")
        found = ours(ids, output_hidden_states=True).hidden_states[-1]
        compare("logits, OPT", found, core(ids)[0], where=f"core into {cls.__name__}")
    labels = make_opt("OPTForSequenceClassification", num_labels=3, pad_token_id=1)
    labels.save_pretrained(tmp_path / "labels")
    ours = GPT2ForSequenceClassification.from_pretrained(tmp_path / "labels")
    compare("logits, OPT", ours(ids).logits, labels(ids).logits, where="classifier")


def test_opt_pickled(tmp_path: Path) -> None:
    if not writes_pickled():
        pytest.skip("this transformers writes no .bin files")
    theirs = make_opt()
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    opt_tokenizer(tmp_path)
    check(GPT2LMHeadModel.from_pretrained(tmp_path), theirs, tmp_path, "bin")


def test_opt_350m_is_refused(tmp_path: Path) -> None:
    """Layer norms behind, and projected embeddings: GPT-2 has neither."""
    make_opt(do_layer_norm_before=False, word_embed_proj_dim=16).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)config\.json.*OPT-350m") as caught:
        GPT2LMHeadModel.from_pretrained(tmp_path)
    for part in ("do_layer_norm_before is False", "word_embed_proj_dim is 16 and hidden_size 32"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"activation_function": "gelu_new", "scale_attn_weights": False}, "scale_attn_weights"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon is 0.001"),
    ],
)
def test_what_opt_cannot_compute_is_not_saved_as_one(
    tmp_path: Path, overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny_model(**overrides).save_pretrained(tmp_path / "m", layout="opt")
    assert not (tmp_path / "m").exists()
