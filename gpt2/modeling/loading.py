"""Weights into models: from_config, from_pretrained and load_weights."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, overload

import torch
from torch import Tensor, nn

from gpt2.checkpoints.configs import read_config, ties_embeddings
from gpt2.checkpoints.load import Dtype, load_tensors
from gpt2.checkpoints.match import Rules
from gpt2.checkpoints.packed import is_packed, read_packed
from gpt2.checkpoints.report import LoadReport
from gpt2.checkpoints.weightfiles import WeightFiles, open_checkpoint
from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, unknown_argument
from gpt2.fieldchecks import take_no_ops
from gpt2.inference import packed_copy
from gpt2.modeling.target import chosen_device, chosen_dtype
from gpt2.modeling.trainable import Trainable
from gpt2.storage.hub import Repository

PathLike = str | os.PathLike[str]

#: documented arguments of from_pretrained that may be False, which does nothing -> what else to do
_NO_OPS = {
    "trust_remote_code": "no code of a repository is ever run; leave it out",
    "from_tf": "TensorFlow's files are not read; convert them to safetensors with transformers",
    "from_flax": "Flax's files are not read; convert them to safetensors with transformers",
}


class Loadable(Trainable):
    """Making a model, and loading it, for GPT2PreTrainedModel."""

    #: the config's class, and the first argument of forward, as documented
    config_class: ClassVar[type[GPT2Config]] = GPT2Config
    main_input_name: ClassVar[str] = "input_ids"
    #: what from_pretrained was given
    name_or_path: str = ""
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

    @classmethod
    def from_config(
        cls,
        config: GPT2Config,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Self:
        """A model with fresh weights, made on ``device`` in ``dtype``.

        On device="meta" it has shapes and no memory; `load_weights` then gives it weights.
        """
        with torch.device(chosen_device(device, None)):
            model = cls(config)
        wanted = chosen_dtype(dtype, None)
        if wanted == "auto":
            raise ArgumentError("dtype='auto' is that of stored weights, and there are none here")
        return model if wanted is None else model.to(wanted)

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        *,
        output_loading_info: Literal[False] = False,
        return_report: Literal[False] = False,
        **arguments: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        *,
        output_loading_info: Literal[True],
        **arguments: Any,
    ) -> tuple[Self, dict[str, list[Any]]]: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        *,
        return_report: Literal[True],
        **arguments: Any,
    ) -> tuple[Self, LoadReport]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathLike,
        *,
        config: GPT2Config | PathLike | None = None,
        cache_dir: PathLike | None = None,
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
        return_report: bool = False,
        allow_missing: Sequence[str] = (),
        allow_unexpected: Sequence[str] = (),
        **overrides: Any,
    ) -> Self | tuple[Self, dict[str, list[Any]]] | tuple[Self, LoadReport]:
        """A model in eval mode with the weights of a hub repository, a directory or a file.

        GPT-2 is read in the layouts of Hugging Face (all eras), nanoGPT, minGPT and OPT, which
        are told by names and shapes. A nanoGPT or minGPT file needs no config.json; minGPT's
        needs ``n_head=...``. Their activation function is taken as the report says;
        ``activation_function=...`` overrides it. A vocabulary that is padded (to 50304) is kept.

        ``config``: a config, or where to read one, in place of the
        repository's. ``overrides``: config fields (``n_positions=512`` …); with
        ``tie_word_embeddings=False`` the head of a tied checkpoint begins as a copy.
        ``dtype`` (documented also as ``torch_dtype``): a torch dtype, its name,
        or "auto" (as stored); float32 unless told. ``device``, or
        ``device_map`` for those used to it: one device, or "auto" (the best one).
        ``state_dict``: weights to take in place of the files'.
        ``low_cpu_mem_usage`` is accepted and always true: each weight is
        allocated once; ``trust_remote_code``, ``from_tf`` and ``from_flax`` may be False,
        which is always true too. ``output_loading_info``: return (model, info) with the
        lists missing_keys, unexpected_keys, mismatched_keys and error_msgs;
        ``return_report``: return (model, LoadReport), which has every tensor.

        Loading is strict: StateDictError names missing, unexpected and
        misshapen tensors. ``allow_missing``, ``allow_unexpected``: patterns
        (``"h.*.attn.rotary.*"``) of further ones to initialise, or to leave
        out. Also raises ArgumentError, ArgumentTypeError, ConfigError,
        FileAccessError, HubError and FileFormatError.
        """
        take_no_ops(overrides, _NO_OPS)
        if output_loading_info and return_report:
            raise ArgumentError("give output_loading_info or return_report, not both")
        wanted_dtype = chosen_dtype(dtype, torch_dtype)
        wanted_device = chosen_device(device, device_map)
        where: dict[str, Any] = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        repository, file = open_checkpoint(
            pretrained_model_name_or_path, revision=revision, subfolder=subfolder, **where
        )
        if state_dict is not None and not isinstance(state_dict, Mapping):
            raise ArgumentTypeError(
                f"state_dict must map names to tensors, not be a {type(state_dict).__name__}"
            )
        with WeightFiles(
            repository, variant=variant, use_safetensors=use_safetensors, file=file
        ) as weights:
            chosen, notes = cls._loaded_config(
                config, weights, where, overrides, look_inside=state_dict is None
            )
            if attn_implementation is not None:
                chosen.attn_implementation = attn_implementation
            model = cls.from_config(chosen, device="meta")
            lenience = ignore_mismatched_sizes, allow_missing, allow_unexpected
            if state_dict is None and is_packed(chosen):
                rules = model.loading_rules(*lenience)
                model, report = model._packed(weights, rules, wanted_dtype, wanted_device)
            else:
                report = model._take(
                    weights if state_dict is None else state_dict,
                    model.loading_rules(*lenience, weights if state_dict is None else None),
                    wanted_dtype,
                    wanted_device,
                    notes,
                )
        model._read_extras(repository)
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        model.eval()
        if return_report:
            return model, report
        info: dict[str, list[Any]] = {
            "missing_keys": list(report.missing_keys),
            "unexpected_keys": list(report.unexpected_keys),
            "mismatched_keys": list(report.mismatched_keys),
            "error_msgs": [],
        }
        return (model, info) if output_loading_info else model

    def load_weights(
        self,
        name_or_path: PathLike,
        *,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        subfolder: str = "",
        variant: str | None = None,
        use_safetensors: bool | None = None,
        ignore_mismatched_sizes: bool = False,
        allow_missing: Sequence[str] = (),
        allow_unexpected: Sequence[str] = (),
        cache_dir: PathLike | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> LoadReport:
        """Give this model, which may be on the meta device, the weights of a repository or a file.

        The config stays this model's. ``device`` and ``dtype`` are this model's unless told; in
        place of "meta", torch's default device. The other arguments and the errors are
        from_pretrained's; after an error the model is as it was.
        """
        parameter = next(self.parameters())
        if device is None and not parameter.is_meta:
            device = parameter.device
        repository, file = open_checkpoint(
            name_or_path,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        with WeightFiles(
            repository, variant=variant, use_safetensors=use_safetensors, file=file
        ) as weights:
            return self._take(
                weights,
                self.loading_rules(
                    ignore_mismatched_sizes, allow_missing, allow_unexpected, weights
                ),
                parameter.dtype if dtype is None else chosen_dtype(dtype, None),
                chosen_device(device, None),
            )

    @classmethod
    def _loaded_config(
        cls,
        config: GPT2Config | PathLike | None,
        weights: WeightFiles,
        where: Mapping[str, Any],
        overrides: dict[str, Any],
        *,
        look_inside: bool,
    ) -> tuple[GPT2Config, list[str]]:
        known = GPT2Config.argument_names()
        for name in overrides:
            if name not in known:
                owner = f"{cls.__name__}.from_pretrained"
                arguments = {*known, *inspect.signature(cls.from_pretrained).parameters}
                raise unknown_argument(owner, name, arguments - {"overrides"})
        if isinstance(config, GPT2Config):
            return config.replaced(**overrides), []
        if config is not None:
            return GPT2Config.from_pretrained(config, **where, **overrides), []
        return read_config(weights, overrides, look_inside=look_inside)

    def loading_rules(
        self,
        ignore_mismatched_sizes: bool = False,
        allow_missing: Sequence[str] = (),
        allow_unexpected: Sequence[str] = (),
        weights: WeightFiles | None = None,
    ) -> Rules:
        """What a checkpoint of this model may lack or have besides, and what is tied.

        Where the checkpoint of ``weights`` is tied and the model is not, its head begins as the
        copy that the checkpoint leaves out.
        """
        tied = copied = self.tied_weights if self.config.tie_word_embeddings else {}
        if self.tied_weights and not tied and weights is not None and ties_embeddings(weights):
            copied = self.tied_weights
        return Rules(
            tied=tied,
            copied=copied,
            may_initialize=(*self.may_initialize, *_patterns("allow_missing", allow_missing)),
            may_drop=(*self.may_drop, *_patterns("allow_unexpected", allow_unexpected)),
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, a tied one under each of its names."""
        return {name: tuple(p.shape) for name, p in self.named_parameters(remove_duplicate=False)}

    def _take(
        self,
        weights: WeightFiles | Mapping[str, Tensor],
        rules: Rules,
        dtype: Dtype,
        device: torch.device,
        notes: Sequence[str] = (),
    ) -> LoadReport:
        """Load tensors and adopt them; all of them are read before the first is adopted."""
        loaded = load_tensors(
            weights, self.expected_shapes(), rules, dtype=dtype, device=device, notes=notes
        )
        self._adopt(loaded.tensors, loaded.report, device)
        loaded.report.model_class = type(self).__name__
        loaded.report.config = self.config
        return loaded.report

    def _packed(
        self, weights: WeightFiles, rules: Rules, dtype: Dtype, device: torch.device
    ) -> tuple[Self, LoadReport]:
        """This model, which is on the meta device, with the int8 weights of a checkpoint."""
        plain = type(self).loading_rules(self)
        if rules != plain or dtype not in (None, torch.float32) or device.type != "cpu":
            raise ArgumentError(
                f"{weights.repository.name!r} has int8 weights, which load whole, on CPU and as "
                "they are; leave out dtype, device, ignore_mismatched_sizes, allow_missing and "
                "allow_unexpected"
            )
        packed = packed_copy(self, "int8", by_rows=False)
        tensors, report = read_packed(weights, packed.state_dict())
        packed.load_state_dict(tensors, assign=True)
        report.model_class, report.config = type(self).__name__, self.config
        return packed, report

    def _adopt(
        self, tensors: Mapping[str, Tensor], report: LoadReport, device: torch.device
    ) -> None:
        """Take the tensors as parameters; initialise what the checkpoint does not have."""
        self.load_state_dict(tensors, strict=False, assign=True)
        fresh = {*report.missing_keys, *(name for name, _, _ in report.mismatched_keys)}
        for name in [n for n, p in self.named_parameters() if p.is_meta or n in fresh]:
            path, _, leaf = name.rpartition(".")
            empty = torch.empty_like(self.get_parameter(name), dtype=report.dtype, device=device)
            setattr(self.get_submodule(path), leaf, nn.Parameter(empty))
            self._init_parameter(name)
        self.tie_weights()

    def _init_parameter(self, name: str) -> None:
        """Initialise one parameter: GPT2PreTrainedModel says how."""

    def _read_extras(self, repository: Repository) -> None:
        """Read what else the repository has for this class; nothing by default."""


def _patterns(argument: str, value: Sequence[str]) -> Sequence[str]:
    if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
        raise ArgumentTypeError(f"{argument} must be a list of patterns of names, not {value!r}")
    return value
