"""GPT2PreTrainedModel: what every model class shares besides its forward pass.

Initialisation, and the tie between embedding and head. What it does with files is in loading.py
and saving.py.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Literal, Self, TypeVar

import torch
from torch import nn

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, StateDictError, unknown_argument
from gpt2.inference import prepare_for_inference
from gpt2.modeling.outputs import ModelOutput
from gpt2.modeling.saving import Savable

Output = TypeVar("Output", bound=ModelOutput)


class GPT2PreTrainedModel(Savable):
    """Base of all models: ``config``, initialisation, tying, from_pretrained, save_pretrained."""

    config: GPT2Config

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        if not isinstance(config, GPT2Config):
            raise ArgumentTypeError(
                f"{type(self).__name__} takes a GPT2Config, not {type(config).__name__}; "
                f"to load weights use {type(self).__name__}.from_pretrained"
            )
        config.validate()
        self.config = copy.deepcopy(config)  # the caller's own is never changed
        self.register_load_state_dict_pre_hook(_refuse_conv1d)  # type: ignore[no-untyped-call]
        if self.tied_weights:
            # torch leaves these untyped
            self.register_state_dict_post_hook(_leave_out_tied)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_pre_hook(_supply_tied)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]

    # -- construction ---------------------------------------------------------------------------

    def post_init(self) -> None:
        """Initialise every weight of this class, and tie; called at the end of a constructor."""
        core = getattr(self, self.base_model_prefix, None)
        if isinstance(core, GPT2PreTrainedModel):
            core.config = self.config  # one config: what is set on the model holds in its core
        ties = self.tied_weights if self.config.tie_word_embeddings else {}
        for name, _ in self.named_parameters(remove_duplicate=False):
            of_core = name.startswith(f"{self.base_model_prefix}.")  # has initialised itself
            if not of_core and name not in ties:
                self._init_parameter(name)
        self.tie_weights()

    def _init_parameter(self, name: str) -> None:
        """N(0, initializer_range) for matrices, 0 for biases, 1 for layer norms.

        The projections that write to the residual stream get 1/√(2·n_layer) of
        that deviation, since each layer adds two of them (GPT-2 paper, §2.3).
        """
        path, _, leaf = name.rpartition(".")
        parameter = self.get_parameter(name)
        if parameter.is_meta:
            return  # nothing is there yet
        if leaf == "bias":
            nn.init.zeros_(parameter)
        elif isinstance(self.get_submodule(path), nn.LayerNorm):
            nn.init.ones_(parameter)
        else:
            std = self.config.initializer_range
            if name.endswith("c_proj.weight"):
                std /= math.sqrt(2 * self.config.n_layer)
            nn.init.normal_(parameter, std=std)

    def tie_weights(self) -> None:
        """Make each tied parameter the very parameter it is tied to."""
        if not self.config.tie_word_embeddings:
            return
        for name, source in self.tied_weights.items():
            path, _, leaf = name.rpartition(".")
            if self.packed:
                _share(self.get_submodule(path), self.get_submodule(source.rpartition(".")[0]))
                continue
            setattr(_unwrapped(self.get_submodule(path)), leaf, self.get_parameter(source))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Moving from the meta device (to_empty) makes a new parameter per module: tie again.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tie_weights()
        return self

    # -- inference ------------------------------------------------------------------------------

    def prepare_for_inference(
        self, *, weights: Literal["float32", "bfloat16", "int8"] = "float32", compile: bool = False
    ) -> Self:
        """A copy of this model whose weights are stored for fast decoding, in eval mode.

        The copy has the same class, forward and generate; this model stays as
        it is, and nothing is shared. ``weights``: how the linear layers and the
        token embedding are stored. On CPU:

        - "float32": 4 bytes per weight, results within rounding of this model's;
        - "bfloat16": 2 bytes; each weight keeps 8 bits of precision;
        - "int8": 1 byte and a scale per output, see gpt2.modeling.linear.quantized.

        The first two are held in the order of oneDNN's kernels, a tied token
        embedding by rows as well: GPT-2, 124M, takes 0.65 and 0.33 GB, and 0.12
        with int8. With the latter two the products are in bfloat16, so a row's
        numbers hang a little on its batch.

        ``compile`` runs decode steps as compiled functions, those of one row as a
        whole, those of several rows their attention: needs a C++ compiler, takes
        about 20 s once, and torch keeps the result on disk. They read weights by
        rows, so that the first two are then held twice, 1 and 0.5 GB, and keep a
        cache in the dtype of the arithmetic, bfloat16 with the latter two.
        On a GPU "float32" and "bfloat16" are a plain copy in that dtype, and
        ``compile`` makes generate's steps CUDA graphs.

        Such a model cannot be trained. save_pretrained keeps int8 weights as
        they are, for this library only; the others become a plain checkpoint.

        Raises ArgumentError for other weights, a prepared model or one whose
        linear layers were replaced (adapters: merge them), and BackendError
        where there is no compiler or the device has no such storage.
        """
        return prepare_for_inference(self, weights=weights, compile=compile)

    def train(self, mode: bool = True) -> Self:
        """Training mode, or eval mode; ArgumentError where the weights are packed."""
        if mode and self.packed:
            raise ArgumentError(
                f"this model was prepared for inference with {self.packed} weights and cannot be "
                "trained; train the one that it was made of"
            )
        return super().train(mode)

    # -- facts ----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the parameters."""
        return next(self.parameters()).dtype

    def returned(self, output: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """A forward pass's output as it is, or as a tuple, as the argument or the config says."""
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


def refuse_unknown(module: nn.Module, unknown: Mapping[str, Any]) -> None:
    """ArgumentTypeError for the first argument that the module's forward does not have."""
    for name in unknown:
        known = set(inspect.signature(module.forward).parameters) - {"unknown"}
        raise unknown_argument(f"{type(module).__name__}.forward", name, known)


def _share(head: nn.Module, table: nn.Module) -> None:
    """One packed weight, and its scale, for both."""
    table.weight, table.scale = head.weight, head.scale


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, where PEFT has put an adapter, or a copy to be trained, around it."""
    for name in ("base_layer", "original_module"):
        if name in module._modules:
            return module.get_submodule(name)
    return module


# Hooks stand at module level so that models pickle and deepcopy.


def _leave_out_tied(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any
) -> None:
    """A tied weight is stored once: state_dict() does not list it again."""
    assert isinstance(module, GPT2PreTrainedModel)
    for name, source in _active_ties(module):
        for of_head, of_table in _tensors_of_tie(module, name, source):
            path, _, leaf = of_head.rpartition(".")
            tied = getattr(module.get_submodule(path), leaf, None)
            if tied is attrgetter(of_table)(module):
                state_dict.pop(prefix + of_head, None)


def _refuse_conv1d(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """The projections' orientation is read off c_attn, which is never square; see DESIGN.md."""
    for name, parameter in module.named_parameters():
        found = getattr(state_dict.get(prefix + name), "shape", None)
        if name.endswith("c_attn.weight") and found == parameter.shape[::-1]:
            raise StateDictError(
                f"{prefix + name} has shape {tuple(found)}, the model's {tuple(parameter.shape)}: "
                "these are weights in transformers' Conv1D orientation (in, out), and a module "
                "here is a Linear (out, in); use from_pretrained(directory, state_dict=...), "
                "which turns them"
            )


def _supply_tied(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """Loading expects both names; two tensors that differ cannot both be kept."""
    assert isinstance(module, GPT2PreTrainedModel)
    ties = _active_ties(module)
    for name, source in [pair for tie in ties for pair in _tensors_of_tie(module, *tie)]:
        head, table = state_dict.get(prefix + name), state_dict.get(prefix + source)
        if head is None and table is not None:
            state_dict[prefix + name] = table
        elif head is not None and table is not None and head is not table:
            alike = head.shape == table.shape and head.dtype == table.dtype
            if not alike or not (
                head.is_meta or torch.allclose(head, table, rtol=0, atol=0, equal_nan=True)
            ):
                raise StateDictError(
                    f"{prefix + name} and {prefix + source} differ, but config.tie_word_embeddings "
                    "makes them one; drop one of them, or set tie_word_embeddings=False"
                )


def _tie_again(module: nn.Module, _incompatible: Any) -> None:
    """Loading with assign=True makes two parameters of a tied one."""
    assert isinstance(module, GPT2PreTrainedModel)
    module.tie_weights()


def _tensors_of_tie(module: nn.Module, name: str, source: str) -> list[tuple[str, str]]:
    """The names of a tied weight, and of its scales where it is packed as int8."""
    pairs = [(name, source)]
    if getattr(module, "packed", None) == "int8":
        pairs += [
            (f"{n.rpartition('.')[0]}.scale", f"{s.rpartition('.')[0]}.scale") for n, s in pairs
        ]
    return pairs


def _active_ties(module: GPT2PreTrainedModel) -> list[tuple[str, str]]:
    return list(module.tied_weights.items()) if module.config.tie_word_embeddings else []
