"""GenerativeModel: what the heads with a language-modelling output share.

``generate`` and scoring, and the generation_config.json that belongs to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError
from gpt2.fieldchecks import check_whole
from gpt2.generation.config import GENERATION_CONFIG_NAME, GenerationConfig
from gpt2.generation.generate import generate
from gpt2.generation.outputs import transition_scores
from gpt2.generation.prompt import CausalLM
from gpt2.generation.run import Streamer, errors_told_to
from gpt2.generation.scoring import choose, perplexity, score
from gpt2.generation.stopping import StoppingCriterion
from gpt2.modeling.cache import KVCache, as_cache
from gpt2.modeling.pretrained import GPT2PreTrainedModel
from gpt2.storage.hub import Repository


class GenerativeModel(GPT2PreTrainedModel):
    """A model that can continue text; ``generation_config`` holds its default settings."""

    score = score
    perplexity = perplexity
    choose = choose

    #: None, or the ``mode`` of torch.compile for the steps of ``generate`` over a cache of fixed
    #: shape: "default", or "reduce-overhead" for CUDA graphs; see gpt2/generation/static_decoder.py
    step_compile_mode: str | None = None

    #: None, or what the vocabulary is padded to a multiple of; see `pad_vocabulary`
    vocabulary_multiple: int | None = None

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.generation_config = GenerationConfig.from_model_config(self.config)

    def generate(
        self,
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
        **arguments: Any,
    ) -> Any:
        """Continue each row of the prompt; returns prompt and new ids, (R, W + n).

        R = rows of the prompt × num_return_sequences, those of one row side by
        side. The keywords beyond the positional arguments:

        ``input_ids`` (B, W), another name of ``inputs``, padded on either side
        where ``attention_mask`` (B, W) says so; or ``inputs_embeds`` (B, W, D),
        and then only the new ids are returned; or nothing, which starts at BOS.
        ``past_key_values``: a cache of the first columns of the prompt, as an
        earlier call returned it; only what stands behind them is computed.
        ``encoder_hidden_states`` (B, Se, D) and ``encoder_attention_mask``
        (B, Se): what a model with cross-attention attends to.
        ``tokenizer``: needed by stop_strings. ``seed``: one whole number per
        returned row (per row of the prompt with beams), which makes that row
        independent of its batch. All others are fields of GenerationConfig
        (max_new_tokens, do_sample, num_beams, …); they come on top of
        ``generation_config``, or of the model's own.

        A row that has ended is filled with the pad token, or with EOS where
        there is none. A row gets the ids that it gets alone: max_length and
        min_length count its real tokens, processors do not see padding. Rows
        of a sampled batch leave it when they have ended, unless
        return_dict_in_generate or a function of the caller's is given, or
        the cache is static. ``cache_implementation="static"``: greedy decoding,
        sampling and beams over a cache of fixed shape, whose steps are compiled
        where ``step_compile_mode`` says how; then it is the default for them.

        ``logits_processor``: functions (input_ids, scores) -> scores, called
        with the whole batch, the prompt as it was given and ended rows
        included. ``stopping_criteria``: functions (input_ids, scores) -> bool or
        (R,) bool tensor, where scores are what output_scores collects, else None.
        ``prefix_allowed_tokens_fn``: (prompt row, its real ids so far) -> ids.
        ``streamer`` gets the prompt's ids, then those of each step (R,), −1 where
        a row has ended, then ``end()``, or ``fail(error)`` where it has that.
        ``negative_prompt_ids`` (B, ·): what guidance_scale leads away from, each
        row's last token where none are given; all of it real but for what
        ``negative_prompt_attention_mask`` (B, ·) says is padding.

        With return_dict_in_generate=True a GenerateDecoderOnlyOutput or
        GenerateBeamDecoderOnlyOutput is returned.

        Raises ArgumentTypeError for an unknown setting, ArgumentError for
        settings that cannot be, TokenIdError for ids outside the vocabulary,
        and SequenceLengthError where prompt and new tokens exceed n_positions
        without long_context="slide"; all of them before the first step.
        """
        prepare = getattr(self.prepare_inputs_for_generation, "__func__", None)
        if prepare is not GenerativeModel.prepare_inputs_for_generation:
            raise ArgumentError(
                "generate does not call prepare_inputs_for_generation, which was replaced on this "
                "model, as prompt learning of PEFT does (PromptTuning, PrefixTuning, PTuning); "
                "decode with forward and prepare_inputs_for_generation, or use LoRA or IA3"
            )
        with errors_told_to(streamer):
            return generate(
                self,
                inputs,
                generation_config,
                logits_processor,
                stopping_criteria,
                prefix_allowed_tokens_fn,
                synced_gpus,
                assistant_model,
                streamer,
                negative_prompt_ids,
                negative_prompt_attention_mask,
                **arguments,
            )

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The score of each generated token, (R, n); see gpt2.generation.outputs."""
        return transition_scores(sequences, scores, beam_indices, normalize_logits)

    def pad_vocabulary(self, multiple: int | None = 64) -> None:
        """Compute the head's products over a vocabulary padded to ``multiple``; None: over V.

        For training on a GPU, whose kernels are slower over an odd number of
        tokens: 64 makes 50304 of GPT-2's 50257. No output shows it: the logits
        are (B, T, V), and loss, gradients, parameters and files are what they
        are without. The setting is not saved; copies of the model have it.

        At each forward pass of 256 positions or more the head's weight is copied
        with rows of zeros behind it, and so are the logits, where they are
        returned. lm_head is not called then, so it must be a plain nn.Linear:
        with hooks, adapters, quantized or tensor-parallel weights every forward
        pass raises ArgumentError. It works with autocast, torch.compile and
        parallelize(fully_shard=True). A copy by prepare_for_inference on the CPU
        is not padded, since its weights are in a layout of their own.

        Raises ArgumentError for a number below 1, and for packed weights.
        """
        if multiple is not None:
            check_whole(ArgumentError, "multiple", multiple, 1)
            self._refuse_if_packed("pad_vocabulary")
        self.vocabulary_multiple = multiple

    # -- what others' decoding loops call ---------------------------------------------------------

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: KVCache | Iterable[Sequence[Tensor]] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """The forward arguments of one step of a decoding loop, as documented.

        ``input_ids`` (B, n), all so far, are cut to those behind the cache, at
        least one; ``token_type_ids`` and ``position_ids`` with them.
        ``inputs_embeds`` stand for the ids of the first step, without a cache.
        ``cache_position`` is not handed on: the cache knows. Everything else
        is. PEFT calls this; generate of this library does not.
        """
        past = None
        if past_key_values is not None:
            past = as_cache(past_key_values, self.config.n_layer)
        held = 0 if past is None else past.length
        step: dict[str, Any] = {"past_key_values": past, "attention_mask": attention_mask}
        if inputs_embeds is not None and held == 0:
            step |= {"input_ids": None, "inputs_embeds": inputs_embeds}
            columns = inputs_embeds.shape[1]
        else:
            columns = max(1, input_ids.shape[1] - held)
            step["input_ids"] = input_ids[:, -columns:]
        for name in ("token_type_ids", "position_ids"):
            if inputs.get(name) is not None:
                step[name] = inputs[name][:, -columns:]
        return {**inputs, **step}

    @staticmethod
    def _reorder_cache(
        past_key_values: KVCache | Iterable[Sequence[Tensor]], beam_idx: Tensor
    ) -> KVCache:
        """A cache of the rows ``beam_idx`` (N,) of another one, in their order, as documented."""
        if not isinstance(past_key_values, KVCache):
            past_key_values = KVCache.from_legacy_cache(past_key_values)
        return past_key_values.select(beam_idx)

    # -- loading and saving -----------------------------------------------------------------------

    def _read_extras(self, repository: Repository) -> None:
        path = repository.find(GENERATION_CONFIG_NAME)
        if path is not None:
            self.generation_config = GenerationConfig.from_json_file(path)

    def _extra_files(self) -> list[str]:
        return [*super()._extra_files(), GENERATION_CONFIG_NAME]

    def _write_extras(self, stage: Path) -> None:
        self.generation_config.write_to(stage)
