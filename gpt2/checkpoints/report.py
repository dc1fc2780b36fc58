"""What became of every tensor of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from gpt2.checkpoints.layouts import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2.config import GPT2Config


@dataclass(frozen=True)
class TensorRecord:
    """One stored tensor, or one of ours that none is stored for (``stored_name`` is then None)."""

    file: str
    stored_name: str | None
    stored_shape: Shape
    stored_dtype: torch.dtype | None
    name: str | None
    """Ours; None where the model gets nothing from it."""
    action: str
    """"as it is", "transposed", "fused, part 1 of 3", "first 2 rows cut", "tied", "ignored",
    "left out", "filled", "copied", "newly initialised", "unexpected" or "misfit"."""
    why: str = ""

    def __str__(self) -> str:
        stored = "nothing stored"
        if self.stored_name is not None:
            dtype = str(self.stored_dtype).removeprefix("torch.")
            stored = f"{self.file}: {self.stored_name} {sized(self.stored_shape)} {dtype}"
        why = f" ({self.why})" if self.why else ""
        return f"{stored} -> {self.name or 'nothing'}: {self.action}{why}"


@dataclass
class LoadReport:
    """What became of every tensor. Names are the model's, but for the two lists of stored names.

    ``print(report)`` shows all of it.
    """

    missing_keys: list[str] = field(default_factory=list)
    """Not stored, and the model may initialise them: the caller has to."""
    mismatched_keys: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    """(name, stored shape, expected shape), left out by ignore_mismatched_sizes: likewise. Both
    shapes as ``nn.Linear`` has them."""
    dropped: list[str] = field(default_factory=list)
    """Stored names that the model has no place for, and may leave out: another head's."""
    ignored: list[str] = field(default_factory=list)
    """Stored names of buffers of old versions, which hold no weights."""
    tied: dict[str, str] = field(default_factory=dict)
    """Name that is stored once -> the name it is stored under, as far as the file had the first."""
    copied: dict[str, str] = field(default_factory=dict)
    """Name that is not stored -> the name it begins as a copy of: untied from a tied checkpoint."""
    filled: dict[str, float] = field(default_factory=dict)
    """Name -> the value of all its entries, where the checkpoint's kind of model has no such
    tensor: 0 for the biases of a model without any."""
    loaded: int = 0
    """How many tensors the model gets."""
    files: list[str] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    """The dtype of the loaded tensors."""
    layout: str = "huggingface"
    """"huggingface", "nanogpt", "mingpt", "opt", or "linear": Hugging Face's names in
    ``nn.Linear``'s orientation."""
    orientation: Literal["conv1d", "linear"] = "conv1d"
    """How the source stored the blocks' projections: [in, out] or [out, in]."""
    notes: list[str] = field(default_factory=list)
    """Decisions that the caller may want otherwise, and how to have it."""
    problems: list[str] = field(default_factory=list)
    """Why it cannot be loaded; always empty in the report of a loaded model."""
    tensors: list[TensorRecord] = field(default_factory=list)
    """One entry for each stored tensor, in the order of the files, then what is not stored."""
    model_class: str = ""
    """The class that was loaded, or that fits."""
    config: GPT2Config | None = None
    """The config that it was loaded with, or would be."""

    @property
    def unexpected_keys(self) -> list[str]:
        """The name that transformers' loading info has for `dropped`."""
        return self.dropped

    def summary(self) -> str:
        """One line for the log."""
        parts = [
            f"loaded {self.loaded} tensors as {str(self.dtype).removeprefix('torch.')} "
            f"from {some(self.files)}"
        ]
        if self.layout not in ("huggingface", "linear"):
            parts[0] += f" in the layout {self.layout!r}"
        mismatched = [name for name, _, _ in self.mismatched_keys]
        for what, names in (
            ("newly initialised", self.missing_keys),
            ("of another size and newly initialised", mismatched),
            ("left out", self.dropped),
        ):
            if names:
                parts.append(f"{what}: {some(names)}")
        if self.filled:
            parts.append(f"filled in {len(self.filled)} tensors that its model does without")
        if self.copied:
            parts.append(f"untied, at first a copy: {some(list(self.copied))}")
        if self.ignored:
            parts.append(f"ignored {len(self.ignored)} mask buffers of an old version")
        return "; ".join([*parts, *self.notes])

    def __str__(self) -> str:
        lines = [f"{self.model_class or 'tensors'} from {some(self.files)}, layout {self.layout!r}"]
        if self.config is not None:
            c = self.config
            lines.append(
                f"vocab_size {c.vocab_size}, n_positions {c.n_positions}, n_embd {c.n_embd}, "
                f"n_layer {c.n_layer}, n_head {c.n_head}, n_inner {c.inner_dim}, "
                f"activation_function {c.activation_function!r}, "
                f"tie_word_embeddings {c.tie_word_embeddings}"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem.strip()}" for problem in self.problems]
        return "\n".join([*lines, *(f"  {record}" for record in self.tensors)])


def sized(shape: Sequence[int]) -> str:
    """``[3, 4]``"""
    return "[" + ", ".join(map(str, shape)) + "]"


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
