"""generate: settings, prompt and rules checked before the first step; then the method runs.

Shapes: B rows of the prompt, W its columns, R = B × num_return_sequences rows returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError, TokenIdError
from gpt2.generation.beam import beam_search, group_beam_search
from gpt2.generation.checks import not_static
from gpt2.generation.config import GenerationConfig
from gpt2.generation.constrained import constrained_beam_search
from gpt2.generation.contrastive import contrastive_search
from gpt2.generation.decoder import Decoder, GuidedDecoder, SlidingDecoder
from gpt2.generation.decoding import decode
from gpt2.generation.outputs import GenerateOutput, Recorder
from gpt2.generation.processors import processors_for
from gpt2.generation.prompt import CausalLM, Prompt, prepare_prompt
from gpt2.generation.run import Run, Streamer
from gpt2.generation.speculative import assisted_decoding
from gpt2.generation.static_decoder import StaticDecoder
from gpt2.generation.stopping import Stopping, StoppingCriterion, StopStrings
from gpt2.modeling.cache import KVCache, as_cache

#: GenerationConfig.mode, or "assisted" -> the method; see gpt2/generation/run.py
METHODS: dict[str, Callable[[Run], GenerateOutput]] = {
    "greedy": decode,
    "sample": decode,
    "beam": beam_search,
    "group_beam": group_beam_search,
    "constrained_beam": constrained_beam_search,
    "contrastive": contrastive_search,
    "assisted": assisted_decoding,
}

#: arguments of forward that generate does not take -> why, and what to do
_OF_FORWARD = {
    "token_type_ids": "those of new tokens are unknown; leave it out, or decode with forward",
    "position_ids": "positions follow from attention_mask; leave it out, or decode with forward",
    "head_mask": "silence heads for good with prune_heads, or decode with forward",
}


@torch.no_grad()
def generate(
    model: CausalLM,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Callable[[Tensor, Tensor], Tensor]] | None = None,
    stopping_criteria: Sequence[StoppingCriterion] | None = None,
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
    synced_gpus: bool | None = None,
    assistant_model: CausalLM | None = None,
    streamer: Streamer | None = None,
    negative_prompt_ids: Tensor | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    *,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    past_key_values: KVCache | Iterable[Sequence[Tensor]] | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    tokenizer: Any = None,
    seed: Sequence[int] | None = None,
    **settings: Any,
) -> Tensor | GenerateOutput:
    """Continue each row of the prompt; see GenerativeModel.generate."""
    if inputs is not None and input_ids is not None:
        raise ArgumentTypeError("inputs and input_ids are one argument; both were given")
    for name, advice in _OF_FORWARD.items():
        if settings.pop(name, None) is not None:
            raise ArgumentTypeError(
                f"{name} is an argument of forward that generate does not take: {advice}"
            )
    if synced_gpus:
        raise ArgumentError("synced_gpus=True cannot be honoured: rows end where they end")
    config = _settings(model, generation_config, settings)
    mode = _mode(config, assistant_model, streamer)
    past = None if past_key_values is None else as_cache(past_key_values, model.config.n_layer)
    if past is not None and past.get_max_cache_shape() is not None:
        raise ArgumentError(
            "past_key_values is a StaticCache; generate makes its own with "
            "cache_implementation='static'. Leave it out, or give a cache that an earlier call or "
            "a forward pass returned"
        )
    prompt = prepare_prompt(
        model,
        config,
        inputs if inputs is not None else input_ids,
        attention_mask,
        inputs_embeds,
        past,
    )
    limits = _limits(model, config, prompt)
    _check_ids(config, model.config.vocab_size)
    _check_needs(config, prompt, past, tokenizer)
    encoder = {
        "encoder_hidden_states": encoder_hidden_states,
        "encoder_attention_mask": encoder_attention_mask,
    }
    extras = {name: given for name, given in encoder.items() if given is not None}
    processors = processors_for(
        config,
        width=prompt.width,
        vocab_size=model.config.vocab_size,
        n_positions=model.config.n_positions,
        device=prompt.device,
        logits_processor=_functions("logits_processor", logits_processor),
        prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
    )
    is_static = _is_static(model, config, mode)
    decoder = _decoder(model, config, prompt, max(limits), past, extras, is_static)
    decoder = _guided(decoder, config, limits, negative_prompt_ids, negative_prompt_attention_mask)
    run = Run(
        config=config,
        prompt=prompt,
        decoder=decoder,
        limits=limits,
        processors=processors,
        stopping=Stopping(
            config.eos_token_ids,
            limits,
            device=prompt.device,
            max_time=config.max_time,
            strings=_stop_strings(config, prompt, tokenizer),
            criteria=_functions("stopping_criteria", stopping_criteria),
        ),
        generators=_generators(seed, prompt, config),
        streamer=streamer,
        recorder=Recorder(config),
        assistant=assistant_model,
    )
    with closing(decoder):
        output = METHODS[mode](run)
    if prompt.ids is not None and not config.return_only_new_tokens:
        ids = prompt.ids.repeat_interleave(config.num_return_sequences, dim=0)
        output.sequences = torch.cat([ids, output.sequences], dim=1)
    return output if config.return_dict_in_generate else output.sequences


def _settings(
    model: CausalLM, generation_config: GenerationConfig | None, settings: dict[str, Any]
) -> GenerationConfig:
    """The settings of a call, over those of its config, or of the model's own.

    The model's own special tokens are for whoever names none; outside of the
    vocabulary, where a small model's config may leave them, they are none.
    """
    own = model.generation_config
    base = own if generation_config is None else generation_config
    if not isinstance(base, GenerationConfig):
        raise ArgumentTypeError(
            f"generation_config must be a gpt2.GenerationConfig, not "
            f"{type(base).__module__}.{type(base).__qualname__}; gpt2.GenerationConfig.from_dict "
            "takes the settings of another library's"
        )
    unsaid = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if base is own or getattr(base, name) is None:
            unsaid[name] = _within(getattr(own, name), model.config.vocab_size)
    config = base.replaced(**{**unsaid, **settings})
    for message in base.void() if base is not own else ():
        if message in config.void():
            raise ArgumentError(f"generation_config: {message}")
    return config


def _within(tokens: int | list[int] | None, vocab_size: int) -> int | list[int] | None:
    if isinstance(tokens, list):
        return [token for token in tokens if token < vocab_size]
    return tokens if tokens is None or tokens < vocab_size else None


def _mode(config: GenerationConfig, assistant: CausalLM | None, streamer: Streamer | None) -> str:
    """The key of METHODS; refused is what does not go with it."""
    mode = config.mode
    if assistant is not None or config.prompt_lookup_num_tokens is not None:
        name = "prompt_lookup_num_tokens" if assistant is None else "assistant_model"
        if mode not in ("greedy", "sample"):
            raise ArgumentError(
                f"{name} goes with greedy decoding and sampling only, not with {mode!r}"
            )
        if config.long_context is not None:
            raise ArgumentError(f"{name} does not go with long_context={config.long_context!r}")
        mode = "assisted"
    if streamer is not None and config.num_beams > 1:
        raise ArgumentError(
            f"streamer does not go with num_beams={config.num_beams}: beams are known at the end"
        )
    if mode not in METHODS:
        raise ArgumentError(f"this version has no method {mode!r}")
    return mode


def _is_static(model: CausalLM, config: GenerationConfig, mode: str) -> bool:
    """Whether to decode over a cache of fixed shape: see GenerationConfig.cache_implementation."""
    if config.cache_implementation is None:
        compiles = getattr(model, "step_compile_mode", None) is not None
        return compiles and mode != "assisted" and not_static(config) is None
    is_static = config.cache_implementation == "static"
    if is_static and mode == "assisted":
        raise ArgumentError("cache_implementation='static' does not go with assistant_model")
    return is_static


def _limits(model: CausalLM, config: GenerationConfig, prompt: Prompt) -> list[int]:
    """How many new tokens each row may have; SequenceLengthError past n_positions."""
    n_positions = model.config.n_positions
    limits = [config.new_tokens(length, n_positions) for length in prompt.lengths]
    rows = zip(prompt.lengths, limits, strict=True)
    longest, new = max(rows, key=sum)
    if longest + new > n_positions and config.long_context is None:
        raise SequenceLengthError(
            f"a prompt of {longest} tokens and {new} new ones make {longest + new}, but the model "
            f'has n_positions = {n_positions}; long_context="slide" goes on with a window'
        )
    return limits


def _check_ids(config: GenerationConfig, vocab_size: int) -> None:
    """Refuse token ids in the settings that the model does not have."""
    for name, found in config.token_ids().items():
        for token in found:
            if token >= vocab_size:
                raise TokenIdError(
                    f"{name} has the id {token}; the model's ids are from 0 to {vocab_size - 1}"
                )


def _check_needs(
    config: GenerationConfig, prompt: Prompt, past: KVCache | None, tokenizer: Any
) -> None:
    """Refuse settings that the call's other arguments do not go with."""
    if prompt.ids is None:
        for name, neutral in (
            ("encoder_repetition_penalty", 1.0),
            ("encoder_no_repeat_ngram_size", 0),
            ("long_context", None),
        ):
            if getattr(config, name) != neutral:
                raise ArgumentError(
                    f"{name}={getattr(config, name)!r} needs input_ids; the prompt is inputs_embeds"
                )
    if past is not None and not config.use_cache:
        raise ArgumentError("past_key_values were given with use_cache=False")
    if config.long_context is not None and past is not None:
        raise ArgumentError(
            f"long_context={config.long_context!r} does not go with past_key_values: the window "
            "is computed anew"
        )
    if config.stop_strings is not None and tokenizer is None:
        raise ArgumentTypeError(
            f"stop_strings={config.stop_strings!r} needs tokenizer=, to know the text of tokens"
        )


def _functions(name: str, given: Sequence[Callable[..., Any]] | None) -> list[Callable[..., Any]]:
    """A documented list of functions."""
    if given is not None and not isinstance(given, Sequence):
        raise ArgumentTypeError(f"{name} must be a list of functions, not {given!r}")
    functions = list(given or [])
    for function in functions:
        if not callable(function):
            raise ArgumentTypeError(f"{name} must be a list of functions; it has {function!r}")
    return functions


def _stop_strings(config: GenerationConfig, prompt: Prompt, tokenizer: Any) -> StopStrings | None:
    if config.stop_strings is None:
        return None
    strings = StopStrings(config.stop_strings, tokenizer)
    strings.prompts = prompt.last_tokens(strings.longest)
    return strings


def _decoder(
    model: CausalLM,
    config: GenerationConfig,
    prompt: Prompt,
    new_tokens: int,
    past: KVCache | None,
    extras: dict[str, Tensor],
    is_static: bool,
) -> Decoder:
    if is_static:
        return StaticDecoder(model, prompt, new_tokens, past=past, extras=extras)
    if config.long_context is not None:
        return SlidingDecoder(model, prompt, new_tokens, extras=extras)
    return Decoder(
        model,
        prompt,
        new_tokens,
        use_cache=config.use_cache,
        past=past,
        output_attentions=config.output_attentions,
        output_hidden_states=config.output_hidden_states,
        extras=extras,
    )


def _guided(
    decoder: Decoder,
    config: GenerationConfig,
    limits: list[int],
    ids: Tensor | None,
    mask: Tensor | None,
) -> Decoder:
    """The decoder, led away from the negative prompt where guidance_scale says so."""
    scale = config.guidance_scale
    if scale is None or scale == 1.0:
        if ids is not None or mask is not None:
            raise ArgumentError(
                "negative_prompt_ids has no effect without guidance_scale other than 1; found "
                f"guidance_scale={scale}"
            )
        return decoder
    negative = _negative_prompt(decoder.model, config, decoder.prompt, ids, mask, limits)
    other = Decoder(
        decoder.model,
        negative,
        max(limits),
        use_cache=config.use_cache,
        extras=decoder.extras,
    )
    return GuidedDecoder(decoder, other, scale)


def _negative_prompt(
    model: CausalLM,
    config: GenerationConfig,
    prompt: Prompt,
    ids: Tensor | None,
    mask: Tensor | None,
    limits: list[int],
) -> Prompt:
    """What guidance leads away from: each row's last token where nothing else is said."""
    if ids is None:
        if mask is not None:
            raise ArgumentError("negative_prompt_attention_mask needs negative_prompt_ids")
        if prompt.ids is None:
            raise ArgumentError("guidance_scale with inputs_embeds needs negative_prompt_ids")
        ids = prompt.tokens()[:, -1:]
    names = ("negative_prompt_ids", "negative_prompt_attention_mask")
    if mask is None and isinstance(ids, Tensor):
        mask = torch.ones_like(ids)  # as the reference: no padding is read off these ids
    negative = prepare_prompt(model, config, ids, mask, None, names=names)
    if negative.rows != prompt.rows:
        raise ArgumentError(
            f"negative_prompt_ids has {negative.rows} rows, the prompt {prompt.rows}"
        )
    longest = max(n + new for n, new in zip(negative.lengths, limits, strict=True))
    if longest > model.config.n_positions:
        raise SequenceLengthError(
            f"negative_prompt_ids and the new tokens make {longest} tokens, but the model has "
            f"n_positions = {model.config.n_positions}"
        )
    return negative


def _generators(
    seed: Sequence[int] | None, prompt: Prompt, config: GenerationConfig
) -> list[torch.Generator] | None:
    if seed is None:
        return None
    if not config.do_sample:
        raise ArgumentError("seed has no effect without do_sample=True")
    beams = config.num_beams > 1
    wanted = prompt.rows * (1 if beams else config.num_return_sequences)
    if (
        not isinstance(seed, Sequence)
        or len(seed) != wanted
        or not all(isinstance(s, int) and not isinstance(s, bool) for s in seed)
    ):
        raise ArgumentError(
            f"seed must be one whole number per {'row of the prompt' if beams else 'returned row'} "
            f"({wanted}), not {seed!r}; for one seed for all use torch.manual_seed"
        )
    return [torch.Generator(prompt.device).manual_seed(s) for s in seed]
