"""Our models, tokenizer and collators under the tools that people train with, unchanged.

Each test needs one optional package, and skips without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer
from gpt2.training.collate import CompletionCollator, PaddingCollator, TokenBlocks
from gpt2.training.optim import parameter_groups
from tests.helpers import assert_close, tiny_model

pytestmark = [
    pytest.mark.parity,
    # Their own: deprecations of theirs, pinned memory without a GPU, missing model cards
    pytest.mark.filterwarnings(
        "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
    ),
]
TEXTS = ["Mia has the lamp.", "The goat has it.", "Who has the lamp?", "The old goat and Mia."]


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return GPT2Tokenizer.train(TEXTS * 3, 290, show_progress=False, model_max_length=32)


@pytest.fixture
def rows(tokenizer: GPT2Tokenizer) -> list[dict[str, Any]]:
    return [{"input_ids": ids} for ids in tokenizer(TEXTS)["input_ids"]]


def model_for(tokenizer: GPT2Tokenizer, cls: Any = GPT2LMHeadModel, **settings: Any) -> Any:
    return tiny_model(cls, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **settings)


def plain_training(model: Any, batches: list[dict[str, Any]], lr: float) -> list[float]:
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=lr)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_accelerate_trains_as_a_plain_loop_does(
    tokenizer: GPT2Tokenizer, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    accelerate = pytest.importorskip("accelerate")
    collator = PaddingCollator(tokenizer)
    loader = DataLoader(rows, batch_size=2, collate_fn=collator)  # type: ignore[arg-type]
    expected = plain_training(model_for(tokenizer).train(), list(loader), lr=1e-2)

    accelerator = accelerate.Accelerator(cpu=True)
    model = model_for(tokenizer).train()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-2)
    model, optimizer, prepared = accelerator.prepare(model, optimizer, loader)
    losses = []
    for batch in prepared:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-6)
    accelerator.unwrap_model(model).save_pretrained(
        tmp_path, state_dict=accelerator.get_state_dict(model)
    )
    read = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(read.lm_head.weight, accelerator.unwrap_model(model).lm_head.weight)


def trainer_for(
    model: Any, tokenizer: GPT2Tokenizer, folder: Path, data: Any, **settings: Any
) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, learning_rate=1e-2, optim="sgd",
        lr_scheduler_type="constant", logging_steps=1, report_to=[], use_cpu=True, seed=0,
        save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, weight_decay=0.0,
        remove_unused_columns=False, **settings,
    )  # fmt: skip
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=PaddingCollator(tokenizer)
    )


def logged(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trainer_trains_saves_and_accumulates_exactly(
    tokenizer: GPT2Tokenizer, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Four micro-batches of one row each are one batch of four rows of different lengths."""
    whole = trainer_for(
        model_for(tokenizer), tokenizer, tmp_path, rows, per_device_train_batch_size=4
    )
    split = trainer_for(
        model_for(tokenizer), tokenizer, tmp_path, rows,
        per_device_train_batch_size=1, gradient_accumulation_steps=4,
    )  # fmt: skip
    for trainer in (whole, split):
        trainer.train()
    assert logged(split) == pytest.approx(logged(whole), rel=1e-4)  # they are logged rounded
    for one, other in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        assert_close(other, one)

    whole.save_model(str(tmp_path / "saved"))
    # It writes the state dict alone for a model that is not of its own family.
    read = GPT2LMHeadModel.from_pretrained(tmp_path / "saved", config=whole.model.config)
    state = read.state_dict()
    assert all(
        torch.equal(state[name], tensor) for name, tensor in whole.model.state_dict().items()
    )


def test_trainer_evaluates_a_classifier(
    tokenizer: GPT2Tokenizer, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = model_for(tokenizer, GPT2ForSequenceClassification, num_labels=2)
    labelled = [{**row, "labels": number % 2} for number, row in enumerate(rows)]

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        padded = tokenizer.pad(
            [{"input_ids": row["input_ids"]} for row in batch], return_tensors="pt"
        )
        return {**padded, "labels": torch.tensor([row["labels"] for row in batch])}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=3,
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model=model, args=arguments, eval_dataset=labelled, data_collator=collate
    )
    predicted = trainer.predict(labelled)
    with torch.no_grad():
        alone = [model(torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    assert_close(torch.tensor(predicted.predictions), torch.stack(alone))


def test_torchao_quantizes_our_linears(tokenizer: GPT2Tokenizer) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, plain = model_for(tokenizer), model_for(tokenizer)
    quantization.quantize_(model.transformer.h, quantization.Int8WeightOnlyConfig())
    ids = torch.tensor([tokenizer.encode(TEXTS[0])])
    assert "AffineQuantized" in type(model.transformer.h[0].mlp.c_fc.weight).__name__ or (
        "Int8" in type(model.transformer.h[0].mlp.c_fc.weight).__name__
    )
    with torch.no_grad():
        error = (model(ids).logits - plain(ids).logits).abs().max() / plain(ids).logits.abs().max()
    assert 0 < error < 0.05
    assert model.generate(ids, max_new_tokens=3).shape == (1, ids.shape[1] + 3)


def test_datasets_map_rows_and_reuse_their_cache(tokenizer: GPT2Tokenizer, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    collator = CompletionCollator(tokenizer)
    table = datasets.Dataset.from_dict(
        {"prompt": ["Who has the lamp?"] * 3, "completion": [" Mia", " the goat", " nobody"]}
    )
    encoded = table.map(collator.encode, remove_columns=["prompt", "completion"])
    again = table.map(collator.encode, remove_columns=["prompt", "completion"])
    assert encoded._fingerprint == again._fingerprint  # a tokenizer in use hashes as it did
    batch = next(iter(DataLoader(encoded, batch_size=3, collate_fn=PaddingCollator(tokenizer))))
    expected = collator([dict(row) for row in table])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    tokens = table.map(lambda rows: tokenizer(rows["prompt"]), batched=True)
    assert tokens[0]["input_ids"] == tokenizer.encode("Who has the lamp?")


def test_blocks_of_a_corpus_feed_a_loader(tokenizer: GPT2Tokenizer) -> None:
    ids = tokenizer.encode_to_array(TEXTS, show_progress=False)
    loader = DataLoader(
        TokenBlocks(ids, 2 + (len(ids) - 2) // 2),
        batch_size=2,
        collate_fn=PaddingCollator(tokenizer),
    )
    found = torch.cat([b["input_ids"][b["attention_mask"].bool()] for b in loader])
    assert found.tolist() == ids.tolist()
