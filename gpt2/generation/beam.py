"""Beam search: go on with the best beginnings, and keep the best sequences that have ended.

Plain and sampled beams follow transformers 5.23, diverse beams (arXiv:1610.02424)
4.48.3. A row of the prompt knows nothing of the others: it is closed by its own
beams, and from then on nothing of it changes.

Shapes: B rows of the prompt, n beams of each, K candidates, N new tokens at
most, V vocabulary. A beam's number is row · num_beams + its place in the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.generation.decoder import GuidedDecoder
from gpt2.generation.outputs import GenerateBeamDecoderOnlyOutput
from gpt2.generation.run import Run

# Added to the score of what is out of the running. Finite, as in the reference: where too few
# beams are left to choose from, those that are out are still told from the impossible (−inf).
OUT = -1e9


@dataclass
class Beams:
    """k sequences for each of B rows."""

    ids: Tensor  # (B, k, N) int64: the new ids, the filler behind them
    parents: Tensor  # (B, k, N) int64: the beam that each id was added to; −1 behind the end
    scores: Tensor  # (B, k) float32

    @classmethod
    def start(cls, run: Run, k: int) -> Beams:
        """Empty sequences; only the first is in the running, since all are the same."""
        shape = (run.prompt.rows, k, run.new_tokens)
        ids = torch.full(shape, run.filler, device=run.device)
        scores = torch.full(shape[:2], OUT, device=run.device)
        scores[:, 0] = 0
        return cls(ids, torch.full_like(ids, -1), scores)

    def pick(self, order: Tensor) -> Beams:
        """Those at the places ``order`` (B, j), with repetitions."""
        deep = order[..., None].expand(-1, -1, self.ids.shape[-1])
        return Beams(
            self.ids.gather(1, deep), self.parents.gather(1, deep), self.scores.gather(1, order)
        )

    def extended(self, places: Tensor, tokens: Tensor, step: int, first: Tensor) -> Beams:
        """Those at ``places`` (B, j), with ``tokens`` (B, j) as their new token number ``step``.

        ``first`` (B, 1): the number of each row's first beam here.
        """
        longer = self.pick(places)
        longer.ids[:, :, step] = tokens
        longer.parents[:, :, step] = places + first
        return longer

    def beside(self, others: Beams) -> Beams:
        return Beams(
            torch.cat([self.ids, others.ids], dim=1),
            torch.cat([self.parents, others.parents], dim=1),
            torch.cat([self.scores, others.scores], dim=1),
        )

    def best(self, k: int, ended: Tensor) -> Beams:
        """The k best of those that have not ``ended`` (B, j)."""
        scores = self.scores + OUT * ended
        return Beams(self.ids, self.parents, scores).pick(scores.topk(k).indices)


class Finished:
    """The n best ended sequences of each row, by log-probability over length^length_penalty."""

    def __init__(self, run: Run, n: int) -> None:
        self.config = run.config
        self.best = Beams.start(run, n)
        self.best.scores.fill_(-torch.inf)  # free places
        self.ended = torch.zeros(self.best.scores.shape, dtype=torch.bool, device=run.device)
        #: (B,) bool: rows whose sequences are final
        self.closed = self.ended[:, 0].clone()
        powers = [limit**run.config.length_penalty for limit in run.limits]
        self._longest = torch.tensor(powers, device=run.device)  # (B,)

    @property
    def full(self) -> Tensor:
        """(B,) bool: rows with n ended sequences."""
        return self.ended.all(-1)

    @property
    def worst(self) -> Tensor:
        return self.best.scores.amin(-1)  # (B,)

    def add(self, found: Beams, ended: Tensor, length: int) -> None:
        """Keep those of ``found`` that have ``ended`` (B, j), of ``length`` new tokens."""
        ended = ended & ~self.closed[:, None]
        scores = found.scores / length**self.config.length_penalty
        # Even an impossible sequence is better than a free place.
        scores = scores.clamp(min=torch.finfo(scores.dtype).min).where(ended, -torch.inf)
        both = self.best.beside(Beams(found.ids, found.parents, scores))
        order = both.scores.topk(self.ended.shape[1]).indices
        self.best = both.pick(order)
        self.ended = torch.cat([self.ended, ended], dim=1).gather(1, order)

    def attainable(self, score: Tensor, length: int) -> Tensor:
        """(B,): the final score that a beam of log-probability ``score`` (B,) is expected to get.

        By the length it has; with early_stopping="never" by the one that is
        best for it, so that nothing better is missed.
        """
        penalty = self.config.length_penalty
        never = self.config.early_stopping == "never" and penalty > 0
        return score / (self._longest if never else length**penalty)

    def close(self, rows: Tensor) -> None:
        """The sequences of ``rows`` (B,) bool are final."""
        self.closed = self.closed | rows


def best_candidates(totals: Tensor, k: int) -> Tensor:
    """Places (B, k) of the best of ``totals`` (B, n · V), best first."""
    return totals.topk(min(k, totals.shape[1])).indices


def sampled_candidates(totals: Tensor, k: int, generators: list[torch.Generator] | None) -> Tensor:
    """Places (B, k) drawn from softmax(totals) without putting back, as torch.multinomial does.

    The k largest of p / e with e exponential noise are such a draw; with
    ``generators`` each row has its own.
    """
    probabilities = totals.softmax(-1)
    noise = torch.empty_like(probabilities)
    if generators is None:
        noise.exponential_(1)
    else:
        for row, generator in zip(noise, generators, strict=True):
            row.exponential_(1, generator=generator)
    return best_candidates(probabilities / noise, k)


def extend(running: Beams, totals: Tensor, places: Tensor, step: int, first: Tensor) -> Beams:
    """The candidates at ``places`` (B, K) of ``totals`` (B, n · V), with their totals as scores."""
    vocabulary = totals.shape[1] // running.scores.shape[1]
    found = running.extended(places // vocabulary, places % vocabulary, step, first)
    found.scores = totals.gather(1, places)
    return found


def how_many(run: Run, n: int) -> int:
    """K: enough candidates for n beams to go on, whatever number of them ends."""
    return max(2, 1 + len(run.config.eos_token_ids)) * n


def beam_search(run: Run) -> GenerateBeamDecoderOnlyOutput:
    """num_beams best beginnings; the candidates are sampled with do_sample."""
    config, n = run.config, run.config.num_beams
    search = Search(run)
    running, finished = Beams.start(run, n), Finished(run, n)
    for step in range(run.new_tokens):
        scores = search.process(search.log_probabilities, running, step)
        totals = search.totals(scores, running).flatten(1)
        if config.do_sample:
            places = sampled_candidates(totals, how_many(run, n), search.generators)
        else:
            places = best_candidates(totals, how_many(run, n))
        candidates = extend(running, totals, places, step, search.first)

        ended = search.ended(candidates, step) | search.at_limit(step)[:, None]
        among_best = torch.arange(ended.shape[1], device=run.device) < n
        finished.add(candidates, ended & among_best, step + 1)
        running = candidates.best(n, ended)
        hopeless = finished.attainable(running.scores[:, 0], step + 1) <= finished.worst
        enough = finished.full & (config.early_stopping is True)
        finished.close(hopeless | enough | ended.all(-1))
        if not search.goes_on(scores, [finished], step):
            break
        search.feed(running, step)
    return search.output(finished.best)


def group_beam_search(run: Run) -> GenerateBeamDecoderOnlyOutput:
    """num_beam_groups searches side by side; each is kept from the tokens of those before it."""
    config, groups = run.config, run.config.num_beam_groups
    n = config.num_beams // groups
    search = Search(run)
    running = [Beams.start(run, n) for _ in range(groups)]
    finished = [Finished(run, n) for _ in range(groups)]
    for step in range(run.new_tokens):
        log_probabilities = search.log_probabilities  # (B · num_beams, V)
        log_probabilities = log_probabilities.view(run.prompt.rows, groups, n, -1)
        taken = log_probabilities.new_zeros(run.prompt.rows, log_probabilities.shape[-1])  # (B, V)
        last, parts = search.at_limit(step), []
        for group in range(groups):
            kept_away = log_probabilities[:, group] - config.diversity_penalty * taken[:, None]
            scores = search.process(kept_away.flatten(0, 1), running[group], step)
            parts.append(scores.view(run.prompt.rows, n, -1))
            totals = search.totals(scores, running[group]).flatten(1)
            places = best_candidates(totals, how_many(run, n))
            candidates = extend(running[group], totals, places, step, search.first + group * n)
            over = finished[group].closed[:, None]  # those go on with fillers
            running[group] = settle(
                finished[group], candidates, search.ended(candidates, step), step
            )
            finished[group].add(running[group], last[:, None].expand(-1, n), step + 1)
            finished[group].close(last)
            chosen = running[group].ids[:, :, step].masked_fill(over, run.filler)
            taken.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=taken.dtype))
        if not search.goes_on(torch.cat(parts, dim=1).flatten(0, 1), finished, step):
            break
        search.feed(_side_by_side(running), step)
    every = _side_by_side([pool.best for pool in finished])
    return search.output(every.pick(every.scores.sort(descending=True, stable=True).indices))


def settle(
    finished: Finished,
    candidates: Beams,
    ended: Tensor,
    step: int,
    allowed: Tensor | None = None,
) -> Beams:
    """4.48.3's step: keep what ``ended`` (B, K) among the n best, close, go on with the n best.

    ``allowed`` (B, K): those that may end; others that do are lost.
    """
    n = finished.ended.shape[1]
    among_best = torch.arange(ended.shape[1], device=ended.device) < n
    keep = ended & among_best
    finished.add(candidates, keep if allowed is None else keep & allowed, step + 1)
    hopeless = finished.attainable(candidates.scores.amax(-1), step + 1) <= finished.worst
    finished.close(finished.full & (hopeless | (finished.config.early_stopping is True)))
    return candidates.best(n, ended)


def _side_by_side(groups: list[Beams]) -> Beams:
    joined = groups[0]
    for group in groups[1:]:
        joined = joined.beside(group)
    return joined


class Search:
    """What the searches share: the model's step, the end of a sequence, and what is returned."""

    def __init__(self, run: Run) -> None:
        self.run, self.beams = run, run.config.num_beams
        rows = torch.arange(run.prompt.rows, device=run.device)
        #: (B, 1): the number of each row's first beam
        self.first = rows[:, None] * self.beams
        self._rows, self._limits = rows, torch.tensor(run.limits, device=run.device)
        #: one per row of the prompt
        self.generators = run.generators
        logits = run.decoder.prefill()
        run.decoder.expand(self.beams)
        self.logits = logits.repeat_interleave(self.beams, dim=0)  # (B · num_beams, V)

    @property
    def log_probabilities(self) -> Tensor:
        """(B · num_beams, V); what guidance has made is not normalised, as in the reference."""
        guided = isinstance(self.run.decoder, GuidedDecoder)
        return self.logits if guided else self.logits.log_softmax(-1)

    def process(self, scores: Tensor, running: Beams, step: int) -> Tensor:
        """``scores`` (B · k, V) of the k beams ``running``, after the processors."""
        rows = self._rows.repeat_interleave(running.ids.shape[1])
        return self.run.process(scores, running.ids[:, :, :step].flatten(0, 1), rows)

    def totals(self, scores: Tensor, running: Beams) -> Tensor:
        """(B, k, V): the log-probability of each beam's each continuation."""
        rows, k = running.scores.shape
        return scores.view(rows, k, -1) + running.scores[..., None]

    def at_limit(self, step: int) -> Tensor:
        """(B,) bool: rows that may have no further token; all of them once the time is over."""
        if self.run.stopping.out_of_time():
            return torch.ones_like(self._rows, dtype=torch.bool)
        return self._limits <= step + 1

    def ended(self, candidates: Beams, step: int) -> Tensor:
        """(B, K) bool: which candidates end with their last token, and not for their length."""
        new = candidates.ids[:, :, : step + 1]
        rows = self._rows.repeat_interleave(new.shape[1])
        ended = self.run.ended(new.flatten(0, 1), rows).view(new.shape[:2])
        by_length = (self._limits <= step + 1)[:, None] & ~torch.isin(
            new[:, :, -1], self.run.stopping.eos
        )
        return ended & ~by_length

    def goes_on(self, scores: Tensor, pools: list[Finished], step: int) -> bool:
        """Whether a row is still open; records the step, and refuses scores nobody can choose from.

        ``scores`` (B · num_beams, V): the log-probabilities after the processors.
        """
        closed = torch.stack([pool.closed for pool in pools]).all(0)  # (B,)
        facts = torch.stack([closed, self.wrong(scores, pools)])
        over, wrong = facts.tolist()  # the step's one synchronisation
        self.record(scores, wrong, step)
        return not all(over)

    def wrong(self, scores: Tensor, pools: list[Finished]) -> Tensor:
        """(B,) bool: rows for whose beams no token can be chosen from ``scores``."""
        empty = ~torch.stack([pool.ended.any(-1) for pool in pools]).any(0)
        broken = self.run.broken(self.logits, scores).view(-1, self.beams)
        return scores.isnan().any(-1).view_as(broken).any(-1) | (broken.all(-1) & empty)

    def record(self, scores: Tensor, wrong: list[bool], step: int) -> None:
        """Record the step; ArgumentError where a row is ``wrong``."""
        if any(wrong):
            raise self.run.refuse_broken(self.logits[wrong.index(True) * self.beams], step)
        self.run.recorder.add(self.run.decoder, self.logits, scores)

    def feed(self, running: Beams, step: int) -> None:
        """The model's next step behind ``running``, num_beams for each row."""
        decoder = self.run.decoder
        decoder.keep_rows(running.parents[:, :, step].flatten())
        new = running.ids[:, :, : step + 1].flatten(0, 1)
        self.logits = decoder.decode_one(new[:, -1], new)

    def output(self, best: Beams) -> GenerateBeamDecoderOnlyOutput:
        """The num_return_sequences best of each row, best first."""
        config, decoder = self.run.config, self.run.decoder
        wanted = config.num_return_sequences
        ids = best.ids[:, :wanted].flatten(0, 1)
        parents = best.parents[:, :wanted].flatten(0, 1)
        length = int((parents >= 0).sum(-1).max())
        return GenerateBeamDecoderOnlyOutput(
            sequences=ids[:, :length],
            sequences_scores=best.scores[:, :wanted].flatten(),
            beam_indices=parents[:, :length],
            past_key_values=decoder.held() if config.return_dict_in_generate else None,
            **self.run.recorder.fields(),
        )
