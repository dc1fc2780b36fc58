"""What ``generate`` returns with return_dict_in_generate=True, and the recorder that collects it.

Shapes: R returned rows, N columns of the longest sequence, n steps, V
vocabulary, L layers, H heads, D hidden; T columns fed in a step (the prompt's in
the first), S columns seen then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import ArgumentError
from gpt2.generation.config import GenerationConfig
from gpt2.generation.decoder import Decoder
from gpt2.modeling.cache import KVCache
from gpt2.modeling.outputs import ModelOutput, output_class


@output_class
class GenerateDecoderOnlyOutput(ModelOutput):
    """Of greedy decoding, sampling, contrastive search and assisted decoding.

    ``sequences`` (R, N); ``scores`` and ``logits`` n tensors (R, V), after and
    before the processors; ``attentions`` n tuples of L tensors (R, H, T, S);
    ``hidden_states`` n tuples of L + 1 tensors (R, T, D); ``past_key_values``
    the cache of all but the last column of ``sequences``.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: KVCache | None = None


@output_class
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """Of all beam methods; K = rows of the prompt × num_beams running beams.

    ``sequences`` (R, N), best first for each row of the prompt;
    ``sequences_scores`` (R,): their log-probability over their length to the
    power of length_penalty; ``scores`` and ``logits`` n tensors (K, V),
    ``scores`` log-probabilities after the processors; ``beam_indices`` (R, n):
    the running beam that each token came from, −1 behind the end;
    ``attentions`` and ``hidden_states`` as without beams, with K rows;
    ``past_key_values`` the cache of the beams that ran last, K rows.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: KVCache | None = None


GenerateOutput = GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput


class Recorder:
    """Collects, step by step, what the settings ask to have returned."""

    def __init__(self, config: GenerationConfig) -> None:
        self.wanted = [
            name
            for name in ("scores", "logits", "attentions", "hidden_states")
            if getattr(config, f"output_{name}")
        ]
        self.steps: dict[str, list[Any]] = {name: [] for name in self.wanted}

    def add(self, decoder: Decoder, logits: Tensor, scores: Tensor) -> None:
        """One step: the ``logits`` (R, V) of the decoder, and what the processors made of them."""
        found = {
            "scores": scores,
            "logits": logits,
            "attentions": decoder.attentions,
            "hidden_states": decoder.hidden_states,
        }
        for name in self.wanted:
            self.steps[name].append(found[name])

    def fields(self) -> dict[str, tuple[Any, ...]]:
        """The collected fields, by the names of the returned dataclasses."""
        return {name: tuple(steps) for name, steps in self.steps.items()}


def transition_scores(
    sequences: Tensor,
    scores: Sequence[Tensor],
    beam_indices: Tensor | None = None,
    normalize_logits: bool = False,
) -> Tensor:
    """The score of each generated token of ``sequences`` (R, N): (R, n), where n = len(scores).

    ``scores`` and, with beams, ``beam_indices`` are the returned fields; with
    beams n is the length of the longest sequence, and behind an end stands 0.
    ``normalize_logits``: as log-probabilities. With beams, whose scores are
    log-probabilities, the sum of a row over its length to the power of
    length_penalty is its sequences_scores. Raises ArgumentError.
    """
    if not scores:
        raise ArgumentError("scores is empty; generate with output_scores=True")
    steps = torch.stack(list(scores), dim=1)  # (K, n, V)
    if normalize_logits:
        steps = steps.log_softmax(-1)
    if beam_indices is None:
        new = _last(sequences, steps.shape[1])
        if len(new) != len(steps):
            raise ArgumentError(
                f"sequences has {len(new)} rows, scores {len(steps)}; with beams give beam_indices"
            )
        return steps.gather(-1, new[..., None])[..., 0]
    length = int((beam_indices >= 0).sum(-1).max())
    beams, new = beam_indices[:, :length], _last(sequences, length)
    step = torch.arange(length, device=beams.device)
    return steps[beams.clamp(min=0), step, new].masked_fill(beams < 0, 0.0)


def _last(sequences: Tensor, columns: int) -> Tensor:
    if sequences.shape[1] < columns:
        raise ArgumentError(
            f"sequences has {sequences.shape[1]} columns, fewer than the {columns} steps of scores"
        )
    return sequences[:, sequences.shape[1] - columns :]
