"""Run: what one call of ``generate`` hands to the method that it has chosen.

A method is a function ``method(run) -> GenerateOutput``; it is entered in
METHODS of gpt2/generation/generate.py under the name that GenerationConfig.mode
gives. Its ``sequences`` (R, n) are the new ids only: ``generate`` puts the prompt
before them. R = rows of the prompt × num_return_sequences, those of one row
side by side.

A method starts with ``run.decoder.prefill()``, one row per row of the prompt,
whatever the number of beams; ``run.decoder.expand(k)`` then makes k of each.
In every step it asks, for rows of its own (R' of them, whose prompt rows are
``rows``), ``run.process(scores, new, rows)`` and ``run.stopping``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpt2.errors import ArgumentError
from gpt2.generation.callers import OfRows
from gpt2.generation.config import GenerationConfig
from gpt2.generation.decoder import Decoder
from gpt2.generation.outputs import Recorder
from gpt2.generation.processors import Processor
from gpt2.generation.prompt import CausalLM, Prompt
from gpt2.generation.stopping import Stopping


class Streamer(Protocol):
    """The documented protocol: the prompt's ids (R, W), each step's (R,), then ``end``.

    ABSENT (−1) stands for padding of the prompt, which comes first in its row,
    and in a step for a row that has ended before. A streamer may have a method
    ``fail(error)``, which is called in place of ``end`` if generation raises.
    """

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@contextmanager
def errors_told_to(streamer: Streamer | None) -> Iterator[None]:
    """Tell the streamer of an error on its way to the caller: another thread may be waiting."""
    try:
        yield
    except BaseException as error:
        fail = getattr(streamer, "fail", None)
        if fail is not None:
            fail(error)
        raise


@dataclass
class Run:
    """See the module. B rows of the prompt."""

    config: GenerationConfig
    prompt: Prompt
    decoder: Decoder
    #: new tokens that each row may have; ``new_tokens`` is the most of them
    limits: list[int]
    processors: Sequence[Processor | OfRows]
    stopping: Stopping
    #: one per returned row where ``seed`` was given, else torch's own generator draws
    generators: list[torch.Generator] | None
    streamer: Streamer | None
    recorder: Recorder
    #: the model that drafts for assisted decoding
    assistant: CausalLM | None = None

    def __post_init__(self) -> None:
        self._tokens = self.prompt.tokens()  # (B, W)

    @property
    def new_tokens(self) -> int:
        return max(self.limits)

    @property
    def device(self) -> torch.device:
        return self.prompt.device

    @property
    def filler(self) -> int:
        """What stands behind a row's end: the pad token, or EOS where there is none."""
        pad = self.config.pad_token_id
        return pad if pad is not None else (*self.config.eos_token_ids, 0)[0]

    def given_ids(self, new: Tensor, rows: Tensor | None = None) -> Tensor:
        """The documented ``input_ids`` (R, W + n): the prompt as it was given, then ``new``."""
        ids = self.prompt.ids
        if ids is None:
            return new
        return torch.cat([ids if rows is None else ids[rows], new], dim=1)

    def stream_prompt(self, rows: Tensor | None = None) -> None:
        """Give the streamer, if there is one, the ids of the prompt, (R, W); (R, 0) of none."""
        if self.streamer is not None:
            tokens = self._tokens if self.prompt.ids is not None else self._tokens[:, :0]
            self.streamer.put((tokens if rows is None else tokens[rows]).cpu())

    def process(self, scores: Tensor, new: Tensor, rows: Tensor | None = None) -> Tensor:
        """``scores`` (R, V) after all processors, where ``new`` (R, n) are the ids so far.

        ``rows`` (R,) int64: the prompt row of each, where that is not its own number.
        """
        if not self.processors:
            return scores
        ids = torch.cat([self._tokens if rows is None else self._tokens[rows], new], dim=1)
        for process in self.processors:
            if isinstance(process, OfRows):
                scores = process.apply(self.given_ids(new, rows), ids, scores, rows)
            else:
                scores = process(ids, scores)
        return scores

    def ended(self, new: Tensor, rows: Tensor | None = None) -> Tensor:
        """(R,) bool: which rows end with the last column of their ``new`` ids (R, n).

        By any rule but max_time, of which ``stopping.out_of_time`` tells. Stop
        strings cost a transfer to the host here.
        """
        ended = self.ended_on_device(new, rows)
        strings = self.stopping.strings
        if strings is not None:
            numbers = range(len(new)) if rows is None else rows.tolist()
            met = [strings.ended(r, ids) for r, ids in zip(numbers, new.tolist(), strict=True)]
            ended = ended | torch.tensor(met, device=ended.device)
        return ended

    def ended_on_device(self, new: Tensor, rows: Tensor | None = None) -> Tensor:
        """As ``ended``, without stop strings."""
        ended = self.stopping.ended(new[:, -1], new.shape[1] - 1, rows)
        if self.stopping.criteria:
            scores = self.recorder.steps.get("scores")
            told = self.stopping.told(self.given_ids(new, rows), tuple(scores) if scores else None)
            ended = ended | told
        return ended

    @property
    def rows_may_leave(self) -> bool:
        """Whether an ended row can leave the batch, and nobody can tell that it has."""
        callers = self.stopping.criteria or any(isinstance(p, OfRows) for p in self.processors)
        fixed = self.config.long_context or self.decoder.keeps_all_rows
        return not (self.config.return_dict_in_generate or fixed or callers)

    def broken(self, logits: Tensor, scores: Tensor) -> Tensor:
        """(R,) bool: rows out of which no token can be chosen; see ``refuse_broken``."""
        unusable = ~scores.amax(-1).isfinite()  # NaN, +inf, or a row of −inf
        if self.config.remove_invalid_values or scores is logits:
            return unusable
        return unusable | ~logits.amax(-1).isfinite()

    def refuse_broken(self, logits: Tensor, step: int) -> ArgumentError:
        """The error for a row that is ``broken``; ``logits`` (V,) are the model's for it."""
        if not bool(logits.amax().isfinite()):
            return ArgumentError(
                f"the model's logits are NaN or infinite at new token {step}; the weights or "
                "inputs_embeds hold NaN, or overflow in this dtype"
            )
        return ArgumentError(
            f"the processors leave no token to choose at new token {step}: every score is −inf "
            "or one is NaN; loosen what forbids tokens (bad_words_ids, suppress_tokens, "
            "no_repeat_ngram_size, prefix_allowed_tokens_fn, logits_processor)"
        )
