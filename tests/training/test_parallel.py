"""gpt2.training.parallel and its kin: many processes compute what one does.

Two starts of processes do everything that is looked at here (tests/training/workers.py).
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from gpt2.errors import ConfigError, FileAccessError, FileFormatError
from gpt2.training.distributed_checkpoint import load_checkpoint, save_checkpoint
from gpt2.training.optim import parameter_groups
from tests.helpers import assert_close, tiny_model
from tests.parity.record import compare, count
from tests.training import workers
from tests.training.workers import SEVERAL, STEPS, WORDS, rows, start


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretrained")
    tiny_model(seed=3, **WORDS).save_pretrained(path / "model")
    return path / "model"


@pytest.fixture(scope="module")
def at_two(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert start(2, workers.everything_at_two, folder, pretrained) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def at_four(at_two: Path) -> Path:
    assert start(4, workers.everything_at_four, at_two) == [0, 0, 0, 0]
    return at_two


@pytest.fixture(scope="module")
def more(at_two: Path) -> dict[str, Any]:
    return read(at_two / "more")


@pytest.fixture(scope="module")
def trained() -> GPT2LMHeadModel:
    """One process's model after all steps."""
    model = tiny_model(**WORDS)
    optimizer = workers.optimizer_of(model)
    for step in range(STEPS):
        workers.train(model, optimizer, rows(step))
    return model


def read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(path, weights_only=False)
    return result


def single(
    batch: Tensor, settings: dict[str, Any], **arguments: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    model = tiny_model(**settings).train()
    loss = model(batch, labels=batch, **arguments).loss
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check_modes(results: dict[str, Any]) -> None:
    for where, result in results.items():
        settings = SEVERAL[result.get("kind", "tied 97")]
        loss, gradients = single(
            rows(0, settings["vocab_size"]), settings, **result.get("arguments", {})
        )
        mode = where.partition(" ")[0]
        compare(f"distributed loss {mode}", result["loss"], loss, where=where)
        assert result["gradients"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            compare(
                f"distributed grad {mode}", result["gradients"][name], gradient,
                where=f"{where} {name}",
            )  # fmt: skip


def check_same_weights(export: Path, model: GPT2LMHeadModel) -> None:
    loaded = GPT2LMHeadModel.from_pretrained(export)
    for name, parameter in model.named_parameters():
        compare("distributed training", loaded.get_parameter(name), parameter, where=export.name)


# ---------------------------------------------------------------- equality


def test_two_processes_give_the_loss_and_the_gradients_of_one(at_two: Path) -> None:
    results = read(at_two / "modes2")
    assert len(results) == 2 * (len(SEVERAL) * 2 + 2)
    check_modes(results)


def test_fsdp_times_tensor_parallel_gives_the_same(at_four: Path) -> None:
    results = read(at_four / "modes4")
    assert len(results) == len(SEVERAL) * 2 + 2
    check_modes(results)


@pytest.mark.slow
def test_four_processes_along_one_dimension_give_the_same(at_four: Path) -> None:
    assert start(4, workers.four_along_one, at_four) == [0, 0, 0, 0]
    check_modes(read(at_four / "modes4 long"))


@pytest.mark.slow
def test_compiled_blocks_give_the_same(tmp_path: Path) -> None:
    assert start(2, workers.compare_compiled, tmp_path) == [0, 0]
    results = read(tmp_path / "compiled inductor")
    assert len(results) == 2
    check_modes(results)


def test_blocks_trace_and_give_the_same(at_two: Path) -> None:
    results = read(at_two / "compiled aot_eager")
    assert len(results) == 2
    check_modes(results)


def test_ranks_with_unequal_numbers_of_targets_add_up(more: dict[str, Any]) -> None:
    mask = torch.ones(4, 16, dtype=torch.int64)
    mask[0, 5:] = 0
    loss, gradients = single(rows(0), WORDS, attention_mask=mask)
    assert_close(more["ragged"]["loss"], loss)
    for name, gradient in gradients.items():
        assert_close(more["ragged"]["gradients"][name], gradient, what=name)


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(more: dict[str, Any]) -> None:
    half = more["half"]
    assert half["computed"] == torch.bfloat16
    assert half["kept"] == half["loss"].dtype == torch.float32
    loss, gradients = single(rows(0), WORDS)
    assert_close(half["loss"], loss, 1e-2)
    for name in ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"):
        assert half["gradients"][name].dtype == torch.float32
        assert_close(half["gradients"][name], gradients[name], 5e-2)


def test_a_padded_vocabulary_gives_the_same(more: dict[str, Any]) -> None:
    assert len(more["padded"]) == 2 * len(SEVERAL)
    check_modes(more["padded"])


def test_dropout_does_not_part_the_ranks_of_a_group(more: dict[str, Any]) -> None:
    one, other = more["dropout"]
    assert one == other
    assert one != single(rows(0), WORDS)[0].item()  # something was dropped


def test_tensor_parallel_models_answer_as_one(more: dict[str, Any]) -> None:
    found, model = more["outputs"], tiny_model(**WORDS)
    with torch.no_grad():
        logits = model(rows(0)).logits
        assert_close(found["logits"], logits)
        assert_close(found["tuple"], logits)
        new = model.generate(rows(0)[:, :5], max_new_tokens=6, do_sample=False)
        assert torch.equal(found["generated"], new)
        bare = tiny_model(GPT2Model, **WORDS)(rows(0)).last_hidden_state
        assert_close(found["bare"], bare)
        labels = tiny_model(GPT2ForSequenceClassification, **WORDS)(rows(0)).logits
        assert_close(found["labels"], labels)
        crossed = tiny_model(GPT2Model, **WORDS, add_cross_attention=True)
        states = crossed(rows(0), encoder_hidden_states=workers.encoded()).last_hidden_state
        assert_close(found["crossed"], states)
    assert found["tied"]
    assert found["decayed"] == [len(group["params"]) for group in parameter_groups(model)]


# ---------------------------------------------------------------- files


def test_a_meta_model_takes_its_part_of_the_files(more: dict[str, Any], pretrained: Path) -> None:
    expected = dict(GPT2LMHeadModel.from_pretrained(pretrained).named_parameters())
    for mode in ("dp", "tp"):
        found = more["loaded"][mode]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        score = more["loaded"][f"{mode} score"]  # initialised, and not zero
        assert 0.01 < score.std() < 0.04


@pytest.mark.parametrize("mode", ["dp", "tp"])
def test_a_run_of_two_is_exported_as_one_directory(
    at_two: Path, mode: str, trained: GPT2LMHeadModel
) -> None:
    check_same_weights(at_two / f"{mode}-export", trained)
    config = GPT2LMHeadModel.from_pretrained(at_two / f"{mode}-export").config
    assert config.architectures == ["GPT2LMHeadModel"]


def test_a_run_of_four_is_exported_as_one_directory(
    at_four: Path, trained: GPT2LMHeadModel
) -> None:
    check_same_weights(at_four / "both-export", trained)


@pytest.mark.parametrize("mode", ["dp", "tp"])
def test_saved_at_two_goes_on_at_four(at_four: Path, mode: str, trained: GPT2LMHeadModel) -> None:
    check_same_weights(at_four / f"{mode}-resumed-at-4", trained)


@pytest.mark.parametrize("mode", ["dp", "tp", "both"])
def test_saved_at_many_goes_on_at_one(
    request: pytest.FixtureRequest, mode: str, trained: GPT2LMHeadModel
) -> None:
    folder = request.getfixturevalue("at_four" if mode == "both" else "at_two")
    model = tiny_model(seed=8, **WORDS)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=5.0)
    assert load_checkpoint(folder / f"{mode}-checkpoint", model, optimizer) == {"step": 2}
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    for step in range(2, STEPS):
        workers.train(model, optimizer, rows(step))
    for name, parameter in model.named_parameters():
        compare("distributed training", parameter, trained.get_parameter(name), where=mode)


@pytest.mark.slow
def test_saved_in_a_grid_goes_on_in_a_row(at_four: Path, trained: GPT2LMHeadModel) -> None:
    if not (at_four / "both-resumed-in-dp4").exists():
        assert start(4, workers.four_along_one, at_four) == [0, 0, 0, 0]
    for mode in ("dp4", "tp4"):
        check_same_weights(at_four / f"both-resumed-in-{mode}", trained)


def test_one_process_saves_and_goes_on_without_a_group(tmp_path: Path) -> None:
    model = tiny_model(**WORDS)
    optimizer = workers.optimizer_of(model)
    workers.train(model, optimizer, rows(0))
    save_checkpoint(tmp_path / "run", model, optimizer, extra={"step": 1})
    other = tiny_model(seed=4, **WORDS)
    again = workers.optimizer_of(other)
    assert load_checkpoint(tmp_path / "run", other, again) == {"step": 1}
    losses = [workers.train(m, o, rows(1)) for m, o in ((model, optimizer), (other, again))]
    assert losses[0] == losses[1]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_while_saving_leaves_the_last_checkpoint(tmp_path: Path, victim: int) -> None:
    codes = start(2, workers.killed_while_saving, tmp_path, victim)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] not in (0, None)  # the other saw it, and did not wait for ever
    expected = read(tmp_path / "kept.pt")
    model = tiny_model(seed=6, **WORDS)
    optimizer = workers.optimizer_of(model)
    assert load_checkpoint(tmp_path / "kept", model, optimizer) == {"step": 1}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    save_checkpoint(tmp_path / "kept", model, optimizer, extra={"step": 9})  # clears away
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    model = tiny_model(**WORDS)
    optimizer = workers.optimizer_of(model)
    workers.train(model, optimizer, rows(0))
    save_checkpoint(folder, model, optimizer)
    return folder


class Hostile:
    """Unpickled, it would make a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def cut_short(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "breaking", "error", "words"),
    [
        (
            "__0_0.distcp",
            lambda p: cut_short(p, 1000),
            FileFormatError,
            "has 1000 bytes, of .* cut",
        ),
        ("__0_0.distcp", lambda p: cut_short(p, -1), FileFormatError, "it is cut short"),
        ("__0_0.distcp", Path.unlink, FileAccessError, "__0_0.distcp cannot be read: No such"),
        (".metadata", Path.unlink, FileAccessError, ".metadata cannot be read: No such"),
        (".metadata", lambda p: cut_short(p, 0), FileFormatError, ".metadata is not the index"),
        (".metadata", lambda p: cut_short(p, 900), FileFormatError, ".metadata is not the index"),
        (
            ".metadata",
            lambda p: p.write_bytes(pickle.dumps(Hostile(p.with_name("made")))),
            FileFormatError,
            "not the index of a checkpoint: it asks for posix.mkdir",
        ),
        ("run.json", lambda p: p.write_text("{"), FileFormatError, "run.json is not valid JSON"),
        (
            "run.json",
            lambda p: p.write_text('{"config": 1, "groups": null, "extra": {}}'),
            FileFormatError,
            "run.json: config is no JSON object, but 1",
        ),
    ],
)
def test_a_broken_checkpoint_is_named_and_changes_nothing(
    whole_run: Path,
    tmp_path: Path,
    name: str,
    breaking: Callable[[Path], Any],
    error: type[Exception],
    words: str,
) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    breaking(tmp_path / "run" / name)
    model = tiny_model(seed=4, **WORDS)
    optimizer = workers.optimizer_of(model)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(error, match=words):
        load_checkpoint(tmp_path / "run", model, optimizer)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not optimizer.state
    assert not (tmp_path / "run" / "made").exists()


def test_garbled_data_is_an_error_of_ours(whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "run")
    data = tmp_path / "run" / "__0_0.distcp"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(FileFormatError, match="run cannot be read: rank 0: "):
        load_checkpoint(tmp_path / "run", tiny_model(**WORDS))


def test_resuming_with_another_config_names_both_values(whole_run: Path) -> None:
    model = tiny_model(**{**WORDS, "n_layer": 3, "layer_norm_epsilon": 1e-6})
    with pytest.raises(ConfigError, match="1e-05 there and 1e-06 here; n_layer is 2 there and 3"):
        load_checkpoint(whole_run, model)


# ---------------------------------------------------------------- memory, refusals


def test_a_rank_has_its_share_of_the_memory(more: dict[str, Any]) -> None:
    memory = more["memory"]
    # Uneven parts and rows that do not divide: a little above one half.
    for what, times in (("parameters", 1), ("gradients", 1), ("states", 2)):
        share = memory[what] / (times * memory["whole"])
        assert 0.5 <= share < 0.51, what
        count(f"FSDP2 over 2 ranks, bytes of {what} on rank 0", memory[what])
    count("FSDP2 over 2 ranks, bytes of the whole model", memory["whole"])


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("heads", "ArgumentError: .* has 1 heads, which 2 ranks cannot share"),
        ("inner", "ArgumentError: .* 63 inner features, which 2 ranks"),
        ("names", r"ArgumentError: mesh has the shape \(2,\) and the names \('data',\)"),
        ("order", r"ArgumentError: mesh has the shape \(2, 1\) and the names \('tp', 'dp'\)"),
        ("size", "ArgumentError: mesh has 1 ranks.* there are 2 processes"),
        ("no tp", "ArgumentError: tensor_parallel needs a dimension 'tp'"),
        ("idle", "ArgumentError: mesh has 2 ranks along 'dp', which fully_shard=False"),
        ("twice", "ArgumentError: the model is parallel already"),
        ("lora", "ArgumentError: .*c_attn is a LoraLinear"),
        ("lora table", "ArgumentError: tensor_parallel: transformer.wte is a LoraEmbedding"),
        ("no policy", "ArgumentTypeError: fully_shard must be True, False or a MixedPrec.* 'yes'"),
        ("no flag", "ArgumentError: compile must be True or False, not 'yes'"),
        ("adapters behind", "ArgumentError: the model is parallel already; add adapters before"),
        ("dp twice", "ArgumentError: the model is parallel already"),
        (
            "wrapped",
            "ArgumentTypeError: model must be one of gpt2's, not a DistributedDataParallel",
        ),
        ("no mesh", "ArgumentTypeError: mesh must be a DeviceMesh, not a str"),
        ("padded", r"ArgumentError: pad_vocabulary\(64\).*one whose weight is a DTensor"),
        ("head_mask", "ArgumentError: head_mask cannot be had with tensor_parallel"),
        ("attentions", "ArgumentError: output_attentions cannot be had with tensor_parallel"),
        ("save", "ArgumentError: .*export_pretrained"),
        ("not meta", "ArgumentError: model has weights already"),
        ("extra", "ArgumentTypeError: extra and the settings"),
        ("other config", "ConfigError: .*n_layer is 2 there and 3 here"),
        ("other groups", r"ArgumentError: optimizer: its groups have \[28\] parameters"),
        ("foreign optimizer", "ArgumentError: optimizer: group 0 has a parameter that is not"),
        ("nothing there", "FileAccessError: .*run.json does not exist"),
        ("one rank", "FileAccessError: .*run.json does not exist"),
        ("rank 1: one rank", "DistributedError: rank 0 failed.*run.json does not exist"),
        ("seeds", r"ArgumentError: .*have the seeds \[0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], case: str, expected: str) -> None:
    with pytest.raises(Refused, match=expected):
        raise Refused(more["refused"][case])


class Refused(Exception):
    """The message that a process had."""
