"""Greedy decoding and sampling: choose, stop or go on, token by token.

Shapes: R rows of the result that are still in the batch, n new ids, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.generation.outputs import GenerateDecoderOnlyOutput
from gpt2.generation.processors import ABSENT
from gpt2.generation.run import Run
from gpt2.modeling.cache import KVCache


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
    """The loop of greedy decoding (the most probable token) and of sampling (a drawn one)."""
    config, decoder, times = run.config, run.decoder, run.config.num_return_sequences
    logits = decoder.prefill().repeat_interleave(times, dim=0)
    decoder.expand(times)
    batch = Batch(run, len(logits))
    run.stream_prompt(batch.prompt_rows)

    for step in range(run.new_tokens):
        scores = run.process(logits, batch.new(step), batch.prompt_rows)
        run.recorder.add(decoder, logits, scores)
        tokens = batch.draw(scores) if config.do_sample else scores.argmax(-1)  # (R,)
        batch.settle(step, tokens, logits, scores)
        if batch.over or run.stopping.out_of_time():
            break
        batch.drop_ended()
        so_far = batch.new(step + 1)
        logits = decoder.decode_one(so_far[:, -1], so_far)

    if run.streamer is not None:
        run.streamer.end()
    return GenerateDecoderOnlyOutput(
        sequences=batch.all_new[:, : step + 1],
        past_key_values=batch.cache(step),
        **run.recorder.fields(),
    )


class Batch:
    """Which rows of the result the model still sees, and which of them have ended.

    Rows that have ended leave, unless what is returned or a function of the
    caller's would tell (Run.rows_may_leave): then they stay, and are fed
    fillers. R rows are there; on the device ``rows`` (R,) are their numbers,
    ``prompt_rows`` (R,) those of their prompts, ``going`` (R,) bool says which
    have not ended. ``all_new`` (size, n) are the new ids of all rows, fillers
    behind their end.
    """

    def __init__(self, run: Run, size: int) -> None:
        self.run, self.size = run, size
        self.rows = torch.arange(size, device=run.device)
        self.all_new = torch.full((size, run.new_tokens), run.filler, device=run.device)
        self.prompt_rows = self.rows // run.config.num_return_sequences
        self.going = torch.ones_like(self.rows, dtype=torch.bool)
        self._present, self._ended = list(range(size)), [False] * size  # on the host, as above
        self._ended_before = self._ended  # a step earlier
        self._texts: list[list[int]] = [[] for _ in range(size)]  # new ids, for stop strings
        self._lengths = [run.new_tokens] * size  # new ids until the end, where rows stay
        self._generators = run.generators

    @property
    def over(self) -> bool:
        """Whether all rows have ended."""
        return all(self._ended)

    def new(self, count: int) -> Tensor:
        """The first ``count`` new ids of the rows that are there, (R, count)."""
        everybody = len(self._present) == self.size
        return self.all_new[:, :count] if everybody else self.all_new[self.rows, :count]

    def draw(self, scores: Tensor) -> Tensor:
        """One token per row, (R,), drawn from softmax(scores)."""
        rows = None if len(self._present) == self.size else self.rows
        return draw(scores, self.size, rows, self._generators)

    def settle(self, step: int, tokens: Tensor, logits: Tensor, scores: Tensor) -> None:
        """Write down ``tokens`` (R,), new token number ``step``, and see which rows end with it.

        Raises ArgumentError where a token could not be chosen from the
        ``scores``. The streamer gets its column.
        """
        run, strings = self.run, self.run.stopping.strings
        all_go = not any(self._ended)  # as at most steps: then there is nothing to mask
        written = tokens if all_go else tokens.where(self.going, run.filler)
        rows = slice(None) if len(self._present) == self.size else self.rows
        self.all_new[rows, step] = written
        ended = run.ended_on_device(self.new(step + 1), self.prompt_rows)
        broken = run.broken(logits, scores)
        if not all_go:
            ended, broken = ended | ~self.going, broken & self.going
            tokens = tokens.where(self.going, ABSENT)
        facts = torch.stack([tokens, ended, broken])
        on_host, over, wrong = facts.tolist()  # the step's one synchronisation
        if any(wrong):
            raise run.refuse_broken(logits[wrong.index(1)], step)
        if run.streamer is not None:
            column = torch.full((self.size,), ABSENT)
            column[self._present] = torch.tensor(on_host)
            run.streamer.put(column)
        self._ended_before, self._ended = self._ended, [bool(o) for o in over]
        if strings is not None:
            for i, (row, text) in enumerate(zip(self._present, self._texts, strict=True)):
                text.append(on_host[i])
                met = strings.ended(row // run.config.num_return_sequences, text)
                self._ended[i] = self._ended[i] or met
        for i, (now, earlier) in enumerate(zip(self._ended, self._ended_before, strict=True)):
            if now and not earlier:
                self._lengths[i] = step + 1

    def drop_ended(self) -> None:
        """Let rows that have ended leave, where they may."""
        if self._ended == self._ended_before:
            return
        if not self.run.rows_may_leave:
            self.going = torch.tensor([not e for e in self._ended], device=self.run.device)
            return
        kept = [i for i, ended in enumerate(self._ended) if not ended]
        index = torch.tensor(kept, device=self.run.device)
        self.run.decoder.keep_rows(index)
        self.rows, self.prompt_rows = self.rows[index], self.prompt_rows[index]
        self.going = self.going[index]
        self._present = [self._present[i] for i in kept]
        self._texts = [self._texts[i] for i in kept]
        self._ended = [False] * len(kept)
        if self._generators is not None:
            self._generators = [self._generators[i] for i in kept]

    def cache(self, step: int) -> KVCache | None:
        """What is returned as past_key_values after new token number ``step``."""
        if not self.run.config.return_dict_in_generate or self.run.config.long_context:
            return None  # a window is no beginning of the sequences
        return self.run.decoder.cache_of([min(n, step) for n in self._lengths])
