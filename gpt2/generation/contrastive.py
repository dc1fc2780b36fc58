"""Contrastive search (arXiv:2202.06417): probable tokens that do not say again what was said.

Shapes: B rows, k candidates, S columns so far, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.errors import ArgumentError
from gpt2.generation.decoder import Decoder
from gpt2.generation.outputs import GenerateDecoderOnlyOutput
from gpt2.generation.processors import ABSENT
from gpt2.generation.run import Run


def penalised(
    probabilities: Tensor, ahead: Tensor, context: Tensor, seen: Tensor, alpha: float
) -> Tensor:
    """(1 − α) · probability − α · likeness, (B, k).

    The likeness of a candidate is the largest cosine between its hidden state
    ``ahead`` (B, k, D) and those of the tokens before it, ``context`` (B, S, D)
    where ``seen`` (B, S); both have length 1.
    """
    cosines = ahead @ context.transpose(1, 2)  # (B, k, S)
    likeness = cosines.masked_fill(~seen[:, None], -torch.inf).amax(-1)
    return (1 - alpha) * probabilities - alpha * likeness


def contrastive_search(run: Run) -> GenerateDecoderOnlyOutput:
    """Of the top_k most probable tokens, the one with the best ``penalised`` score.

    All candidates of a step go through the model in one pass, side by side
    behind one cache.
    """
    config, decoder, streamer = run.config, run.decoder, run.streamer
    _require_all_states(run)
    k = min(config.top_k or 0, decoder.model.config.vocab_size)
    alpha = config.penalty_alpha or 0.0
    size, width, device = run.prompt.rows, run.prompt.width, run.device
    decoder.make_room(k)
    decoder.output_hidden_states = True
    logits = decoder.prefill()
    first = _direction(decoder)
    context = first.new_zeros(size, width + run.new_tokens, first.shape[-1])
    context[:, :width] = first
    seen = torch.ones(context.shape[:2], dtype=torch.bool, device=device)
    if run.prompt.mask is not None:
        seen[:, :width] = run.prompt.mask

    new = torch.full((size, run.new_tokens), run.filler, dtype=torch.int64, device=device)
    going = torch.ones(size, dtype=torch.bool, device=device)
    lengths = [0] * size  # new tokens of each row, up to its end
    run.stream_prompt()
    for step in range(run.new_tokens):
        scores = run.process(logits, new[:, :step])
        run.recorder.add(decoder, logits, scores)
        probabilities, candidates = scores.softmax(-1).topk(k)  # (B, k)
        behind = decoder.decode_each(candidates)  # (B, k, V)
        ahead, held = _direction(decoder), width + step
        each = penalised(probabilities, ahead, context[:, :held], seen[:, :held], alpha)
        picked = each.argmax(-1)  # (B,)
        decoder.keep_one(picked, k)

        rows = torch.arange(size, device=device)
        context[:, held] = ahead[rows, picked]
        new[:, step] = candidates[rows, picked].where(going, run.filler)
        broken = run.broken(logits, scores) & going
        streamed = new[:, step].where(going, ABSENT)
        going = going & ~run.ended(new[:, : step + 1])
        tokens, still, wrong = torch.stack([streamed, going, broken]).tolist()
        lengths = [n + (token != ABSENT) for n, token in zip(lengths, tokens, strict=True)]
        if any(wrong):
            raise run.refuse_broken(logits[wrong.index(1)], step)
        if streamer is not None:
            streamer.put(torch.tensor(tokens))
        if not any(still) or run.stopping.out_of_time():
            break
        logits = behind[rows, picked]
    if streamer is not None:
        streamer.end()
    return GenerateDecoderOnlyOutput(
        sequences=new[:, : step + 1],
        past_key_values=decoder.cache_of([min(n, step) for n in lengths]),
        **run.recorder.fields(),
    )


def _direction(decoder: Decoder) -> Tensor:
    """The last hidden states of the last pass, (B, T, D) in float32, each of length 1."""
    assert decoder.hidden_states is not None
    states = decoder.hidden_states[-1].float()
    lengths: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return states / lengths


def _require_all_states(run: Run) -> None:
    """Refuse what would leave a token of the context without its hidden state."""
    if not run.config.use_cache:
        raise ArgumentError("use_cache=False: contrastive search needs the cache; leave it out")
    if run.config.guidance_scale not in (None, 1.0):
        raise ArgumentError(
            f"guidance_scale={run.config.guidance_scale} does not go with contrastive search, "
            "whose candidates it would have to guide one by one; leave out one of them"
        )
    if run.decoder.past is not None and run.decoder.past.length:
        raise ArgumentError(
            "past_key_values holds no hidden states, with which contrastive search compares; "
            "give the whole prompt without it"
        )
