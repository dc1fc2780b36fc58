"""The key/value cache: equal to no cache, cheap to grow, safe to use twice."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2 import GPT2LMHeadModel, GPT2Model
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.modeling.cache import KVCache
from tests.helpers import assert_close, tiny_model

IDS = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))


def filled(length: int = 5, capacity: int = 0, layers: int = 2) -> KVCache:
    """A cache of random columns, one written at a time."""
    cache = KVCache(layers, capacity=capacity)
    generator = torch.Generator().manual_seed(2)
    for _ in range(length):
        cache = cache.extended(1, None)
        for layer in range(layers):
            new = torch.randn(2, 2, 2, 1, 3, generator=generator)
            cache.update(layer, new[0], new[1])
    return cache


def run_in_chunks(model: GPT2Model, ids: Tensor, chunks: Sequence[int]) -> Tensor:
    past, outputs = None, []
    for chunk in ids.split(list(chunks), dim=1):
        out = model(chunk, past_key_values=past, use_cache=True)
        past = out.past_key_values
        outputs.append(out.last_hidden_state)
    return torch.cat(outputs, dim=1)


# -- equal to no cache --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(
    "chunks", [[12], [5, 7], [1, 4, 4, 3], [11, 1], [1] * 12], ids=lambda c: f"{len(c)} chunks"
)
def test_chunks_equal_one_shot(backend: str, grad: bool, chunks: list[int]) -> None:
    model = tiny_model(GPT2Model, attn_implementation=backend, scale_attn_by_inverse_layer_idx=True)
    with torch.set_grad_enabled(grad):
        whole = model(IDS, use_cache=False)
        assert whole.past_key_values is None
        assert_close(run_in_chunks(model, IDS, chunks), whole.last_hidden_state)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("form", ["tuples", "full", "with room"])
def test_an_old_cache_used_twice_gives_the_same(grad: bool, form: str) -> None:
    model = tiny_model(GPT2Model)
    with torch.set_grad_enabled(grad):
        start = KVCache(2, capacity=20) if form == "with room" else None
        past = model(IDS[:, :8], past_key_values=start).past_key_values
        if form == "tuples":
            past = past.to_legacy_cache()
        first = model(IDS[:, 8:], past_key_values=past)
        kept = first.last_hidden_state.clone()
        columns = [(k.clone(), v.clone()) for k, v in first.past_key_values]
        other = model(IDS[:, :4], past_key_values=past)  # written where `first` has its columns
        assert not torch.equal(other.last_hidden_state, kept)
        for (k, v), (k0, v0) in zip(first.past_key_values, columns, strict=True):
            assert torch.equal(k, k0)
            assert torch.equal(v, v0)
        again = model(IDS[:, 8:], past_key_values=past)
        assert_close(again.last_hidden_state, kept)
        # and the first result is right to go on from
        on = model(IDS[:, :2], past_key_values=first.past_key_values).last_hidden_state
        whole = model(torch.cat([IDS, IDS[:, :2]], 1)).last_hidden_state
        assert_close(on, whole[:, -2:])


def test_the_callers_tuples_are_never_written_to() -> None:
    model = tiny_model(GPT2Model)
    with torch.no_grad():
        past = tuple((k.clone(), v.clone()) for k, v in model(IDS[:, :8]).past_key_values)
        before = copy.deepcopy(past)
        model(IDS[:, 8:], past_key_values=past)
    for (k, v), (k0, v0) in zip(past, before, strict=True):
        assert torch.equal(k, k0)
        assert torch.equal(v, v0)


def test_a_none_behind_the_pairs_is_nothing() -> None:
    """transformers' own caches yield one."""
    model = tiny_model(GPT2Model)
    past = model(IDS[:, :8]).past_key_values
    out = model(IDS[:, 8:], past_key_values=[(*pair, None) for pair in past])
    assert_close(out.last_hidden_state, model(IDS).last_hidden_state[:, 8:])


def test_another_dtype_or_device_is_refused() -> None:
    past = tiny_model(GPT2Model).half()(IDS[:, :8]).past_key_values
    model = tiny_model(GPT2Model)
    with pytest.raises(ArgumentError, match=r"layer 0 is torch.float16 on cpu.*torch.float32 on"):
        model(IDS[:, 8:], past_key_values=past)
    meta = [tuple(t.float().to("meta") for t in pair) for pair in past]
    with pytest.raises(ArgumentError, match=r"on meta, the model's new tokens are .* on cpu"):
        model(IDS[:, 8:], past_key_values=meta)
    past = model(IDS[:, :8]).past_key_values
    with torch.autocast("cpu", torch.bfloat16):  # there dtypes may mix
        out = model(IDS[:, 8:], past_key_values=past).last_hidden_state
    assert_close(out, model(IDS).last_hidden_state[:, 8:], 2e-2)


@pytest.mark.parametrize("form", [tuple, list, iter])
def test_legacy_pairs_are_accepted_in_any_sequence(form: type) -> None:
    model = tiny_model(GPT2Model)
    with torch.no_grad():
        whole = model(IDS).last_hidden_state
        past = model(IDS[:, :8]).past_key_values
        given = form([list(pair) for pair in past])
        out = model(IDS[:, 8:], past_key_values=given)
    assert_close(out.last_hidden_state, whole[:, 8:])


def test_an_empty_cache_is_a_start() -> None:
    model = tiny_model(GPT2Model)
    with torch.no_grad():
        out = model(IDS, past_key_values=KVCache(2, capacity=20))
    assert_close(out.last_hidden_state, model(IDS).last_hidden_state)
    assert out.past_key_values.length == 12


# -- reads like the documented tuple ------------------------------------------------------------


def test_reads_like_a_tuple_of_pairs() -> None:
    cache = filled(5)
    assert len(cache) == 2
    assert cache.get_seq_length() == cache.length == 5
    assert cache.batch_size == 2
    pairs = cache.to_legacy_cache()
    assert isinstance(pairs, tuple)
    assert len(pairs) == 2
    for layer, (keys, values) in enumerate(cache):
        assert keys.shape == values.shape == (2, 2, 5, 3)
        assert torch.equal(keys, cache[layer][0])
        assert torch.equal(values, cache[layer][1])
        assert torch.equal(keys, pairs[layer][0])
        assert not torch.equal(keys, values)
    assert torch.equal(cache[-1][0], cache[1][0])
    assert isinstance(cache[:1], tuple)
    assert [len(cache[part]) for part in (slice(1), slice(-1, None), slice(5))] == [1, 1, 2]
    assert torch.equal(cache[1:][0][1], cache[1][1])
    with pytest.raises(IndexError):
        cache[2]
    assert cache.get_max_cache_shape() is None
    assert cache.get_max_length() is None
    assert cache.get_seq_length(1) == 5
    assert "length=5" in repr(cache)
    back = KVCache.from_legacy_cache(pairs)
    assert back.length == 5
    assert torch.equal(back[1][1], cache[1][1])


def test_an_empty_cache_has_nothing_to_read() -> None:
    cache = KVCache(3)
    assert len(cache) == 3
    assert list(cache) == []
    assert cache.batch_size is None
    with pytest.raises(IndexError, match="layer 0 of the cache holds nothing yet"):
        cache[0]


PAIR = (torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 3, 8))


@pytest.mark.parametrize(
    ("past", "kind", "words"),
    [
        (7, ArgumentTypeError, "past_key_values must be a cache.*found a int"),
        (((None, None),) * 2, ArgumentTypeError, "past_key_values must be a cache"),
        (PAIR, ArgumentError, r"found \[\(4, 3, 8\)\]"),  # one layer, not in a tuple of its own
        ((), ArgumentTypeError, "past_key_values must be a cache"),
        ((PAIR,) * 3, ArgumentError, "past_key_values has 3 layers, the model 2"),
        ((PAIR, (PAIR[0][:, :, :2],) * 2), ArgumentError, r"one length; found .*2, 8.*3, 8"),
        ((PAIR, (PAIR[0][:1],) * 2), ArgumentError, r"one batch .*found .*\(1, 4.*\(2, 4"),
        (((PAIR[0][0],) * 2,) * 2, ArgumentError, r"\(4, 3, 8\)"),
        (((PAIR[0][:1],) * 2,) * 2, ArgumentError, "holds 1 rows, the new input 2"),
        (((PAIR[0][:, :3],) * 2,) * 2, ArgumentError, r"\(2, 3, 3, 8\).*\(2, 4, 12, 8\)"),
        (((PAIR[0][..., :5],) * 2,) * 2, ArgumentError, r"\(2, 4, 3, 5\).*\(2, 4, 12, 8\)"),
    ],
)
def test_what_is_no_cache_of_this_model_is_refused(
    past: object, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        tiny_model(GPT2Model)(IDS, past_key_values=past)


# -- growing ------------------------------------------------------------------------------------


def addresses(cache: KVCache) -> list[int]:
    return [t.data_ptr() for pair in cache for t in pair]


def test_with_capacity_nothing_is_ever_reallocated() -> None:
    model = tiny_model(GPT2Model)
    with torch.no_grad():
        past = model(IDS[:, :4], past_key_values=KVCache(2, capacity=12)).past_key_values
        first = addresses(past)
        for column in range(4, 12):
            out = model(IDS[:, column : column + 1], past_key_values=past)
            past = out.past_key_values
            assert addresses(past) == first
    assert_close(out.last_hidden_state, model(IDS).last_hidden_state[:, -1:])


def test_without_capacity_room_doubles() -> None:
    """100 single columns cost a handful of copies, not a hundred."""
    cache, moves, seen = KVCache(1), 0, -1
    for column in range(100):
        cache = cache.extended(1, None)
        cache.update(0, torch.full((1, 1, 1, 2), float(column)), torch.zeros(1, 1, 1, 2))
        moves += addresses(cache)[0] != seen
        seen = addresses(cache)[0]
    assert moves <= 8  # 1, 4, 10, 22, 46, 94, 190 columns
    assert torch.equal(cache[0][0][0, 0, :, 0], torch.arange(100.0))


def test_generate_allocates_the_cache_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    reallocate = KVCache._reallocate

    def counted(self: KVCache, *args: object) -> object:
        calls.append(self.length)
        return reallocate(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(KVCache, "_reallocate", counted)
    model = tiny_model()
    model.generate(IDS, max_new_tokens=15, eos_token_id=None)
    assert calls == [12, 12]  # once per layer, at the prompt


def test_gradients_flow_through_a_cache() -> None:
    """Autograd sees the first chunk through the second one's loss."""
    model = tiny_model(GPT2Model)

    def gradients(chunks: list[int]) -> dict[str, Tensor]:
        model.zero_grad()
        run_in_chunks(model, IDS, chunks)[:, -1].square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    whole = gradients([12])
    for name, gradient in gradients([4, 1, 1, 6]).items():
        assert_close(gradient, whole[name], what=name)


def test_a_prefix_under_no_grad_is_a_constant() -> None:
    model = tiny_model(GPT2Model)
    with torch.no_grad():
        past = model(IDS[:, :8]).past_key_values
    held = [k.clone() for k, _ in past]
    model(IDS[:, 8:], past_key_values=past).last_hidden_state.sum().backward()
    assert model.wte.weight.grad.isfinite().all()
    assert model.wpe.weight.grad[:8].abs().max() == 0
    assert model.wpe.weight.grad[8:12].abs().min() > 0
    assert all(torch.equal(k, before) for (k, _), before in zip(past, held, strict=True))


def test_no_cache_in_training_unless_asked() -> None:
    for cls in (GPT2Model, GPT2LMHeadModel):
        model = tiny_model(cls).train()
        assert model(IDS).past_key_values is None
        assert model(IDS, use_cache=True).past_key_values.length == 12
        assert model.eval()(IDS).past_key_values.length == 12
        assert model(IDS, use_cache=False).past_key_values is None
        assert tiny_model(cls, use_cache=False)(IDS).past_key_values is None


MODES = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "real"])
@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", MODES)
def test_a_cache_made_in_one_mode_goes_on_in_another(
    first: str, second: str, padded: bool, backend: str
) -> None:
    model = tiny_model(GPT2Model, attn_implementation=backend)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :3] = 0 if padded else 1
    real = mask[:, 10:].bool()
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask).last_hidden_state[:, 10:]
    with MODES[first]():
        start = KVCache(2, capacity=14)
        past = model(IDS[:, :8], past_key_values=start, attention_mask=mask[:, :8]).past_key_values
        if padded:
            past = past.select(torch.tensor([0, 1]))
    with MODES[second]():
        past = model(IDS[:, 8:10], past_key_values=past).past_key_values
        out = model(IDS[:, 10:], past_key_values=past).last_hidden_state
    assert_close(out[real], expected[real])
    if second != "grad":
        return
    out[real].square().sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.set_grad_enabled(first == "grad"):
        before = model(IDS[:, :8], attention_mask=mask[:, :8]).past_key_values
        pairs = [tuple(t.clone() for t in pair) for pair in before]
    states = model(IDS[:, 8:], past_key_values=pairs, attention_mask=mask).last_hidden_state
    states[:, 2:][real].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(found[name], parameter.grad, what=name)


# -- reshaping the batch ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows", [torch.tensor([1]), torch.tensor([1, 0, 1]), torch.tensor([False, True])]
)
def test_select_copies_rows(rows: Tensor) -> None:
    model = tiny_model(GPT2Model)
    mask = torch.tensor([[1] * 8, [0, 0, 0] + [1] * 5])
    with torch.no_grad():
        past = model(IDS[:, :8], attention_mask=mask).past_key_values
        chosen = past.select(rows)
        expected = model(IDS[:, 8:], past_key_values=past).last_hidden_state[rows]
        out = model(IDS[rows, 8:], past_key_values=chosen)
    assert torch.equal(chosen.mask, mask.bool()[rows])
    assert_close(out.last_hidden_state, expected)


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda c: c.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda c: c.batch_select_indices(torch.tensor([1, 1, 0])), [1, 1, 0]),
        (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ],
)
def test_the_documented_methods_change_the_cache(change: object, rows: list[int]) -> None:
    model = tiny_model(GPT2Model)
    mask = torch.tensor([[1] * 8, [0, 0, 0] + [1] * 5])
    with torch.no_grad():
        past = model(IDS[:, :8], attention_mask=mask).past_key_values
        expected = model(IDS[:, 8:], past_key_values=past).last_hidden_state[rows]
        assert change(past) is past  # type: ignore[operator]
        out = model(IDS[rows, 8:], past_key_values=past)
    assert past.batch_size == len(rows)
    assert_close(out.last_hidden_state, expected)
    assert KVCache(2).batch_repeat_interleave(2).batch_size is None


def test_reorder_cache_of_the_class() -> None:
    """As documented: a static method, which takes tuples as well and changes nothing."""
    model = tiny_model()
    rows = torch.tensor([1, 0])
    with torch.no_grad():
        past = model(IDS[:, :8]).past_key_values
        expected = model(IDS[:, 8:], past).logits[rows]
        for given in (past, past.to_legacy_cache()):
            chosen = model._reorder_cache(given, rows)
            assert_close(model(IDS[rows, 8:], chosen).logits, expected)
        assert_close(model(IDS[:, 8:], past).logits[rows], expected)


@pytest.mark.parametrize("length", [6, -2])
def test_crop_forgets_the_last_columns_in_place(length: int) -> None:
    """As the documented method does: callers ignore what it returns."""
    model = tiny_model(GPT2Model)
    mask = torch.tensor([[1] * 8, [0, 0, 0] + [1] * 5])
    with torch.no_grad():
        past = model(IDS[:, :8], attention_mask=mask).past_key_values
        longer = model(IDS[:, 8:], past_key_values=past).past_key_values
        columns = [(k.clone(), v.clone()) for k, v in longer]
        assert past.crop(length) is past
        assert past.length == 6
        assert torch.equal(past.mask, mask.bool()[:, :6])
        again = model(IDS[:, 6:8], past_key_values=past).last_hidden_state
        expected = model(IDS[:, :8], attention_mask=mask).last_hidden_state[:, 6:]
        assert_close(again, expected)
    for (k, v), (k0, v0) in zip(longer, columns, strict=True):  # has lost nothing
        assert torch.equal(k, k0)
        assert torch.equal(v, v0)
    for refused in (-7, 7):
        with pytest.raises(ArgumentError, match=f"max_length must be from -6 to 6, not {refused}"):
            past.crop(refused)


def test_cropping_what_was_just_appended_copies_nothing() -> None:
    """Speculative decoding does it in every round."""
    model = tiny_model(GPT2Model)
    with torch.no_grad():
        past = model(IDS[:, :4], past_key_values=KVCache(2, capacity=20)).past_key_values
        first = addresses(past)
        for kept in range(5, 9):
            past = model(IDS[:, kept - 1 : kept + 3], past_key_values=past).past_key_values
            assert past.crop(kept).length == kept
            assert addresses(past) == first
        out = model(IDS[:, 8:], past_key_values=past)
        assert addresses(out.past_key_values) == first
        assert_close(out.last_hidden_state, model(IDS).last_hidden_state[:, 8:])


def test_a_crop_never_gives_away_what_another_handle_sees() -> None:
    model = tiny_model(GPT2Model)
    with torch.no_grad():
        one = model(IDS[:, :6], past_key_values=KVCache(2, capacity=20)).past_key_values
        two = model(IDS[:, 6:8], past_key_values=one).past_key_values
        three = model(IDS[:, 8:], past_key_values=two).past_key_values
        three.crop(8)  # now as long as `two`, and all of it shared
        kept = [k.clone() for k, _ in three]
        two.crop(7)
        model(IDS[:, :4], past_key_values=two)
        assert all(torch.equal(k, before) for (k, _), before in zip(three, kept, strict=True))
        one.crop(3)
        model(IDS[:, :4], past_key_values=one)
        assert all(torch.equal(k, before) for (k, _), before in zip(three, kept, strict=True))


# -- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda c: pickle.loads(pickle.dumps(c)),
        lambda c: pytree.tree_unflatten(*reversed(pytree.tree_flatten(c))),
    ],
    ids=["deepcopy", "pickle", "pytree"],
)
def test_copies_go_on_as_the_original(copied: object) -> None:
    model = tiny_model(GPT2Model)
    mask = torch.tensor([[1] * 8, [0, 0, 0] + [1] * 5])
    with torch.no_grad():
        past = model(IDS[:, :8], attention_mask=mask).past_key_values
        twin = copied(past)  # type: ignore[operator]
        assert isinstance(twin, KVCache)
        assert torch.equal(twin.mask, past.mask)
        a = model(IDS[:, 8:], past_key_values=past).last_hidden_state
        b = model(IDS[:, 8:], past_key_values=twin).last_hidden_state
    assert torch.equal(a, b)


def test_pytree_sees_every_tensor() -> None:
    cache = filled(5, capacity=9)
    assert len(pytree.tree_leaves(cache)) == 5  # two layers of two, and the mask that is None
    doubled = pytree.tree_map_only(Tensor, lambda t: 2 * t, cache)
    assert doubled.length == 5
    assert doubled.capacity == 9
    assert torch.equal(doubled[1][0], 2 * cache[1][0])
