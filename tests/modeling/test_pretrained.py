"""from_pretrained and save_pretrained on directories."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2 import GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2Model
from gpt2.checkpoints.save import write_checkpoint
from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendError,
    ConfigError,
    FileAccessError,
    FileFormatError,
    GPT2Error,
    StateDictError,
)
from tests.helpers import assert_close, tiny_config, tiny_model

IDS = torch.randint(0, 97, (2, 5), generator=torch.Generator().manual_seed(1))
LOGITS = tiny_model()(IDS).logits.detach()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    return path


def load(path: Path, **arguments: Any) -> GPT2LMHeadModel:
    model = GPT2LMHeadModel.from_pretrained(path, **arguments)
    assert isinstance(model, GPT2LMHeadModel)
    return model


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"safe_serialization": False},
        {"max_shard_size": 20_000},
        {"max_shard_size": 20_000, "safe_serialization": False},
        {"variant": "fp16"},
    ],
    ids=["safetensors", "bin", "shards", "bin shards", "variant"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path: Path, how: dict[str, Any], tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied, add_cross_attention=True)
    model.save_pretrained(tmp_path / "m", **how)
    shards = list((tmp_path / "m").glob("*-of-*"))
    assert (len(shards) > 1) == ("max_shard_size" in how)
    again = load(tmp_path / "m", variant=how.get("variant"))
    assert (again.lm_head.weight is again.transformer.wte.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_core_and_head_load_each_others_checkpoints(saved: Path, tmp_path: Path) -> None:
    core = GPT2Model.from_pretrained(saved)
    assert_close(core.wte(IDS), tiny_model().transformer.wte(IDS))
    core.save_pretrained(tmp_path / "core")
    assert torch.equal(load(tmp_path / "core")(IDS).logits, LOGITS)
    untied = tiny_model(tie_word_embeddings=False)
    untied.save_pretrained(tmp_path / "untied")
    expected = untied.transformer(IDS).last_hidden_state
    assert torch.equal(
        GPT2Model.from_pretrained(tmp_path / "untied")(IDS).last_hidden_state, expected
    )


def test_a_tied_checkpoint_loads_untied(saved: Path) -> None:
    model, report = GPT2LMHeadModel.from_pretrained(
        saved, tie_word_embeddings=False, return_report=True
    )
    head, table = model.lm_head.weight, model.transformer.wte.weight
    assert torch.equal(head, table)
    assert head.data_ptr() != table.data_ptr()
    assert report.copied == {"lm_head.weight": "transformer.wte.weight"}
    assert report.missing_keys == []
    assert "nothing stored -> lm_head.weight: copied" in str(report)
    assert torch.equal(model(IDS).logits, LOGITS)
    with torch.no_grad():
        head.zero_()
    assert table.abs().max() > 0
    again = tiny_model(seed=7, tie_word_embeddings=False)
    again.load_weights(saved)
    assert torch.equal(again(IDS).logits, LOGITS)
    again.save_pretrained(saved / "untied")  # and what is saved now has both
    assert torch.equal(load(saved / "untied")(IDS).logits, LOGITS)


def test_an_untied_checkpoint_without_its_head_is_refused(saved: Path) -> None:
    edit_json(saved / "config.json", lambda content: content.update(tie_word_embeddings=False))
    with pytest.raises(StateDictError, match=r"missing \(1\): 'lm_head\.weight'"):
        load(saved)


def test_a_loaded_model_is_ready_to_use(saved: Path) -> None:
    model = load(saved)
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad and p.is_contiguous() for p in model.parameters())
    assert all(p.is_leaf and p.device.type == "cpu" for p in model.parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model(IDS).logits, LOGITS)
    assert load(str(saved)).config == model.config  # type: ignore[arg-type]


def test_loading_does_not_import_the_compiler(saved: Path) -> None:
    """Initialising on the meta device would, and that takes over a second."""
    program = f"""
import sys
from gpt2 import GPT2LMHeadModel
GPT2LMHeadModel.from_pretrained({str(saved)!r})
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load(saved)
    assert torch.equal(torch.rand(1), expected)


# -- dtype and device ---------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        ("float16", torch.float16),
        ("torch.float64", torch.float64),
        ("auto", torch.float16),
    ],
)
def test_dtype(tmp_path: Path, argument: str, wanted: Any, found: torch.dtype) -> None:
    tiny_model().half().save_pretrained(tmp_path / "m")
    model = load(tmp_path / "m", **{argument: wanted})
    assert {p.dtype for p in model.parameters()} == {found}
    assert model.dtype == found
    assert json.loads((tmp_path / "m" / "config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "float99"}, "dtype is 'float99'; give 'auto'"),
        ({"dtype": "int8"}, "dtype is torch.int8; give 'auto' or a floating"),
        ({"dtype": 3}, "dtype is 3"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "'float16' and torch_dtype='float32'"),
        ({"device": "cpu", "device_map": "cpu"}, "give device or device_map, not both"),
        ({"device": "gpu"}, "device is 'gpu', which this machine"),
        ({"device_map": "balanced"}, "device is 'balanced'.*'cpu', 'cuda:0'"),
        ({"device_map": {"transformer": 0, "lm_head": 1}}, "one device or 'auto'.*not spread"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which this machine"),
        ({"max_memory": {}}, "no argument 'max_memory'"),
    ],
)
def test_impossible_dtypes_and_devices(saved: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=words):
        load(saved, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "cpu"},
        {"device": torch.device("cpu")},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"dtype": "float32", "torch_dtype": torch.float32},
        {"low_cpu_mem_usage": True},
    ],
)
def test_forms_that_are_accepted(saved: Path, arguments: dict[str, Any]) -> None:
    assert torch.equal(load(saved, **arguments)(IDS).logits, LOGITS)


def test_device_map_auto_is_the_best_device(saved: Path) -> None:
    best = torch.accelerator.current_accelerator()
    assert load(saved, device_map="auto").device.type == ("cpu" if best is None else best.type)


# -- config -------------------------------------------------------------------------------------


def test_config_and_overrides(saved: Path, tmp_path: Path) -> None:
    mine = tiny_config(attn_pdrop=0.3)
    kept = tiny_config(attn_pdrop=0.3)
    model = load(saved, config=mine, resid_pdrop=0.4, num_labels=5)
    assert mine == kept  # the caller's is never changed
    assert model.config.attn_pdrop == 0.3
    assert model.config.resid_pdrop == 0.4
    assert model.config.num_labels == 5
    assert model.transformer.h[0].mlp.dropout.p == 0.4
    tiny_config(embd_pdrop=0.25).save_pretrained(tmp_path / "elsewhere")
    assert load(saved, config=tmp_path / "elsewhere").config.embd_pdrop == 0.25
    assert load(saved, use_cache=False)(IDS).past_key_values is None
    assert load(saved, hidden_size=32).config.n_embd == 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_layers": 2}, "from_pretrained has no argument 'n_layers'; did you mean 'n_layer'"),
        ({"torch_dtyp": "auto"}, "did you mean 'torch_dtype'"),
        ({"load_in_8bit": True}, "no argument 'load_in_8bit'"),
    ],
)
def test_unknown_arguments_are_refused(saved: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        load(saved, **arguments)


def test_backends_by_name(saved: Path) -> None:
    for name in ("eager", "sdpa"):
        model = load(saved, attn_implementation=name)
        assert model.config.attn_implementation == name
        assert_close(model(IDS).logits, LOGITS)
    with pytest.raises(BackendError, match=r"'flash_attn_9'; it may be eager, sdpa"):
        load(saved, attn_implementation="flash_attn_9")


def test_a_checkpoint_selects_neither_backend_nor_code(saved: Path, tmp_path: Path) -> None:
    hostile = {
        "attn_implementation": "eager",
        "_attn_implementation": "eager",
        "_attn_implementation_internal": "eager",
        "auto_map": {"AutoModel": "evil.Model"},
        "trust_remote_code": True,
        "custom_pipelines": {"x": {"impl": "evil.Pipe"}},
        "n_ctx": 1024,
        "task_specific_params": {"text-generation": {"max_length": 50}},
    }
    edit_json(saved / "config.json", lambda c: c.update(hostile))
    model = load(saved)
    assert model.config.attn_implementation == "sdpa"
    assert torch.equal(model(IDS).logits, LOGITS)
    assert model.generate(IDS[:1, :2], eos_token_id=None).shape == (1, 22)
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {name: written[name] for name in hostile} == hostile  # kept, never acted upon
    assert written["architectures"] == ["GPT2LMHeadModel"]
    assert written["model_type"] == "gpt2"


def test_the_backend_is_not_written(tmp_path: Path) -> None:
    tiny_model(attn_implementation="eager").save_pretrained(tmp_path / "m")
    assert "eager" not in (tmp_path / "m" / "config.json").read_text()


def test_another_architecture_is_refused(saved: Path) -> None:
    edit_json(saved / "config.json", lambda c: c.update(model_type="llama"))
    with pytest.raises(ConfigError, match=r"config\.json.*model_type is 'llama'.*'gpt2'"):
        load(saved)


# -- strictness ---------------------------------------------------------------------------------


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.pop(name)


def misshapen(weights: dict[str, Tensor]) -> None:
    weights["transformer.ln_f.bias"] = torch.zeros(31)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (without("transformer.h.1.ln_2.weight"), ["missing (1)", "h.1.ln_2.weight", "[32]"]),
        (lambda w: w.update(extra=torch.zeros(3)), ["unexpected (1)", "'extra' [3]"]),
        (misshapen, ["ln_f.bias", "[31] instead of [32]", "ignore_mismatched_sizes"]),
        (
            lambda w: (misshapen(w), without("transformer.wpe.weight")(w)),
            ["wpe.weight", "ln_f.bias"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    saved: Path, damage: Callable[[dict[str, Tensor]], object], parts: list[str]
) -> None:
    weights = dict(tiny_model().state_dict())
    damage(weights)
    with pytest.raises(StateDictError) as caught:
        load(saved, state_dict=weights)
    with pytest.raises(StateDictError, match=r"^state_dict: "):
        tiny_model().save_pretrained(saved, state_dict=weights)
    write_checkpoint(saved, weights)
    with pytest.raises(StateDictError) as from_file:
        load(saved)
    for part in parts:
        assert part in str(caught.value)
        assert part in str(from_file.value)


def test_a_state_dict_to_save_may_name_the_tied_head_but_not_contradict_it(tmp_path: Path) -> None:
    model = tiny_model()
    table = model.transformer.wte.weight.detach()
    weights = {**model.state_dict(), "lm_head.weight": table.clone()}
    model.save_pretrained(tmp_path / "same", state_dict=weights)
    assert torch.equal(load(tmp_path / "same")(IDS).logits, model(IDS).logits)
    weights["lm_head.weight"] += 1
    with pytest.raises(StateDictError, match=r"lm_head\.weight and .*wte\.weight differ"):
        model.save_pretrained(tmp_path / "other", state_dict=weights)
    assert not (tmp_path / "other").exists()


def test_save_pretrained_names_an_argument_that_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match=r"save_pretrained has no argument 'max_shard'"):
        tiny_model().save_pretrained(tmp_path / "model", max_shard="1GB")
    assert not (tmp_path / "model").exists()


def test_state_dict_replaces_the_files(saved: Path) -> None:
    weights = tiny_model(seed=9).state_dict()
    model = load(saved, state_dict=weights)
    assert torch.equal(model(IDS).logits, tiny_model(seed=9)(IDS).logits)
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
    assert weights["transformer.wpe.weight"].abs().sum() > 0  # copied
    with pytest.raises(ArgumentTypeError, match=r"state_dict must map names.*list"):
        load(saved, state_dict=[weights])


def test_ignore_mismatched_sizes_initialises_anew(saved: Path) -> None:
    with pytest.raises(StateDictError, match=r"wpe\.weight.*\[32, 32\] instead of \[48, 32\]"):
        load(saved, n_positions=48)
    torch.manual_seed(0)
    model, info = GPT2LMHeadModel.from_pretrained(
        saved, n_positions=48, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["mismatched_keys"] == [("transformer.wpe.weight", (32, 32), (48, 32))]
    assert info["missing_keys"] == info["unexpected_keys"] == info["error_msgs"] == []
    assert model.transformer.wpe.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(model.transformer.wte.weight, tiny_model().transformer.wte.weight)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not any(p.is_meta for p in model.parameters())
    assert model(IDS).logits.isfinite().all()


def test_loading_info_tells_what_was_dropped(tmp_path: Path) -> None:
    tiny_model(tie_word_embeddings=False).save_pretrained(tmp_path / "m")
    core, info = GPT2Model.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert info["unexpected_keys"] == ["lm_head.weight"]
    assert core(IDS).last_hidden_state.shape == (2, 5, 32)


def test_broken_directories_are_named(saved: Path, tmp_path: Path) -> None:
    cases: list[tuple[Callable[[], object], type[GPT2Error], str]] = [
        (lambda: None, FileAccessError, "absent"),
        (lambda: (tmp_path / "absent").mkdir(), FileAccessError, "config.json"),
        (lambda: tiny_config().save_pretrained(tmp_path / "absent"), FileAccessError, "safetens"),
        (lambda: (tmp_path / "absent/config.json").write_text("{"), FileFormatError, "config.json"),
    ]
    for prepare, kind, words in cases:
        prepare()
        with pytest.raises(kind, match=words):
            load(tmp_path / "absent")


def test_not_a_name(saved: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="None"):
        GPT2LMHeadModel.from_pretrained(None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"\{\}"):
        load(saved, config={})


# -- generation_config.json ---------------------------------------------------------------------


def test_generation_settings_travel_with_the_model(saved: Path, tmp_path: Path) -> None:
    content = {"max_new_tokens": 3, "do_sample": True, "top_k": 5, "eos_token_id": 7, "_note": "x"}
    (saved / "generation_config.json").write_text(json.dumps(content))
    model = load(saved)
    assert model.generation_config == GenerationConfig(
        max_new_tokens=3, do_sample=True, top_k=5, eos_token_id=7, extra={"_note": "x"}
    )
    assert model.generate(IDS, eos_token_id=[]).shape == (2, 8)
    torch.manual_seed(0)
    one = model.generate(IDS)
    torch.manual_seed(0)
    assert torch.equal(model.generate(IDS, do_sample=True, top_k=5, max_new_tokens=3), one)
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert written == content
    assert load(tmp_path / "again").generation_config == model.generation_config


def test_without_its_file_the_config_says_how_to_generate(saved: Path) -> None:
    (saved / "generation_config.json").unlink()
    edit_json(saved / "config.json", lambda c: c.update(eos_token_id=[3, 4], pad_token_id=5))
    settings = load(saved).generation_config
    assert settings == GenerationConfig(bos_token_id=96, eos_token_id=[3, 4], pad_token_id=5)


def test_settings_that_cannot_be_honoured_name_the_file(saved: Path) -> None:
    (saved / "generation_config.json").write_text('{"token_healing": true}')
    with pytest.raises(ArgumentError, match=r"generation_config\.json: token_healing=True"):
        load(saved)
    (saved / "generation_config.json").write_text('{"temperature": 0.0}')
    with pytest.raises(ArgumentError, match=r"generation_config\.json: temperature .* not 0\.0"):
        load(saved)


# -- saving over --------------------------------------------------------------------------------


def test_saving_replaces_its_files_as_a_whole_and_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "m"
    tiny_model().save_pretrained(path, max_shard_size=20_000)
    foreign = {"vocab.json": "{}", "merges.txt": "#version", "notes/readme.md": "mine"}
    for name, text in foreign.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    shards = set(path.glob("model-*"))
    assert shards
    tiny_model(seed=4).save_pretrained(path)
    left = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    ours = {"config.json", "generation_config.json", "model.safetensors"}
    assert left == ours | set(foreign)
    assert all((path / name).read_text() == text for name, text in foreign.items())
    assert torch.equal(load(path)(IDS).logits, tiny_model(seed=4)(IDS).logits)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]  # no stage stays behind


def test_a_variant_stands_beside_the_plain_weights(tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_model(seed=2).save_pretrained(tmp_path, variant="fp16")
    assert torch.equal(load(tmp_path)(IDS).logits, tiny_model(seed=1)(IDS).logits)
    assert torch.equal(load(tmp_path, variant="fp16")(IDS).logits, tiny_model(seed=2)(IDS).logits)
    tiny_model(seed=3).save_pretrained(tmp_path)  # a new model leaves no variant of the old one
    assert not list(tmp_path.glob("*fp16*"))


def test_saving_over_the_directory_one_came_from(saved: Path) -> None:
    model = load(saved)
    with torch.no_grad():
        model.transformer.wpe.weight.add_(1.0)
    expected = model(IDS).logits
    model.save_pretrained(saved)
    assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(load(saved)(IDS).logits, expected)


def test_a_save_that_fails_leaves_the_old_files(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    model = tiny_model(seed=3)
    with pytest.raises(ArgumentError, match="max_shard_size='lots'"):
        model.save_pretrained(saved, max_shard_size="lots")
    model.config.n_head = 5
    with pytest.raises(ConfigError, match="n_head"):
        model.save_pretrained(saved)
    model.config.n_head = 4
    model.to("meta")
    with pytest.raises(StateDictError, match="no values"):
        model.save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_saving_changes_neither_model_nor_config(tmp_path: Path) -> None:
    model = tiny_model().half()
    before, config = model(IDS).logits, model.config.to_dict()
    model.save_pretrained(tmp_path / "m")
    assert model.config.to_dict() == config
    assert torch.equal(model(IDS).logits, before)
    assert load(tmp_path / "m").config.replaced(architectures=None, torch_dtype=None) == (
        GPT2Config.from_dict(config)
    )


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "m", is_main_process=False)
    assert not (tmp_path / "m").exists()


def test_loading_writes_one_line_to_the_log(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="gpt2"):
        load(saved)
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 1
    assert "loaded 28 tensors as float32" in lines[0]


# -- what transformers' users bring along -------------------------------------------------------


@pytest.mark.parametrize("of_core", [False, True])
def test_load_state_dict_says_which_orientation_it_was_given(of_core: bool) -> None:
    model = tiny_model().transformer if of_core else tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    transposed = {
        name: tensor.T if ".c_" in name and tensor.dim() == 2 else tensor + 1
        for name, tensor in before.items()
    }
    with pytest.raises(StateDictError, match=r"h\.0\.attn\.c_attn\.weight .*Conv1D.*state_dict="):
        model.load_state_dict(transposed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_advice_for_conv1d_works(saved: Path) -> None:
    own = tiny_model(seed=3).state_dict()
    stored = {n: t.T.contiguous() if ".c_" in n and t.dim() == 2 else t for n, t in own.items()}
    assert_close(load(saved, state_dict=stored)(IDS).logits, tiny_model(seed=3)(IDS).logits)


@pytest.mark.parametrize("name", ["trust_remote_code", "from_tf", "from_flax"])
def test_arguments_that_ask_for_nothing(saved: Path, name: str) -> None:
    assert_close(load(saved, **{name: False})(IDS).logits, LOGITS)
    with pytest.raises(ArgumentError, match=f"{name}=True"):
        load(saved, **{name: True})


def test_the_dtype_of_given_weights_is_noted(tmp_path: Path) -> None:
    model = tiny_model()
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "half", state_dict=half)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert load(tmp_path / "half", dtype="auto").dtype == torch.float16


@pytest.mark.parametrize("name", ["embd_pdrop"])
def test_a_dropout_that_opt_lacks_is_told_with_the_remedy(tmp_path: Path, name: str) -> None:
    model = tiny_model(activation_function="relu", **{name: 0.1})
    with pytest.raises(ConfigError, match=rf"{name} is 0\.1.*set model\.config\.{name} = 0\.0"):
        model.save_pretrained(tmp_path / "opt", layout="opt")
    setattr(model.config, name, 0.0)
    model.save_pretrained(tmp_path / "opt", layout="opt")


def test_documented_facts_of_a_model(saved: Path) -> None:
    model = load(saved)
    assert model.name_or_path == str(saved)
    assert tiny_model().name_or_path == ""
    assert model.config_class is GPT2Config
    assert model.main_input_name == "input_ids"
    assert model.can_generate()
    assert not GPT2Model.can_generate()
    assert model.get_memory_footprint() == 4 * model.num_parameters()
    model.register_buffer("mine", torch.zeros(3, dtype=torch.float64))
    assert model.get_memory_footprint() == 4 * model.num_parameters() + 24
    assert model.get_memory_footprint(return_buffers=False) == 4 * model.num_parameters()
