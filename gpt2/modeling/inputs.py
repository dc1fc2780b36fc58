"""What a forward pass is given, checked: shapes at once, values with one host synchronisation.

``ValueChecks`` collects questions about tensors ("is any id out of range?") and
asks the device once.

Shapes: see the legend in gpt2/modeling/transformer.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    GPT2Error,
    SequenceLengthError,
    TokenIdError,
)

IGNORE_INDEX = -100  # labels with this value take no part in a loss, as in torch's losses

_ID_DTYPES = (torch.int64, torch.int32)  # what an embedding can be indexed with


class ValueChecks:
    """Questions about the values of tensors, answered together.

    Disabled (``enabled=False``, and always inside a compiled or exported
    graph), it asks nothing and knows nothing: ``answer`` is then 0, or False.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled and not torch.compiler.is_compiling()
        self._questions: list[Tensor] = []
        self._errors: dict[int, Callable[[], GPT2Error]] = {}
        self._answers: list[int] = []  # or bools

    def ask(self, question: Callable[[], Tensor]) -> int:
        """Note a question, a function that gives a bool or int tensor (); returns its number."""
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

    def answer(self, number: int) -> int:
        """The answer to question ``number``; 0 where nothing was asked."""
        return self._answers[number] if self.enabled else 0

    def ids_in_range(self, name: str, ids: Tensor, size: int, *, ignore: int | None = None) -> None:
        """Refuse ids outside [0, size), except for ``ignore``."""

        def outside() -> Tensor:
            bad = (ids < 0) | (ids >= size)
            return bad if ignore is None else bad & (ids != ignore)

        def error() -> GPT2Error:
            also = "" if ignore is None else f" or {ignore} (ignored)"
            found = _first(name, ids, outside())
            return TokenIdError(f"{found}; ids must be from 0 to {size - 1}{also}")

        self.refuse(lambda: outside().any(), error)

    def positions_in_range(self, name: str, positions: Tensor, n_positions: int) -> None:
        """Refuse positions outside [0, n_positions)."""

        def outside() -> Tensor:
            return (positions < 0) | (positions >= n_positions)

        def error() -> GPT2Error:
            return SequenceLengthError(
                f"{_first(name, positions, outside())}; the model has n_positions = "
                f"{n_positions}, so that positions must be from 0 to {n_positions - 1}"
            )

        self.refuse(lambda: outside().any(), error)

    def zeros_and_ones(self, name: str, mask: Tensor) -> None:
        """Refuse a mask that holds anything else."""

        def error() -> GPT2Error:
            found = mask[(mask != 0) & (mask != 1)][0].item()
            return ArgumentError(
                f"{name} must hold only 0 (padding) and 1 (real token); it has {found}"
            )

        self.refuse(lambda: ((mask != 0) & (mask != 1)).any(), error)


def _first(name: str, values: Tensor, bad: Tensor) -> str:
    """Where the first bad value stands, and what it is."""
    where = bad.nonzero()[0].tolist()
    return f"{name}{where} is {values[tuple(where)].item()}"


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


def in_last_document(attended: Tensor | None, document_ids: Tensor | None) -> Tensor | None:
    """Which positions are real and in the document of their row's last real token, (…, T) bool.

    What a head that gives one answer per row looks at; None where it is the whole row.
    """
    if document_ids is None:
        return attended
    if attended is None:
        return document_ids == document_ids[..., -1:]
    columns = torch.arange(attended.shape[-1], device=attended.device)
    last = (attended * columns).argmax(-1, keepdim=True)
    return attended & (document_ids == document_ids.gather(-1, last))


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
