"""Changing the shape of a model that has its weights: more tokens or positions, fewer heads.

The modules stay, so that hooks on them do; their parameters are new, so an
optimizer has to be made afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.fieldchecks import check_choice, check_whole
from gpt2.modeling.attention import GPT2Attention

# New rows scatter around the mean with this share of the old rows' covariance, as in the reference
# and in https://nlp.stanford.edu/~johnhew/vocab-expansion.html: close enough to leave the other
# tokens' probabilities as they were, and not all the same.
_COVARIANCE_SHARE = 1e-9


class Surgery(nn.Module):
    """What GPT2PreTrainedModel can do to its own shape."""

    config: GPT2Config
    #: how the weights are stored where prepare_for_inference has made this model, else None
    packed: str | None = None

    def _refuse_if_packed(self, method: str) -> None:
        if self.packed:
            raise ArgumentError(
                f"{method} needs plain weights, and this model was prepared for inference with "
                f"{self.packed} ones; change the original and prepare it again"
            )

    def _refuse_if_added_to(self, method: str, layers: Mapping[str, nn.Module | None]) -> None:
        """Refuse to change the shape of layers with more parameters than their own: adapters."""
        for name, layer in layers.items():
            for added, _ in [] if layer is None else layer.named_parameters():
                if added not in ("weight", "bias"):
                    raise ArgumentError(
                        f"{method} changes the shape of {name}, which is a {type(layer).__name__} "
                        f"whose {added} would keep its own; merge adapters (merge_lora, "
                        "drop_lora), or remove what has been added to the layer"
                    )

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding, ``wte``."""
        core = getattr(self, "transformer", self)
        return core.get_submodule("wte")

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another token embedding in the place of ``wte``; a tied head takes its weight.

        Raises ArgumentTypeError for what is no nn.Embedding, and ArgumentError
        where its width is not the model's, or where an untied head has another
        number of tokens.
        """
        self._refuse_if_packed("set_input_embeddings")
        if not isinstance(value, nn.Embedding):
            raise ArgumentTypeError(f"value must be an nn.Embedding, not {type(value).__name__}")
        rows, width = value.weight.shape
        head = self.get_output_embeddings()
        tied = head is not None and self.config.tie_word_embeddings
        of_head = head.out_features if isinstance(head, nn.Linear) and not tied else rows
        if (rows, width) != (of_head, self.config.n_embd):
            raise ArgumentError(
                f"the new token embedding is ({rows} tokens, width {width}); expected "
                f"({of_head}, {self.config.n_embd}); use resize_token_embeddings to change the "
                "number of tokens"
            )
        getattr(self, "transformer", self).set_submodule("wte", value)
        if isinstance(head, nn.Linear):
            head.out_features = rows
        self.tie_weights()
        self.config.vocab_size = rows

    def get_output_embeddings(self) -> nn.Module | None:
        """The language-modelling head, or None."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another language-modelling head in the place of ``lm_head``.

        A tied head shares the token embedding's very weight, and so must the new
        one; untie first by ``config.tie_word_embeddings = False``.

        Raises ArgumentTypeError for what is no nn.Linear without a bias, and
        ArgumentError for other shapes, for a head that would break the tie, and
        for models without such a head.
        """
        self._refuse_if_packed("set_output_embeddings")
        if self.get_output_embeddings() is None:
            raise ArgumentError(f"{type(self).__name__} has no output embeddings to set")
        if (
            not isinstance(new_embeddings, nn.Linear)
            or getattr(new_embeddings, "bias", None) is not None
        ):
            raise ArgumentTypeError(
                "new_embeddings must be an nn.Linear(…, bias=False), not "
                f"{type(new_embeddings).__name__} {new_embeddings}"
            )
        embedding = self.get_input_embeddings()
        assert isinstance(embedding, nn.Embedding)
        table = embedding.weight
        if new_embeddings.weight.shape != table.shape:
            raise ArgumentError(
                f"new_embeddings has a weight of shape {tuple(new_embeddings.weight.shape)}; "
                f"expected {tuple(table.shape)}"
            )
        if self.config.tie_word_embeddings and new_embeddings.weight is not table:
            raise ArgumentError(
                "new_embeddings has a weight of its own, but config.tie_word_embeddings makes the "
                "head's weight that of the token embedding; share it, or set "
                "config.tie_word_embeddings = False first"
            )
        self.set_submodule("lm_head", new_embeddings)

    def tie_weights(self) -> None:
        """Make each tied parameter the very parameter it is tied to: none here."""

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Give the model ``new_num_tokens`` tokens, and return the token embedding.

        Rows are cut off or added at the end, in an untied head too; new ones
        are drawn around the mean of the old, or from N(0, initializer_range²)
        with ``mean_resizing=False``. ``pad_to_multiple_of`` rounds the number
        up. The parameters are new: make the optimizer afterwards.

        Raises ArgumentError for numbers below 1, and where wte or the head has an adapter.
        """
        self._refuse_if_packed("resize_token_embeddings")
        table, head = self.get_input_embeddings(), self.get_output_embeddings()
        assert isinstance(table, nn.Embedding)
        rows = table.num_embeddings if new_num_tokens is None else new_num_tokens
        check_whole(ArgumentError, "new_num_tokens", rows, 1)
        if pad_to_multiple_of is not None:
            check_whole(ArgumentError, "pad_to_multiple_of", pad_to_multiple_of, 1)
            rows = -(-rows // pad_to_multiple_of) * pad_to_multiple_of
        if rows == table.num_embeddings:
            return table
        self._refuse_if_added_to("resize_token_embeddings", {"wte": table, "lm_head": head})

        def resized(old: Tensor) -> nn.Parameter:
            std = self.config.initializer_range
            new = resized_rows(old, rows, mean_resizing=mean_resizing, std=std)
            return nn.Parameter(new, requires_grad=old.requires_grad)

        if isinstance(head, nn.Linear):
            if head.weight is not table.weight:  # a tied one follows the table below
                head.weight = resized(head.weight)
            head.out_features = rows
        table.weight, table.num_embeddings = resized(table.weight), rows
        self.tie_weights()
        self.config.vocab_size = rows
        return table

    def get_position_embeddings(self) -> nn.Module:
        """The position embedding, ``wpe``."""
        core = getattr(self, "transformer", self)
        return core.get_submodule("wpe")

    def resize_position_embeddings(
        self,
        new_num_position_embeddings: int,
        mode: str = "truncate",
    ) -> nn.Module:
        """Give the model ``new_num_position_embeddings`` positions, and return the embedding.

        "truncate" keeps the first rows of the table, and cannot make it longer.
        "interpolate" stretches or shrinks all of it: row i of the M new ones
        lies at i · (N − 1) / (M − 1) among the N old ones, between two of them
        in proportion, so that the first and the last stay what they were. The
        model then needs training, since its positions stand closer together.
        ``config.n_positions`` follows. The parameter is new: make the optimizer
        afterwards.

        Raises ArgumentError for numbers below 1, for an unknown mode, for
        "truncate" to more positions, and where wpe has an adapter.
        """
        self._refuse_if_packed("resize_position_embeddings")
        table = self.get_position_embeddings()
        assert isinstance(table, nn.Embedding)
        rows, old = new_num_position_embeddings, table.weight
        check_whole(ArgumentError, "new_num_position_embeddings", rows, 1)
        check_choice(ArgumentError, "mode", mode, ("truncate", "interpolate"))
        if mode == "truncate" and rows > len(old):
            raise ArgumentError(
                f"new_num_position_embeddings is {rows}, but the model has only {len(old)} "
                "positions to truncate; give mode='interpolate' to stretch them"
            )
        if rows == len(old):
            return table
        self._refuse_if_added_to("resize_position_embeddings", {"wpe": table})
        new = old[:rows].clone() if mode == "truncate" else interpolated_rows(old, rows)
        table.weight = nn.Parameter(new.detach(), requires_grad=old.requires_grad)
        table.num_embeddings = rows
        self.config.n_positions = rows
        return table

    def prune_heads(self, heads_to_prune: Mapping[int, Sequence[int]]) -> None:
        """Take heads out of layers: {layer: [head, …]}, numbered as they were at first.

        The same numbers as a head mask of 0 there, with less to compute. They
        are noted in ``config.pruned_heads``, saved and loaded. (transformers
        loads a pruned model in its 4.x releases only.)

        Raises ConfigError for layers and heads that are not there, and for the
        last head of a layer; ArgumentError where a layer's c_attn or c_proj has an adapter.
        """
        self._refuse_if_packed("prune_heads")
        gone = self.config.pruned_heads
        wanted = {
            layer: sorted({*gone.get(layer, []), *heads}) for layer, heads in heads_to_prune.items()
        }
        after = self.config.replaced(pruned_heads={**gone, **wanted})  # checks the numbers
        attentions = {
            module.layer_idx: module
            for module in self.modules()
            if isinstance(module, GPT2Attention) and not module.is_cross_attention
        }
        for layer in wanted:
            projections = attentions[layer].c_attn, attentions[layer].c_proj
            names = (f"h.{layer}.attn.c_attn", f"h.{layer}.attn.c_proj")
            self._refuse_if_added_to("prune_heads", dict(zip(names, projections, strict=True)))
        for layer, heads in wanted.items():
            prune_attention(attentions[layer], heads, gone.get(layer, []))
        self.config.pruned_heads = after.pruned_heads


@torch.no_grad()
def resized_rows(table: Tensor, rows: int, *, mean_resizing: bool, std: float) -> Tensor:
    """``table`` (V, D) with ``rows`` rows: cut off, or grown, (rows, D).

    New rows are drawn around the mean of the old ones, or from N(0, std²)
    where ``mean_resizing`` is False.
    """
    old = table[: min(rows, len(table))]
    added = rows - len(old)
    if added == 0:
        return old.clone()
    if not mean_resizing:
        return torch.cat([old, torch.empty_like(table[:1]).repeat(added, 1).normal_(std=std)])
    mean = table.float().mean(0)  # (D,)
    centred = table.float() - mean  # (V, D)
    # zᵀ·centred / √V with z ~ N(0, 1) has the rows' covariance, without a factorization of it.
    z = torch.randn(added, len(table), device=table.device)
    spread = (_COVARIANCE_SHARE / len(table)) ** 0.5
    return torch.cat([old, (mean + spread * (z @ centred)).to(table.dtype)])


@torch.no_grad()
def interpolated_rows(table: Tensor, rows: int) -> Tensor:
    """``table`` (N, D) as (rows, D): its first and last row, and linearly in between."""
    columns = table.float().T[None]  # (1, D, N)
    if rows == 1:
        return table[:1].clone()
    stretched = F.interpolate(columns, size=rows, mode="linear", align_corners=True)
    return stretched[0].T.contiguous().to(table.dtype)


@torch.no_grad()
def prune_attention(attention: GPT2Attention, heads: list[int], gone: list[int]) -> None:
    """Leave a self-attention, from which ``gone`` were taken before, without ``heads``.

    Both number the heads as they were at first.
    """
    if heads == gone:
        return
    remaining = [h for h in range(attention.num_heads + len(gone)) if h not in gone]
    kept = torch.tensor([i for i, h in enumerate(remaining) if h not in heads])
    head_dim, width = attention.head_dim, attention.num_heads * attention.head_dim
    columns = (kept[:, None] * head_dim + torch.arange(head_dim)).flatten()
    rows = torch.cat([part * width + columns for part in range(3)])  # of q, k and v
    c_attn, c_proj = attention.c_attn, attention.c_proj
    columns, rows = columns.to(c_attn.weight.device), rows.to(c_attn.weight.device)
    c_attn.weight = _chosen(c_attn.weight, rows, 0)
    c_attn.bias = _chosen(c_attn.bias, rows, 0)
    c_proj.weight = _chosen(c_proj.weight, columns, 1)
    c_attn.out_features, c_proj.in_features = len(rows), len(columns)
    attention.num_heads = len(kept)


def _chosen(parameter: Tensor, index: Tensor, dim: int) -> nn.Parameter:
    chosen = parameter.index_select(dim, index).contiguous()
    return nn.Parameter(chosen, requires_grad=parameter.requires_grad)
