"""GPT2PreTrainedModel: what every model class shares besides its forward pass.

Initialisation, the tie between embedding and head, loading and saving.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from gpt2.checkpoints.load import load_tensors, normalize_state_dict
from gpt2.checkpoints.save import weight_file_patterns, write_checkpoint
from gpt2.config import CONFIG_NAME, GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, StateDictError, unknown_argument
from gpt2.modeling.outputs import ModelOutput
from gpt2.modeling.trainable import Trainable
from gpt2.storage.atomic import staged_directory
from gpt2.storage.hub import Repository, open_repository

Output = TypeVar("Output", bound=ModelOutput)


class GPT2PreTrainedModel(Trainable):
    """Base of all models: ``config``, initialisation, tying, from_pretrained, save_pretrained."""

    config: GPT2Config
    #: tied name -> the name that is stored; only while config.tie_word_embeddings
    tied_weights: ClassVar[Mapping[str, str]] = {}
    #: patterns of own parameters that a checkpoint may lack; they are initialised then
    may_initialize: ClassVar[tuple[str, ...]] = ()
    #: patterns of tensors (other heads') that a checkpoint may have and this class does not
    may_drop: ClassVar[tuple[str, ...]] = (
        "lm_head.weight",
        "score.weight",
        "classifier.*",
        "qa_outputs.*",
        "multiple_choice_head.*",
    )

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        if not isinstance(config, GPT2Config):
            raise ArgumentTypeError(
                f"{type(self).__name__} takes a GPT2Config, not {type(config).__name__}; "
                f"to load weights use {type(self).__name__}.from_pretrained"
            )
        config.validate()
        self.config = copy.deepcopy(config)  # the caller's own is never changed
        if self.tied_weights:
            # torch leaves these three untyped
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
            setattr(self.get_submodule(path), leaf, self.get_parameter(source))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Moving from the meta device (to_empty) makes a new parameter per module: tie again.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tie_weights()
        return self

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

    # -- loading --------------------------------------------------------------------------------

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        output_loading_info: Literal[False] = False,
        **arguments: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        output_loading_info: Literal[True],
        **arguments: Any,
    ) -> tuple[Self, dict[str, list[Any]]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: GPT2Config | str | os.PathLike[str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        variant: str | None = None,
        use_safetensors: bool | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device: torch.device | str | int | None = None,
        device_map: str | int | torch.device | Mapping[str, Any] | None = None,
        low_cpu_mem_usage: bool | None = None,
        **overrides: Any,
    ) -> Self | tuple[Self, dict[str, list[Any]]]:
        """A model in eval mode with the weights of a hub repository or a directory.

        ``config``: a config, or where to read one, in place of the
        repository's. ``overrides``: config fields (``n_positions=512`` …).
        ``dtype`` (documented also as ``torch_dtype``): a torch dtype, its name,
        or "auto" (as stored); float32 unless told. ``device``, or
        ``device_map`` for those used to it: one device, or "auto" (the best one).
        ``state_dict``: weights to take in place of the files'.
        ``low_cpu_mem_usage`` is accepted and always true: each weight is
        allocated once. ``output_loading_info``: return (model, info) with the
        lists missing_keys, unexpected_keys, mismatched_keys and error_msgs.

        Loading is strict: StateDictError names missing, unexpected and
        misshapen tensors. Also raises ArgumentError, ArgumentTypeError,
        ConfigError, FileAccessError, HubError and FileFormatError.
        """
        wanted_dtype = _chosen_dtype(dtype, torch_dtype)
        wanted_device = _chosen_device(device, device_map)
        where: dict[str, Any] = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        repository = open_repository(
            pretrained_model_name_or_path, revision=revision, subfolder=subfolder, **where
        )
        if state_dict is not None and not isinstance(state_dict, Mapping):
            raise ArgumentTypeError(
                f"state_dict must map names to tensors, not be a {type(state_dict).__name__}"
            )
        config = cls._loaded_config(config, repository, where, overrides)
        if attn_implementation is not None:
            config.attn_implementation = attn_implementation

        with torch.device("meta"):
            model = cls(config)
        expected = {
            name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)
        }
        rules: dict[str, Any] = {
            "dtype": wanted_dtype,
            "device": wanted_device,
            "tied": cls.tied_weights if config.tie_word_embeddings else {},
            "may_initialize": cls.may_initialize,
            "may_drop": cls.may_drop,
            "ignore_mismatched_sizes": ignore_mismatched_sizes,
        }
        if state_dict is None:
            loaded = load_tensors(
                repository, expected, variant=variant, use_safetensors=use_safetensors, **rules
            )
        else:
            loaded = normalize_state_dict(state_dict, expected, **rules)
        model._adopt(loaded.tensors, wanted_device)
        model._read_extras(repository)
        model.eval()
        if not output_loading_info:
            return model
        report = loaded.report
        return model, {
            "missing_keys": list(report.missing_keys),
            "unexpected_keys": list(report.unexpected_keys),
            "mismatched_keys": list(report.mismatched_keys),
            "error_msgs": [],
        }

    @classmethod
    def _loaded_config(
        cls,
        config: GPT2Config | str | os.PathLike[str] | None,
        repository: Repository,
        where: Mapping[str, Any],
        overrides: dict[str, Any],
    ) -> GPT2Config:
        known = GPT2Config.argument_names()
        for name in overrides:
            if name not in known:
                owner = f"{cls.__name__}.from_pretrained"
                arguments = {*known, *inspect.signature(cls.from_pretrained).parameters}
                raise unknown_argument(owner, name, arguments - {"overrides"})
        if isinstance(config, GPT2Config):
            return config.replaced(**overrides)
        if config is not None:
            return GPT2Config.from_pretrained(config, **where, **overrides)
        return GPT2Config.from_json_file(repository.require(CONFIG_NAME), **overrides)

    def _adopt(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Take the tensors as parameters; initialise what is left on the meta device."""
        dtype = next((t.dtype for t in tensors.values()), torch.get_default_dtype())
        self.load_state_dict(tensors, strict=False, assign=True)
        for name in [n for n, p in self.named_parameters() if p.is_meta]:
            path, _, leaf = name.rpartition(".")
            empty = torch.empty_like(self.get_parameter(name), dtype=dtype, device=device)
            setattr(self.get_submodule(path), leaf, nn.Parameter(empty))
            self._init_parameter(name)
        self.tie_weights()

    def _read_extras(self, repository: Repository) -> None:
        """Read what else the repository has for this class; nothing by default."""

    # -- saving ---------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        is_main_process: bool = True,
    ) -> None:
        """Write config and weights in the Hugging Face layout, which transformers loads.

        The directory is replaced as a whole, so that it is complete or as it
        was before; other files in it stay. ``state_dict``: weights to write in
        place of the model's own. ``max_shard_size``: bytes, or "200MB".
        ``is_main_process=False`` writes nothing, for all ranks but one.

        Raises ArgumentError, and FileAccessError where the disk refuses.
        """
        if not is_main_process:
            return
        config = self.config.replaced(
            architectures=[type(self).__name__],
            torch_dtype=str(self.dtype).removeprefix("torch."),
        )
        tensors = dict(self.state_dict() if state_dict is None else state_dict)
        if state_dict is not None and config.tie_word_embeddings:
            for name in self.tied_weights:
                tensors.pop(name, None)
        with staged_directory(save_directory, replaces=self._replaced_files(variant)) as stage:
            config.write_to(stage)
            write_checkpoint(
                stage,
                tensors,
                max_shard_size=max_shard_size,
                variant=variant,
                safe_serialization=safe_serialization,
            )
            self._write_extras(stage)

    def _replaced_files(self, variant: str | None) -> list[str]:
        """What a save supersedes; weights of other variants stay beside those of one."""
        return [CONFIG_NAME, *weight_file_patterns(variant)]

    def _write_extras(self, stage: Any) -> None:
        """Write what else belongs to this class into the staged directory."""


def refuse_unknown(module: nn.Module, unknown: Mapping[str, Any]) -> None:
    """ArgumentTypeError for the first argument that the module's forward does not have."""
    for name in unknown:
        known = set(inspect.signature(module.forward).parameters) - {"unknown"}
        raise unknown_argument(f"{type(module).__name__}.forward", name, known)


def _chosen_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | str | None:
    both = dtype is not None and torch_dtype is not None
    if both and _chosen_dtype(dtype, None) != _chosen_dtype(torch_dtype, None):
        raise ArgumentError(
            f"dtype={dtype!r} and torch_dtype={torch_dtype!r} contradict each other"
        )
    chosen = torch_dtype if dtype is None else dtype
    if isinstance(chosen, str) and chosen != "auto":
        named = getattr(torch, chosen.removeprefix("torch."), None)
        if not isinstance(named, torch.dtype):
            raise ArgumentError(f"dtype is {chosen!r}; give 'auto', a torch dtype or its name")
        chosen = named
    if chosen is None or chosen == "auto":
        return chosen  # type: ignore[no-any-return]
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise ArgumentError(f"dtype is {chosen!r}; give 'auto' or a floating torch dtype")
    return chosen


def _chosen_device(device: Any, device_map: Any) -> torch.device:
    if device is not None and device_map is not None:
        raise ArgumentError("give device or device_map, not both")
    chosen = device_map if device is None else device
    if isinstance(chosen, Mapping):
        if set(chosen) != {""}:
            raise ArgumentError(
                f"device_map is {dict(chosen)!r}; it may be one device or 'auto': a GPT-2 is not "
                "spread over several devices by this library"
            )
        chosen = chosen[""]
    if chosen is None:
        return torch.get_default_device()
    if chosen == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        found: torch.device = torch.device(chosen)
        torch.empty(0, device=found)  # fails here, before the files are read, if it is not there
    except (RuntimeError, TypeError, AssertionError):
        raise ArgumentError(
            f"device is {chosen!r}, which this machine or this torch does not have; give one "
            "device such as 'cpu', 'cuda:0' or 'mps', or 'auto'"
        ) from None
    return found


# Hooks stand at module level so that models pickle and deepcopy.


def _leave_out_tied(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, _metadata: Any
) -> None:
    """A tied weight is stored once: state_dict() does not list it again."""
    assert isinstance(module, GPT2PreTrainedModel)
    for name, source in _active_ties(module):
        path, _, leaf = name.rpartition(".")
        tied = getattr(module.get_submodule(path), leaf, None)
        if tied is module.get_parameter(source):
            state_dict.pop(prefix + name, None)


def _supply_tied(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """Loading expects both names; two tensors that differ cannot both be kept."""
    assert isinstance(module, GPT2PreTrainedModel)
    for name, source in _active_ties(module):
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


def _active_ties(module: GPT2PreTrainedModel) -> list[tuple[str, str]]:
    return list(module.tied_weights.items()) if module.config.tie_word_embeddings else []
