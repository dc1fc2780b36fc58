"""GPT2Config: every field of the documented reference, typed and checked.

The fields, defaults and aliases are those of transformers 4.4x. A config is
mutable, and checked when made, when a model is built from it and when it is
saved. It never changes behind its owner's back: a model keeps its own copy.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from gpt2.configchecks import MAX_LABELS, check_config, check_table, whole_number
from gpt2.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConfigError,
    did_you_mean,
    unknown_argument,
)
from gpt2.fieldchecks import check_whole
from gpt2.storage.atomic import staged_directory
from gpt2.storage.hub import open_repository
from gpt2.storage.jsonfiles import read_json_object, write_json

CONFIG_NAME = "config.json"

_C = TypeVar("_C", bound="type[GPT2Config]")


class _Alias:
    """A documented second name of a field."""

    def __init__(self, field_name: str) -> None:
        self.field_name = field_name

    def __get__(self, config: GPT2Config | None, owner: type[GPT2Config]) -> Any:
        return self if config is None else getattr(config, self.field_name)

    def __set__(self, config: GPT2Config, value: Any) -> None:
        setattr(config, self.field_name, value)


def _accept_aliases(cls: _C) -> _C:
    """Let ``__init__`` take aliases and num_labels, and name an unknown argument's neighbour."""
    plain_init: Callable[..., None] = cls.__init__

    @functools.wraps(plain_init)
    def init(self: GPT2Config, *args: Any, num_labels: int | None = None, **kwargs: Any) -> None:
        known = self.argument_names()
        for name in list(kwargs):
            target = _ALIASES.get(name, name)
            if name not in known:
                raise unknown_argument("GPT2Config", name, known)
            if target != name:
                if target in kwargs:
                    raise ArgumentError(f"GPT2Config got both {name!r} and its alias {target!r}")
                kwargs[target] = kwargs.pop(name)
        if num_labels is not None:
            given = kwargs.get("id2label")
            if given is not None and len(given) != num_labels:
                raise ConfigError(
                    f"num_labels is {num_labels}, but id2label has {len(given)} entries"
                )
            if given is None:
                kwargs["id2label"] = _default_labels(num_labels)
        plain_init(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def _default_labels(count: int) -> dict[int, str]:
    check_whole(ConfigError, "num_labels", count, 0, MAX_LABELS)
    return {i: f"LABEL_{i}" for i in range(count)}


@_accept_aliases
@dataclass
class GPT2Config:
    """Shape, behaviour and labels of a GPT-2 model.

    The defaults are the 124M-parameter GPT-2. ``hidden_size``,
    ``num_hidden_layers``, ``num_attention_heads`` and ``max_position_embeddings``
    are aliases of ``n_embd``, ``n_layer``, ``n_head`` and ``n_positions``;
    ``num_labels`` may be given in place of ``id2label``.

    Raises ArgumentTypeError for an unknown argument and ConfigError for an
    impossible value.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    #: width of the MLP; None means 4 * n_embd
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    summary_type: str = "cls_index"
    summary_use_proj: bool = True
    summary_activation: str | None = None
    summary_proj_to_labels: bool = True
    summary_first_dropout: float = 0.1
    #: divide the attention scores by sqrt(head size)
    scale_attn_weights: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    #: divide the attention scores of layer i by i + 1
    scale_attn_by_inverse_layer_idx: bool = False
    #: compute the attention scores and their softmax in float32
    reorder_and_upcast_attn: bool = False
    pad_token_id: int | None = None
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    id2label: dict[int, str] = field(default_factory=lambda: _default_labels(2))
    label2id: dict[str, int] | None = None
    problem_type: str | None = None
    classifier_dropout: float | None = None
    hidden_dropout: float | None = None
    #: layer -> heads that are no longer there
    pruned_heads: dict[int, list[int]] = field(default_factory=dict)
    architectures: list[str] | None = None
    #: dtype of the weights in the files, such as "float16"; a note, loading looks at the files
    torch_dtype: str | None = None
    #: attention backend; never read from a file and never written to one
    attn_implementation: str = "sdpa"
    #: fields of a config.json that this library does not know; kept, never acted upon
    extra: dict[str, Any] = field(default_factory=dict)

    model_type: ClassVar[str] = "gpt2"

    def __post_init__(self) -> None:
        for name in ("id2label", "label2id", "pruned_heads", "extra"):
            check_table(name, getattr(self, name))
        self.id2label = _default_labels(2) if self.id2label is None else self.id2label
        self.pruned_heads = self.pruned_heads or {}
        self.extra = self.extra or {}
        if self.torch_dtype is not None:  # torch.float16 itself may be given; its name is kept
            self.torch_dtype = str(self.torch_dtype).removeprefix("torch.")
        labels = {whole_number(k, "id2label"): v for k, v in self.id2label.items()}
        object.__setattr__(self, "id2label", labels)
        label: Any
        for i, label in labels.items():
            if isinstance(label, list | dict):
                raise ConfigError(f"id2label must name each label; {i} is {label!r:.200}")
        if self.label2id is None:
            self.label2id = {label: i for i, label in labels.items()}
        pruned = {whole_number(k, "pruned_heads"): sorted(v) for k, v in self.pruned_heads.items()}
        object.__setattr__(self, "pruned_heads", pruned)
        self.validate()

    if not TYPE_CHECKING:  # type checkers know the fields; a misspelt name must not pass silently

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in self.__dataclass_fields__ and not hasattr(type(self), name):
                hint = did_you_mean(name, self.argument_names())
                raise ConfigError(
                    f"GPT2Config has no field {name!r}{hint}; "
                    f"fields of your own go into config.extra[{name!r}]"
                )
            object.__setattr__(self, name, value)

    # -- second names -------------------------------------------------------------------------

    hidden_size = _Alias("n_embd")
    num_hidden_layers = _Alias("n_layer")
    num_attention_heads = _Alias("n_head")
    max_position_embeddings = _Alias("n_positions")
    dtype = _Alias("torch_dtype")

    @property
    def num_labels(self) -> int:
        """Number of classes; setting it renames the labels LABEL_0, LABEL_1 …"""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != len(self.id2label):
            self.id2label = _default_labels(count)
            self.label2id = {label: i for i, label in self.id2label.items()}

    @property
    def _attn_implementation(self) -> str:  # the name under which transformers' users look it up
        return self.attn_implementation

    @property
    def use_return_dict(self) -> bool:
        """``return_dict``, under another documented name."""
        return self.return_dict

    # -- sizes that follow from the fields ----------------------------------------------------

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner_dim(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    # -- checking -----------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise ConfigError for the first impossible value; allocates nothing."""
        check_config(self)

    # -- files --------------------------------------------------------------------------------

    def get_text_config(self, decoder: bool = False) -> Self:
        """This config: as documented, where a model reads nothing but text. PEFT asks for it."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """A deep copy as plain data, in the form of a config.json."""
        plain = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("extra", "attn_implementation")
        }
        return copy.deepcopy({**self.extra, "model_type": self.model_type, **plain})

    def to_diff_dict(self) -> dict[str, Any]:
        """What of `to_dict` differs from the defaults, and model_type."""
        usual = type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name == "model_type" or name not in usual or value != usual[name]
        }

    def to_json_string(self, use_diff: bool = False) -> str:
        """The text of a config.json, keys sorted; of `to_diff_dict` if ``use_diff``."""
        plain = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(_json_ready(plain), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = False) -> None:
        """Write what `to_json_string` has into a file."""
        plain = self.to_diff_dict() if use_diff else self.to_dict()
        write_json(Path(json_file_path), _json_ready(plain), sort_keys=True)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **overrides: Any) -> Self:
        """The config that ``config_dict`` describes, with ``overrides`` on top.

        Keys of ``config_dict`` that are no fields go to ``extra``; an unknown
        override raises ArgumentTypeError. Raises ConfigError where
        ``model_type`` names another architecture, or a value is impossible.
        """
        if not isinstance(config_dict, dict):
            raise ArgumentTypeError(f"config_dict must be a dict, not {type(config_dict).__name__}")
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ConfigError(
                f"model_type is {found!r}, but this library loads {cls.model_type!r} checkpoints"
            )
        known = {f.name for f in fields(cls)} - {"extra", "attn_implementation"}
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in config_dict.items():
            target = _ALIASES.get(key, key)
            if key == "model_type":
                continue
            if target in known:
                if values.get(target, value) != value:
                    raise ConfigError(
                        f"{key} is {value!r}, but its other name in the same config says "
                        f"{values[target]!r}; keep one of them"
                    )
                values[target] = copy.deepcopy(value)
            elif key == "num_labels":
                values["num_labels"] = value
            else:
                extra[key] = copy.deepcopy(value)
        return cls(**values, extra=extra).replaced(**overrides)

    def update(self, config_dict: dict[str, Any]) -> None:
        """Change the given fields in place, all of them or, after an error of `replaced`, none."""
        if not isinstance(config_dict, dict):
            raise ArgumentTypeError(f"config_dict must be a dict, not {type(config_dict).__name__}")
        self.__dict__.update(vars(self.replaced(**config_dict)))

    def replaced(self, **changes: Any) -> Self:
        """A copy with the given fields (or their aliases, or num_labels) changed, and checked.

        Raises ArgumentTypeError for a name that is no field, ConfigError for a bad value.
        """
        changed = copy.deepcopy(self)
        known = self.argument_names()
        for name in changes:
            if name not in known:
                raise unknown_argument("GPT2Config", name, known)
            if name in _ALIASES and _ALIASES[name] in changes:
                raise ArgumentError(f"both {name!r} and its alias {_ALIASES[name]!r} were given")
        if "id2label" in changes and "label2id" not in changes:
            changes = {**changes, "label2id": None}
        for name, value in changes.items():
            setattr(changed, name, value)
        changed.__post_init__()
        return changed

    @classmethod
    def argument_names(cls) -> set[str]:
        """Every name that the constructor takes: fields, aliases and num_labels."""
        return {f.name for f in fields(cls)} | set(_ALIASES) | {"num_labels"}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        **overrides: Any,
    ) -> Self:
        """Read the config.json of a hub repository or a directory.

        ``overrides`` are config fields that replace what the file says. Raises
        FileAccessError, HubError or FileFormatError, ConfigError, and
        ArgumentTypeError for an override that is no field.
        """
        repository = open_repository(
            pretrained_model_name_or_path,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            revision=revision,
            subfolder=subfolder,
        )
        return cls.from_json_file(repository.require(CONFIG_NAME), **overrides)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **arguments: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of a repository's config.json, and the arguments that say not where it is."""
        names = set(inspect.signature(open_repository).parameters)
        where = {name: arguments.pop(name) for name in names & arguments.keys()}
        repository = open_repository(pretrained_model_name_or_path, **where)
        return read_json_object(repository.require(CONFIG_NAME)), arguments

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str], **overrides: Any) -> Self:
        """Read one config.json; errors about its fields name the file."""
        path = Path(json_file)
        content = read_json_object(path)
        try:
            return cls.from_dict(content, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json into the directory; it is complete or the old one stays."""
        with staged_directory(save_directory, replaces=[CONFIG_NAME]) as stage:
            self.write_to(stage)

    def write_to(self, stage: Path) -> None:
        """Write config.json into a directory that is being staged by the caller."""
        self.validate()
        write_json(stage / CONFIG_NAME, _json_ready(self.to_dict()), sort_keys=True)


#: documented second name -> the field that holds the value
_ALIASES = {n: a.field_name for n, a in vars(GPT2Config).items() if isinstance(a, _Alias)}


def _json_ready(plain: dict[str, Any]) -> dict[str, Any]:
    """Without a torch_dtype of null, which transformers would take for a dtype's name."""
    return {k: v for k, v in plain.items() if (k, v) != ("torch_dtype", None)}
