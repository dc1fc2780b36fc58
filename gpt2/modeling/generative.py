"""GenerativeModel: what the heads with a language-modelling output share.

``generate``, and the generation_config.json that belongs to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2.config import GPT2Config
from gpt2.generation.config import GENERATION_CONFIG_NAME, GenerationConfig
from gpt2.generation.generate import generate
from gpt2.generation.outputs import GenerateOutput
from gpt2.generation.run import Streamer
from gpt2.modeling.pretrained import GPT2PreTrainedModel
from gpt2.storage.hub import Repository


class GenerativeModel(GPT2PreTrainedModel):
    """A model that can continue text; ``generation_config`` holds its default settings."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.generation_config = GenerationConfig.from_model_config(self.config)

    def generate(
        self,
        input_ids: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        streamer: Streamer | None = None,
        seed: Sequence[int] | None = None,
        **settings: Any,
    ) -> Tensor | GenerateOutput:
        """Continue each row of the prompt; returns prompt and new ids, (B, W + new).

        The prompt is ``input_ids`` (B, W), padded on either side where
        ``attention_mask`` (B, W) says so; or ``inputs_embeds`` (B, W, D), and
        then only the new ids are returned; or nothing, which starts at BOS.
        ``settings`` are fields of GenerationConfig (max_new_tokens, do_sample,
        temperature, top_k, top_p …); they come on top of ``generation_config``,
        or of the model's own. A row that has met EOS is filled with the pad
        token, or with EOS where there is none. ``streamer`` gets the prompt's
        ids, then those of each step, then ``end()``. ``seed``: one whole number
        per returned row, which makes that row independent of its batch.

        Raises ArgumentTypeError for an unknown setting, ArgumentError for
        settings that cannot be, and SequenceLengthError, before the first
        step, where prompt and new tokens exceed n_positions.
        """
        return generate(
            self,
            input_ids,
            generation_config,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            streamer=streamer,
            seed=seed,
            **settings,
        )

    def _read_extras(self, repository: Repository) -> None:
        path = repository.find(GENERATION_CONFIG_NAME)
        if path is not None:
            self.generation_config = GenerationConfig.from_json_file(path)

    def _replaced_files(self, variant: str | None) -> list[str]:
        return [*super()._replaced_files(variant), GENERATION_CONFIG_NAME]

    def _write_extras(self, stage: Path) -> None:
        self.generation_config.write_to(stage)
