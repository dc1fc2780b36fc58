"""Constrained beam search: beams that are led through the words of force_words_ids.

Follows transformers 4.48.3, which later releases have dropped. Shapes: see
gpt2/generation/beam.py.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from operator import or_

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

Ids = tuple[int, ...]


def constrained_beam_search(run: Run) -> GenerateBeamDecoderOnlyOutput:
    """Beam search whose sequences may end only once all words have come.

    In each step every beam also proposes the tokens that would bring it on with
    its words; then the beams go on that are best among those equally far. Words
    in the prompt count. Where the length runs out before num_return_sequences
    beams have all words, those without compete as well, as in the reference.
    """
    config, n = run.config, run.config.num_beams
    progress = [[start] * n for start in _behind_the_prompt(run)]
    begun: list[list[Ids]] = [[()] * n for _ in progress]  # the running beams' new ids
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

        proposals = [_proposals(row, totals.shape[-1]) for row in progress]
        wrong = search.wrong(scores, [finished])
        seen = _to_host(totals, going_on, proposals, finished.closed, wrong, step)
        search.record(scores, seen.wrong, step)
        chosen, progress, begun = led_on(seen, proposals, progress, begun, totals.shape[-1])
        places = torch.tensor(chosen, device=run.device)
        running = extend(running, totals.flatten(1), places, step, search.first)

        late = run.stopping.out_of_time()
        over = [late or limit <= step + 1 for limit in run.limits]
        complete, last = _complete(progress, run.device), torch.tensor(over, device=run.device)
        too_few = complete.sum(-1) < config.num_return_sequences
        finished.add(running, last[:, None] & (complete | too_few[:, None]), step + 1)
        finished.close(last)
        if all(map(or_, seen.closed, over)):
            break
        search.feed(running, step)
    return search.output(finished.best)


@dataclass(frozen=True)
class Seen:
    """What the host must know of a step to choose its beams, for each row."""

    places: list[list[int]]  # in n · V, of the n best continuations that have not ended
    scores: list[list[float]]  # theirs, then those of the proposals
    closed: list[bool]
    wrong: list[bool]


def _to_host(
    totals: Tensor,
    going_on: Beams,
    proposals: list[list[int]],
    closed: Tensor,
    wrong: Tensor,
    step: int,
) -> Seen:
    beams, vocabulary = totals.shape[1:]
    tokens = going_on.ids[:, :, step]
    places = (going_on.parents[:, :, step] % beams) * vocabulary + tokens  # (B, n)
    most = max(map(len, proposals))
    padded = [row + [0] * (most - len(row)) for row in proposals]
    also = torch.tensor(padded, dtype=torch.int64, device=totals.device)
    scores = totals.flatten(1).gather(1, torch.cat([places, also], dim=1))
    flags = torch.stack([closed, wrong], dim=1)
    facts = torch.cat([flags.double(), places.double(), scores.double()], dim=1)
    rows = facts.tolist()  # the step's one synchronisation; a double holds each of them exactly
    return Seen(
        [[int(place) for place in row[2 : 2 + beams]] for row in rows],
        [row[2 + beams :] for row in rows],
        [bool(row[0]) for row in rows],
        [bool(row[1]) for row in rows],
    )


def _proposals(row: list[Progress], vocabulary: int) -> list[int]:
    """The places, in n · V, of the tokens that bring the beams of a row on with their words."""
    return [
        beam * vocabulary + token
        for beam, state in enumerate(row)
        if not state.complete
        for token in state.next_tokens()
    ]


def led_on(
    seen: Seen,
    proposals: list[list[int]],
    progress: list[list[Progress]],
    begun: list[list[Ids]],
    vocabulary: int,
) -> tuple[list[list[int]], list[list[Progress]], list[list[Ids]]]:
    """Which n continuations to go on with: places (B, n) in n · V, their progress and new ids.

    To choose from are the n best and what brings a beam on with its words.
    Sorted by how far they are (the bank), the best of every bank come first,
    then the second of every bank, and so on.
    """
    chosen, after, ids = [], [], []
    for row, best in enumerate(seen.places):
        beams = len(best)
        proposed, scores = list(best), seen.scores[row][:beams]

        def longer(place: int, row: int = row) -> Ids:
            return (*begun[row][place // vocabulary], place % vocabulary)

        known = set(map(longer, proposed))
        for place, score in zip(proposals[row], seen.scores[row][beams:], strict=False):
            if not seen.closed[row] and longer(place) not in known:
                known.add(longer(place))
                proposed.append(place)
                scores.append(score)
        states = [progress[row][p // vocabulary].after(p % vocabulary) for p in proposed]
        order = list(range(beams))
        if len(proposed) > beams:
            order = _bank_by_bank([s.bank() for s in states], scores)[:beams]
        chosen.append([proposed[i] for i in order])
        after.append([states[i] for i in order])
        ids.append([longer(proposed[i]) for i in order])
    return chosen, after, ids


def _bank_by_bank(banks: list[int], scores: list[float]) -> list[int]:
    """The order of places: by rank within their bank, then by bank, the furthest first."""
    # As the reference sorts, in float32: a bank's weight outdoes the scores of one more token.
    weights = array("f", [bank * 100 + score for bank, score in zip(banks, scores, strict=True)])
    ranked = sorted(range(len(banks)), key=weights.__getitem__, reverse=True)
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
