"""Decoding over a cache of fixed shape: the same ids as over the growing one, by one graph."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from gpt2 import GPT2LMHeadModel
from gpt2.errors import ArgumentError, BackendError
from gpt2.generation import static_decoder
from gpt2.generation.static_decoder import KEPT, columns_for
from gpt2.modeling.cache import KVCache
from gpt2.modeling.static_cache import StaticCache
from tests.generation.test_batches import BATCHES, METHODS, PAD, SIDES, continued, padded
from tests.helpers import assert_close, tiny_model
from tests.parity.record import count

# torch's own, from inside its compiler
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]

IDS = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1, 1, 1, 0, 0]])
STATIC = {"cache_implementation": "static"}
DYNAMIC = {"cache_implementation": "dynamic"}
# What a cache of fixed shape cannot do: refused, see test_config.py and test_refusals.py.
OTHERS = {"greedy without a cache", "guidance", "guided beams", "slide", "contrastive",
          "prompt lookup", "sampled prompt lookup"}  # fmt: skip


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Steps are compiled with a backend that runs them as they are, and counts the graphs."""
    torch._dynamo.reset()
    backend, compiler = CompileCounterWithBackend("eager"), torch.compile

    def counting(function: Any, *, mode: str, **settings: Any) -> Any:
        assert settings == {"fullgraph": True, "dynamic": False}
        return compiler(function, backend=backend, **settings)

    monkeypatch.setattr(static_decoder.torch, "compile", counting)
    yield backend
    torch._dynamo.reset()


def compiling_model(**overrides: Any) -> GPT2LMHeadModel:
    model = tiny_model(**overrides)
    model.step_compile_mode = "default"
    return model


def steps_of(model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> list[type[KVCache]]:
    """The kinds of cache that the model's forward passes get from now on."""
    kinds: list[type[KVCache]] = []
    model.register_forward_pre_hook(
        lambda _m, _args, kwargs: kinds.append(type(kwargs["past_key_values"])), with_kwargs=True
    )
    return kinds


# -- the same ids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS.keys() - OTHERS))
def test_the_same_ids_as_the_growing_cache(method: str) -> None:
    model, settings = tiny_model(), METHODS[method]
    for side in SIDES:
        for chosen in BATCHES:
            prompt = padded(side, chosen)
            found = continued(model, prompt, {**settings, **STATIC}, chosen)
            expected = continued(model, prompt, {**settings, **DYNAMIC}, chosen)
            assert torch.equal(found, expected), (side, chosen)
            count("rows over a static cache compared with the growing one", len(found))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_same_ids_compiled(backend: str, counter: CompileCounterWithBackend) -> None:
    model = compiling_model(attn_implementation=backend)
    for side in SIDES:
        for method in ("greedy", "sampling in every way", "penalised beams", "lengths"):
            prompt = padded(side, BATCHES[0])
            found = continued(model, prompt, METHODS[method], BATCHES[0])
            expected = continued(model, prompt, {**METHODS[method], **DYNAMIC}, BATCHES[0])
            assert torch.equal(found, expected), (side, method)
    assert counter.frame_count == 3  # for 4, 8 and 12 rows, wherever their padding stands


def test_the_model_sees_a_static_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    kinds = steps_of(model, monkeypatch)
    model.generate(IDS, max_new_tokens=4, eos_token_id=None, **STATIC)
    assert kinds == [KVCache, StaticCache, StaticCache, StaticCache]


class Told:
    """A streamer."""

    def __init__(self) -> None:
        self.columns: list[Tensor] = []

    def put(self, value: Tensor) -> None:
        self.columns.append(value)

    def end(self) -> None:
        self.columns.append(torch.full((3,), -7))


def test_with_a_streamer_embeddings_and_an_encoder(counter: CompileCounterWithBackend) -> None:
    model = compiling_model(add_cross_attention=True)
    states = torch.randn(2, 3, 4, 32, generator=torch.Generator().manual_seed(2))
    asked: dict[str, Any] = {"max_new_tokens": 6, "attention_mask": MASK, "eos_token_id": None}
    for i in range(2):
        asked["inputs_embeds"] = model.transformer.wte(IDS).detach()
        asked["encoder_hidden_states"] = states[i]
        streamed: list[list[Tensor]] = []
        for how in (DYNAMIC, {}):
            streamer = Told()
            model.generate(streamer=streamer, **asked, **how)
            streamed.append(streamer.columns[1:])
        assert torch.equal(torch.stack(streamed[0]), torch.stack(streamed[1]))
    assert counter.frame_count == 1


def test_what_is_returned() -> None:
    model = tiny_model()
    asked: dict[str, Any] = {
        "attention_mask": MASK, "max_new_tokens": 7, "eos_token_id": [3, 14, 40, 77],
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
    }  # fmt: skip
    for more in ({}, {"num_beams": 3}):
        found = model.generate(IDS, **asked, **more, **STATIC)
        expected = model.generate(IDS, **asked, **more, **DYNAMIC)
        assert torch.equal(found.sequences, expected.sequences)
        for mine, theirs in zip(found.scores + found.logits, expected.scores + expected.logits,
                                strict=True):  # fmt: skip
            assert_close(mine, theirs)
        mine, theirs = found.past_key_values, expected.past_key_values
        assert type(mine) is KVCache
        assert mine.length == theirs.length
        real = theirs.mask if theirs.mask is not None else torch.ones(3, mine.length).bool()
        assert mine.mask is None or torch.equal(mine.mask, real)
        for a, b in zip(mine, theirs, strict=True):
            for x, y in zip(a, b, strict=True):
                assert_close(x.transpose(1, 2)[real], y.transpose(1, 2)[real])


def test_going_on_from_an_earlier_call() -> None:
    model = tiny_model()
    asked: dict[str, Any] = {"eos_token_id": None, "attention_mask": MASK}
    whole = model.generate(IDS, max_new_tokens=12, **asked)
    for first, second in ((STATIC, STATIC), (DYNAMIC, STATIC), (STATIC, DYNAMIC)):
        begun = model.generate(
            IDS, max_new_tokens=5, return_dict_in_generate=True, **asked, **first
        )
        asked_on = {**asked, "attention_mask": torch.cat([MASK, MASK.new_ones(3, 5)], dim=1)}
        for _ in range(2):  # what was returned is nobody else's
            found = model.generate(
                begun.sequences, past_key_values=begun.past_key_values, max_new_tokens=7,
                **asked_on, **second,
            )  # fmt: skip
            assert torch.equal(found, whole)


# -- one graph ------------------------------------------------------------------------------------


def test_one_graph_for_a_batch_size_and_a_power_of_two(counter: CompileCounterWithBackend) -> None:
    model = compiling_model(n_positions=128)
    asked: dict[str, Any] = {"eos_token_id": None, "max_new_tokens": 9}
    calls: list[tuple[dict[str, Any], int]] = [
        ({"input_ids": IDS}, 1),
        ({"input_ids": IDS, "attention_mask": MASK}, 1),  # with padding
        ({"input_ids": IDS.repeat(1, 4), "max_new_tokens": 44}, 1),  # another width and length
        ({"input_ids": IDS, "do_sample": True, "top_k": 5}, 1),
        ({"input_ids": IDS[:1], "num_beams": 3}, 1),
        ({"input_ids": IDS, "max_new_tokens": 60}, 2),  # 65 columns
        ({"input_ids": IDS[:2]}, 3),  # two rows
        ({"input_ids": IDS}, 3),
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for arguments, graphs in calls:
            model.generate(**{**asked, **arguments})
            assert counter.frame_count == graphs
        with torch.inference_mode():
            model.generate(IDS, **asked)
        assert counter.frame_count == 3


def test_a_step_returns_nothing_but_its_logits_and_moves_nothing(
    counter: CompileCounterWithBackend,
) -> None:
    """What a CUDA graph returns is written over by its next run, and what it reads must stay."""
    model = compiling_model()
    asked: dict[str, Any] = {"eos_token_id": None, "attention_mask": MASK, "max_new_tokens": 8}
    model.generate(IDS, **asked)
    [room] = rooms_of(model)
    cache = room.cache
    parts = [cache.position, cache.mask, room.tokens]
    parts += [t for b in cache._buffers if b for t in (b.keys, b.values)]
    addresses = [t.data_ptr() for t in parts if t is not None]
    model.generate(IDS, num_beams=1, **asked)
    model.generate(IDS[:1], num_beams=3, **{**asked, "attention_mask": MASK[:1]})
    assert rooms_of(model) == [room]
    after = [cache.position, cache.mask, room.tokens]
    after += [t for b in cache._buffers if b for t in (b.keys, b.values)]
    assert all(a is b for a, b in zip(parts, after, strict=True))
    assert [t.data_ptr() for t in after if t is not None] == addresses
    assert cache._arriving is None
    [graph] = counter.graphs
    [output] = [node for node in graph.graph.nodes if node.op == "output"]
    assert len(output.args[0]) == 1


def test_other_models_have_other_graphs(counter: CompileCounterWithBackend) -> None:
    """More of them than torch keeps for one function."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for rows in (1, 2):
            model = compiling_model(n_layer=1)
            model.generate(IDS[:rows], max_new_tokens=3, eos_token_id=None)
            model.double().generate(IDS[:rows], max_new_tokens=3, eos_token_id=None)
    assert counter.frame_count == 4


def test_rows_that_have_ended_stay(counter: CompileCounterWithBackend) -> None:
    model, sizes = compiling_model(), set()
    model.register_forward_hook(lambda _m, _a, output: sizes.add(len(output.logits)))
    found = continued(model, padded("left", BATCHES[0]), {}, BATCHES[0])
    assert len(set((found == PAD).sum(-1).tolist())) > 1, "the test needs rows that end apart"
    assert sizes == {4}
    assert counter.frame_count == 1


def test_none_is_static_only_where_steps_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    kinds = steps_of(model, monkeypatch)
    model.generate(IDS, max_new_tokens=3)
    assert set(kinds) == {KVCache}


@pytest.mark.parametrize("method", sorted(OTHERS - {"slide"}))
def test_methods_without_a_static_cache_decode_as_ever(
    method: str, counter: CompileCounterWithBackend
) -> None:
    model, prompt = compiling_model(), padded("left", BATCHES[0])
    found = continued(model, prompt, METHODS[method], BATCHES[0])
    assert torch.equal(found, continued(tiny_model(), prompt, METHODS[method], BATCHES[0]))
    assert counter.frame_count == 0


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_the_default_compiler_agrees() -> None:
    torch._dynamo.reset()
    model = compiling_model(n_layer=1)
    asked: dict[str, Any] = {"max_new_tokens": 20, "attention_mask": MASK, "do_sample": True}
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (1, 2):
            asked["seed"] = [seed, seed + 1, seed + 2]
            found = model.generate(IDS, **asked)
            assert torch.equal(found, model.generate(IDS, **asked, **DYNAMIC))
    torch._dynamo.reset()


# -- what is kept between calls -------------------------------------------------------------------


def rooms_of(model: GPT2LMHeadModel) -> list[static_decoder.Room]:
    return static_decoder._kept[model].rooms


def test_the_memory_is_used_again_and_nothing_is_left_in_it() -> None:
    model = tiny_model()
    asked: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None}
    first = model.generate(IDS, **asked, **STATIC)
    [room] = rooms_of(model)
    broken = torch.full((3, 20, 32), torch.nan)
    with pytest.raises(ArgumentError, match="NaN"):
        model.generate(inputs_embeds=broken, **asked, **STATIC)

    def spoil(_module: Any, _args: Any, output: Any) -> None:
        if len(room.cache) and room not in rooms_of(model):
            output.logits.fill_(torch.nan)

    hook = model.register_forward_hook(spoil)
    with pytest.raises(ArgumentError, match="NaN"):  # in a step: the room is left all the same
        model.generate(IDS, **asked, **STATIC)
    hook.remove()
    assert rooms_of(model) == [room]
    for keys, values in zip(*[iter(t for b in room.cache._buffers for t in (b.keys, b.values))] * 2,
                            strict=True):  # fmt: skip
        keys.fill_(torch.nan), values.fill_(torch.nan)
    assert torch.equal(model.generate(IDS, **asked, **STATIC), first)
    assert rooms_of(model) == [room]


def test_two_threads_have_a_room_each() -> None:
    model = tiny_model()
    asked: dict[str, Any] = {"max_new_tokens": 20, "eos_token_id": None, **STATIC}
    prompts = [IDS, IDS.flip(1)]
    expected = [model.generate(ids, **asked) for ids in prompts]
    together, found = threading.Barrier(2, timeout=15), [IDS, IDS]

    class Streamer:  # both are in the midst of it at once
        def put(self, value: Tensor) -> None:
            together.wait()

        def end(self) -> None:
            together.wait()

    def run(i: int) -> None:
        found[i] = model.generate(prompts[i], streamer=Streamer(), **asked)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, expected))
    assert len(rooms_of(model)) == 2


def test_few_rooms_are_kept_and_all_graphs(counter: CompileCounterWithBackend) -> None:
    model = compiling_model(n_layer=1)
    asked: dict[str, Any] = {"max_new_tokens": 3, "eos_token_id": None}
    for _ in range(2):
        for rows in range(1, KEPT + 3):
            model.generate(IDS[:1].repeat(rows, 1), **asked)
    assert [len(room.tokens) for room in rooms_of(model)] == [3, 4, 5, 6]
    assert counter.frame_count == KEPT + 2


def test_it_goes_with_the_model(counter: CompileCounterWithBackend) -> None:
    model = compiling_model()
    model.generate(IDS, max_new_tokens=3)
    size = len(pickle.dumps(model))
    twin = copy.deepcopy(model)
    assert twin not in static_decoder._kept
    assert size < len(pickle.dumps(compiling_model())) + 2000  # beside 98 304 of the cache
    assert twin.step_compile_mode == "default"
    column, gone = weakref.ref(rooms_of(model)[0].cache), weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert column() is None


def test_columns() -> None:
    assert [columns_for(n) for n in (1, 64, 65, 128, 1000, 1024, 1025)] == [
        64, 64, 128, 128, 1024, 1024, 2048,
    ]  # fmt: skip


# -- what cannot be -------------------------------------------------------------------------------


def test_an_unknown_mode_is_refused_before_the_first_pass() -> None:
    model = tiny_model()
    model.step_compile_mode = "fastest"
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(ArgumentError, match="step_compile_mode is 'fastest'; it may be default,"):
        model.generate(IDS, max_new_tokens=3)


def test_flash_attention_is_refused_before_the_first_pass() -> None:
    model = tiny_model()
    model.config.attn_implementation = "flash_attention_2"
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(BackendError, match=r"flash_attention_2 cannot hide.*'dynamic'"):
        model.generate(IDS, max_new_tokens=3, **STATIC)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no compiler here")

    compiler = torch.compile
    monkeypatch.setattr(
        static_decoder.torch, "compile", lambda f, mode, **more: compiler(f, backend=broken, **more)
    )
    model = compiling_model()
    words = "step_compile_mode='default': .*no compiler here.*step_compile_mode = None"
    with pytest.raises(BackendError, match=words):
        model.generate(IDS, max_new_tokens=3)
    torch._dynamo.reset()


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graphs() -> None:
    """The same ids, no graph compiled after the first step, and none that torch declines."""
    torch._dynamo.reset()
    model = tiny_model(n_positions=64).cuda()
    model.step_compile_mode = "reduce-overhead"
    ids, mask = IDS.cuda(), MASK.cuda()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for i in range(3):
        for prompt in ({}, {"attention_mask": mask}):
            asked = {"max_new_tokens": 40, "eos_token_id": None, "do_sample": True, **prompt,
                     "seed": [i, i + 1, i + 2]}  # fmt: skip
            found = model.generate(ids, **asked)
            assert torch.equal(found, model.generate(ids, **asked, **DYNAMIC))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["inductor"]["cudagraph_skips"]
    recorded = counters["inductor"]["cudagraph_recorded_non_static_inputs"]
    assert recorded == 0, f"{recorded} inputs are copied at every step"
    found_in_thread: list[Tensor] = []
    thread = threading.Thread(target=lambda: found_in_thread.append(model.generate(ids, **asked)))
    thread.start()
    thread.join()
    assert torch.equal(found_in_thread[0], found)
    torch._dynamo.reset()
