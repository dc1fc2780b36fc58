"""Greedy decoding and sampling: choose, stop or go on, token by token.

Shapes: B rows of the result, R of them still going on, n steps, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.generation.outputs import GenerateDecoderOnlyOutput
from gpt2.generation.prompt import ABSENT
from gpt2.generation.run import Run


def draw(
    scores: Tensor, noise_rows: int, rows: Tensor | None, generators: list[torch.Generator] | None
) -> Tensor:
    """One token id per row, (R,), drawn from softmax(scores).

    argmax(p / e) with e exponential noise is a draw from p; it is also what
    torch.multinomial does for one sample, so that the same seed gives the same
    tokens. Noise is drawn for all ``noise_rows`` rows of the batch, and
    ``rows`` picks those still there, so that a row's luck does not hang on
    whether another has finished. With ``generators`` each row has its own.
    """
    probabilities = scores.softmax(-1)  # (R, V)
    if generators is None:
        noise = probabilities.new_empty(noise_rows, scores.shape[-1]).exponential_(1)
        noise = noise if rows is None else noise[rows]
    else:
        noise = torch.empty_like(probabilities)
        for i, generator in enumerate(generators):
            noise[i].exponential_(1, generator=generator)
    return (probabilities / noise).argmax(-1)


def decode(run: Run) -> GenerateDecoderOnlyOutput:
    """The loop of greedy decoding (the most probable token) and of sampling (a drawn one).

    Rows that have ended leave the batch, unless what is returned or a function
    of the caller's would tell: then they stay, and are fed hidden fillers.
    """
    config, decoder, streamer = run.config, run.decoder, run.streamer
    times, rows_may_leave = config.num_return_sequences, run.rows_may_leave
    logits = decoder.prefill().repeat_interleave(times, dim=0)
    decoder.expand(times)

    size, device = len(logits), run.device
    prompt_rows = torch.arange(size, device=device) // times
    new = torch.full((size, run.new_tokens), run.filler, dtype=torch.int64, device=device)
    rows = torch.arange(size, device=device)  # rows of `new` that are in the batch, and on the host
    present, generators = list(range(size)), run.generators
    strings, texts = run.stopping.strings, [list[int]() for _ in present]
    going = torch.ones(size, dtype=torch.bool, device=device)  # of those, the ones not ended
    run.stream_prompt(prompt_rows)

    for step in range(run.new_tokens):
        so_far = new[rows, :step]
        scores = run.process(logits, so_far, prompt_rows[rows])
        run.recorder.add(decoder, logits, scores)
        if config.do_sample:
            tokens = draw(scores, size, rows if len(rows) < size else None, generators)
        else:
            tokens = scores.argmax(-1)  # (R,)
        tokens = tokens.where(going, run.filler)
        new[rows, step] = tokens
        ended = run.ended_on_device(new[rows, : step + 1], prompt_rows[rows])
        broken = run.broken(logits, scores) & going
        facts = torch.stack([tokens.where(going, ABSENT), ~going | ended, broken])
        on_host, over, wrong = facts.tolist()  # the step's one synchronisation
        if any(wrong):
            raise run.refuse_broken(logits[wrong.index(1)], step)
        if streamer is not None:
            column = torch.full((size,), ABSENT)
            column[present] = torch.tensor(on_host)
            streamer.put(column)
        for i, token in enumerate(on_host if strings is not None else ()):
            texts[i].append(token)
            over[i] = over[i] or strings.ended(present[i] // times, texts[i])
        if all(over) or run.stopping.out_of_time():
            break
        if any(over):
            still = torch.tensor([not o for o in over], device=device)
            if rows_may_leave:
                kept = [i for i, o in enumerate(over) if not o]
                index = torch.tensor(kept, device=device)
                decoder.keep_rows(index)
                rows, tokens, going = rows[index], tokens[index], going[index]
                present, texts = [present[i] for i in kept], [texts[i] for i in kept]
                generators = None if generators is None else [generators[i] for i in kept]
            else:
                going = still
        logits = decoder.decode_one(tokens, new[rows, : step + 1])
        if any(over) and not rows_may_leave:
            decoder.hide(going[:, None])
    if streamer is not None:
        streamer.end()
    return GenerateDecoderOnlyOutput(
        sequences=new[:, : step + 1],
        past_key_values=None if config.long_context else decoder.past,
        **run.recorder.fields(),
    )
