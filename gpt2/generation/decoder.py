"""Decoder: one model run over one batch, with its cache and its mask.

The loops say what to feed and which rows go on; the decoder knows how to feed
it. Shapes: B rows, W columns of the prompt, n new columns so far, V vocabulary.

- ``prefill()`` -> scores (B, V) behind the prompt
- ``decode_one(tokens (B,), so_far (B, n))`` -> scores (B, V)
- ``decode_many(tokens (B, k), so_far (B, n))`` -> scores (B, k, V)
- ``decode_block(tokens (B, k), counts)`` -> the same, where row i has ``counts[i]`` tokens
- ``decode_each(tokens (B, k))`` -> scores (B, k, V) behind each as if it alone came next;
  ``keep_one(picked (B,), k)`` must follow, and makes one of them the next token
- ``keep_rows(rows)``: go on with these rows, in this order; a row may come twice
- ``make_room(columns)``: before prefill, room for more columns than the new tokens take
- ``crop(columns)``: forget what was fed behind that many columns
- ``keep_first(counts, k)``: of the last k columns, each row keeps its first ones
- ``held()`` -> the cache to return, of all that was fed
- ``cache_of(lengths)`` -> the same, where row i has so many new tokens
- ``close()``: nothing more is asked of it
- ``hide(real (B, k))``: of the last k columns, only these are tokens; the others become padding
  (so rows may accept different numbers of drafted tokens)

Scores are the model's logits in float32. ``so_far`` always ends with the
tokens that are fed; it is read as a whole only without a cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2.generation.prompt import CausalLM, Prompt
from gpt2.modeling.cache import KVCache
from gpt2.modeling.masks import positions_from_mask


class Decoder:
    """See the module. After each call ``attentions``, ``hidden_states`` hold what was asked for.

    They are the model's own tuples of that forward pass, or None. ``past`` is
    the cache, of ``columns`` columns, or None with ``use_cache`` False.
    ``capacity``: new columns to make room for, so that the cache never grows by
    copying. ``extras``: further inputs of the forward pass with a row per prompt row.
    """

    #: whether the steps need all rows that ``expand`` has made, to the end
    keeps_all_rows = False

    def __init__(
        self,
        model: CausalLM,
        prompt: Prompt,
        capacity: int,
        *,
        use_cache: bool = True,
        past: KVCache | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.prompt, self.use_cache = model, prompt, use_cache
        self.capacity = capacity
        self.output_attentions = output_attentions
        self.output_hidden_states = output_hidden_states
        self.extras = dict(extras or {})
        self.ids, self.embeds = prompt.ids, prompt.embeds
        self.mask: Tensor | None = None  # (B, >= columns) bool; None while all columns are real
        if prompt.mask is not None:
            behind = prompt.mask.new_ones(prompt.rows, capacity)
            self.mask = torch.cat([prompt.mask, behind], dim=1)
        self.columns = prompt.width  # columns that the model has seen, or will with prefill
        self.past: KVCache | None = None
        if use_cache:
            total = prompt.width + capacity
            self.past = KVCache(model.config.n_layer) if past is None else past.extended(0, None)
            self.past.capacity = total
        self.attentions: tuple[Tensor, ...] | None = None
        self.hidden_states: tuple[Tensor, ...] | None = None

    @property
    def rows(self) -> int:
        given = self.ids if self.ids is not None else self.embeds
        assert given is not None
        return given.shape[0]

    @property
    def _crowded(self) -> bool:
        """Whether a row may have more columns than positions: one that has ended and stays.

        Nobody reads what the model says there; but a position must be one of its own.
        """
        return max(self.prompt.lengths) + self.capacity > self.model.config.n_positions

    def prefill(self) -> Tensor:
        """Scores (B, V) of the token behind each row's last real token."""
        keep, held = self.prompt.last_column(), self.past.length if self.past is not None else 0
        if isinstance(keep, Tensor):
            keep = keep - held
        ids = None if self.ids is None else self.ids[:, held:]
        embeds = None if self.embeds is None else self.embeds[:, held:]
        return self._forward(ids, embeds, keep, check_inputs=True, first=True)[:, -1]

    def decode_one(self, tokens: Tensor, so_far: Tensor) -> Tensor:
        """Scores (B, V) behind ``tokens`` (B,), the last column of ``so_far`` (B, n)."""
        return self.decode_many(tokens[:, None], so_far)[:, -1]

    def decode_many(self, tokens: Tensor, so_far: Tensor) -> Tensor:
        """Scores (B, k, V) behind each of ``tokens`` (B, k), the last columns of ``so_far``."""
        self.columns += tokens.shape[1]
        if self.use_cache:
            return self._forward(tokens, None, tokens.shape[1])
        if self.embeds is not None:
            embedded = self.model.get_input_embeddings()(so_far)
            return self._forward(None, torch.cat([self.embeds, embedded], 1), tokens.shape[1])
        assert self.ids is not None
        return self._forward(torch.cat([self.ids, so_far], 1), None, tokens.shape[1])

    def decode_block(self, tokens: Tensor, counts: Sequence[int]) -> Tensor:
        """Scores (B, k, V) behind each of ``tokens`` (B, k), of which row i has ``counts[i]``.

        What stands behind those is padding. Needs the cache.
        """
        k = tokens.shape[1]
        self.columns += k
        self._hide_behind(counts, k)
        return self._forward(tokens, None, k)

    def decode_each(self, tokens: Tensor) -> Tensor:
        """Scores (B, k, V) behind each of ``tokens`` (B, k), as if it alone came next.

        They stand side by side at one position and do not see each other, so
        that no copy of the cache is needed. Needs the cache.
        """
        rows, k = tokens.shape
        held = tokens.new_ones(rows, self.columns, dtype=torch.bool)
        if self.mask is not None:
            held = self.mask[:, : self.columns]
        own = torch.eye(k, dtype=torch.bool, device=tokens.device).expand(rows, k, k)
        seen = torch.cat([held[:, None].expand(rows, k, -1), own], dim=-1)  # (B, k, S + k)
        self.columns += k
        positions = held.sum(-1, keepdim=True).expand(-1, k)
        return self._forward(tokens, None, k, visibility=seen[:, None], positions=positions)

    def _forward(
        self,
        ids: Tensor | None,
        embeds: Tensor | None,
        keep: int | Tensor,
        check_inputs: bool = False,
        visibility: Tensor | None = None,
        positions: Tensor | None = None,
        first: bool = False,
    ) -> Tensor:
        mask = self._mask_of(self.columns)
        # After the first pass the cache has what the encoder's states give, by its own rows.
        extras = self.extras if first or self.past is None else {}
        if visibility is None and mask is not None:
            visibility = mask[:, : self.columns]
            if self._crowded and not first:
                columns = (ids if ids is not None else embeds).shape[1]  # type: ignore[union-attr]
                positions = positions_from_mask(visibility, columns)
        if positions is not None:
            positions = positions.clamp(max=self.model.config.n_positions - 1)
        output = self.model(
            ids,
            inputs_embeds=embeds,
            attention_mask=visibility,
            position_ids=positions,
            past_key_values=self.past,
            use_cache=self.use_cache,
            output_attentions=self.output_attentions,
            output_hidden_states=self.output_hidden_states,
            return_dict=True,
            logits_to_keep=keep,
            check_inputs=check_inputs,  # lengths are known beforehand: no checks in the loop
            **extras,
        )
        self.past = output.past_key_values
        self.attentions, self.hidden_states = output.attentions, output.hidden_states
        return output.logits.float()  # type: ignore[no-any-return]

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with ``rows`` (R,) int64, in this order; a row may come twice."""
        self.ids = None if self.ids is None else self.ids[rows]
        self.embeds = None if self.embeds is None else self.embeds[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self.extras = {name: x[rows] for name, x in self.extras.items()}
        if self.past is not None:
            self.past = self.past.select(rows)

    def expand(self, times: int) -> None:
        """Each row ``times`` times, side by side; what the last forward pass returned as well."""
        if times == 1:
            return
        rows = torch.arange(self.rows, device=self.prompt.device).repeat_interleave(times)
        self.keep_rows(rows)
        if self.attentions is not None:
            self.attentions = tuple(x[rows] for x in self.attentions)
        if self.hidden_states is not None:
            self.hidden_states = tuple(x[rows] for x in self.hidden_states)

    def make_room(self, columns: int) -> None:
        """Before prefill: room for that many columns more than asked for, beside new tokens."""
        self.capacity += columns
        if self.past is not None:
            self.past.capacity += columns

    def keep_one(self, picked: Tensor, k: int) -> None:
        """Of the last k columns each row keeps its column number ``picked`` (B,) only."""
        assert self.past is not None
        start, rows = self.columns - k, torch.arange(self.rows, device=picked.device)
        self.past.move_columns(start + picked, start)
        self.crop(start + 1)
        if self.hidden_states is not None:
            self.hidden_states = tuple(x[rows, picked][:, None] for x in self.hidden_states)
        if self.attentions is not None:  # (B, H, k, S + k): what was seen, and the own column
            own = [x[rows, :, picked] for x in self.attentions]  # (B, H, S + k)
            self.attentions = tuple(
                torch.cat([x[..., :start], x[rows, :, start + picked, None]], dim=-1)[:, :, None]
                for x in own
            )

    def keep_first(self, counts: Sequence[int], k: int) -> None:
        """Of the last k columns row i keeps the first ``counts[i]``; the others are padding."""
        most = max(counts)
        self.crop(self.columns - k + most)
        self._hide_behind(counts, most)

    def _hide_behind(self, counts: Sequence[int], k: int) -> None:
        """Of the last k columns only the first ``counts[i]`` of row i are tokens."""
        if min(counts) < k:
            ends = torch.tensor(counts, device=self.prompt.device)[:, None]
            self.hide(torch.arange(k, device=ends.device) < ends)

    def held(self) -> KVCache | None:
        """To return: the cache of all that was fed."""
        return self.past

    def close(self) -> None:
        """The call is over, in whatever way: give back what is not this decoder's own."""

    def cache_of(self, lengths: Sequence[int]) -> KVCache | None:
        """To return: the cache of the prompt and of the first ``lengths[i]`` new tokens of row i.

        They stand side by side right behind the prompt, as in the returned ids,
        and what follows them is padding. The decoder has done its work then.
        """
        if self.past is None:
            return None
        width, k = self.prompt.width, self.columns - self.prompt.width
        real = None if self.mask is None else self.mask[:, width : self.columns]
        if real is not None and not bool(real.all()):
            order = real.to(torch.int8).sort(descending=True, stable=True).indices
            for place in range(max(lengths)):  # a column never moves to the right
                self.past.move_columns(width + order[:, place], width + place)
        if k:
            self.keep_first(lengths, k)
        return self.past

    def crop(self, columns: int) -> None:
        """Forget what was fed behind the first ``columns`` columns, the prompt's included."""
        if self.past is not None:
            self.past = self.past.crop(columns)
        if self.mask is not None:
            self.mask[:, columns:] = True
        self.columns = columns

    def hide(self, real: Tensor) -> None:
        """From now on, of the last k columns only those of ``real`` (B, k) bool are tokens.

        The others are padding: nobody sees them, and they take no position.
        """
        mask = self._mask_of(self.columns)
        if mask is None:
            mask = self.mask = real.new_ones(self.rows, self.columns + self.capacity)
        mask[:, self.columns - real.shape[1] : self.columns] = real
        if self.past is not None:
            self.past.mask = mask[:, : self.past.length].clone()

    def _mask_of(self, columns: int) -> Tensor | None:
        """``mask``, at least that wide: what is fed later is real until it is hidden."""
        if self.mask is not None and self.mask.shape[1] < columns:
            behind = self.mask.new_ones(self.rows, columns + self.capacity)
            behind[:, : self.mask.shape[1]] = self.mask
            self.mask = behind
        return self.mask


class GuidedDecoder(Decoder):
    """Classifier-free guidance (arXiv:2306.17806): away from what ``negative`` would say.

    scores = u + scale · (c − u), for the log-probabilities c behind the prompt
    and u behind the negative prompt, both with the same new tokens.
    """

    def __init__(self, decoder: Decoder, negative: Decoder, scale: float) -> None:
        vars(self).update(vars(decoder))
        self.negative, self.scale = negative, scale

    def prefill(self) -> Tensor:
        return self._guided(super().prefill(), self.negative.prefill())

    def decode_many(self, tokens: Tensor, so_far: Tensor) -> Tensor:
        other = self.negative.decode_many(tokens, so_far)
        return self._guided(super().decode_many(tokens, so_far), other)

    def _guided(self, logits: Tensor, negative: Tensor) -> Tensor:
        wanted, unwanted = logits.log_softmax(-1), negative.log_softmax(-1)
        return self.scale * (wanted - unwanted) + unwanted

    def keep_rows(self, rows: Tensor) -> None:
        super().keep_rows(rows)
        self.negative.keep_rows(rows)

    def crop(self, columns: int) -> None:
        self.negative.crop(self.negative.columns - (self.columns - columns))
        super().crop(columns)

    def hide(self, real: Tensor) -> None:
        super().hide(real)
        self.negative.hide(real)


class SlidingDecoder(Decoder):
    """Goes on past n_positions: a row that is full goes on from its last n_positions // 2 tokens.

    Then these are fed again, in one prefill for the whole batch; so the cost
    per token stays flat, at most about twice that of a model with room.
    Needs token ids, and a cache.
    """

    def __init__(
        self,
        model: CausalLM,
        prompt: Prompt,
        capacity: int,
        *,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(model, prompt, capacity, extras=extras)
        self._tokens = prompt.tokens()  # (B, W)
        self._seen = list(prompt.lengths)  # tokens that the model sees of each row
        self._check_inputs = True

    def prefill(self) -> Tensor:
        return self._refill(self._tokens)

    def decode_one(self, tokens: Tensor, so_far: Tensor) -> Tensor:
        self._seen = [seen + 1 for seen in self._seen]
        if max(self._seen) <= self.model.config.n_positions:
            return super().decode_one(tokens, so_far)
        return self._refill(torch.cat([self._tokens, so_far], dim=1))

    def _refill(self, ids: Tensor) -> Tensor:
        """Scores (B, V) behind ``ids`` (B, N), real tokens at the right end, from a new cache."""
        full = self.model.config.n_positions
        self._seen = [seen if seen <= full else max(1, full // 2) for seen in self._seen]
        self.columns = width = max(self._seen)
        ids = ids[:, -width:]
        columns = torch.arange(width, device=ids.device)
        starts = torch.tensor([width - seen for seen in self._seen], device=ids.device)
        self.mask = None if min(self._seen) == width else columns >= starts[:, None]
        self.past = KVCache(self.model.config.n_layer, capacity=min(full, width + self.capacity))
        filled = ids if self.mask is None else ids.masked_fill(~self.mask, 0)
        scores = self._forward(filled, None, 1, check_inputs=self._check_inputs, first=True)[:, -1]
        self._check_inputs = False
        return scores

    def expand(self, times: int) -> None:
        super().expand(times)
        self._seen = [seen for seen in self._seen for _ in range(times)]
        self._tokens = self._tokens.repeat_interleave(times, dim=0)
