"""generate: settings, prompt and rules checked before the first step; then the method runs.

Shapes: B rows of the prompt, W its columns, R = B × num_return_sequences rows returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError
from gpt2.generation.beam import beam_search, group_beam_search
from gpt2.generation.config import GenerationConfig
from gpt2.generation.constrained import constrained_beam_search
from gpt2.generation.decoder import Decoder
from gpt2.generation.decoding import decode
from gpt2.generation.outputs import GenerateOutput, Recorder
from gpt2.generation.processors import processors_for
from gpt2.generation.prompt import CausalLM, Prompt, prepare_prompt
from gpt2.generation.run import Run, Streamer
from gpt2.generation.stopping import Stopping

#: GenerationConfig.mode, or "assisted" -> the method; see gpt2/generation/run.py
METHODS: dict[str, Callable[[Run], GenerateOutput]] = {
    "greedy": decode,
    "sample": decode,
    "beam": beam_search,
    "group_beam": group_beam_search,
    "constrained_beam": constrained_beam_search,
}


@torch.no_grad()
def generate(
    model: CausalLM,
    input_ids: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    assistant_model: CausalLM | None = None,
    streamer: Streamer | None = None,
    seed: Sequence[int] | None = None,
    **settings: Any,
) -> Tensor | GenerateOutput:
    """Continue each row of the prompt; see GenerativeModel.generate."""
    config = _settings(model, generation_config, settings)
    assisted = assistant_model is not None or config.prompt_lookup_num_tokens is not None
    if assisted and config.mode not in ("greedy", "sample"):
        raise ArgumentError(
            f"assistant_model goes with greedy decoding and sampling only, not with {config.mode!r}"
        )
    mode = "assisted" if assisted else config.mode
    if mode not in METHODS:
        raise ArgumentError(f"this version has no method {mode!r}")
    prompt = prepare_prompt(model, config, input_ids, attention_mask, inputs_embeds)
    limits = _limits(model, config, prompt)
    decoder = Decoder(
        model,
        prompt,
        max(limits),
        use_cache=config.use_cache,
        output_attentions=config.output_attentions,
        output_hidden_states=config.output_hidden_states,
    )
    run = Run(
        config=config,
        prompt=prompt,
        decoder=decoder,
        limits=limits,
        processors=processors_for(config),
        stopping=Stopping(
            config.eos_token_ids, limits, device=prompt.device, max_time=config.max_time
        ),
        generators=_generators(seed, prompt, config),
        streamer=streamer,
        recorder=Recorder(config),
        assistant=assistant_model,
    )
    output = METHODS[mode](run)
    if prompt.ids is not None and not config.return_only_new_tokens:
        ids = prompt.ids.repeat_interleave(config.num_return_sequences, dim=0)
        output.sequences = torch.cat([ids, output.sequences], dim=1)
    return output if config.return_dict_in_generate else output.sequences


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


def _limits(model: CausalLM, config: GenerationConfig, prompt: Prompt) -> list[int]:
    """How many new tokens each row may have; SequenceLengthError past n_positions."""
    n_positions = model.config.n_positions
    limits = [config.new_tokens(length, n_positions) for length in prompt.lengths]
    longest, new = max(zip(prompt.lengths, limits, strict=True), key=lambda row: row[0] + row[1])
    if longest + new > n_positions:
        raise SequenceLengthError(
            f"a prompt of {longest} tokens and {new} new ones make {longest + new}, but the model "
            f"has n_positions = {n_positions}"
        )
    return limits


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
