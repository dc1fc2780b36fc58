"""score, perplexity and choose against their definitions, written out token by token."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from gpt2 import GPT2DoubleHeadsModel, GPT2LMHeadModel, GPT2Tokenizer
from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError, TokenIdError
from gpt2.generation import scoring
from gpt2.progress import Progress
from tests.helpers import assert_close, tiny_model

CORPUS = ["The fox had a red hat. The hen had a blue hat, and the fox's hat was old, 日本."] * 2
TOKENIZER = GPT2Tokenizer.train(CORPUS, 300, show_progress=False)
BOS = TOKENIZER.bos_token_id
TEXTS = ["The fox had a hat.", "A hen", "The blue hat was old, and the hen's was red."]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return tiny_model(vocab_size=300, bos_token_id=BOS, eos_token_id=BOS)


def log_prob(model: GPT2LMHeadModel, context: list[int], token: int) -> float:
    """log p(token | context) from one forward pass of its own."""
    with torch.no_grad():
        logits = model(torch.tensor([context])).logits[0, -1]
    return logits.log_softmax(-1)[token].item()


def alone(model: GPT2LMHeadModel, ids: list[int], first: int = 1) -> Tensor:
    return torch.tensor([log_prob(model, ids[:i], ids[i]) for i in range(first, len(ids))])


# ------------------------------------------------------------------------------------- score


@pytest.mark.parametrize("add_bos", [False, True])
def test_score_of_texts_is_that_of_each_alone(model: GPT2LMHeadModel, add_bos: bool) -> None:
    out = model.score(TEXTS, tokenizer=TOKENIZER, add_bos=add_bos)
    assert out.log_probs.dtype == torch.float32
    assert not out.log_probs.requires_grad
    first = 0 if add_bos else 1
    for i, text in enumerate(TEXTS):
        ids = TOKENIZER.encode(text)
        expected = alone(model, [BOS] * add_bos + ids)
        assert out.input_ids[i, : len(ids)].tolist() == ids
        assert out.mask[i].nonzero()[:, 0].tolist() == list(range(first, len(ids)))
        assert_close(out.log_probs[i][out.mask[i]], expected)
        assert_close(out.sum[i], expected.double().sum())
        assert_close(out.mean[i], expected.double().mean())
        assert out.count[i] == len(ids) - first
    assert (out.log_probs[~out.mask] == 0).all()


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("side", ["left", "right", "both", "within"])
def test_score_of_padded_ids(model: GPT2LMHeadModel, side: str, add_bos: bool) -> None:
    rows = [TOKENIZER.encode(text) for text in TEXTS]
    width = max(map(len, rows)) + 2
    ids = torch.full((len(rows), width), -100)  # padding may hold anything
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        left = {"left": width - len(row), "right": 0, "both": 1, "within": 0}[side]
        columns = list(range(left, left + len(row)))
        if side == "within":  # a hole in the middle
            columns[1:] = [column + 2 for column in columns[1:]]
        ids[i, columns] = torch.tensor(row)
        mask[i, columns] = 1
    out = model.score(ids, attention_mask=mask, add_bos=add_bos)
    for i, row in enumerate(rows):
        of_row = model.score(row, add_bos=add_bos)
        assert_close(out.log_probs[i][out.mask[i]], of_row.log_probs[of_row.mask])
        assert_close(out.sum[i], of_row.sum[0])
        assert out.input_ids[i][mask[i].bool()].tolist() == row
        assert out.mask[i].tolist() == [
            bool(m) and (add_bos or j > mask[i].argmax()) for j, m in enumerate(mask[i])
        ]


def test_mean_is_the_loss_of_the_model(model: GPT2LMHeadModel) -> None:
    ids = torch.tensor([TOKENIZER.encode(TEXTS[2])])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert_close(-model.score(ids).mean[0], loss)


def test_all_forms_of_ids_are_one(model: GPT2LMHeadModel) -> None:
    ids = TOKENIZER.encode(TEXTS[0])
    expected = model.score(TEXTS[0], tokenizer=TOKENIZER)
    forms: list[Any] = [ids, [ids], torch.tensor(ids), torch.tensor([ids]), numpy.array(ids)]
    one = torch.ones(len(ids))
    for mask in (one, one[None], [1] * len(ids), [one.long()]):
        assert torch.equal(model.score(ids, attention_mask=mask).log_probs, expected.log_probs)
    for form in [*forms, tuple(ids), [torch.tensor(ids)], [numpy.array(ids, dtype=numpy.int32)]]:
        assert torch.equal(model.score(form).log_probs, expected.log_probs)
    assert expected.log_probs.shape == (1, len(ids))
    assert model.perplexity(torch.tensor([ids])) == model.perplexity(ids)
    chosen = [model.choose(prompt, [[1], [2]]) for prompt in (ids, torch.tensor([ids]))]
    assert torch.equal(chosen[0].scores, chosen[1].scores)


def test_bos_comes_where_the_tokenizer_is_set_to_it(model: GPT2LMHeadModel) -> None:
    with_bos = GPT2Tokenizer.train(CORPUS, 300, show_progress=False, add_bos_token=True)
    with_bos.add_eos_token = True  # put around by the tokenizer's calls; no part of the text here
    expected = model.score(TEXTS, tokenizer=TOKENIZER, add_bos=True)
    assert torch.equal(model.score(TEXTS, tokenizer=with_bos).log_probs, expected.log_probs)
    out = model.score(TEXTS, tokenizer=with_bos, add_bos=False)
    assert torch.equal(out.log_probs, model.score(TEXTS, tokenizer=TOKENIZER).log_probs)


def test_as_many_tokens_as_positions_fit_with_bos_too(model: GPT2LMHeadModel) -> None:
    n = model.config.n_positions
    ids = [i % 200 + 1 for i in range(n)]
    assert model.score(ids).count == n - 1
    out = model.score(ids, add_bos=True)
    assert out.count == n
    assert_close(out.log_probs[0, -1], torch.tensor(log_prob(model, [BOS, *ids[:-1]], ids[-1])))
    with pytest.raises(SequenceLengthError, match=r"row 1 of texts has 33 tokens.*perplexity"):
        model.score([[1, 2], [*ids, 1]])


def test_batches_of_any_size_give_the_same(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(300, (n,), generator=generator).tolist() for n in (5, 31, 2, 9, 9, 17, 3)]
    text = torch.randint(300, (150,), generator=generator)
    choices = [row for row in rows if len(row) < 20]
    many = model.score(rows), model.choose([1, 2, 3], choices), model.perplexity(text, stride=7)
    monkeypatch.setattr(scoring, "_MOST_COLUMNS", 20)
    monkeypatch.setattr(scoring, "_CHUNK_LOGITS", 1000)
    few = model.score(rows), model.choose([1, 2, 3], choices), model.perplexity(text, stride=7)
    monkeypatch.setattr(scoring, "_MOST_LOGITS", 1)
    one = model.score(rows), model.choose([1, 2, 3], choices), model.perplexity(text, stride=7)
    for other in (few, one):
        assert_close(other[0].log_probs, many[0].log_probs)
        assert_close(other[1].scores, many[1].scores)
        assert other[2] == pytest.approx(many[2], rel=1e-5)


def test_the_batches_stay_within_their_bounds(
    model: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, int]] = []  # tokens that went in, rows of logits that came out
    monkeypatch.setattr(scoring, "_MOST_COLUMNS", 64)
    monkeypatch.setattr(scoring, "_MOST_LOGITS", 300 * 40)
    hook = model.register_forward_hook(
        lambda _m, args, out: passes.append((args[0].numel(), out.logits.shape[:2].numel()))
    )
    try:
        model.score([[1] * n for n in (30, 2, 2, 2, 20, 2, 2)])
        model.perplexity([1] * 100, stride=16)  # bound by the logits
        few = len(passes)
        model.perplexity([1] * 100, stride=1)  # by the tokens
    finally:
        hook.remove()
    assert max(tokens for tokens, _ in passes) > 31  # more than one row went together
    assert all(tokens <= 64 and logits <= 40 for tokens, logits in passes)
    assert few < 10 < len(passes)


# -------------------------------------------------------------------------------- perplexity


@pytest.mark.parametrize(
    ("length", "stride", "add_bos"),
    [
        (2, 1, False), (1, 16, True), (31, 5, False), (32, 16, False), (33, 16, False),
        (33, 31, False), (32, 31, True), (48, 16, False), (49, 16, True), (80, 1, False),
        (100, 7, True), (127, 31, False), (200, None, True),
    ],
)  # fmt: skip
def test_perplexity_is_its_definition(
    model: GPT2LMHeadModel, length: int, stride: int | None, add_bos: bool
) -> None:
    generator = torch.Generator().manual_seed(length)
    text = torch.randint(300, (length,), generator=generator)
    width, step = model.config.n_positions, stride or model.config.n_positions // 2
    x = [BOS] * add_bos + text.tolist()
    total = 0.0
    for i in range(1, len(x)):
        start = 0 if i < width else math.ceil((i + 1 - width) / step) * step  # first to hold i
        assert i - start >= min(i, width - step)
        total += log_prob(model, x[start:i], x[i])
    found = model.perplexity(text, stride=stride, add_bos=add_bos)
    assert found == pytest.approx(math.exp(-total / (len(x) - 1)), rel=1e-5)


def test_perplexity_is_the_usual_recipe(model: GPT2LMHeadModel) -> None:
    """Windows of labels, −100 where an earlier window has scored, as transformers' guide has it."""
    ids = torch.randint(300, (1, 150), generator=torch.Generator().manual_seed(0))
    width, stride, total, before = model.config.n_positions, 10, 0.0, 0
    count = 0
    for start in range(0, 150, stride):
        stop = min(start + width, 150)
        window = ids[:, start:stop]
        labels = window.clone()
        labels[:, : -(stop - before)] = -100
        with torch.no_grad():
            loss = model(window, labels=labels).loss.item()
        terms = int((labels[:, 1:] != -100).sum())
        total, count, before = total + loss * terms, count + terms, stop
        if stop == 150:
            break
    assert count == 149
    assert model.perplexity(ids[0], stride=stride) == pytest.approx(math.exp(total / 149), rel=1e-5)


def test_perplexity_of_text_is_that_of_its_ids(model: GPT2LMHeadModel) -> None:
    text = " ".join(TEXTS * 3)
    expected = model.perplexity(TOKENIZER.encode(text), add_bos=True)
    assert model.perplexity(text, tokenizer=TOKENIZER, add_bos=True) == expected
    out = model.score(TEXTS[0], tokenizer=TOKENIZER)
    short = model.perplexity(TEXTS[0], tokenizer=TOKENIZER)
    assert short == pytest.approx(math.exp(-out.mean.item()), rel=1e-5)


def test_perplexity_beyond_the_largest_number_is_infinite() -> None:
    model = tiny_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1e4)
    assert model.perplexity([1, 2, 3, 4]) == math.inf


def test_perplexity_tells_how_far_it_is_where_it_takes_long(
    model: GPT2LMHeadModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [1] * 200
    model.perplexity(ids)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(Progress, "SILENT", 0.0)
    model.perplexity(ids)
    told = capsys.readouterr()
    assert told.out == ""
    assert "perplexity" in told.err
    assert "/199 tokens" in told.err
    model.perplexity(ids, show_progress=False)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------ choose

PROMPT = "The fox had a"
CHOICES = [" hat", " red hat, and the hen", ".", " 日本", "s"]


@pytest.mark.parametrize("add_bos", [False, True])
def test_choose_scores_each_choice_as_alone(model: GPT2LMHeadModel, add_bos: bool) -> None:
    out = model.choose(PROMPT, CHOICES, tokenizer=TOKENIZER, add_bos=add_bos)
    assert torch.equal(out.scores, out.log_probs)
    context = [BOS] * add_bos + TOKENIZER.encode(PROMPT)
    for i, choice in enumerate(CHOICES):
        ids = TOKENIZER.encode(choice)
        expected = alone(model, context + ids, first=len(context)).double().sum()
        assert_close(out.log_probs[i], expected)
        assert out.count[i] == len(ids)
        only = model.choose(PROMPT, [choice], tokenizer=TOKENIZER, add_bos=add_bos)
        assert_close(out.log_probs[i], only.log_probs[0])
        whole = model.score(context + ids)  # prompt and choice are put side by side, not merged
        assert_close(out.log_probs[i], whole.log_probs[0, len(context) :].double().sum())
    assert out.index.shape == ()
    assert CHOICES[out.index] == CHOICES[int(out.scores.argmax())]


def test_choose_normalizes(model: GPT2LMHeadModel) -> None:
    def chosen(normalize: str) -> Any:
        return model.choose(PROMPT, CHOICES, tokenizer=TOKENIZER, normalize=normalize)

    plain = chosen("sum")
    ids = [TOKENIZER.encode(choice) for choice in CHOICES]
    sizes = torch.tensor([len(choice.encode()) for choice in CHOICES])
    unconditional = torch.stack([alone(model, [BOS, *row]).sum() for row in ids])
    expected = {
        "sum": plain.log_probs,
        "mean": plain.log_probs / torch.tensor([len(row) for row in ids]),
        "per_byte": plain.log_probs / sizes,
        "unconditional": plain.log_probs - unconditional,
    }
    assert tuple(expected) == scoring.NORMALIZATIONS
    for name, scores in expected.items():
        out = chosen(name)
        assert_close(out.scores, scores)
        assert torch.equal(out.log_probs, plain.log_probs)
        assert out.index == scores.argmax()
    by_ids = model.choose(
        TOKENIZER.encode(PROMPT), ids, tokenizer=TOKENIZER, normalize="per_byte", add_bos=False
    )
    assert_close(by_ids.scores, expected["per_byte"])


def test_choose_computes_the_prompt_once(model: GPT2LMHeadModel) -> None:
    fed: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda _m, args: fed.append(tuple(args[0].shape)))
    try:
        model.choose([1] * 20, [[1, 2, 3], [4, 5], [6]])
        model.choose([1] * 20, [[1], [2]])
    finally:
        hook.remove()
    assert fed == [(1, 20), (3, 2), (1, 20)]


def test_the_first_of_equal_choices_is_chosen(model: GPT2LMHeadModel) -> None:
    assert model.choose([1, 2], [[5, 6], [5, 6]]).index == 0


def test_choices_may_fill_the_positions(model: GPT2LMHeadModel) -> None:
    out = model.choose([1] * 30, [[1], [2, 3]], add_bos=True)
    assert_close(out.log_probs[1], alone(model, [BOS] + [1] * 30 + [2, 3], first=31).sum())
    with pytest.raises(SequenceLengthError, match="prompt and choice 1 make 33 tokens"):
        model.choose([1] * 30, [[1], [2, 3, 4]], add_bos=True)


def test_an_empty_prompt_with_bos(model: GPT2LMHeadModel) -> None:
    out = model.choose("", CHOICES, tokenizer=TOKENIZER, add_bos=True)
    expected = model.score(CHOICES, tokenizer=TOKENIZER, add_bos=True).sum
    assert_close(out.log_probs, expected)


# ------------------------------------------------------------------------------ all of them


def test_no_dropout_and_every_module_keeps_its_mode() -> None:
    model = tiny_model(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = model.score([1, 2, 3]), model.perplexity([1, 2, 3]), model.choose([1], [[2], [3]])
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False}  # else there would be nothing to keep
    assert torch.equal(model.score([1, 2, 3]).log_probs, expected[0].log_probs)
    assert model.perplexity([1, 2, 3]) == expected[1]
    assert torch.equal(model.choose([1], [[2], [3]]).scores, expected[2].scores)
    with torch.no_grad():
        model.transformer.wpe.weight.fill_(math.nan)
    with pytest.raises(ArgumentError, match="NaN"):
        model.score([1, 2, 3])
    assert [module.training for module in model.modules()] == modes


def test_the_double_heads_model_scores_too() -> None:
    model = tiny_model(GPT2DoubleHeadsModel)
    out = model.score([1, 2, 3, 4])
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3, 4]])).logits[0].log_softmax(-1)
    assert_close(out.log_probs[0, 1:], logits[torch.arange(3), torch.tensor([2, 3, 4])])
    assert model.choose([1, 2], [[3, 4], [5]]).log_probs[0] == pytest.approx(
        out.log_probs[0, 2:].sum().item(), rel=1e-5
    )


TEXT = {"tokenizer": TOKENIZER}


@pytest.mark.parametrize(
    ("call", "given", "error", "message"),
    [
        ("score", ("",), ArgumentTypeError, "texts is text: give tokenizer=…"),
        ("score", ("", TEXT), ArgumentError, "row 0 of texts is empty"),
        ("score", (["The", ""], {**TEXT, "add_bos": True}), ArgumentError, "row 1 .* is empty"),
        ("score", ("a", TEXT), ArgumentError, "single token .* add_bos=True"),
        ("score", ([],), ArgumentError, "texts is empty"),
        ("score", (5,), ArgumentTypeError, "texts must be text, ids, or a list .* not int"),
        ("score", (None,), ArgumentTypeError, "not NoneType"),
        ("score", ([[1, 2], "a"],), ArgumentTypeError, "item 1 is str, the first list"),
        ("score", ([[1, 2.5]],), ArgumentTypeError, "a token id must be a whole number, not 2.5"),
        ("score", ([[1, 2], [1, 300]],), TokenIdError, "row 1 of texts has id 300; .* 0 to 299"),
        ("score", ([[1, -1]],), TokenIdError, "row 0 of texts has id -1"),
        ("score", (["a b"], {**TEXT, "attention_mask": [[1]]}), ArgumentError, "is for ids"),
        ("score", ([[1, 2]], {"attention_mask": [[1]]}), ArgumentError, "1 rows of 2 columns"),
        ("score", ([[1, 2]], {"attention_mask": [[1, 2]]}), ArgumentError, "only 0 .* not 2"),
        ("score", ([[1, 2]], {"attention_mask": 1}), ArgumentError, "1 rows of 2 columns"),
        ("score", ([[1, 2]] * 2, {"attention_mask": [[1, 1], 1]}), ArgumentError, "2 rows of 2 c"),
        ("score", ([[[1, 2]]],), ArgumentTypeError, r"must be a whole number, not \[1, 2\]"),
        ("score", ([[1, 2]], {"attention_mask": [[0, 0]]}), ArgumentError, "row 0 .* is empty"),
        ("score", ([1, 2], {"add_bos": 1}), ArgumentError, "add_bos must be True or False"),
        ("perplexity", ("",), ArgumentTypeError, "text is text: give tokenizer=…"),
        ("perplexity", ("", TEXT), ArgumentError, "text is empty"),
        ("perplexity", ("", {**TEXT, "add_bos": True}), ArgumentError, "text is empty"),
        ("perplexity", ([3],), ArgumentError, "single token"),
        ("perplexity", ([1, 2], {"stride": 0}), ArgumentError, "stride .* from 1 to 31, not 0"),
        ("perplexity", ([1, 2], {"stride": 32}), ArgumentError, "stride .* from 1 to 31, not 32"),
        ("perplexity", ([1, 2], {"stride": 1.5}), ArgumentError, "stride"),
        ("perplexity", ([[1, 2], [3, 4]],), ArgumentError, "list of 2; call it for each"),
        ("perplexity", ([1, 2], {"show_progress": "no"}), ArgumentError, "show_progress"),
        ("choose", ("a", [" b"]), ArgumentTypeError, "prompt is text: give tokenizer=…"),
        ("choose", ([1], ["b"]), ArgumentTypeError, "choices is text: give tokenizer=…"),
        ("choose", ("a", [], TEXT), ArgumentError, "choices is empty"),
        ("choose", ("a", "b", TEXT), ArgumentTypeError, "choices must be a list of texts"),
        ("choose", ([1], [2, 3]), ArgumentTypeError, "choices must be a list of texts"),
        ("choose", ("a", ["b", ""], TEXT), ArgumentError, "choice 1 is empty"),
        ("choose", ("", ["b"], TEXT), ArgumentError, "prompt is empty; give add_bos=True"),
        ("choose", (["a", "b"], ["b"], TEXT), ArgumentError, "prompt is a list of 2"),
        ("choose", ([1], [[300]]), TokenIdError, "row 0 of choices has id 300"),
        ("choose", ([1], [[2]], {"normalize": "men"}), ArgumentError, "did you mean 'mean'"),
        ("choose", ([1], [[2]], {"normalize": "per_byte"}), ArgumentTypeError, "count their bytes"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_the_model_runs(
    model: GPT2LMHeadModel, call: str, given: tuple[Any, ...], error: type, message: str
) -> None:
    settings = given[-1] if isinstance(given[-1], dict) else {}
    positional = given[:-1] if settings else given
    ran: list[int] = []
    hook = model.register_forward_pre_hook(lambda _m, _args: ran.append(1))
    try:
        with pytest.raises(error, match=message):
            getattr(model, call)(*positional, **settings)
    finally:
        hook.remove()
    assert not ran


def test_bos_that_nobody_has_is_refused() -> None:
    model = tiny_model()
    model.generation_config.bos_token_id = None
    with pytest.raises(ArgumentError, match="the model has no bos_token_id"):
        model.score([1, 2], add_bos=True)
    with pytest.raises(ArgumentError, match="the model has no bos_token_id"):
        model.choose([1, 2], [[3]], normalize="unconditional")
    larger = GPT2Tokenizer.train(CORPUS, 280, show_progress=False)
    larger.add_special_tokens({"bos_token": "<start>"})
    with pytest.raises(TokenIdError, match="BOS has id 280; ids must be from 0 to 96"):
        model.score([1, 2], tokenizer=larger, add_bos=True)
