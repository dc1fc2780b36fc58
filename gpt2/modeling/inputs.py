"""What a forward pass is given, checked: shapes at once, values with one host synchronisation.

``ValueChecks`` collects yes/no questions about tensors ("is any id out of
range?") and asks the device once. ``place_tokens`` turns the attention mask,
the position ids and the cache into positions and a Visibility.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    GPT2Error,
    SequenceLengthError,
    TokenIdError,
)
from gpt2.modeling.cache import KVCache
from gpt2.modeling.masks import (
    Visibility,
    finite_bias,
    padded_causal_visibility,
    positions_from_mask,
)

IGNORE_INDEX = -100  # labels with this value take no part in a loss, as in torch's losses

_ID_DTYPES = (torch.int64, torch.int32)  # what an embedding can be indexed with


class ValueChecks:
    """Questions about the values of tensors, answered together.

    Disabled (``enabled=False``, and always inside a compiled or exported
    graph), it asks nothing and knows nothing: ``answer`` is then False.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and not torch.compiler.is_compiling()
        self._questions: list[Tensor] = []
        self._errors: dict[int, Callable[[], GPT2Error]] = {}
        self._answers: list[bool] = []

    def ask(self, question: Callable[[], Tensor]) -> int:
        """Note a question, a function that gives a bool tensor (); returns its number."""
        if self.enabled:
            self._questions.append(question())
        return len(self._questions) - 1

    def refuse(self, bad: Callable[[], Tensor], error: Callable[[], GPT2Error]) -> None:
        """Raise ``error()`` at ``run`` if the bool tensor () ``bad()`` is true."""
        number = self.ask(bad)
        if self.enabled:
            self._errors[number] = error

    def run(self) -> None:
        """Ask the device, once; raise for the first refusal that holds."""
        if self._questions and not self._answers:
            self._answers = torch.stack(self._questions).tolist()  # the one synchronisation
            for number, error in self._errors.items():
                if self._answers[number]:
                    raise error()

    def answer(self, number: int) -> bool:
        """The answer to question ``number``; False where nothing was asked."""
        return self.enabled and self._answers[number]

    def ids_in_range(self, name: str, ids: Tensor, size: int, *, ignore: int | None = None) -> None:
        """Refuse ids outside [0, size), except for ``ignore``."""

        def outside() -> Tensor:
            bad = (ids < 0) | (ids >= size)
            return bad if ignore is None else bad & (ids != ignore)

        def error() -> GPT2Error:
            where = outside().nonzero()[0].tolist()
            also = "" if ignore is None else f" or {ignore} (ignored)"
            return TokenIdError(
                f"{name}{where} is {ids[tuple(where)].item()}; "
                f"ids must be from 0 to {size - 1}{also}"
            )

        self.refuse(lambda: outside().any(), error)


def require_tensor(name: str, value: Tensor | None) -> None:
    """Refuse what is given and is not a tensor."""
    if value is not None and not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, not {type(value).__name__}")


def require_ids(name: str, value: Tensor, shape: torch.Size | None = None) -> None:
    """Refuse what is not a tensor of ids, or not of ``shape``."""
    require_tensor(name, value)
    if value.dtype not in _ID_DTYPES:
        raise ArgumentTypeError(
            f"{name} must be int64 or int32, not {str(value.dtype).removeprefix('torch.')}"
        )
    if shape is not None and value.shape != shape:
        raise ArgumentError(f"{name} has shape {tuple(value.shape)}; expected {tuple(shape)}")


def require_one_input(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> None:
    """Refuse both, neither, wrong kinds and empty ones of the two possible inputs."""
    if (input_ids is None) == (inputs_embeds is None):
        found = "neither" if input_ids is None else "both"
        raise ArgumentError(f"give either input_ids or inputs_embeds; {found} were given")
    if input_ids is not None:
        require_ids("input_ids", input_ids)
        if input_ids.dim() < 2 or input_ids.numel() == 0:
            raise ArgumentError(
                f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, length) with "
                "at least one token in at least one row"
            )
    elif not isinstance(inputs_embeds, Tensor) or not inputs_embeds.is_floating_point():
        raise ArgumentTypeError("inputs_embeds must be a floating-point tensor")
    elif inputs_embeds.dim() < 3 or inputs_embeds.numel() == 0:
        raise ArgumentError(
            f"inputs_embeds has shape {tuple(inputs_embeds.shape)}; expected (batch, length, "
            "hidden size), not empty"
        )


def token_shape(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> torch.Size:
    """(B, T), or with the caller's further leading dimensions."""
    return input_ids.shape if input_ids is not None else inputs_embeds.shape[:-1]  # type: ignore[union-attr]


def attended_positions(attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Which of the positions of ``x`` (B, T, D) are real, (B, T) bool; None where none is said."""
    if attention_mask is None or attention_mask.dim() != x.dim() - 1:
        return None
    return attention_mask[..., -x.shape[-2] :].to(torch.bool)


@dataclass(frozen=True)
class Placement:
    """Where the new tokens stand and what they see.

    ``position_ids`` (B|1, T); ``key_mask`` (B, S) bool, True at real tokens, or
    None where all are real (or where a 4-D mask leaves it unsaid).
    """

    position_ids: Tensor
    visibility: Visibility
    key_mask: Tensor | None


def place_tokens(
    *,
    batch_size: int,
    query_length: int,
    past: KVCache | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    n_positions: int,
    dtype: torch.dtype,
    device: torch.device,
    checks: ValueChecks,
) -> Placement:
    """Positions and visibility of ``query_length`` tokens behind ``past``; runs ``checks``.

    The mask is the truth: positions count real tokens, and n_positions limits
    them, not the padded width. Without a mask the cache's own mask is used, and
    the new tokens are real. Raises ArgumentError, SequenceLengthError, or what
    ``checks`` refuses.
    """
    past_length = 0 if past is None else past.length
    key_length = past_length + query_length
    if past is not None and past.batch_size not in (None, batch_size):
        raise ArgumentError(
            f"past_key_values holds {past.batch_size} rows, the new input {batch_size}"
        )

    free_form = attention_mask is not None and attention_mask.dim() == 4
    key_mask: Tensor | None = None
    if attention_mask is not None and not free_form:
        expected = (batch_size, key_length)
        if attention_mask.shape != expected:
            hint = f" ({past_length} cached + {query_length} new columns)" if past_length else ""
            raise ArgumentError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; expected {expected}{hint}"
            )
        given = attention_mask
        checks.refuse(
            lambda: ((given != 0) & (given != 1)).any(),
            lambda: _not_a_mask("attention_mask", given),
        )
        key_mask = attention_mask.to(torch.bool)
    elif past is not None and past.mask is not None:
        # Also under a 4-D mask: it says who sees whom, not which columns take a position.
        new = past.mask.new_ones(batch_size, query_length)
        key_mask = torch.cat([past.mask, new], dim=1)

    all_real = right_padded = -1
    if key_mask is not None:
        mask = key_mask
        all_real = checks.ask(lambda: mask.all())
        right_padded = checks.ask(lambda: (mask[:, 1:] <= mask[:, :-1]).all())
        checks.refuse(
            lambda: (mask.sum(-1) > n_positions).any(),
            lambda: _too_long(int(mask.sum(-1).max()), n_positions),
        )
    elif position_ids is None and key_length > n_positions:
        raise _too_long(key_length, n_positions)
    if position_ids is not None:
        position_ids = _own_positions(position_ids, batch_size, query_length)
        checks.ids_in_range("position_ids", position_ids, n_positions)
    checks.run()

    if key_mask is not None and checks.answer(all_real):
        key_mask = None
    if position_ids is None and key_mask is None:
        position_ids = torch.arange(past_length, key_length, device=device)[None]  # (1, T)
    elif position_ids is None:
        position_ids = positions_from_mask(mask, query_length)  # (B, T)

    if free_form:
        visibility = _free_form(attention_mask, batch_size, query_length, key_length, dtype)
    elif key_mask is None or checks.answer(right_padded):
        # Padding behind the last real token is after every query that matters: causal is enough.
        visibility = Visibility()
    else:
        visibility = Visibility(padded_causal_visibility(key_mask, query_length), causal=False)
    return Placement(position_ids, visibility, key_mask)


def _not_a_mask(name: str, mask: Tensor) -> ArgumentError:
    found = mask[(mask != 0) & (mask != 1)][0].item()
    return ArgumentError(f"{name} must hold only 0 (padding) and 1 (real token); it has {found}")


def _too_long(found: int, n_positions: int) -> SequenceLengthError:
    return SequenceLengthError(
        f"the sequence has {found} real tokens, but the model has n_positions = {n_positions}"
    )


def _own_positions(position_ids: Tensor, batch_size: int, query_length: int) -> Tensor:
    require_ids("position_ids", position_ids)
    rows = position_ids.reshape(-1, position_ids.shape[-1]) if position_ids.dim() else position_ids
    if rows.shape not in ((batch_size, query_length), (1, query_length)):
        raise ArgumentError(
            f"position_ids has shape {tuple(position_ids.shape)}; "
            f"expected {(batch_size, query_length)} or {(1, query_length)}"
        )
    return rows


def _free_form(
    mask: Tensor | None, batch_size: int, query_length: int, key_length: int, dtype: torch.dtype
) -> Visibility:
    """A caller's own (B|1, 1|H, T, S) mask: taken as it is, causality included."""
    assert mask is not None
    if mask.shape[-2:] != (query_length, key_length) or mask.shape[0] not in (1, batch_size):
        raise ArgumentError(
            f"attention_mask has shape {tuple(mask.shape)}; a 4-D mask must be "
            f"({batch_size} or 1, heads or 1, {query_length}, {key_length})"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ArgumentTypeError(
            "a 4-D attention_mask must be bool (True: may be seen) or floating (added to the "
            f"scores); its dtype is {mask.dtype}"
        )
    if mask.dtype != torch.bool:
        mask = finite_bias(mask, dtype)
    return Visibility(mask, causal=False)


def encoder_visibility(mask: Tensor | None, batch_size: int, length: int) -> Visibility:
    """Visibility of an encoder's states (B, length), every query seeing all that are real."""
    if mask is None:
        return Visibility(None, causal=False)
    require_tensor("encoder_attention_mask", mask)
    if mask.shape != (batch_size, length):
        raise ArgumentError(
            f"encoder_attention_mask has shape {tuple(mask.shape)}; expected {(batch_size, length)}"
        )
    seen = mask.to(torch.bool)[:, None, None, :]  # (B, 1, 1, S)
    return Visibility(seen | ~seen.any(-1, keepdim=True), causal=False)


def head_scales(head_mask: Tensor | None, n_layer: int) -> list[Tensor | None]:
    """``head_mask`` (H,) or (L, H) as one (H, 1, 1) factor per layer."""
    if head_mask is None:
        return [None] * n_layer
    require_tensor("head_mask", head_mask)
    if head_mask.dim() == 1:
        head_mask = head_mask.expand(n_layer, -1)
    if head_mask.dim() != 2 or head_mask.shape[0] != n_layer:
        raise ArgumentError(
            f"head_mask has shape {tuple(head_mask.shape)}; expected (heads,) or "
            f"({n_layer} layers, heads)"
        )
    return [row[:, None, None] for row in head_mask]
