"""What training loops and adapters ask of a model besides its forward pass.

How many parameters it has, recomputing blocks to save memory, and gradients
that reach the embeddings' output.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from gpt2.errors import unknown_argument
from gpt2.modeling.surgery import Surgery

# what torch's checkpoint itself takes, of which its signature leaves out the last
_CHECKPOINT_ARGUMENTS = {
    name
    for name, parameter in inspect.signature(checkpoint).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
} | {"use_reentrant", "preserve_rng_state"}


class Trainable(Surgery):
    """The part of GPT2PreTrainedModel that training loops call."""

    base_model_prefix: ClassVar[str] = "transformer"
    #: as documented: trainers ask before they call gradient_checkpointing_enable
    supports_gradient_checkpointing: ClassVar[bool] = True
    _input_grads: RemovableHandle | None = None

    @property
    def base_model(self) -> nn.Module:
        """The core without its head, as documented; of GPT2Model the model itself."""
        core: nn.Module = getattr(self, self.base_model_prefix, self)
        return core

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters; a tied one counts once.

        ``exclude_embeddings`` leaves out the tables of tokens and positions, and
        with them a head that is tied to one.
        """
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding)]
        skipped = {id(table) for table in tables} if exclude_embeddings else set()
        return sum(
            p.numel()
            for p in self.parameters()
            if (p.requires_grad or not only_trainable) and id(p) not in skipped
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, a tied one once, and of the buffers unless told otherwise."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has ``generate``."""
        return hasattr(cls, "generate")

    # -- memory ---------------------------------------------------------------------------------

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """In training, keep only each block's input and compute the block again in backward.

        ``gradient_checkpointing_kwargs`` go to torch.utils.checkpoint.checkpoint;
        use_reentrant is False unless they say otherwise. Raises
        ArgumentTypeError for one that it does not take.
        """
        given = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        for name in given:
            if name not in _CHECKPOINT_ARGUMENTS:
                raise unknown_argument("torch's checkpoint", name, _CHECKPOINT_ARGUMENTS)
        getattr(self, self.base_model_prefix, self).checkpointing = given

    def gradient_checkpointing_disable(self) -> None:
        """Keep what backward needs, again."""
        getattr(self, self.base_model_prefix, self).checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient_checkpointing_enable is in force."""
        return getattr(self, self.base_model_prefix, self).checkpointing is not None

    # -- adapters -------------------------------------------------------------------------------

    def enable_input_require_grads(self) -> None:
        """Let the token embeddings' output require gradients although their table is frozen.

        What checkpointing with use_reentrant=True needs where only adapters train.
        """
        if self._input_grads is None:
            self._input_grads = self.get_input_embeddings().register_forward_hook(_require_grad)

    def disable_input_require_grads(self) -> None:
        """Undo enable_input_require_grads."""
        if self._input_grads is not None:
            self._input_grads.remove()
            self._input_grads = None

    def set_input_embeddings(self, value: nn.Module) -> None:
        super().set_input_embeddings(value)
        if self._input_grads is not None:  # its hook was on the embedding that has gone
            self.disable_input_require_grads()
            self.enable_input_require_grads()


def _require_grad(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    # At module level, so that models with this hook pickle and deepcopy.
    if torch.is_grad_enabled():
        output.requires_grad_(True)
