"""GenerationConfig: how to decode, and generation_config.json in and out."""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, unknown_argument
from gpt2.fieldchecks import check_bool, check_whole, is_number
from gpt2.storage.atomic import staged_directory
from gpt2.storage.hub import open_repository
from gpt2.storage.jsonfiles import read_json_object, write_json

GENERATION_CONFIG_NAME = "generation_config.json"

#: New tokens where neither max_length nor max_new_tokens is set (the documented max_length of 20
#: is what the reference adds to the prompt).
DEFAULT_NEW_TOKENS = 20

# Documented settings that this version does not have, with the value at which they do nothing.
# At that value they are accepted, so that published files load; at another they are refused.
_WITHOUT_EFFECT: dict[str, Any] = {
    "min_length": 0, "min_new_tokens": None, "early_stopping": False, "max_time": None,
    "stop_strings": None, "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": None,
    "dola_layers": None, "cache_implementation": None, "min_p": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "diversity_penalty": 0.0,
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "bad_words_ids": None, "force_words_ids": None,
    "renormalize_logits": False, "constraints": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False,
    "exponential_decay_length_penalty": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "sequence_bias": None, "token_healing": False,
    "guidance_scale": None, "watermarking_config": None, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "output_logits": None,
    "return_dict_in_generate": False, "prompt_lookup_num_tokens": None,
}  # fmt: skip
_SAMPLING_ONLY = ("temperature", "top_k", "top_p")

_G = TypeVar("_G", bound="type[GenerationConfig]")


def _refuse_unknown_settings(cls: _G) -> _G:
    """Let ``__init__`` name an unknown setting's neighbour, and take what has no effect."""
    plain_init: Callable[..., None] = cls.__init__

    @functools.wraps(plain_init)
    def init(self: GenerationConfig, *args: Any, **settings: Any) -> None:
        for name in list(settings):
            if name in _WITHOUT_EFFECT:
                _refuse_effect(name, settings.pop(name))
            elif name not in cls.__dataclass_fields__:
                raise _unknown_setting("GenerationConfig", name)
        plain_init(self, *args, **settings)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


@_refuse_unknown_settings
@dataclass
class GenerationConfig:
    """Settings of ``generate``, with the documented names and defaults.

    Raises ArgumentTypeError for an unknown setting, and ArgumentError for
    values that are impossible or contradict each other.
    """

    #: prompt and new tokens together; None with max_new_tokens None: 20 new tokens
    max_length: int | None = None
    max_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    #: sample among the k most probable tokens; 0 or None: among all
    top_k: int | None = 50
    #: sample among the most probable tokens that together have at least this probability
    top_p: float = 1.0
    num_return_sequences: int = 1
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    #: fields of a generation_config.json that set nothing here; kept
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.validate()

    if not TYPE_CHECKING:  # type checkers know the fields; a misspelt name must not pass silently

        def __setattr__(self, name: str, value: Any) -> None:
            if name in _WITHOUT_EFFECT:
                _refuse_effect(name, value)
            elif name not in self.__dataclass_fields__:
                raise _unknown_setting("GenerationConfig", name)
            else:
                object.__setattr__(self, name, value)

    def validate(self) -> None:
        """Raise ArgumentError for the first setting that cannot be."""
        for name in ("max_length", "max_new_tokens", "num_return_sequences"):
            if getattr(self, name) is not None or name == "num_return_sequences":
                check_whole(ArgumentError, name, getattr(self, name), 1)
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ArgumentError(
                f"max_length={self.max_length} and max_new_tokens={self.max_new_tokens} say the "
                "same thing twice; give one of them"
            )
        for name in ("do_sample", "use_cache"):
            check_bool(ArgumentError, name, getattr(self, name))
        if not is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise ArgumentError(
                f"temperature must be a number above 0, not {self.temperature!r}; "
                "for the most probable token use do_sample=False"
            )
        if self.top_k is not None:
            check_whole(ArgumentError, "top_k", self.top_k, 0)
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ArgumentError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        if self.num_return_sequences > 1 and not self.do_sample:
            raise ArgumentError(
                f"num_return_sequences={self.num_return_sequences} without do_sample=True would "
                "give the same sequence several times"
            )
        for name in ("bos_token_id", "pad_token_id"):
            if getattr(self, name) is not None:
                check_whole(ArgumentError, name, getattr(self, name), 0)
        for token in self.eos_token_ids:
            check_whole(ArgumentError, "eos_token_id", token, 0)

    @property
    def eos_token_ids(self) -> list[int]:
        """The end-of-sequence ids as a list, empty where there is none."""
        eos = self.eos_token_id
        return list(eos) if isinstance(eos, list) else [] if eos is None else [eos]

    def new_tokens(self, prompt_width: int, prompt_length: int, n_positions: int) -> int:
        """How many tokens to generate behind a prompt of that many columns, at most.

        ``prompt_length`` is the number of real tokens of the longest row: it,
        with the new tokens, must fit into ``n_positions``.
        """
        if self.max_length is not None:
            if self.max_length <= prompt_width:
                raise ArgumentError(
                    f"max_length={self.max_length} leaves no room behind a prompt of "
                    f"{prompt_width} tokens; set max_new_tokens"
                )
            return self.max_length - prompt_width
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return max(1, min(DEFAULT_NEW_TOKENS, n_positions - prompt_length))

    def replaced(self, **changes: Any) -> Self:
        """A copy with ``changes`` made, as a call of ``generate`` makes them.

        max_new_tokens takes the place of a max_length that was set before, and
        the other way round. A sampling setting without sampling is refused.
        """
        changed = copy.deepcopy(self)
        known = {f.name for f in fields(self)} - {"extra"}
        for name, value in changes.items():
            if name in known:
                setattr(changed, name, value)
            elif name in _WITHOUT_EFFECT:
                _refuse_effect(name, value)
            else:
                raise _unknown_setting("generate", name)
        if "max_new_tokens" in changes and "max_length" not in changes:
            changed.max_length = None
        elif "max_length" in changes and "max_new_tokens" not in changes:
            changed.max_new_tokens = None
        changed.validate()
        if not changed.do_sample:
            for name in _SAMPLING_ONLY:
                if changes.get(name) not in (None, getattr(type(self), name)):
                    raise ArgumentError(
                        f"{name}={changes[name]!r} has no effect without do_sample=True"
                    )
        return changed

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults, and the kept fields, as plain data."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        defaults = {f.name: f.default for f in fields(self)}
        set_here = {k: v for k, v in plain.items() if v != defaults[k]}
        return copy.deepcopy({**self.extra, **set_here})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """From the contents of a generation_config.json.

        Settings that this version does not have are refused unless they are at
        the value where they do nothing; other fields are kept.
        """
        known = {f.name for f in fields(cls)} - {"extra"}
        values, extra = {}, {}
        for name, value in settings.items():
            if name in known:
                values[name] = copy.deepcopy(value)
            else:
                if name in _WITHOUT_EFFECT:
                    _refuse_effect(name, value)
                extra[name] = copy.deepcopy(value)
        if values.get("max_new_tokens") is not None:
            values.pop("max_length", None)  # as the reference: max_new_tokens wins in a file
        for name in ("temperature", "top_p", "do_sample", "use_cache", "num_return_sequences"):
            if name in values and values[name] is None:
                del values[name]
        return cls(**values, extra=extra)

    @classmethod
    def from_model_config(cls, config: GPT2Config) -> Self:
        """What a model's config says about decoding: its special tokens, and legacy settings."""
        legacy = ("max_length", "do_sample", "temperature", "top_k", "top_p")
        kept = {name: config.extra[name] for name in legacy if name in config.extra}
        if kept.get("max_length") == DEFAULT_NEW_TOKENS:
            del kept["max_length"]  # old files spell the default out
        eos = config.eos_token_id
        eos = [i for i in eos if i >= 0] if isinstance(eos, list) else _unless_negative(eos)
        tokens = {
            "bos_token_id": _unless_negative(config.bos_token_id),
            "eos_token_id": eos,
            "pad_token_id": _unless_negative(config.pad_token_id),
        }
        return cls.from_dict({**tokens, **kept})

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read one generation_config.json; errors about its settings name the file."""
        content = read_json_object(Path(path))
        try:
            return cls.from_dict(content)
        except ArgumentError as error:
            raise ArgumentError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def from_pretrained(cls, pretrained_model_name: str | os.PathLike[str], **where: Any) -> Self:
        """Read the generation_config.json of a hub repository or a directory.

        ``where``: revision, subfolder, cache_dir, token, local_files_only, force_download.
        """
        repository = open_repository(pretrained_model_name, **where)
        return cls.from_json_file(repository.require(GENERATION_CONFIG_NAME))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write generation_config.json into the directory; complete, or the old one stays."""
        with staged_directory(save_directory, replaces=[GENERATION_CONFIG_NAME]) as stage:
            self.write_to(stage)

    def write_to(self, stage: Path) -> None:
        """Write generation_config.json into a directory that is being staged by the caller."""
        self.validate()
        write_json(stage / GENERATION_CONFIG_NAME, self.to_dict(), sort_keys=True)


def _unknown_setting(owner: str, name: str) -> ArgumentTypeError:
    known = {f.name for f in fields(GenerationConfig)} - {"extra"}
    return unknown_argument(owner, name, known | set(_WITHOUT_EFFECT))


def _refuse_effect(name: str, value: Any) -> None:
    if value != _WITHOUT_EFFECT[name] and value is not None:
        raise ArgumentError(
            f"{name}={value!r} cannot be honoured by this version; "
            f"leave it out or at {_WITHOUT_EFFECT[name]!r}"
        )


def _unless_negative(token: int | None) -> int | None:
    """Some configs write "no such token" as −1."""
    return None if token is None or token < 0 else token
