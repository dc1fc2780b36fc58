"""Token by token: prefill the prompt, then choose, stop or go on.

Knows no module, only a model with a cache (the CausalLM protocol). Shapes: B
rows of the result, W columns of the (padded) prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError
from gpt2.generation.config import GenerationConfig
from gpt2.generation.processors import Processor, processors_for
from gpt2.modeling.cache import KVCache


class CausalLM(Protocol):
    """What decoding needs of a model."""

    config: GPT2Config
    generation_config: GenerationConfig

    @property
    def device(self) -> torch.device: ...

    def get_input_embeddings(self) -> nn.Module: ...

    def __call__(self, input_ids: Tensor | None = None, **inputs: Any) -> Any: ...


class Streamer(Protocol):
    """The documented protocol: the prompt's ids first, then each step's, then ``end``."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@dataclass(frozen=True)
class Prompt:
    """The rows to continue: ``ids`` (B, W) or ``embeds`` (B, W, D); ``mask`` (B, W) or None."""

    ids: Tensor | None
    embeds: Tensor | None
    mask: Tensor | None  # bool; None where every column is a real token
    rows: int
    width: int
    length: int  # real tokens of the longest row

    def repeated(self, times: int) -> Prompt:
        """Each row ``times`` times, copies side by side."""

        def repeat(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.repeat_interleave(times, dim=0)

        return replace(
            self,
            ids=repeat(self.ids),
            embeds=repeat(self.embeds),
            mask=repeat(self.mask),
            rows=self.rows * times,
        )


def prepare_prompt(
    model: CausalLM,
    config: GenerationConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    inputs_embeds: Tensor | None,
) -> Prompt:
    """The prompt, checked; one BOS token where there is none.

    Without an attention mask every token is real; only where a pad token other
    than EOS is declared and occurs, the padding is read off the ids, as documented.
    """
    if input_ids is not None and inputs_embeds is not None:
        raise ArgumentError("give either input_ids or inputs_embeds; both were given")
    if input_ids is None and inputs_embeds is None:
        if config.bos_token_id is None:
            raise ArgumentError("without a prompt generate needs bos_token_id, and none is set")
        input_ids = torch.full((1, 1), config.bos_token_id, device=model.device)
    given = input_ids if input_ids is not None else inputs_embeds
    name, rank = ("input_ids", 2) if input_ids is not None else ("inputs_embeds", 3)
    if not isinstance(given, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, not {type(given).__name__}")
    if given.dim() != rank or given.numel() == 0:
        shape = "(batch, length)" if rank == 2 else "(batch, length, hidden size)"
        raise ArgumentError(f"{name} has shape {tuple(given.shape)}; expected {shape}, not empty")
    rows, width = given.shape[:2]

    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        raise ArgumentTypeError(
            f"attention_mask must be a tensor, not {type(attention_mask).__name__}"
        )
    mask = attention_mask
    pad = config.pad_token_id
    if (
        mask is None
        and input_ids is not None
        and pad is not None
        and pad not in config.eos_token_ids
    ):
        mask = input_ids.ne(pad)
    length = width
    if mask is not None:
        if mask.shape != (rows, width):
            raise ArgumentError(
                f"attention_mask has shape {tuple(mask.shape)}; expected {(rows, width)}"
            )
        odd = ((mask != 0) & (mask != 1)).any(-1)
        mask = mask.to(device=given.device, dtype=torch.bool)
        lengths, odd_rows = torch.stack([mask.sum(-1), odd.to(given.device)]).tolist()
        if any(odd_rows):
            raise ArgumentError(
                "attention_mask must hold only 0 (padding) and 1 (real token); row "
                f"{odd_rows.index(1)} holds something else"
            )
        if 0 in lengths:
            raise ArgumentError(f"row {lengths.index(0)} of the prompt is all padding")
        length = max(lengths)
        mask = None if min(lengths) == width else mask
    return Prompt(input_ids, inputs_embeds, mask, rows, width, length)


def draw(
    scores: Tensor, noise_rows: int, rows: Tensor | None, generators: list[torch.Generator] | None
) -> Tensor:
    """One token id per row, (B,), drawn from softmax(scores).

    argmax(p / e) with e exponential noise is a draw from p; it is also what
    torch.multinomial does for one sample, so that the same seed gives the same
    tokens. Noise is drawn for all ``noise_rows`` rows of the batch, and
    ``rows`` picks those still there, so that a row's luck does not hang on
    whether another has finished. With ``generators`` each row has its own.
    """
    probabilities = scores.softmax(-1)  # (B, V)
    if generators is None:
        noise = probabilities.new_empty(noise_rows, scores.shape[-1]).exponential_(1)
        noise = noise if rows is None else noise[rows]
    else:
        noise = torch.empty_like(probabilities)
        for i, generator in enumerate(generators):
            noise[i].exponential_(1, generator=generator)
    return (probabilities / noise).argmax(-1)


def _generators(
    seed: Sequence[int] | None, prompt: Prompt, do_sample: bool
) -> list[torch.Generator] | None:
    if seed is None:
        return None
    if not do_sample:
        raise ArgumentError("seed has no effect without do_sample=True")
    if (
        not isinstance(seed, Sequence)
        or len(seed) != prompt.rows
        or not all(isinstance(s, int) for s in seed)
    ):
        raise ArgumentError(
            f"seed must be one whole number per returned row ({prompt.rows}), not {seed!r}; "
            "for one seed for all use torch.manual_seed"
        )
    device = (prompt.ids if prompt.ids is not None else prompt.embeds).device  # type: ignore[union-attr]
    return [torch.Generator(device).manual_seed(s) for s in seed]


class Decoder:
    """One run over one batch: the cache, the mask and the rows that are still going on."""

    def __init__(self, model: CausalLM, prompt: Prompt, new_tokens: int, use_cache: bool) -> None:
        self.model, self.prompt, self.use_cache = model, prompt, use_cache
        total = prompt.width + new_tokens
        self.past: KVCache | None = KVCache(model.config.n_layer, capacity=total)
        self.mask: Tensor | None = None  # (B, W + new) where the prompt is padded
        if prompt.mask is not None:
            behind = prompt.mask.new_ones(prompt.rows, new_tokens)
            self.mask = torch.cat([prompt.mask, behind], dim=1)

    def prefill(self) -> Tensor:
        """Scores (B, V) of the token behind each row's last real token."""
        keep: int | Tensor = 1
        if self.prompt.mask is not None:
            columns = torch.arange(self.prompt.width, device=self.prompt.mask.device)
            keep = (self.prompt.mask * columns).argmax(-1, keepdim=True)  # (B, 1)
        return self._forward(
            self.prompt.ids, self.prompt.embeds, self.prompt.width, keep, check_inputs=True
        )

    def decode_one(self, tokens: Tensor, so_far: Tensor) -> Tensor:
        """Scores (B, V) behind ``tokens`` (B,), the last column of ``so_far`` (B, n) new ids."""
        width = self.prompt.width + so_far.shape[1]
        if self.use_cache:
            return self._forward(tokens[:, None], None, width, 1)
        if self.prompt.embeds is not None:
            embedded = self.model.get_input_embeddings()(so_far)
            return self._forward(None, torch.cat([self.prompt.embeds, embedded], 1), width, 1)
        assert self.prompt.ids is not None
        return self._forward(torch.cat([self.prompt.ids, so_far], 1), None, width, 1)

    def _forward(
        self,
        ids: Tensor | None,
        embeds: Tensor | None,
        width: int,
        keep: int | Tensor,
        check_inputs: bool = False,
    ) -> Tensor:
        output = self.model(
            ids,
            inputs_embeds=embeds,
            attention_mask=None if self.mask is None else self.mask[:, :width],
            past_key_values=self.past if self.use_cache else None,
            use_cache=self.use_cache,
            output_attentions=False,
            output_hidden_states=False,
            return_dict=True,
            logits_to_keep=keep,
            check_inputs=check_inputs,  # lengths are known beforehand: no checks in the loop
        )
        self.past = output.past_key_values
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        prompt = self.prompt
        self.prompt = replace(
            prompt,
            ids=None if prompt.ids is None else prompt.ids[rows],
            embeds=None if prompt.embeds is None else prompt.embeds[rows],
            mask=None if prompt.mask is None else prompt.mask[rows],
            rows=len(rows),
        )
        self.mask = None if self.mask is None else self.mask[rows]
        if self.past is not None:
            self.past = self.past.select(rows)


@torch.no_grad()
def generate(
    model: CausalLM,
    input_ids: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    streamer: Streamer | None = None,
    seed: Sequence[int] | None = None,
    **settings: Any,
) -> Tensor:
    """Continue each row of the prompt; see GPT2LMHeadModel.generate."""
    config = _settings(model, generation_config, settings)
    prompt = prepare_prompt(model, config, input_ids, attention_mask, inputs_embeds)
    n_positions = model.config.n_positions
    new_tokens = config.new_tokens(prompt.width, prompt.length, n_positions)
    if prompt.length + new_tokens > n_positions:
        raise SequenceLengthError(
            f"a prompt of {prompt.length} tokens and {new_tokens} new ones make "
            f"{prompt.length + new_tokens}, but the model has n_positions = {n_positions}"
        )
    prompt = prompt.repeated(config.num_return_sequences)
    generators = _generators(seed, prompt, config.do_sample)
    decoder = Decoder(model, prompt, new_tokens, config.use_cache)
    new = _decode(decoder, config, new_tokens, processors_for(config), generators, streamer)
    return new if prompt.ids is None else torch.cat([prompt.ids, new], dim=1)


def _settings(
    model: CausalLM, generation_config: GenerationConfig | None, settings: dict[str, Any]
) -> GenerationConfig:
    own = model.generation_config
    if generation_config is None:
        return own.replaced(**settings)
    if not isinstance(generation_config, GenerationConfig):
        raise ArgumentTypeError(
            f"generation_config must be a GenerationConfig, not {type(generation_config).__name__}"
        )
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    missing = {n: getattr(own, n) for n in tokens if getattr(generation_config, n) is None}
    return generation_config.replaced(**{**missing, **settings})


def _decode(
    decoder: Decoder,
    config: GenerationConfig,
    new_tokens: int,
    processors: list[Processor],
    generators: list[torch.Generator] | None,
    streamer: Streamer | None,
) -> Tensor:
    """The loop: (B, n) new ids, rows that finish early filled with the pad token."""
    prompt, device = decoder.prompt, decoder.model.device
    batch_size = prompt.rows
    eos = torch.tensor(config.eos_token_ids, device=device)
    filler = (
        config.pad_token_id if config.pad_token_id is not None else (*config.eos_token_ids, 0)[0]
    )
    new = torch.full((batch_size, new_tokens), filler, dtype=torch.int64, device=device)
    rows = torch.arange(batch_size, device=device)  # rows of `new` that are still going on
    history = new[:, :0] if prompt.ids is None else prompt.ids
    if streamer is not None:
        streamer.put(history.cpu())

    scores = decoder.prefill()
    for step in range(new_tokens):
        broken = ~scores.amax(-1).isfinite().all()  # NaN, +inf, or a row of −inf
        for process in processors:
            scores = process(torch.cat([history[rows], new[rows, :step]], dim=1), scores)
        if config.do_sample:
            alive = None if len(rows) == batch_size else rows
            tokens = draw(scores, batch_size, alive, generators)
        else:
            tokens = scores.argmax(-1)  # (rows,)
        new[rows, step] = tokens
        if streamer is not None:
            streamer.put(new[:, step].cpu())

        finished = torch.isin(tokens, eos)
        *ended, bad = torch.cat([finished, broken[None]]).tolist()  # the step's one synchronisation
        if bad:
            raise ArgumentError(
                f"the model's logits are NaN or infinite at new token {step}; the weights or "
                "inputs_embeds hold NaN, or overflow in this dtype"
            )
        if all(ended) or step + 1 == new_tokens:
            new = new[:, : step + 1]
            break
        if any(ended):
            going_on = (~finished).nonzero()[:, 0]
            decoder.keep_rows(going_on)
            rows, tokens = rows[going_on], tokens[going_on]
            if generators is not None:
                generators = [g for g, gone in zip(generators, ended, strict=True) if not gone]
        scores = decoder.decode_one(tokens, new[rows, : step + 1])
    if streamer is not None:
        streamer.end()
    return new
