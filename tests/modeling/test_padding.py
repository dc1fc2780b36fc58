"""A row gives the same result alone, left-padded, right-padded, with holes, in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2 import GPT2LMHeadModel, GPT2Model
from gpt2.errors import ArgumentError, SequenceLengthError
from tests.helpers import assert_close, tiny_model

LENGTHS = (7, 3, 1, 5)
SIDES = ("left", "right", "both", "holes", "mixed")
GARBAGE = 11  # the id at padding columns: any id will do, and none may matter


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 97, (n,), generator=generator) for n in LENGTHS]


def real_columns(side: str, row: int, length: int, width: int) -> Tensor:
    """The columns of a padded batch where a row's real tokens stand, in order."""
    if side == "mixed":
        side = ("left", "right", "holes", "both")[row % 4]
    if side == "left":
        return torch.arange(width - length, width)
    if side == "right":
        return torch.arange(length)
    if side == "both":
        return torch.arange(length) + (width - length) // 2
    generator = torch.Generator().manual_seed(row)
    return torch.randperm(width, generator=generator)[:length].sort().values


def padded(side: str, width: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """ids and mask (B, width), and the real columns of each row."""
    ids = torch.full((len(LENGTHS), width), GARBAGE)
    mask = torch.zeros(len(LENGTHS), width, dtype=torch.int64)
    columns = []
    for i, row in enumerate(rows()):
        columns.append(real_columns(side, i, len(row), width))
        ids[i, columns[i]] = row
        mask[i, columns[i]] = 1
    return ids, mask, columns


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("width", [9, 40], ids=["narrow", "wider-than-n_positions"])
def test_hidden_states_do_not_depend_on_padding(backend: str, side: str, width: int) -> None:
    model = tiny_model(GPT2Model, attn_implementation=backend)
    ids, mask, columns = padded(side, width)
    with torch.no_grad():
        batch = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        for i, row in enumerate(rows()):
            alone = model(row[None], output_hidden_states=True, output_attentions=True)
            at = columns[i]
            assert_close(batch.last_hidden_state[i, at], alone.last_hidden_state[0])
            for here, there in zip(batch.hidden_states, alone.hidden_states, strict=True):
                assert_close(here[i, at], there[0])
            for here, there in zip(batch.attentions, alone.attentions, strict=True):
                assert_close(here[i][:, at][:, :, at], there[0])
                assert_close(here[i][:, at][:, :, at].sum(-1), here[i][:, at].sum(-1))
    assert batch.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_logits_do_not_depend_on_padding(backend: str, side: str) -> None:
    model = tiny_model(attn_implementation=backend)
    ids, mask, columns = padded(side, 9)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        unchecked = model(ids, attention_mask=mask, check_inputs=False).logits
        for i, row in enumerate(rows()):
            alone = model(row[None]).logits[0]
            assert_close(logits[i, columns[i]], alone)
            assert_close(unchecked[i, columns[i]], alone)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32, torch.uint8])
def test_the_mask_may_have_any_dtype(kind: torch.dtype) -> None:
    model = tiny_model()
    ids, mask, _ = padded("mixed", 9)
    with torch.no_grad():
        assert torch.equal(
            model(ids, attention_mask=mask.to(kind)).logits, model(ids, attention_mask=mask).logits
        )


@pytest.mark.parametrize("side", ["left", "right", "both", "mixed"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_loss_and_gradients_do_not_depend_on_padding(backend: str, side: str) -> None:
    """The terms are those of the rows alone: no padding as source or as target."""
    model = tiny_model(attn_implementation=backend)
    ids, mask, _ = padded(side, 9)
    # "holes" is left out: there the token behind a hole has its source in a padding column.
    if side == "mixed":
        ids, mask = ids[[0, 1, 3]], mask[[0, 1, 3]]
    kept = [row for i, row in enumerate(rows()) if side != "mixed" or i in (0, 1, 3)]

    model(ids, attention_mask=mask, labels=ids).loss.backward()
    batch = {name: p.grad.clone() for name, p in model.named_parameters()}
    loss = model(ids, attention_mask=mask, labels=ids).loss

    model.zero_grad()
    terms = [
        F.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="sum")
        for row in kept
        if len(row) > 1
    ]
    expected = torch.stack(terms).sum() / sum(len(row) - 1 for row in kept)
    expected.backward()
    assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        assert_close(batch[name], parameter.grad, what=name)


def test_a_loss_term_needs_its_source_and_its_target() -> None:
    """In a row with a hole only neighbouring real tokens make a term."""
    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    with torch.no_grad():
        out = model(ids, attention_mask=mask, labels=ids)
    expected = F.cross_entropy(out.logits[0, [0, 3]], ids[0, [1, 4]])
    assert_close(out.loss, expected)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
def test_a_row_of_padding_only_is_finite(backend: str, training: bool) -> None:
    model = tiny_model(attn_implementation=backend, attn_pdrop=0.2 if training else 0.0)
    model.train(training)
    ids, mask, _ = padded("left", 9)
    mask[1] = 0
    out = model(ids, attention_mask=mask, labels=ids, output_attentions=True)
    out.loss.backward()
    assert out.logits.isfinite().all()
    assert all(a.isfinite().all() for a in out.attentions)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    only = model(ids[1:2], attention_mask=mask[1:2], labels=ids[1:2])
    assert only.loss.item() == 0.0
    with pytest.raises(ArgumentError, match="row 1 of the prompt is all padding"):
        model.generate(ids, attention_mask=mask)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_half_precision_is_finite_at_padding(backend: str) -> None:
    model = tiny_model(attn_implementation=backend).to(torch.bfloat16)
    ids, mask, _ = padded("mixed", 9)
    mask[1] = 0
    assert model(ids, attention_mask=mask).logits.isfinite().all()


def test_n_positions_limits_real_tokens_not_columns() -> None:
    model = tiny_model(n_positions=8)
    ids = torch.randint(0, 97, (2, 20))
    mask = torch.zeros(2, 20, dtype=torch.int64)
    mask[0, 12:], mask[1, :8] = 1, 1
    model(ids, attention_mask=mask)
    mask[1, :9] = 1
    with pytest.raises(SequenceLengthError, match=r"9 real tokens.*n_positions = 8"):
        model(ids, attention_mask=mask)
    with pytest.raises(SequenceLengthError, match=r"9 real tokens.*n_positions = 8"):
        model(ids[:, :9])


# -- with a cache -------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("mask_again", [True, False], ids=["mask given", "mask remembered"])
def test_the_cache_remembers_padding(backend: str, side: str, mask_again: bool) -> None:
    """New tokens go behind the padded prompt, and see each row's real tokens only."""
    model = tiny_model(attn_implementation=backend)
    ids, mask, _ = padded(side, 9)
    new = torch.randint(0, 97, (len(LENGTHS), 4))
    with torch.no_grad():
        past = model(ids, attention_mask=mask).past_key_values
        for chunk in new.split([1, 3], dim=1):
            mask = torch.cat([mask, torch.ones_like(chunk)], dim=1)
            out = model(chunk, past_key_values=past, attention_mask=mask if mask_again else None)
            past = out.past_key_values
        for i, row in enumerate(rows()):
            alone = model(torch.cat([row, new[i]])[None]).logits[0, -3:]
            assert_close(out.logits[i], alone)


def test_a_mask_of_four_dimensions_leaves_the_caches_mask_in_place() -> None:
    model = tiny_model()
    ids, mask = torch.tensor([[11, 11, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    seen = torch.tensor([[[[False, False, True, True, True]]]])
    with torch.no_grad():
        past = model(ids, attention_mask=mask).past_key_values
        out = model(torch.tensor([[7]]), past_key_values=past, attention_mask=seen)
        assert_close(out.logits, model(torch.tensor([[5, 6, 7]])).logits[:, -1:])
        out = model(torch.tensor([[8]]), past_key_values=out.past_key_values)
        assert_close(out.logits, model(torch.tensor([[5, 6, 7, 8]])).logits[:, -1:])


# -- generate -----------------------------------------------------------------------------------


def continuations(model: GPT2LMHeadModel, **settings: Any) -> list[list[int]]:
    """What each row gives alone."""
    seeds = settings.pop("seed", None)
    found = []
    for i, row in enumerate(rows()):
        seed = None if seeds is None else [seeds[i]]
        found.append(model.generate(row[None], seed=seed, **settings)[0, len(row) :].tolist())
    return found


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"do_sample": True, "seed": [3, 1, 4, 1], "temperature": 1.5, "top_k": 20}],
    ids=["greedy", "sampled"],
)
def test_generated_ids_do_not_depend_on_padding(
    backend: str, side: str, use_cache: bool, settings: dict[str, Any]
) -> None:
    model = tiny_model(attn_implementation=backend)
    settings = {**settings, "max_new_tokens": 6, "use_cache": use_cache, "eos_token_id": None}
    ids, mask, _ = padded(side, 9)
    together = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(together[:, :9], ids)
    assert together[:, 9:].tolist() == continuations(model, **settings)


@pytest.mark.parametrize("side", ["left", "right", "mixed"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_that_finish_early_do_not_disturb_the_others(side: str, use_cache: bool) -> None:
    model = tiny_model()
    free = continuations(model, max_new_tokens=8, eos_token_id=None)
    eos = [free[0][2], free[3][4]]  # at least two rows stop, at different steps
    settings: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": eos, "pad_token_id": 90}
    alone = continuations(model, use_cache=use_cache, **settings)
    assert len({len(found) for found in alone}) > 1
    ids, mask, _ = padded(side, 9)
    together = model.generate(ids, attention_mask=mask, use_cache=use_cache, **settings)[:, 9:]
    for i, found in enumerate(alone):
        assert together[i].tolist() == found + [90] * (together.shape[1] - len(found))


def test_prompts_wider_than_n_positions_generate() -> None:
    model = tiny_model()
    ids, mask, _ = padded("mixed", 50)
    settings: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": None}
    together = model.generate(ids, attention_mask=mask, **settings)
    assert together[:, 50:].tolist() == continuations(model, **settings)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_read_off_a_pad_token_only_where_one_is_declared(side: str) -> None:
    model = tiny_model()
    ids, mask, columns = padded(side, 9)
    for i, row in enumerate(rows()):
        ids[i] = 95
        ids[i, columns[i]] = row
    settings: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None}
    expected = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(model.generate(ids, pad_token_id=95, **settings), expected)
    undeclared = model.generate(ids, **settings)  # every id is real then
    assert undeclared.tolist() != expected.tolist()
    settings["eos_token_id"] = 95  # as with GPT-2 itself, whose pad token often is its EOS
    as_eos = model.generate(ids, pad_token_id=95, **settings)
    assert torch.equal(as_eos, model.generate(ids, **settings))
    assert as_eos.tolist() != expected.tolist()


@pytest.mark.parametrize("side", ["left", "right", "mixed"])
def test_embeddings_as_prompt_do_not_depend_on_padding(side: str) -> None:
    model = tiny_model()
    ids, mask, _ = padded(side, 9)
    settings: dict[str, Any] = {"max_new_tokens": 4, "eos_token_id": None}
    embeds = model.get_input_embeddings()(ids)
    for use_cache in (True, False):
        new = model.generate(
            inputs_embeds=embeds, attention_mask=mask, use_cache=use_cache, **settings
        )
        assert new.tolist() == continuations(model, **settings)
