"""What happens to the scores before a token is chosen: small pure functions on (ids, scores).

``ids`` (R, N) are the tokens so far: W columns of the prompt, then the new ones;
each row's real tokens side by side and what is no token before them, negative:
padding is nobody's token. ``scores`` (R, V) float32. To add a processor: write
the function, and enter it in ``processors_for``; its setting is a field of ProcessorSettings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpt2.generation import checks
from gpt2.generation.callers import OfRows, callers_processor, prefix_allowed
from gpt2.generation.checks import DEFAULT_NEW_TOKENS, bias_pairs, setting

if TYPE_CHECKING:
    from gpt2.generation.config import GenerationConfig

#: in the ids that processors see: no token, and a token that was given as an embedding
ABSENT, NAMELESS = -1, -2

Processor = Callable[[Tensor, Tensor], Tensor]


@dataclass(kw_only=True)
class ProcessorSettings:
    """The settings of the processors, fields of GenerationConfig."""

    # -- which tokens are sampled --------------------------------------------------------------
    temperature: float = field(
        default=1.0, metadata=setting(checks.temperature, needs=checks.SAMPLING)
    )
    #: sample among the k most probable tokens; 0 or None: among all
    top_k: int | None = field(
        default=50,
        metadata=setting(checks.optional(checks.whole(0)), needs=checks.SAMPLING_OR_CONTRAST),
    )
    #: sample among the most probable tokens that together have at least this probability
    top_p: float = field(default=1.0, metadata=setting(checks.share, needs=checks.SAMPLING))
    #: hide tokens less probable than this share of the most probable one's probability
    min_p: float | None = field(
        default=None, metadata=setting(checks.fraction, needs=checks.SAMPLING)
    )
    typical_p: float = field(default=1.0, metadata=setting(checks.share, needs=checks.SAMPLING))
    epsilon_cutoff: float = field(
        default=0.0, metadata=setting(checks.cutoff, needs=checks.SAMPLING)
    )
    eta_cutoff: float = field(default=0.0, metadata=setting(checks.cutoff, needs=checks.SAMPLING))
    # -- what is favoured and what is forbidden ------------------------------------------------
    repetition_penalty: float = field(default=1.0, metadata=setting(checks.positive))
    #: favours (above 1) the tokens of the prompt
    encoder_repetition_penalty: float = field(default=1.0, metadata=setting(checks.positive))
    no_repeat_ngram_size: int = field(default=0, metadata=setting(checks.whole(0)))
    #: the new tokens repeat no n-gram of the prompt
    encoder_no_repeat_ngram_size: int = field(default=0, metadata=setting(checks.whole(0)))
    bad_words_ids: list[list[int]] | None = field(
        default=None, metadata=setting(checks.words, ids=checks.all_ids)
    )
    #: {(ids): bias} or [[ids, bias], …]: added to the score of what would complete the ids
    sequence_bias: dict[tuple[int, ...], float] | list[Any] | None = field(
        default=None, metadata=setting(checks.bias, ids=checks.biased_ids)
    )
    suppress_tokens: list[int] | None = field(
        default=None, metadata=setting(checks.token_ids, ids=checks.all_ids)
    )
    #: not as the first new token
    begin_suppress_tokens: list[int] | None = field(
        default=None, metadata=setting(checks.token_ids, ids=checks.all_ids)
    )
    # -- beginnings and ends -------------------------------------------------------------------
    #: no EOS before the row, prompt included, has that many tokens
    min_length: int = field(default=0, metadata=setting(checks.whole(0)))
    #: no EOS among that many new tokens
    min_new_tokens: int | None = field(default=None, metadata=setting(checks.whole(0)))
    #: the token behind a prompt of one token
    forced_bos_token_id: int | None = field(
        default=None, metadata=setting(checks.token_id, ids=checks.all_ids)
    )
    #: the last token where max_length is reached
    forced_eos_token_id: int | list[int] | None = field(
        default=None, metadata=setting(checks.one_or_many, ids=checks.all_ids)
    )
    #: (start, factor): EOS is favoured more and more behind ``start`` new tokens
    exponential_decay_length_penalty: tuple[int, float] | None = field(
        default=None, metadata=setting(checks.decay)
    )
    renormalize_logits: bool = field(default=False, metadata=setting(checks.flag))
    #: NaN becomes 0, infinite the largest number, instead of an error
    remove_invalid_values: bool = field(default=False, metadata=setting(checks.flag))


# -- which tokens are sampled ---------------------------------------------------------------------


def temperature(_ids: Tensor, scores: Tensor, *, value: float) -> Tensor:
    """Flatter above 1, sharper below."""
    return scores / value


def top_k(_ids: Tensor, scores: Tensor, *, k: int) -> Tensor:
    """Hide all but the k highest scores (ties with the k-th stay)."""
    return scores.masked_fill(scores < _kth(scores, k), -torch.inf)


def top_p(_ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """Hide the least probable tokens that together have at most 1 − p (arXiv:1904.09751)."""
    ascending, order = scores.sort(descending=False)
    hidden = ascending.softmax(-1).cumsum(-1) <= 1 - p
    hidden[..., -keep:] = False  # the most probable tokens always stay
    return scores.masked_fill(hidden.scatter(-1, order, hidden), -torch.inf)


def min_p(_ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """Hide tokens with less than ``p`` times the best one's probability (arXiv:2407.01082)."""
    probabilities = scores.softmax(-1)
    hidden = probabilities < p * probabilities.amax(-1, keepdim=True)
    best = probabilities.topk(min(keep, scores.shape[-1])).indices
    return scores.masked_fill(hidden.scatter(-1, best, False), -torch.inf)


def typical_p(_ids: Tensor, scores: Tensor, *, p: float, keep: int = 1) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, up to mass p (arXiv:2202.00666)."""
    log_probabilities = scores.log_softmax(-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(-1, keepdim=True)
    distance, order = (-log_probabilities - entropy).abs().sort(descending=False)
    mass = scores.gather(-1, order).softmax(-1).cumsum(-1)
    last = (mass < p).sum(-1, keepdim=True).clamp_(max=scores.shape[-1] - 1)
    hidden = distance > distance.gather(-1, last)
    hidden[..., :keep] = False
    return scores.masked_fill(hidden.scatter(-1, order, hidden), -torch.inf)


def epsilon_cutoff(_ids: Tensor, scores: Tensor, *, epsilon: float, keep: int = 1) -> Tensor:
    """Hide tokens with a probability below ``epsilon`` (arXiv:2210.15191)."""
    hidden = (scores.softmax(-1) < epsilon) & (scores < _kth(scores, keep))
    return scores.masked_fill(hidden, -torch.inf)


def eta_cutoff(_ids: Tensor, scores: Tensor, *, epsilon: float, keep: int = 1) -> Tensor:
    """Hide tokens below min(ε, √ε · exp(−entropy)) (arXiv:2210.15191)."""
    log_probabilities = scores.log_softmax(-1)
    smallest = torch.finfo(scores.dtype).min
    entropy = -(log_probabilities.clamp(min=smallest) * log_probabilities.exp()).sum(-1)
    eta = (math.sqrt(epsilon) * (-entropy).exp()).clamp(max=epsilon)[..., None]
    hidden = (scores.softmax(-1) < eta) & (scores < _kth(scores, keep))
    return scores.masked_fill(hidden, -torch.inf)


def _kth(scores: Tensor, k: int) -> Tensor:
    """The k-th highest score of each row, (R, 1)."""
    return scores.topk(min(k, scores.shape[-1])).values[..., -1:]


# -- repetition -----------------------------------------------------------------------------------


def repetition_penalty(ids: Tensor, scores: Tensor, *, penalty: float) -> Tensor:
    """Make each token that is there already less likely (above 1) or more (arXiv:1909.05858)."""
    penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(_mentioned(ids, scores), penalised, scores)


def encoder_repetition_penalty(
    ids: Tensor, scores: Tensor, *, penalty: float, width: int
) -> Tensor:
    """Make the tokens of the prompt more likely (above 1), whatever came since."""
    return repetition_penalty(ids[:, :width], scores, penalty=1 / penalty)


def no_repeat_ngram(ids: Tensor, scores: Tensor, *, size: int) -> Tensor:
    """Forbid what would complete an n-gram of ``size`` tokens that is there already."""
    return _forbid_completions(ids, ids, scores, size)


def encoder_no_repeat_ngram(ids: Tensor, scores: Tensor, *, size: int, width: int) -> Tensor:
    """Forbid what would complete an n-gram of the prompt."""
    return _forbid_completions(ids[:, :width], ids, scores, size)


def _forbid_completions(source: Tensor, ids: Tensor, scores: Tensor, size: int) -> Tensor:
    """Hide the tokens that stand in ``source`` behind the last size − 1 tokens of ``ids``."""
    if source.shape[1] < size or ids.shape[1] < size:
        return scores
    begun = ids[:, ids.shape[1] + 1 - size :]  # (R, size − 1)
    grams = source.unfold(1, size, 1)  # (R, N', size)
    same = (grams[..., :-1] == begun[:, None]).all(-1)
    completions = grams[..., -1].masked_fill(~same, ABSENT)
    return scores.masked_fill(_mentioned(completions, scores), -torch.inf)


def _mentioned(ids: Tensor, scores: Tensor) -> Tensor:
    """(R, V) bool: which tokens are among ``ids`` (R, N); negative ones are none."""
    spare = scores.shape[-1]  # a column for what is no token
    found = scores.new_zeros(len(scores), spare + 1, dtype=torch.bool)
    return found.scatter(1, ids.masked_fill(ids < 0, spare), True)[:, :spare]


# -- words favoured or forbidden ------------------------------------------------------------------


def sequence_bias(
    ids: Tensor, scores: Tensor, *, single: Tensor, longer: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> Tensor:
    """Add a number to the score of each token that would complete a sequence.

    ``single`` (V,): that of sequences of one token. ``longer``: by length,
    beginnings (K, n), last tokens (K,) and numbers (K,) of K sequences.
    """
    bias = single.expand_as(scores).clone()
    for beginnings, last, numbers in longer:
        length = beginnings.shape[1]
        if length <= ids.shape[1]:
            begun = (ids[:, None, -length:] == beginnings).all(-1)  # (R, K)
            bias.index_add_(1, last, torch.where(begun, numbers, 0.0).to(bias.dtype))
    return scores + bias


def _bias(pairs: Sequence[tuple[Sequence[int], float]], vocab_size: int, device: Any) -> Processor:
    single = torch.zeros(vocab_size, device=device)
    by_length: dict[int, list[tuple[Sequence[int], float]]] = {}
    for ids, number in dict(pairs).items():
        if len(ids) == 1:
            single[ids[0]] = number
        else:
            by_length.setdefault(len(ids), []).append((ids, number))
    longer = [
        (
            torch.tensor([ids[:-1] for ids, _ in group], device=device),
            torch.tensor([ids[-1] for ids, _ in group], device=device),
            torch.tensor([number for _, number in group], device=device),
        )
        for group in by_length.values()
    ]
    return partial(sequence_bias, single=single, longer=longer)


def suppress(_ids: Tensor, scores: Tensor, *, tokens: Tensor) -> Tensor:
    """Never these tokens."""
    return scores.index_fill(-1, tokens, -torch.inf)


def suppress_at_begin(
    ids: Tensor, scores: Tensor, *, tokens: Tensor, width: int, forced_bos: bool
) -> Tensor:
    """Not as the first new token; behind a forced first one, not as the second."""
    step = ids.shape[1] - width
    if step > 1 or (step == 1 and not forced_bos):
        return scores
    # A first token is forced where the prompt is one token long.
    begin = ((ids[:, :width] != ABSENT).sum(-1) == 1) & forced_bos
    return torch.where((begin == step)[:, None], suppress(ids, scores, tokens=tokens), scores)


# -- beginnings and ends --------------------------------------------------------------------------


def min_length(ids: Tensor, scores: Tensor, *, length: int, eos: Tensor) -> Tensor:
    """No EOS before the row has ``length`` tokens, the prompt's included."""
    short = (ids != ABSENT).sum(-1, keepdim=True) < length
    return torch.where(short, suppress(ids, scores, tokens=eos), scores)


def min_new_tokens(ids: Tensor, scores: Tensor, *, count: int, width: int, eos: Tensor) -> Tensor:
    """No EOS among the first ``count`` new tokens."""
    return suppress(ids, scores, tokens=eos) if ids.shape[1] - width < count else scores


def force(scores: Tensor, tokens: Tensor) -> Tensor:
    """One of ``tokens``, and nothing else."""
    return torch.full_like(scores, -torch.inf).index_fill(-1, tokens, 0.0)


def forced_bos(ids: Tensor, scores: Tensor, *, tokens: Tensor) -> Tensor:
    """Force the token behind a prompt of one token."""
    first = (ids != ABSENT).sum(-1, keepdim=True) == 1
    return torch.where(first, force(scores, tokens), scores)


def forced_eos(
    ids: Tensor, scores: Tensor, *, tokens: Tensor, width: int, longest: int, most: int
) -> Tensor:
    """Force the end where a row reaches ``longest`` tokens, or ``most`` new ones."""
    last = (ids != ABSENT).sum(-1, keepdim=True) + 1 >= longest
    last = last | (ids.shape[1] - width + 1 >= most)
    return torch.where(last, force(scores, tokens), scores)


def exponential_decay(
    ids: Tensor, scores: Tensor, *, start: int, factor: float, width: int, eos: Tensor
) -> Tensor:
    """Raise EOS by (factor^n − 1) of its size, n tokens behind ``start`` new ones."""
    behind = ids.shape[1] - width - start
    if behind <= 0:
        return scores
    ends = scores[:, eos]
    raised = (ends.abs() * (factor**behind - 1)).masked_fill(~ends.isfinite(), 0.0)
    return scores.index_copy(-1, eos, ends + raised)


def remove_invalid_values(_ids: Tensor, scores: Tensor) -> Tensor:
    """NaN becomes 0, infinite the largest number."""
    return scores.nan_to_num(nan=0.0)


def renormalize(_ids: Tensor, scores: Tensor) -> Tensor:
    """Log-probabilities that sum to one again."""
    return scores.log_softmax(-1)


# -- all of them ----------------------------------------------------------------------------------


def processors_for(
    config: GenerationConfig,
    *,
    width: int,
    vocab_size: int,
    n_positions: int,
    device: torch.device,
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
) -> list[Processor | OfRows]:
    """The processors that the settings ask for, in the reference's order.

    ``width``: columns of the prompt. Guidance comes before all of them; the
    decoder applies it.
    """

    def tensor(tokens: int | Sequence[int]) -> Tensor:
        return torch.tensor([tokens] if isinstance(tokens, int) else list(tokens), device=device)

    c, eos = config, config.eos_token_ids
    chosen: list[Processor | OfRows] = []
    if c.sequence_bias is not None:
        chosen.append(_bias(bias_pairs(c.sequence_bias), vocab_size, device))
    if c.encoder_repetition_penalty != 1.0:
        penalty = c.encoder_repetition_penalty
        chosen.append(partial(encoder_repetition_penalty, penalty=penalty, width=width))
    if c.repetition_penalty != 1.0:
        chosen.append(partial(repetition_penalty, penalty=c.repetition_penalty))
    if c.no_repeat_ngram_size:
        chosen.append(partial(no_repeat_ngram, size=c.no_repeat_ngram_size))
    if c.encoder_no_repeat_ngram_size:
        size = c.encoder_no_repeat_ngram_size
        chosen.append(partial(encoder_no_repeat_ngram, size=size, width=width))
    if c.bad_words_ids is not None:
        ends = [[token] for token in eos]  # EOS alone is never a bad word, as documented
        words = [(tuple(w), -torch.inf) for w in c.bad_words_ids if list(w) not in ends]
        chosen.append(_bias(words, vocab_size, device))
    if c.min_length and eos:
        chosen.append(partial(min_length, length=c.min_length, eos=tensor(eos)))
    if c.min_new_tokens and eos:
        count = c.min_new_tokens
        chosen.append(partial(min_new_tokens, count=count, width=width, eos=tensor(eos)))
    if prefix_allowed_tokens_fn is not None:
        chosen.append(prefix_allowed(prefix_allowed_tokens_fn, c.num_beams))
    if c.forced_bos_token_id is not None:
        chosen.append(partial(forced_bos, tokens=tensor(c.forced_bos_token_id)))
    if c.forced_eos_token_id is not None:
        longest, most = c.max_length, c.max_new_tokens
        if longest is None and most is None:
            longest, most = n_positions, DEFAULT_NEW_TOKENS
        never = torch.iinfo(torch.int64).max
        chosen.append(
            partial(
                forced_eos,
                tokens=tensor(c.forced_eos_token_id),
                width=width,
                longest=never if longest is None else longest,
                most=never if most is None else most,
            )
        )
    if c.remove_invalid_values:
        chosen.append(remove_invalid_values)
    if c.exponential_decay_length_penalty is not None:
        start, factor = c.exponential_decay_length_penalty
        chosen.append(
            partial(exponential_decay, start=start, factor=factor, width=width, eos=tensor(eos))
        )
    if c.suppress_tokens is not None:
        chosen.append(partial(suppress, tokens=tensor(c.suppress_tokens)))
    if c.begin_suppress_tokens is not None:
        tokens, forced = tensor(c.begin_suppress_tokens), c.forced_bos_token_id is not None
        chosen.append(partial(suppress_at_begin, tokens=tokens, width=width, forced_bos=forced))
    chosen.extend(callers_processor(process) for process in logits_processor)
    if c.do_sample:
        chosen.extend(_sampling(c))
    if c.renormalize_logits:
        chosen.append(renormalize)
    return chosen


def _sampling(c: GenerationConfig) -> list[Processor]:
    """Those that apply only where tokens are drawn."""
    keep = 1 if c.num_beams == 1 else len(c.eos_token_ids) + 1  # beams need one beside EOS
    chosen: list[Processor] = []
    if c.temperature != 1.0:
        chosen.append(partial(temperature, value=c.temperature))
    if c.top_k:
        chosen.append(partial(top_k, k=max(c.top_k, keep)))
    if c.top_p < 1.0:
        chosen.append(partial(top_p, p=c.top_p, keep=keep))
    if c.min_p is not None:
        chosen.append(partial(min_p, p=c.min_p, keep=keep))
    if c.typical_p < 1.0:
        chosen.append(partial(typical_p, p=c.typical_p, keep=keep))
    if c.epsilon_cutoff:
        chosen.append(partial(epsilon_cutoff, epsilon=c.epsilon_cutoff, keep=keep))
    if c.eta_cutoff:
        chosen.append(partial(eta_cutoff, epsilon=c.eta_cutoff, keep=keep))
    return chosen
