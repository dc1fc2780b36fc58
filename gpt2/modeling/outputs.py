"""What the models return: dataclasses that also read like the documented mapping and tuple."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeVar, dataclass_transform

from torch import Tensor
from torch.utils import _pytree as pytree

from gpt2.modeling.cache import KVCache

_O = TypeVar("_O", bound="type[ModelOutput]")


class ModelOutput:
    """Attribute, key and index access over the fields that are not None.

    ``out.logits``, ``out["logits"]`` and ``out[0]`` all work; ``out[1:]`` and
    ``to_tuple()`` leave out what is None; iteration goes over names, as in a dict.
    """

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name) if name in self.keys() else default

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{key!r}; {type(self).__name__} has {', '.join(self.keys())}")
        return getattr(self, key)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass_transform()
def output_class(cls: _O) -> _O:
    """Make the class a dataclass and a node of torch's pytree, so that its tensors are found."""
    dataclass(cls)
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]

    def flatten(output: Any) -> tuple[list[Any], Any]:
        return [getattr(output, name) for name in names], None

    def unflatten(children: Iterable[Any], _context: Any) -> Any:
        return cls(*children)

    pytree.register_pytree_node(
        cls, flatten, unflatten, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}"
    )
    return cls


@output_class
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """What GPT2Model returns.

    ``last_hidden_state`` (B, T, D), after ln_f; ``hidden_states`` L + 1 tensors
    (B, T, D): the embeddings, then each block's output, the last one after
    ln_f; ``attentions`` and ``cross_attentions`` L tensors (B, H, T, S).
    """

    last_hidden_state: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@output_class
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """What GPT2LMHeadModel returns: ``loss`` (scalar), ``logits`` (B, T, V), and the core's."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@output_class
class GPT2DoubleHeadsModelOutput(ModelOutput):
    """What GPT2DoubleHeadsModel returns: ``logits`` (B, C, T, V) and ``mc_logits`` (B, C)."""

    loss: Tensor | None = None
    mc_loss: Tensor | None = None
    logits: Tensor | None = None
    mc_logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@output_class
class SequenceClassifierOutputWithPast(ModelOutput):
    """What GPT2ForSequenceClassification returns: ``logits`` (B, C), one row per sequence."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@output_class
class TokenClassifierOutput(ModelOutput):
    """What GPT2ForTokenClassification returns: ``logits`` (B, T, C).

    ``past_key_values`` is there only where use_cache=True was asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    past_key_values: KVCache | None = None


@output_class
class QuestionAnsweringModelOutput(ModelOutput):
    """What GPT2ForQuestionAnswering returns: ``start_logits`` and ``end_logits`` (B, T)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
