"""What a model does with files: from_pretrained, save_pretrained, push_to_hub and their kin."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, overload

import torch
from torch import Tensor, nn

from gpt2.checkpoints.card import CARD_NAME, model_card
from gpt2.checkpoints.configs import read_config
from gpt2.checkpoints.load import Dtype, load_tensors
from gpt2.checkpoints.match import Rules
from gpt2.checkpoints.report import LoadReport
from gpt2.checkpoints.save import fitting_tensors, superseded_files, write_model
from gpt2.checkpoints.weightfiles import WeightFiles, open_checkpoint, weight_file_patterns
from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, unknown_argument
from gpt2.fieldchecks import take_no_ops
from gpt2.modeling.target import chosen_device, chosen_dtype
from gpt2.modeling.trainable import Trainable
from gpt2.storage.atomic import staged_directory
from gpt2.storage.hub import Repository
from gpt2.storage.upload import upload_directory

Path_ = str | os.PathLike[str]

#: documented arguments of from_pretrained that may be False, which does nothing -> what else to do
_NO_OPS = {
    "trust_remote_code": "no code of a repository is ever run; leave it out",
    "from_tf": "TensorFlow's files are not read; convert them to safetensors with transformers",
    "from_flax": "Flax's files are not read; convert them to safetensors with transformers",
}


class SavedBeside(Protocol):
    """A tokenizer that can be saved with a model, in the same step: GPT2Tokenizer."""

    file_names: tuple[str, ...]

    def write_to(self, stage: Path) -> Any:
        """Write its files into a directory that is being staged."""

    def __len__(self) -> int: ...


class FileExchange(Trainable):
    """Loading and saving, for GPT2PreTrainedModel."""

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

    # -- making ---------------------------------------------------------------------------------

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
        pretrained_model_name_or_path: Path_,
        *,
        output_loading_info: Literal[False] = False,
        return_report: Literal[False] = False,
        **arguments: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path_,
        *,
        output_loading_info: Literal[True],
        **arguments: Any,
    ) -> tuple[Self, dict[str, list[Any]]]: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path_,
        *,
        return_report: Literal[True],
        **arguments: Any,
    ) -> tuple[Self, LoadReport]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path_,
        *,
        config: GPT2Config | Path_ | None = None,
        cache_dir: Path_ | None = None,
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
        repository's. ``overrides``: config fields (``n_positions=512`` …).
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
            report = model._take(
                weights if state_dict is None else state_dict,
                model.loading_rules(ignore_mismatched_sizes, allow_missing, allow_unexpected),
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
        name_or_path: Path_,
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
        cache_dir: Path_ | None = None,
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
                self.loading_rules(ignore_mismatched_sizes, allow_missing, allow_unexpected),
                parameter.dtype if dtype is None else chosen_dtype(dtype, None),
                chosen_device(device, None),
            )

    @classmethod
    def _loaded_config(
        cls,
        config: GPT2Config | Path_ | None,
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
    ) -> Rules:
        """What a checkpoint of this model may lack or have besides, and what is tied."""
        return Rules(
            tied=self.tied_weights if self.config.tie_word_embeddings else {},
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

    # -- saving ---------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: Path_,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        is_main_process: bool = True,
        tokenizer: SavedBeside | None = None,
        layout: str = "huggingface",
        **unknown: Any,
    ) -> None:
        """Write config, weights, generation settings and, if given, the tokenizer.

        The directory is replaced as a whole, so that it is complete or as it
        was before; other files in it stay. ``layout``: "huggingface", which
        transformers loads; "nanogpt" or "mingpt", one pickled file (ckpt.pt,
        model.pt) whatever ``safe_serialization`` says; or "opt". A model that
        the layout's program could not compute is refused. ``state_dict``:
        weights to write in place of the model's own, all of them.
        ``max_shard_size``: bytes, or "200MB". ``is_main_process=False`` writes
        nothing, for all ranks but one.

        Raises ArgumentError, ConfigError, StateDictError, and FileAccessError
        where the disk refuses.
        """
        for name in unknown:
            known = set(inspect.signature(self.save_pretrained).parameters) - {"unknown"}
            raise unknown_argument(f"{type(self).__name__}.save_pretrained", name, known)
        if not is_main_process:
            return
        config = self.config.replaced(
            architectures=[type(self).__name__],
            torch_dtype=str(next(self.parameters()).dtype).removeprefix("torch."),
        )
        tensors = dict(self.state_dict() if state_dict is None else state_dict)
        for name, tensor in tensors.items():
            if hasattr(tensor, "full_tensor"):  # a DTensor, of which this process has a part
                raise ArgumentError(
                    f"{name} is spread over processes; save the model with "
                    "gpt2.training.sharded.export_pretrained, on all of them"
                )
        if state_dict is not None:
            tied = self.tied_weights if config.tie_word_embeddings else {}
            whole = type(self).from_config(config, device="meta").state_dict()
            tensors = fitting_tensors(tensors, whole, tied)
            written = (t.dtype for t in tensors.values() if t.is_floating_point())
            config = config.replaced(torch_dtype=next(written, config.torch_dtype))
        replaces = [*superseded_files(layout, variant), *self._extra_files()]
        if tokenizer is not None:
            _check_tokenizer(tokenizer, config)
            replaces += tokenizer.file_names
        with staged_directory(save_directory, replaces=replaces) as stage:
            write_model(
                stage,
                tensors,
                config,
                layout=layout,
                max_shard_size=max_shard_size,
                variant=variant,
                safe_serialization=safe_serialization,
            )
            self._write_extras(stage)
            if tokenizer is not None:
                tokenizer.write_to(stage)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: SavedBeside | None = None,
        commit_message: str = "Upload a GPT-2 model",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Save to a repository of the hub, which is made if need be; returns the commit's URL.

        All files go up in one commit, with a model card where the repository has none; weight
        files that this save supersedes are deleted. ``private``: for a new repository.
        ``revision``: the branch; ``create_pr``: open a pull request instead.

        Raises HubError where the hub refuses, and what save_pretrained raises.
        """
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary) / "model"
            self.save_pretrained(
                directory,
                max_shard_size=max_shard_size,
                safe_serialization=safe_serialization,
                variant=variant,
                tokenizer=tokenizer,
            )
            card = partial(
                model_card,
                config=self.config,
                model_class=type(self).__name__,
                parameters=self.num_parameters(),
                dtype=next(self.parameters()).dtype,
                with_tokenizer=tokenizer is not None,
            )
            return upload_directory(
                directory,
                repo_id,
                if_absent={CARD_NAME: card},
                supersedes=weight_file_patterns(variant),
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def _extra_files(self) -> list[str]:
        """Names of what `_write_extras` writes."""
        return []

    def _write_extras(self, stage: Path) -> None:
        """Write what else belongs to this class into the staged directory."""


def _patterns(argument: str, value: Sequence[str]) -> Sequence[str]:
    if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
        raise ArgumentTypeError(f"{argument} must be a list of patterns of names, not {value!r}")
    return value


def _check_tokenizer(tokenizer: SavedBeside, config: GPT2Config) -> None:
    if not hasattr(tokenizer, "write_to"):
        raise ArgumentTypeError(
            f"tokenizer must be a GPT2Tokenizer, not a {type(tokenizer).__name__}; save another "
            "kind with its own save_pretrained"
        )
    if len(tokenizer) > config.vocab_size:
        raise ArgumentError(
            f"the tokenizer has {len(tokenizer)} tokens and the model vocab_size "
            f"{config.vocab_size}; call model.resize_token_embeddings({len(tokenizer)}) first"
        )
