"""What generation starts from: the model's protocol, and the prompt's rows, checked.

Shapes: B rows, W columns of the (padded) prompt, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.generation.config import GenerationConfig
from gpt2.generation.processors import ABSENT, NAMELESS
from gpt2.modeling.cache import KVCache


class CausalLM(Protocol):
    """What decoding needs of a model."""

    config: GPT2Config
    generation_config: GenerationConfig

    @property
    def device(self) -> torch.device: ...

    def get_input_embeddings(self) -> nn.Module: ...

    def __call__(self, input_ids: Tensor | None = None, **inputs: Any) -> Any: ...


@dataclass(frozen=True)
class Prompt:
    """The rows to continue: ``ids`` (B, W) or ``embeds`` (B, W, D), and which columns are real."""

    ids: Tensor | None
    embeds: Tensor | None
    mask: Tensor | None  # (B, W) bool; None where every column is a real token
    lengths: list[int]  # real tokens of each row

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        return self._given.shape[1]

    @property
    def device(self) -> torch.device:
        return self._given.device

    @property
    def _given(self) -> Tensor:
        given = self.ids if self.ids is not None else self.embeds
        assert given is not None
        return given

    def tokens(self) -> Tensor:
        """The prompt as processors see it, (B, W): real tokens side by side at the right end.

        The places before them hold ABSENT, so that a row looks the same
        wherever its padding stood; tokens without an id are NAMELESS.
        """
        if self.ids is None:
            shape = (self.rows, self.width)
            ids = torch.full(shape, NAMELESS, dtype=torch.int64, device=self.device)
        else:
            ids = self.ids.long()
        if self.mask is None:
            return ids
        order = self.mask.to(torch.int8).sort(dim=-1, stable=True).indices  # padding goes left
        return ids.masked_fill(~self.mask, ABSENT).gather(1, order)

    def last_tokens(self, count: int) -> list[list[int]]:
        """Each row's last ``count`` tokens, or as many as it has; none where it is embeddings."""
        rows = self.tokens()[:, -count:].tolist()
        return [[token for token in row if token >= 0] for row in rows]

    def last_column(self) -> int | Tensor:
        """Where each row's last real token stands, as ``logits_to_keep``: 1, or (B, 1)."""
        if self.mask is None:
            return 1
        columns = torch.arange(self.width, device=self.device)
        return (self.mask * columns).argmax(-1, keepdim=True)


def prepare_prompt(
    model: CausalLM,
    config: GenerationConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    inputs_embeds: Tensor | None,
    past: KVCache | None = None,
    *,
    names: tuple[str, str] = ("input_ids", "attention_mask"),
) -> Prompt:
    """The prompt, checked; one BOS token where there is none.

    Without an attention mask every token is real; only where a pad token other
    than EOS is declared and occurs, the padding is read off the ids, as
    documented. ``past`` holds the first columns of the prompt; its mask counts
    where none is given. ``names`` are what errors call the ids and the mask.
    """
    ids_name, mask_name = names
    if input_ids is not None and inputs_embeds is not None:
        raise ArgumentError(f"give either {ids_name} or inputs_embeds; both were given")
    if input_ids is None and inputs_embeds is None:
        if config.bos_token_id is None:
            raise ArgumentError("without a prompt generate needs bos_token_id, and none is set")
        input_ids = torch.full((1, 1), config.bos_token_id, device=model.device)
    given = input_ids if input_ids is not None else inputs_embeds
    name, rank = (ids_name, 2) if input_ids is not None else ("inputs_embeds", 3)
    if not isinstance(given, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, not {type(given).__name__}")
    if given.dim() != rank or given.numel() == 0:
        shape = "(batch, length)" if rank == 2 else "(batch, length, hidden size)"
        raise ArgumentError(f"{name} has shape {tuple(given.shape)}; expected {shape}, not empty")
    rows, width = given.shape[:2]

    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        raise ArgumentTypeError(
            f"{mask_name} must be a tensor, not {type(attention_mask).__name__}"
        )
    held = 0 if past is None else past.length
    if past is not None and (past.batch_size not in (None, rows) or held >= width):
        raise ArgumentError(
            f"past_key_values holds {held} columns of {past.batch_size} rows, {name} has {width} "
            f"columns of {rows} rows; it must have the same rows, begin with the columns held, "
            "and have at least one more"
        )
    mask = attention_mask
    if mask is None and past is not None and past.mask is not None:
        mask = torch.cat([past.mask, past.mask.new_ones(rows, width - held)], dim=1)
    pad = config.pad_token_id
    if (
        mask is None
        and input_ids is not None
        and pad is not None
        and pad not in config.eos_token_ids
    ):
        mask = input_ids.ne(pad)
    lengths = [width] * rows
    if mask is not None:
        if mask.shape != (rows, width):
            raise ArgumentError(
                f"{mask_name} has shape {tuple(mask.shape)}; expected {(rows, width)}"
            )
        odd = ((mask != 0) & (mask != 1)).any(-1)
        mask = mask.to(device=given.device, dtype=torch.bool)
        facts = [mask.sum(-1), odd.to(given.device), ~mask[:, held:].any(-1)]
        lengths, odd_rows, idle = torch.stack(facts).tolist()
        if any(odd_rows):
            raise ArgumentError(
                f"{mask_name} must hold only 0 (padding) and 1 (real token); row "
                f"{odd_rows.index(1)} holds something else"
            )
        if 0 in lengths:
            raise ArgumentError(f"row {lengths.index(0)} of the prompt is all padding")
        if any(idle):
            raise ArgumentError(
                f"row {idle.index(1)} of the prompt has no real token behind the {held} columns "
                "that past_key_values holds; give at least one"
            )
        mask = None if min(lengths) == width else mask
    return Prompt(input_ids, inputs_embeds, mask, lengths)
