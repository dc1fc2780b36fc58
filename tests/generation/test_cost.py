"""What a step costs: one synchronisation with the host, and no copy of the cache as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from tests.generation.test_processors import EVERYTHING
from tests.helpers import tiny_model

IDS = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[0, 0, 1, 1, 1], [1] * 5, [1, 1, 1, 0, 0]])
TOKENIZER = GPT2Tokenizer.train(["the hat"], 260, show_progress=False)


class Streamer:
    def put(self, value: Tensor) -> None:
        assert value.device.type == "cpu"

    def end(self) -> None:
        self.ended = True


METHODS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "padded": {"attention_mask": MASK},
    "sampling": {"do_sample": True, "top_p": 0.9},
    "seeded": {"do_sample": True, "seed": [1, 2, 3, 4, 5, 6], "num_return_sequences": 2},
    "without a cache": {"use_cache": False},
    "every processor": {
        **{k: v for k, v in EVERYTHING.items() if k not in ("max_length", "min_length")},
        "attention_mask": MASK, "eos_token_id": [96], "suppress_tokens": [96],
    },
    "guidance": {"guidance_scale": 1.5, "attention_mask": MASK},
    "stop strings": {"stop_strings": ["no such thing"], "tokenizer": TOKENIZER},
    "criteria": {"stopping_criteria": [lambda ids, scores: ids[:, -1] == 200]},
    "streamed": {"streamer": Streamer()},
    "returned": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "slide": {"long_context": "slide"},
    "static": {"cache_implementation": "static", "attention_mask": MASK},
    "static, sampled": {"cache_implementation": "static", "do_sample": True},
    "static beams": {"cache_implementation": "static", "num_beams": 3},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained beams": {"num_beams": 3, "force_words_ids": [[5, 6]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "sampled prompt lookup": {"prompt_lookup_num_tokens": 3, "do_sample": True},
}  # fmt: skip
READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class Reads(TorchDispatchMode):
    """Counts the operations whose result the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, kind = torch.ops.aten, func.overloadpacket
        if kind in (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2):
            self.count += 1
        elif kind in (aten.index, aten.index_put, aten.index_put_):  # a mask as an index is sought
            self.count += any(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How often the host reads a tensor's values; a read within a read counts once."""
    outer, inner = [0], Reads()

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            before = (outer[0], inner.count)
            result = method(self, *args, **kwargs)
            outer[0], inner.count = before[0] + 1, before[1]
            return result

        return call

    with monkeypatch.context() as patch, inner:
        for name in READS:
            patch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
        yield lambda: outer[0] + inner.count


def test_the_counter_sees_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(4)
    with counted(monkeypatch) as reads:
        x.tolist(), x.sum().item(), bool(x.any()), int(x[1]), x.cpu()
        assert reads() == 5
        x[x > 2]
        assert reads() == 6
        x + 1, torch.where(x > 2, x, 0), x[torch.tensor([0, 1])]
        assert reads() == 6


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_the_device_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(n_positions=48)

    def reads_of(steps: int) -> int:
        settings = {"max_new_tokens": steps, "eos_token_id": None, **METHODS[method]}
        with counted(monkeypatch) as reads:
            found = model.generate(IDS, **settings)
            count = reads()
        ids = found if isinstance(found, Tensor) else found.sequences
        assert ids.shape[1] == 5 + steps, "the test needs rows that do not end"
        return count

    few, many = reads_of(8), reads_of(28)
    assert many - few <= 20
    assert few <= 8 + 4  # and no more than the checks of the prompt before


def cache_addresses(model: GPT2LMHeadModel, **settings: Any) -> list[list[int]]:
    """For each forward pass, where the keys and values of each layer stand in memory."""
    seen: list[list[int]] = []

    def look(_module: Any, _args: Any, output: Any) -> None:
        seen.append([t.data_ptr() for pair in output.past_key_values for t in pair])

    hook = model.register_forward_hook(look)
    model.generate(IDS, eos_token_id=None, max_new_tokens=40, **settings)
    hook.remove()
    return seen


@pytest.mark.parametrize("method", ["greedy", "padded", "sampling", "every processor", "criteria",
                                    "returned", "contrastive"])  # fmt: skip
def test_the_cache_never_moves(method: str) -> None:
    """One allocation holds it from the prompt to the last token: it is not copied as it grows."""
    settings = {k: v for k, v in METHODS[method].items() if k != "eos_token_id"}
    if method == "every processor":
        settings = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "attention_mask": MASK}
    seen = cache_addresses(tiny_model(n_positions=64), **settings)
    assert len(seen) in (40, 41)  # contrastive search takes one step ahead
    assert all(addresses == seen[0] for addresses in seen)


def test_with_guidance_both_caches_stay() -> None:
    seen = cache_addresses(tiny_model(n_positions=64), guidance_scale=1.5)
    assert len(seen) == 80
    assert len({tuple(addresses) for addresses in seen}) == 2


def test_the_addresses_tell_a_copy() -> None:
    model = tiny_model(n_positions=64)
    with torch.no_grad():
        first = model(IDS, use_cache=True)
        second = model(IDS[:, :1], past_key_values=first.past_key_values)
    before, after = first.past_key_values[0][0], second.past_key_values[0][0]
    assert before.data_ptr() != after.data_ptr()  # no room was asked for
