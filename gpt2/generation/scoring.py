"""How probable the model finds a text that is given: score, perplexity, choose.

The three are methods of the models that generate; ``model`` is the model they
are called on. They compute without gradients and without dropout, whatever mode
the model is in, and know no module, only a model with a cache.

Text is encoded as it stands, without the special tokens that a tokenizer may
put around it: ``add_bos`` alone says whether BOS comes first. Shapes: B rows, W
columns, C choices, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError
from gpt2.fieldchecks import check_bool, check_choice, check_whole
from gpt2.generation.decoder import Decoder
from gpt2.generation.given import bos_ids, byte_lengths, read_given
from gpt2.generation.prompt import CausalLM, Prompt
from gpt2.modeling.outputs import ModelOutput, output_class
from gpt2.progress import Progress

if TYPE_CHECKING:
    from gpt2.tokenization.tokenizer import GPT2Tokenizer

#: How `choose` makes the scores of choices of different lengths comparable.
NORMALIZATIONS = ("sum", "mean", "per_byte", "unconditional")

# What one forward pass may hold beside the weights; a single row may need more.
_MOST_LOGITS = 2**26  # numbers: 256 MB in float32
_MOST_COLUMNS = 2**12  # tokens: their activations, or their keys and values
_CHUNK_LOGITS = 2**23  # numbers that log-softmax works on at once


class ScoringModel(CausalLM, Protocol):
    """What scoring needs of a model: what decoding does, and its mode."""

    def modules(self) -> Iterator[nn.Module]: ...


@output_class
class ScoreOutput(ModelOutput):
    """What ``score`` returns, a row per text; B rows, W tokens in the longest.

    ``log_probs`` (B, W) float32: log p(token | all tokens before it), natural
    logarithm, 0 where ``mask`` (B, W) bool is False: at padding, and at a first
    token without BOS before it. ``sum`` and ``mean`` (B,) float32 are over the
    ``count`` (B,) int64 tokens that are scored. ``input_ids`` (B, W) int64 are
    the tokens in the columns in which they were given, 0 at padding.
    """

    input_ids: Tensor
    log_probs: Tensor
    mask: Tensor
    sum: Tensor
    mean: Tensor
    count: Tensor


@output_class
class ChoiceOutput(ModelOutput):
    """What ``choose`` returns.

    ``index`` () int64: the choice with the highest of ``scores`` (C,) float32,
    the first of them where several are equal. ``log_probs`` (C,) float32: log
    p(choice | prompt), not normalized. ``count`` (C,) int64: tokens of each.
    """

    index: Tensor
    scores: Tensor
    log_probs: Tensor
    count: Tensor


# ------------------------------------------------------------------------------ the three calls


@torch.no_grad()
def score(
    model: ScoringModel,
    texts: Any,
    *,
    tokenizer: GPT2Tokenizer | None = None,
    attention_mask: Any = None,
    add_bos: bool | None = None,
) -> ScoreOutput:
    """The log-probability of every token, and of each text as a whole.

    >>> texts = ["One day a girl named Mia was at the mill.", "Mill the at was Mia."]
    >>> model.score(texts, tokenizer=tokenizer, add_bos=True).sum  # examples/stories-gpt2
    tensor([-44.1344, -71.5878])

    Each row gets what it gets alone, however it is padded and whatever else is
    in the batch. Without BOS the first token of a row has nothing before it and
    is not scored: ``-score(ids).mean`` is then the loss of ``model(ids, labels=ids)``.

    Args:
        texts: a text or a list of texts; or their ids: (W,) or (B, W), tensor,
            array or lists, which may be of different lengths.
        tokenizer: encodes texts; not needed for ids.
        attention_mask: (B, W), 1 at tokens and 0 at padding, for ids that are
            padded on any side; without it every id is a token.
        add_bos: put BOS before every row, so that the first token is scored
            too. None: as the tokenizer is set (``add_bos_token``); no for ids.

    Raises:
        ArgumentTypeError: texts without a tokenizer, or ids that are none.
        ArgumentError: a row in which there is nothing to score.
        TokenIdError: an id that the model's vocabulary does not have.
        SequenceLengthError: a row of more than n_positions tokens (BOS not
            counted); ``perplexity`` takes text of any length.
    """
    given = read_given("texts", texts, tokenizer, model.config.vocab_size, attention_mask)
    bos = bos_ids(model, tokenizer, add_bos, given.is_text)
    n_positions = model.config.n_positions
    for i, ids in enumerate(given.rows):
        _require_something(f"row {i} of texts", ids, bos)
        if len(ids) > n_positions:
            raise SequenceLengthError(
                f"row {i} of texts has {len(ids)} tokens, but the model has n_positions = "
                f"{n_positions}; for longer text there is perplexity"
            )
    shape, first = (len(given.rows), given.width), 1 - len(bos)
    input_ids = torch.zeros(shape, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    log_probs = torch.zeros(shape, dtype=torch.float32)
    order = sorted(range(len(given.rows)), key=lambda i: -len(given.rows[i]))
    with _evaluating(model):
        for batch in _batches(model, [len(given.rows[i]) for i in order]):
            found = _next_token_log_probs(model, [bos + given.rows[i] for i in order[batch]]).cpu()
            for i, of_row in zip(order[batch], found, strict=True):
                columns = given.columns[i]
                input_ids[i, columns] = torch.tensor(given.rows[i])
                mask[i, columns[first:]] = True
                log_probs[i, columns[first:]] = of_row[: len(columns) - first]
    count, total = mask.sum(-1), log_probs.double().sum(-1)
    mean = total / count
    output = ScoreOutput(input_ids, log_probs, mask, total.float(), mean.float(), count)
    return ScoreOutput(*(x.to(model.device) for x in output.values()))


@torch.no_grad()
def perplexity(
    model: ScoringModel,
    text: Any,
    *,
    tokenizer: GPT2Tokenizer | None = None,
    stride: int | None = None,
    add_bos: bool | None = None,
    show_progress: bool = True,
) -> float:
    """The perplexity of one text of any length: exp of the mean loss per token.

    The text is read through windows of n_positions tokens that begin at tokens
    0, stride, 2 · stride, …, until one reaches the end. The first window scores
    all of its tokens but the first; each further one scores those of its tokens
    that no window before it has reached (``stride`` of them; the last may have
    fewer). So of N tokens x, each but x[0] is scored once, given all tokens
    before it or at least n_positions − stride of them:

        perplexity = exp(−1 / (N − 1) · Σ_{i ≥ 1} log p(x[i] | x[w(i)], …, x[i − 1]))

    w(i) being the start of the first window that holds token i. With
    ``add_bos`` x[0] is BOS, and all N − 1 tokens of the text are scored. Its
    time grows with N · n_positions / stride.

    Args:
        text: a text, or its ids (N,) or (1, N).
        tokenizer: encodes the text; not needed for ids.
        stride: from 1 (the longest contexts, and very slow) to n_positions − 1;
            None for half of n_positions.
        add_bos: begin with BOS; None: as the tokenizer is set; no for ids.
        show_progress: tell on stderr how far it is, where it takes more than a few seconds.

    Raises:
        ArgumentTypeError, ArgumentError, TokenIdError: as ``score``; several
            texts; a stride that cannot be.
    """
    check_bool(ArgumentError, "show_progress", show_progress)
    n_positions = model.config.n_positions
    stride = n_positions // 2 if stride is None else stride
    check_whole(ArgumentError, "stride", stride, 1, n_positions - 1)
    given = read_given("text", text, tokenizer, model.config.vocab_size)
    if len(given.rows) > 1:
        raise ArgumentError(
            f"perplexity is of one text, but text is a list of {len(given.rows)}; call it for "
            "each of them, or join them"
        )
    bos = bos_ids(model, tokenizer, add_bos, given.is_text)
    _require_something("text", given.rows[0], bos)
    ids = bos + given.rows[0]
    progress = Progress("perplexity", "tokens", len(ids) - 1, show_progress)
    total, scored = 0.0, 0
    with _evaluating(model):
        # windows of one shape, as all but the first and the last are, can go in one batch
        for (width, new), same in groupby(_windows(len(ids), n_positions, stride), key=_shape):
            windows = list(same)
            for batch in _batches(model, [width] * len(windows), new):
                rows = [ids[start:stop] for start, stop, _ in windows[batch]]
                found = _next_token_log_probs(model, rows, last=new)
                total += found.double().sum().item()
                scored += found.numel()
                progress.show(scored)
    progress.close()
    return torch.tensor(-total / scored, dtype=torch.float64).exp().item()  # inf if too large


@torch.no_grad()
def choose(
    model: ScoringModel,
    prompt: Any,
    choices: Any,
    *,
    tokenizer: GPT2Tokenizer | None = None,
    normalize: str = "sum",
    add_bos: bool | None = None,
) -> ChoiceOutput:
    """Which of several continuations the model finds the most probable.

    >>> places = [" mill", " moon", " barn"]
    >>> chosen = model.choose("One day a girl named Mia was at the", places, tokenizer=tokenizer)
    >>> places[chosen.index]
    ' mill'

    The prompt is computed once and its cache shared by all choices; each gets
    the score that it gets alone. Prompt and choice are encoded apart and their
    ids put side by side: nothing is merged across the seam. So let a choice
    begin with its space (" mill", not "mill" behind "the "): its ids are then
    those of the joined text, which is what the model was trained on.

    Args:
        prompt: a text, or its ids (W,) or (1, W).
        choices: a list of texts, or of lists of ids.
        tokenizer: encodes texts; not needed for ids.
        normalize: what is compared. "sum": log p(choice | prompt), which
            favours short choices. "mean": that per token. "per_byte": per byte
            of the choice's text, so that it does not matter how it is cut into
            tokens. "unconditional": log p(choice | prompt) − log p(choice | BOS),
            how much likelier the prompt makes it (Brown et al. 2020, section 2.4).
        add_bos: put BOS before the prompt; None: as the tokenizer is set; no for ids.

    Raises:
        ArgumentTypeError, ArgumentError, TokenIdError: as ``score``; no choices, an empty choice,
            an empty prompt without BOS, an unknown ``normalize``.
        SequenceLengthError: prompt and choice together have more than
            n_positions tokens (BOS not counted).
    """
    check_choice(ArgumentError, "normalize", normalize, NORMALIZATIONS)
    given = read_given("prompt", prompt, tokenizer, model.config.vocab_size)
    if len(given.rows) > 1:
        raise ArgumentError(
            f"choose takes one prompt, but prompt is a list of {len(given.rows)}; call it for each"
        )
    bos = bos_ids(model, tokenizer, add_bos, given.is_text)
    options = read_given("choices", choices, tokenizer, model.config.vocab_size)
    if not options.is_batch:
        raise ArgumentTypeError("choices must be a list of texts, or of lists of ids")
    context = bos + given.rows[0]
    if not context:
        raise ArgumentError("prompt is empty; give add_bos=True, so that BOS stands there")
    lengths = [len(ids) for ids in options.rows]
    if 0 in lengths:
        raise ArgumentError(f"choice {lengths.index(0)} is empty: there is nothing to score")
    whole = len(given.rows[0]) + max(lengths)
    if whole > model.config.n_positions:
        raise SequenceLengthError(
            f"prompt and choice {lengths.index(max(lengths))} make {whole} tokens, but the model "
            f"has n_positions = {model.config.n_positions}"
        )
    count = torch.tensor(lengths)
    divisor = {"mean": count}.get(normalize)
    if normalize == "per_byte":
        divisor = torch.tensor(byte_lengths("choices", options, tokenizer))
    no_prompt = bos_ids(model, tokenizer, True, False) if normalize == "unconditional" else []
    with _evaluating(model):
        log_probs = _continuations(model, context, options.rows)  # (C,)
        scores = log_probs if divisor is None else log_probs / divisor
        if no_prompt:
            scores = log_probs - _continuations(model, no_prompt, options.rows)
    output = ChoiceOutput(scores.argmax(), scores.float(), log_probs.float(), count)
    return ChoiceOutput(*(x.to(model.device) for x in output.values()))


# ------------------------------------------------------------------------------ computing


@contextmanager
def _evaluating(model: ScoringModel) -> Iterator[None]:
    """No dropout inside; afterwards each module is in the mode that it was in."""
    in_training = [module for module in model.modules() if module.training]
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def _windows(length: int, width: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, how many of the last tokens are scored), as ``perplexity`` defines them."""
    reached = 1  # the first token is never scored
    for start in range(0, length, stride):
        stop = min(start + width, length)
        yield start, stop, stop - reached
        reached = stop
        if stop == length:
            return


def _shape(window: tuple[int, int, int]) -> tuple[int, int]:
    start, stop, new = window
    return stop - start, new


def _batches(
    model: ScoringModel, widths: list[int], logits_per_row: int | None = None
) -> Iterator[slice]:
    """Consecutive rows that go through the model together; of ``widths``, the longest first.

    ``logits_per_row``: at how many positions of a row logits are computed; None: at all.
    """
    start = 0
    while start < len(widths):
        width = widths[start]
        logits = (logits_per_row or width) * model.config.vocab_size
        stop = start + max(1, min(_MOST_LOGITS // logits, _MOST_COLUMNS // width))
        yield slice(start, stop)
        start = stop


def _next_token_log_probs(model: ScoringModel, rows: list[list[int]], last: int = 0) -> Tensor:
    """log p of each next token of ``rows``, (R, T − 1) float32 for a longest row of T tokens.

    Shorter rows are padded behind their end, where causal attention hides it;
    what stands there means nothing. ``last``: only for so many tokens at the
    end of each row (0: for all).
    """
    ids = _padded(rows).to(model.device)  # (R, T)
    output = model(
        ids[:, :-1],
        use_cache=False,
        output_attentions=False,
        output_hidden_states=False,
        return_dict=True,
        logits_to_keep=last,
        check_inputs=False,  # all of it was checked, under the caller's names
    )
    return _token_log_probs(output.logits, ids[:, 1:][:, -last:])


def _continuations(model: ScoringModel, context: list[int], options: list[list[int]]) -> Tensor:
    """log p(option | context) of each, (C,) float64; the context is computed once."""
    order = sorted(range(len(options)), key=lambda j: -len(options[j]))
    longest = len(options[order[0]])
    ids = torch.tensor([context], device=model.device)  # (1, W)
    prefix = Decoder(model, Prompt(ids, None, None, [len(context)]), longest)
    first = prefix.prefill()[:, None]  # (1, 1, V)
    result = torch.empty(len(options), dtype=torch.float64)
    for batch in _batches(model, [len(context) + len(options[j]) for j in order], longest):
        rows = [options[j] for j in order[batch]]
        targets = _padded(rows).to(model.device)  # (R, n)
        log_probs = _token_log_probs(first.expand(len(rows), -1, -1), targets[:, :1])
        if targets.shape[1] > 1:
            branch = copy.copy(prefix)
            branch.keep_rows(targets.new_zeros(len(rows)))
            scores = branch.decode_many(targets[:, :-1], targets[:, :-1])  # (R, n − 1, V)
            log_probs = torch.cat([log_probs, _token_log_probs(scores, targets[:, 1:])], dim=1)
        for j, of_row in zip(order[batch], log_probs.double().cpu(), strict=True):
            result[j] = of_row[: len(options[j])].sum()
    return result


def _token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target], (R, T) float32; ``logits`` (R, T, V), ``targets`` (R, T)."""
    flat, wanted = logits.flatten(0, 1), targets.reshape(-1, 1)  # (N, V), (N, 1)
    step = max(1, _CHUNK_LOGITS // logits.shape[-1])
    chunks = [slice(i, i + step) for i in range(0, len(flat), step)]
    found = [flat[c].float().log_softmax(-1).gather(-1, wanted[c]) for c in chunks]
    log_probs = torch.cat(found).view(targets.shape)
    if not log_probs.isfinite().all():
        raise ArgumentError(
            "the model's logits are NaN or infinite; the weights hold NaN, or overflow in this "
            "dtype"
        )
    return log_probs


def _padded(rows: list[list[int]]) -> Tensor:
    """(R, T) int64, zeros behind the shorter rows."""
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def _require_something(name: str, ids: list[int], bos: list[int]) -> None:
    if not ids:
        raise ArgumentError(f"{name} is empty: there is nothing to score")
    if len(bos + ids) < 2:
        raise ArgumentError(
            f"{name} is a single token with nothing before it; give add_bos=True to score it"
        )
