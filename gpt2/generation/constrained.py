"""Constrained beam search: beams that are led through the words of force_words_ids.

Follows transformers 4.48.3, which later releases have dropped. Shapes: see
gpt2/generation/beam.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.errors import ArgumentError
from gpt2.generation.beam import (
    Beams,
    Finished,
    Search,
    best_candidates,
    extend,
    how_many,
    settle,
)
from gpt2.generation.constraints import Progress, parse_words
from gpt2.generation.outputs import GenerateBeamDecoderOnlyOutput
from gpt2.generation.run import Run


def constrained_beam_search(run: Run) -> GenerateBeamDecoderOnlyOutput:
    """Beam search whose sequences may end only once all words have come.

    In each step every beam also proposes the tokens that would bring it on with
    its words; then the beams go on that are best among those equally far. Words
    in the prompt count. Where the length runs out before num_return_sequences
    beams have all words, those without compete as well, as in the reference.
    """
    config, n = run.config, run.config.num_beams
    progress = [[start] * n for start in _behind_the_prompt(run)]
    search = Search(run)
    running, finished = Beams.start(run, n), Finished(run, n)
    for step in range(run.new_tokens):
        scores = search.process(search.log_probabilities, running, step)
        totals = search.totals(scores, running)  # (B, n, V)
        places = best_candidates(totals.flatten(1), how_many(run, n))
        candidates = extend(running, totals.flatten(1), places, step, search.first)
        complete = _complete(progress, run.device).gather(1, places // totals.shape[-1])
        ended = search.ended(candidates, step)
        going_on = settle(finished, candidates, ended, step, allowed=complete)
        places, progress = led_on(totals, running, going_on, progress, step, finished.closed)
        running = extend(running, totals.flatten(1), places, step, search.first)

        complete, last = _complete(progress, run.device), search.at_limit(step)
        too_few = complete.sum(-1) < config.num_return_sequences
        finished.add(running, last[:, None] & (complete | too_few[:, None]), step + 1)
        finished.close(last)
        if not search.goes_on(scores, [finished], step):
            break
        search.feed(running, step)
    return search.output(finished.best)


def led_on(
    totals: Tensor,
    running: Beams,
    going_on: Beams,
    progress: list[list[Progress]],
    step: int,
    closed: Tensor,
) -> tuple[Tensor, list[list[Progress]]]:
    """Which n continuations to go on with: places (B, n) in B × (n · V), and their progress.

    To choose from are the n best, ``going_on``, and what brings a beam of
    ``running`` on with its words. Sorted by how far they are (the bank), the best of
    every bank come first, then the second of every bank, and so on.
    """
    beams, vocabulary = totals.shape[1:]
    tokens = going_on.ids[:, :, step]
    places = (going_on.parents[:, :, step] % beams) * vocabulary + tokens  # (B, n)
    sequences, best = running.ids[:, :, :step].tolist(), places.tolist()
    chosen, after = [], []
    for row, over in enumerate(closed.tolist()):
        proposed = list(best[row])
        if not over:
            known = {(*sequences[row][p // vocabulary], p % vocabulary) for p in proposed}
            for beam, state in enumerate(progress[row]):
                for token in [] if state.complete else state.next_tokens():
                    longer = (*sequences[row][beam], token)
                    if longer not in known:
                        known.add(longer)
                        proposed.append(beam * vocabulary + token)
        states = [progress[row][p // vocabulary].after(p % vocabulary) for p in proposed]
        order = list(range(beams))
        if len(proposed) > beams:
            at = torch.tensor(proposed, device=totals.device)
            order = _bank_by_bank([s.bank() for s in states], totals[row].flatten()[at])[:beams]
        chosen.append([proposed[i] for i in order])
        after.append([states[i] for i in order])
    return torch.tensor(chosen, device=totals.device), after


def _bank_by_bank(banks: list[int], scores: Tensor) -> list[int]:
    """The order of places: by rank within their bank, then by bank, the furthest first."""
    bank = torch.tensor(banks, device=scores.device)
    # As the reference sorts: the weight of a bank outdoes the scores of one more token.
    ranked: list[int] = (bank * 100 + scores).sort(descending=True).indices.tolist()
    rank, last, turn = [], None, 0
    for place in ranked:
        turn = turn + 1 if banks[place] == last else 0
        last = banks[place]
        rank.append(turn)
    return [ranked[i] for i in sorted(range(len(ranked)), key=rank.__getitem__)]


def _complete(progress: list[list[Progress]], device: torch.device) -> Tensor:
    """(B, n) bool: the beams whose words have all come."""
    return torch.tensor([[p.complete for p in row] for row in progress], device=device)


def _behind_the_prompt(run: Run) -> list[Progress]:
    """How far each row of the prompt is; ArgumentError where there is no room for the rest."""
    words = parse_words(run.config.force_words_ids or [])
    starts = []
    for row, limit in zip(run.prompt.tokens().tolist(), run.limits, strict=True):
        start = Progress.start(words, [token for token in row if token >= 0])
        if start.least_tokens() > limit:
            raise ArgumentError(
                f"force_words_ids takes at least {start.least_tokens()} new tokens, but there may "
                f"be only {limit} (max_new_tokens or max_length)"
            )
        starts.append(start)
    return starts
