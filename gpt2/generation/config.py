"""GenerationConfig: how to decode, and generation_config.json in and out."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, did_you_mean, unknown_argument
from gpt2.generation import checks
from gpt2.generation.checks import DEFAULT_NEW_TOKENS, setting
from gpt2.generation.processors import ProcessorSettings
from gpt2.storage.atomic import staged_directory
from gpt2.storage.hub import open_repository
from gpt2.storage.jsonfiles import read_json_object, write_json

GENERATION_CONFIG_NAME = "generation_config.json"

# Documented settings that are not of use here, with the value at which they do nothing. At that
# value they are accepted, so that published files load; at another they are refused.
_WITHOUT_EFFECT: dict[str, Any] = {
    "dola_layers": None, "constraints": None, "token_healing": False, "watermarking_config": None,
    "cache_config": None, "max_cache_len": None,
    "return_legacy_cache": None, "low_memory": None, "assistant_early_exit": None,
    "assistant_lookbehind": 10, "target_lookbehind": 10, "is_assistant": False,
    "decoder_start_token_id": None, "forced_decoder_ids": None, "generation_kwargs": {},
    "compile_config": None, "disable_compile": False, "prefill_chunk_size": None, "top_h": None,
    "use_mtp": None, "assistant_ensemble_weight": None, "speculation_type": None,
    "continuous_batching_config": None,
}  # fmt: skip

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
@dataclass(kw_only=True)
class GenerationConfig(ProcessorSettings):
    """Settings of ``generate``, with the documented names and defaults.

    Those of the processors are ProcessorSettings. Raises ArgumentTypeError for
    an unknown setting, and ArgumentError for values that are impossible or
    contradict each other.
    """

    # -- how long ------------------------------------------------------------------------------
    #: prompt and new tokens together; None with max_new_tokens None: 20 new tokens
    max_length: int | None = field(default=None, metadata=setting(checks.whole(1)))
    max_new_tokens: int | None = field(default=None, metadata=setting(checks.whole(1)))
    #: seconds; the step that exceeds them is the last one
    max_time: float | None = field(default=None, metadata=setting(checks.positive))
    #: a row ends with the token that completes one of them; needs ``tokenizer=``
    stop_strings: str | list[str] | None = field(default=None, metadata=setting(checks.strings))
    #: "slide": past n_positions go on from each row's last n_positions // 2 tokens
    long_context: str | None = field(default=None, metadata=setting(checks.choice("slide")))
    # -- which method --------------------------------------------------------------------------
    do_sample: bool = field(default=False, metadata=setting(checks.flag))
    num_beams: int = field(default=1, metadata=setting(checks.whole(1)))
    #: groups that keep away from each other's tokens (arXiv:1610.02424)
    num_beam_groups: int = field(default=1, metadata=setting(checks.whole(1), needs=checks.BEAMS))
    diversity_penalty: float = field(
        default=0.0, metadata=setting(checks.not_negative, needs=checks.GROUPS)
    )
    #: a finished beam's score is its log-probability over its length to that power
    length_penalty: float = field(default=1.0, metadata=setting(checks.finite, needs=checks.BEAMS))
    early_stopping: bool | str = field(
        default=False, metadata=setting(checks.early_stopping, needs=checks.BEAMS)
    )
    #: words that must come (lists of ids), or lists of words of which one must
    force_words_ids: list[Any] | None = field(
        default=None, metadata=setting(checks.words_or_choices, ids=checks.all_ids)
    )
    #: weight of the degeneration penalty of contrastive search (arXiv:2202.06417)
    penalty_alpha: float | None = field(default=None, metadata=setting(checks.fraction))
    #: guess that many next tokens by looking up the last n-gram in what is there already
    prompt_lookup_num_tokens: int | None = field(default=None, metadata=setting(checks.whole(1)))
    max_matching_ngram_size: int | None = field(
        default=None, metadata=setting(checks.whole(1), needs=checks.LOOKUP)
    )
    #: tokens that the assistant model drafts before they are checked
    num_assistant_tokens: int = field(default=20, metadata=setting(checks.whole(1)))
    num_assistant_tokens_schedule: str = field(
        default="constant",
        metadata=setting(checks.choice("constant", "heuristic", "heuristic_transient")),
    )
    assistant_confidence_threshold: float = field(default=0.4, metadata=setting(checks.fraction))
    use_cache: bool = field(default=True, metadata=setting(checks.flag))
    #: "dynamic": the cache grows; "static": it has a fixed shape, so that a step can be compiled
    #: once; None: static where the model says how to compile (``step_compile_mode``) and the other
    #: settings allow it, else dynamic
    cache_implementation: str | None = field(
        default=None, metadata=setting(checks.choice("static", "dynamic"))
    )
    #: classifier-free guidance (arXiv:2306.17806); see ``negative_prompt_ids``
    guidance_scale: float | None = field(default=None, metadata=setting(checks.finite))
    # -- what is returned ----------------------------------------------------------------------
    num_return_sequences: int = field(default=1, metadata=setting(checks.whole(1)))
    #: new ids alone, without the prompt's
    return_only_new_tokens: bool = field(default=False, metadata=setting(checks.flag))
    #: GenerateDecoderOnlyOutput or GenerateBeamDecoderOnlyOutput in place of the ids
    return_dict_in_generate: bool = field(default=False, metadata=setting(checks.flag))
    output_scores: bool = field(default=False, metadata=setting(checks.flag, needs=checks.A_DICT))
    output_logits: bool = field(default=False, metadata=setting(checks.flag, needs=checks.A_DICT))
    output_attentions: bool = field(
        default=False, metadata=setting(checks.flag, needs=checks.A_DICT)
    )
    output_hidden_states: bool = field(
        default=False, metadata=setting(checks.flag, needs=checks.A_DICT)
    )
    # -- special tokens ------------------------------------------------------------------------
    bos_token_id: int | None = field(
        default=None, metadata=setting(checks.token_id, ids=checks.all_ids)
    )
    eos_token_id: int | list[int] | None = field(
        default=None, metadata=setting(checks.one_or_many, ids=checks.all_ids)
    )
    pad_token_id: int | None = field(
        default=None, metadata=setting(checks.token_id, ids=checks.all_ids)
    )
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
        checks.check_settings(self)

    @property
    def mode(self) -> str:
        """The method that the settings choose: a key of gpt2.generation.generate.METHODS."""
        if self.force_words_ids is not None:
            return "constrained_beam"
        if self.num_beams > 1:
            return "group_beam" if self.num_beam_groups > 1 else "beam"
        if self.penalty_alpha and not self.do_sample:
            return "contrastive"
        return "sample" if self.do_sample else "greedy"

    @property
    def eos_token_ids(self) -> list[int]:
        """The end-of-sequence ids as a list, empty where there is none."""
        eos = self.eos_token_id
        return list(eos) if isinstance(eos, list) else [] if eos is None else [eos]

    def token_ids(self) -> dict[str, list[int]]:
        """The token ids that the settings name, by setting."""
        found = {}
        for each in fields(self):
            ids = each.metadata.get("ids")
            if ids is not None:
                found[each.name] = ids(getattr(self, each.name))
        return found

    def new_tokens(self, length: int, n_positions: int) -> int:
        """How many tokens to generate behind a row of ``length`` real tokens, at most."""
        if self.max_length is not None:
            if self.max_length <= length:
                raise ArgumentError(
                    f"max_length={self.max_length} leaves no room behind a prompt of "
                    f"{length} tokens; set max_new_tokens"
                )
            new = self.max_length - length
        elif self.max_new_tokens is not None:
            new = self.max_new_tokens
        elif self.long_context is not None:
            new = DEFAULT_NEW_TOKENS
        else:
            new = max(1, min(DEFAULT_NEW_TOKENS, n_positions - length))
        for name, fewest in (
            ("min_new_tokens", self.min_new_tokens or 0),
            ("min_length", self.min_length - length),
        ):
            if fewest > new:
                raise ArgumentError(
                    f"{name}={getattr(self, name)} asks for {fewest} new tokens behind a prompt "
                    f"of {length}, where there is room for {new}"
                )
        return new

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
        said = {n: v for n, v in changes.items() if v != _DEFAULTS.get(n, v)}
        for message in checks.void_settings(changed, said):
            raise ArgumentError(message)
        return changed

    def void(self) -> list[str]:
        """What is set here to no effect, since another setting is not; each with the reason."""
        return checks.void_settings(self, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The settings that differ from the defaults, and the kept fields, as plain data."""
        plain = {name: getattr(self, name) for name in _DEFAULTS}
        if isinstance(self.sequence_bias, Mapping):  # its keys are no JSON
            plain["sequence_bias"] = [
                [list(i), b] for i, b in checks.bias_pairs(self.sequence_bias)
            ]
        if self.top_k is None:
            plain["top_k"] = 0  # the same; null would be read as the default by some
        set_here = {k: v for k, v in plain.items() if v != _DEFAULTS[k]}
        return copy.deepcopy({**self.extra, **set_here})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """From the contents of a generation_config.json.

        Unknown settings are refused, and those that cannot be honoured, unless
        they are null or at the value where they do nothing; then they are kept,
        as are the writer's notes (transformers_version, and what begins with _).
        """
        known = {f.name for f in fields(cls)} - {"extra"}
        values, extra = {}, {}
        for name, value in settings.items():
            if name in known:
                values[name] = copy.deepcopy(value)
            else:
                if name in _WITHOUT_EFFECT:
                    _refuse_effect(name, value)
                elif value is not None and name != "transformers_version" and name[:1] != "_":
                    hint = did_you_mean(name, known)
                    raise ArgumentError(f"{name}={value!r:.80} is no setting of generation{hint}")
                extra[name] = copy.deepcopy(value)
        if values.get("max_new_tokens") is not None:
            values.pop("max_length", None)  # as the reference: max_new_tokens wins in a file
        for name in [n for n, v in values.items() if v is None and n != "top_k"]:
            del values[name]  # null means the default; top_k's own None means all tokens
        return cls(**values, extra=extra)

    @classmethod
    def from_model_config(cls, config: GPT2Config) -> Self:
        """What a model's config says about decoding: its special tokens, and legacy settings."""
        kept = {name: config.extra[name] for name in _DEFAULTS if name in config.extra}
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


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(GenerationConfig)}
del _DEFAULTS["extra"]


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
