"""The cache of fixed size: equal to the growing one, one line of decoding, never overrun."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2 import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model
from gpt2.errors import ArgumentError, BackendError, SequenceLengthError
from gpt2.modeling.cache import KVCache
from gpt2.modeling.inputs import ValueChecks
from gpt2.modeling.static_cache import StaticCache
from gpt2.modeling.static_placement import place_in_static
from tests.helpers import assert_close, tiny_config, tiny_model

IDS = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))
LEFT = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
RIGHT = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
HOLES = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 1, 1, 0]])


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def static(model: Any, columns: int = 16, rows: int = 2) -> StaticCache:
    return StaticCache(model.config, rows, columns, device=model.device, dtype=model.dtype)


def addresses(cache: KVCache) -> list[int]:
    return [t.data_ptr() for pair in cache for t in pair]


def continued(mask: Tensor, columns: int) -> Tensor:
    return torch.cat([mask, mask.new_ones(2, columns)], dim=1)


# -- equal to the growing cache -------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[12], [5, 1, 1, 5], [1] * 12], ids=["1", "4", "12"])
@pytest.mark.parametrize("room", [12, 16, 40])
def test_equal_to_no_cache(backend: str, chunks: list[int], room: int) -> None:
    model = tiny_model(GPT2Model, attn_implementation=backend, scale_attn_by_inverse_layer_idx=True)
    expected = model(IDS, output_attentions=True)
    cache, states = static(model, room), []
    for chunk in IDS.split(chunks, dim=1):
        out = model(chunk, past_key_values=cache)
        assert out.past_key_values is cache
        states.append(out.last_hidden_state)
    assert_close(torch.cat(states, 1), expected.last_hidden_state)
    for mine, theirs in zip(cache, expected.past_key_values, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [LEFT, RIGHT, HOLES], ids=["left", "right", "holes"])
def test_padding_is_remembered(mask: Tensor, backend: str) -> None:
    model = tiny_model(attn_implementation=backend)
    whole = continued(mask, 7)
    expected = model(IDS, attention_mask=whole).logits
    cache = static(model)
    logits = [model(IDS[:, :5], cache, mask).logits]
    logits += [model(IDS[:, c : c + 1], cache).logits for c in range(5, 12)]
    found = torch.cat(logits, 1)
    assert found.isfinite().all()
    assert_close(found[whole.bool()], expected[whole.bool()])


def test_no_query_is_left_without_a_key() -> None:
    """Padding sees itself, or some kernels would give NaN."""
    cache = StaticCache(tiny_config(), 2, 9)
    for _ in range(2):
        place = place_in_static(
            past=cache, batch_size=2, query_length=4, attention_mask=torch.tensor([[0] * 4] * 2),
            position_ids=None, document_ids=None, n_positions=32, dtype=torch.float32,
            device=torch.device("cpu"), checks=ValueChecks(), as_segments=False,
        )  # fmt: skip
        assert place.visibility.mask.shape == (2, 1, 4, 9)
        assert place.visibility.mask.any(-1).all()
        assert place.position_ids.abs().max() == 0
        cache.mask = place.key_mask
        cache.position += 4


def test_padding_in_a_later_chunk_and_a_mask_of_ones() -> None:
    model = tiny_model()
    whole = torch.cat([torch.ones(2, 7, dtype=torch.long), HOLES], dim=1)
    expected = model(IDS, attention_mask=whole).logits
    cache = static(model)
    first = model(IDS[:, :7], cache, torch.ones(2, 7)).logits
    assert cache.mask is None  # nothing to hide, nothing kept
    found = torch.cat([first, model(IDS[:, 7:], cache, HOLES).logits], 1)
    assert_close(found[whole.bool()], expected[whole.bool()])


def test_all_other_arguments() -> None:
    """token types, own positions, embeddings, head mask, attentions, a 4-D mask."""
    model = tiny_model(GPT2Model)
    types, scales = IDS.flip(1), torch.rand(2, 4)
    positions = torch.arange(12)[None] + 3
    expected = model(
        IDS, token_type_ids=types, position_ids=positions, head_mask=scales, output_attentions=True
    )
    cache = static(model)
    model(IDS[:, :8], cache, None, types[:, :8], positions[:, :8], scales)
    seen = torch.ones(4, 16, dtype=torch.bool).tril(8)[None, None]  # hides the unwritten columns
    for mask in (None, seen):
        out = model(
            None, cache, mask, types[:, 8:], positions[:, 8:], scales,
            inputs_embeds=model.wte(IDS[:, 8:]), output_attentions=True,
        )  # fmt: skip
        assert_close(out.last_hidden_state, expected.last_hidden_state[:, 8:])
        assert_close(out.attentions[1][..., :12], expected.attentions[1][..., 8:, :])
        assert out.attentions[1][..., 12:].abs().max() == 0
        cache.crop(8)


def test_in_other_heads_and_pruned_layers() -> None:
    model = tiny_model(GPT2ForSequenceClassification, num_labels=3)
    cache = static(model)
    model(IDS[:, :8], cache)
    assert_close(model(IDS[:, 8:], cache).logits, model(IDS).logits)
    pruned = tiny_model()
    pruned.prune_heads({1: [0, 2]})
    cache = static(pruned)
    assert [pair[0].shape[1] for pair in (cache._columns(0), cache._columns(1))] == [4, 2]
    pruned(IDS[:, :8], cache)
    assert_close(pruned(IDS[:, 8:], cache).logits, pruned(IDS).logits[:, 8:])


def test_half_precision() -> None:
    model = tiny_model().bfloat16()
    cache = static(model)
    assert cache._columns(0)[0].dtype == torch.bfloat16
    model(IDS[:, :8], cache, torch.tensor([[1] * 8, [0] * 8]))
    assert model(IDS[:, 8:], cache).logits.isfinite().all()


# -- one line of decoding, changed in place -------------------------------------------------------


def test_nothing_moves() -> None:
    model = tiny_model()
    cache = static(model)
    model(IDS[:, :1], cache)
    first, position = addresses(cache), cache.position.data_ptr()
    for column in range(1, 12):
        model(IDS[:, column : column + 1], cache)
        assert addresses(cache) == first
        assert cache.position.data_ptr() == position
    assert cache.length == cache.get_seq_length() == int(cache.position) == 12
    assert cache.get_max_cache_shape() == cache.get_max_length() == 16


class Waits(TorchDispatchMode):
    """Counts how often the host asks the device for a number."""

    times = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.times += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mask", [None, LEFT], ids=["real", "padded"])
def test_a_step_without_checks_waits_for_nothing(mask: Tensor | None) -> None:
    model = tiny_model()
    cache = static(model)
    model(IDS[:, :5], cache, mask)
    with Waits() as waits:
        model(IDS[:, 5:6], cache, check_inputs=False)
    assert waits.times == 0
    with waits:
        assert cache.length == 6
    assert waits.times == 1


@pytest.mark.parametrize("length", [6, -2])
def test_crop_and_reset(length: int) -> None:
    model = tiny_model()
    expected = model(IDS, attention_mask=continued(LEFT, 7)).logits[:, 6:]
    cache = static(model)
    model(IDS[:, :5], cache, LEFT)
    model(IDS[:, :3], cache, HOLES[:, :3])  # all of it but the first column is thrown away
    cache.batch_select_indices(torch.tensor([0, 1]))
    assert cache.crop(length) is cache
    model(IDS[:, 5:6], cache.crop(5))
    assert_close(model(IDS[:, 6:], cache).logits, expected)
    assert cache.reset().length == 0
    assert cache.mask is None
    assert_close(model(IDS, cache).logits, model(IDS).logits)
    for refused in (-13, 13):
        with pytest.raises(ArgumentError, match="max_length must be from -12 to 12"):
            cache.crop(refused)


def test_a_pass_that_fails_has_not_happened() -> None:
    model = tiny_model()
    cache = static(model)
    model(IDS[:, :8], cache)
    with pytest.raises(ArgumentError, match="head_mask names 3 heads"):
        model(IDS[:, 8:], cache, torch.zeros(2, 4), head_mask=torch.ones(3))
    assert cache.length == 8
    assert_close(model(IDS[:, 8:], cache).logits, model(IDS).logits[:, 8:])


def test_an_encoder_that_was_not_computed_is_missed() -> None:
    model = tiny_model(add_cross_attention=True)
    cache, states = static(model), torch.randn(2, 3, 32)
    with pytest.raises(ArgumentError, match="head_mask names 3 heads"):
        model(IDS, cache, head_mask=torch.ones(3), encoder_hidden_states=states)
    with pytest.raises(ArgumentError, match=r"encoder's keys for 0 of 2 layers.*give encoder_hid"):
        model(IDS, cache)
    expected = model(IDS, encoder_hidden_states=states).logits
    assert_close(model(IDS, cache, encoder_hidden_states=states).logits, expected)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda c: c.select(torch.tensor([1])), [1]),
        (lambda c: c.select(torch.tensor([False, True])), [1]),
        (lambda c: c.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda c: c.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda c: c.batch_select_indices(torch.tensor([1, 1, 0])), [1, 1, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda c: GPT2LMHeadModel._reorder_cache(c, torch.tensor([1, 0])), [1, 0]),
    ],
)
def test_rows(change: Callable[[StaticCache], StaticCache], rows: list[int]) -> None:
    model = tiny_model()
    cache = static(model)
    model(IDS[:, :5], cache, LEFT)
    expected = model(IDS, attention_mask=continued(LEFT, 7)).logits[rows, 5:]
    before = addresses(cache)
    chosen = change(cache)
    assert_close(model(IDS[rows, 5:], chosen).logits, expected)
    if chosen is cache and len(rows) == 2:
        assert addresses(cache) == before  # a recorded graph would find them again
    if chosen is not cache:
        assert cache.length == 5
        assert addresses(chosen) != before


# -- reads as the documented tuple; copies --------------------------------------------------------


def test_reads_like_a_tuple_and_becomes_one() -> None:
    model = tiny_model()
    cache = static(model)
    assert list(cache) == []
    assert len(cache) == 2
    model(IDS[:, :8], cache)
    assert repr(cache) == "StaticCache(layers=2, length=8, batch_size=2)"
    assert [k.shape for k, _ in cache] == [(2, 4, 8, 8)] * 2
    assert torch.equal(cache[-1][0], cache[:2][1][0])
    expected = model(IDS).logits[:, 8:]
    assert_close(model(IDS[:, 8:], cache.to_legacy_cache()).logits, expected)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda c: pickle.loads(pickle.dumps(c)),
        lambda c: pytree.tree_map_only(Tensor, torch.clone, c),
    ],
    ids=["deepcopy", "pickle", "pytree"],
)
def test_copies_go_on_alone(copied: Callable[[StaticCache], StaticCache]) -> None:
    model = tiny_model()
    cache = static(model)
    model(IDS[:, :5], cache, LEFT)
    twin = copied(cache)
    assert isinstance(twin, StaticCache)
    out = model(IDS[:, 5:], twin).logits
    assert (cache.length, twin.length) == (5, 12)
    assert torch.equal(model(IDS[:, 5:], cache).logits, out)


def test_made_in_inference_mode() -> None:
    model = tiny_model()
    with torch.inference_mode():
        cache = static(model)
        model(IDS[:, :5], cache)
        logits = model(IDS[:, 5:8], cache).logits
    assert_close(logits, model(IDS).logits[:, 5:8])
    assert_close(model(IDS[:, 8:], cache).logits, model(IDS).logits[:, 8:])
    assert cache.length == 12
    cache.crop(8)
    with torch.inference_mode():  # and back
        assert_close(model(IDS[:, 8:], cache).logits, model(IDS).logits[:, 8:])
        cache = static(model)
        model(IDS, cache)
    assert_close(model(IDS[:, 8:], cache.crop(8)).logits, model(IDS).logits[:, 8:])


# -- bad input ------------------------------------------------------------------------------------


def test_overrun_is_refused() -> None:
    model = tiny_model()
    cache = static(model, 10)
    with pytest.raises(ArgumentError, match="room for 10 columns; 0 are written, and 12 more"):
        model(IDS, cache)
    model(IDS[:, :8], cache)
    with pytest.raises(ArgumentError, match="room for 10 columns; 8 are written, and 4 more"):
        model(IDS[:, 8:], cache)
    assert cache.length == 8


def test_n_positions_limits_real_tokens() -> None:
    model = tiny_model(n_positions=8)
    cache = static(model, 20)
    model(IDS[:, :5], cache, torch.tensor([[0, 0, 0, 1, 1]] * 2))
    model(IDS[:, :6], cache)  # 11 columns, 8 real tokens
    with pytest.raises(SequenceLengthError, match=r"9 real tokens.*n_positions = 8"):
        model(IDS[:, :1], cache)
    model(IDS[:, :1], cache, position_ids=torch.tensor([[7]]))
    with pytest.raises(SequenceLengthError, match="n_positions"):
        model(IDS[:, :1], cache, position_ids=torch.tensor([[8]]))


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"input_ids": IDS[:1]}, ArgumentError, "holds 2 rows, the new input 1"),
        ({"attention_mask": torch.ones(2, 16)}, ArgumentError, r"\(2, 12\): with a StaticCache"),
        ({"attention_mask": 2 * torch.ones(2, 12)}, ArgumentError, "only 0 .* and 1"),
        (
            {"attention_mask": torch.ones(2, 1, 12, 12, dtype=torch.bool)},
            ArgumentError,
            r"4-D mask must be .*12, 16\)",
        ),
        ({"document_ids": IDS}, ArgumentError, "document_ids cannot be given together with"),
        ({"use_cache": False}, ArgumentError, "StaticCache.*needs use_cache=True"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    model = tiny_model()
    cache = static(model)
    with pytest.raises(kind, match=words):
        model(**{"input_ids": IDS, "past_key_values": cache, **arguments})
    assert cache.length == 0


def test_caches_that_do_not_fit_the_model() -> None:
    model = tiny_model()
    for other, words in (
        (tiny_model(n_layer=3), "has 3 layers, the model 2"),
        (tiny_model(n_head=2), r"layer 0 holds .*\(2, 2, 16, 16\), .*\(2, 4, 12, 8\)"),
        (tiny_model().half(), "layer 0 is torch.float16 on cpu, .* are torch.float32 on cpu"),
    ):
        with pytest.raises(ArgumentError, match=words):
            model(IDS, static(other))
    with pytest.raises(ArgumentError, match="is on meta, the model on cpu"):
        model(IDS, StaticCache(model.config, 2, 16, device="meta"))
    with pytest.raises(ArgumentError, match="max_cache_len must be"):
        StaticCache(tiny_config(), 2, 0)
    with pytest.raises(ArgumentError, match="max_batch_size must be"):
        StaticCache(tiny_config(), 0, 2)


def test_not_for_gradients() -> None:
    model = tiny_model()
    with torch.enable_grad(), pytest.raises(ArgumentError, match=r"StaticCache.*torch.no_grad"):
        model(IDS, static(model))
    with torch.enable_grad(), pytest.raises(ArgumentError, match="cannot be had in training"):
        model.train()(IDS, static(model))


def test_flash_cannot_hide_the_unwritten_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(model.transformer, "takes_segments", True)
    with pytest.raises(BackendError, match=r"flash_attention_2 cannot hide.*StaticCache"):
        model(IDS, static(model))


# -- from and to the growing cache ----------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT, HOLES], ids=["none", "left", "right", "holes"])
def test_a_growing_cache_goes_in_and_comes_out(mask: Tensor | None) -> None:
    model = tiny_model()
    whole = None if mask is None else continued(mask, 7)
    real = torch.ones(2, 12, dtype=torch.bool) if whole is None else whole.bool()
    expected = model(IDS, attention_mask=whole).logits
    past = model(IDS[:, :5], attention_mask=mask).past_key_values
    cache = StaticCache.like(past, 16)
    assert (cache.length, cache.batch_size, cache.capacity) == (0, 2, 16)
    for buffer in cache._buffers:  # what an earlier prompt has left
        assert buffer is not None
        buffer.keys.fill_(torch.nan), buffer.values.fill_(torch.nan)
    memory, kept_mask = addresses(cache), None
    for _ in range(2):
        cache.load(past)
        assert cache.mask is not None
        assert kept_mask is None or cache.mask is kept_mask
        kept_mask = cache.mask
        held = past.mask if past.mask is not None else torch.ones(2, 5, dtype=torch.bool)
        assert torch.equal(cache.real_tokens(), held.sum(-1))
        found = [model(IDS[:, c : c + 1], cache).logits for c in range(5, 11)]
        grown = cache.grown()
        assert type(grown) is KVCache
        assert (grown.length, cache.length, past.length) == (11, 11, 5)
        found.append(model(IDS[:, 11:], grown).logits)
        assert_close(torch.cat(found, 1)[real[:, 5:]], expected[:, 5:][real[:, 5:]])
    assert addresses(cache)[: len(memory)] == memory
    before = grown[0][0].clone()
    cache.load(past)
    cache.reset()
    assert torch.equal(grown[0][0], before)


def test_reordered_in_place_with_its_mask() -> None:
    model = tiny_model()
    cache = static(model)
    model(IDS[:, :5], cache, LEFT)
    mask, memory = cache.mask, addresses(cache)
    assert mask is not None
    cache.reorder_cache(torch.tensor([1, 1]))
    assert cache.mask is mask
    assert addresses(cache) == memory
    assert torch.equal(mask[:, :5], LEFT[[1, 1]].bool())
    assert torch.equal(cache[0][0][0], cache[0][0][1])
