"""What the settings of generation may be: each alone, and together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError
from gpt2.fieldchecks import check_bool, check_choice, check_whole, is_number

if TYPE_CHECKING:
    from gpt2.generation.config import GenerationConfig

Check = Callable[[str, Any], None]

#: New tokens where neither max_length nor max_new_tokens is set (the documented max_length of 20
#: is what the reference adds to the prompt).
DEFAULT_NEW_TOKENS = 20


def whole(low: int) -> Check:
    return lambda name, value: check_whole(ArgumentError, name, value, low)


def flag(name: str, value: Any) -> None:
    check_bool(ArgumentError, name, value)


def choice(*choices: str) -> Check:
    return lambda name, value: check_choice(ArgumentError, name, value, choices)


def number(words: str, fits: Callable[[float], bool]) -> Check:
    def check(name: str, value: Any) -> None:
        if not is_number(value) or not math.isfinite(value) or not fits(value):
            raise ArgumentError(f"{name} must be {words}, not {value!r}")

    return check


def optional(check: Check) -> Check:
    def check_if_set(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_if_set


def temperature(name: str, value: Any) -> None:
    if not is_number(value) or not 0 < value < math.inf:
        raise ArgumentError(
            f"{name} must be a number above 0, not {value!r}; "
            "for the most probable token use do_sample=False"
        )


def token_id(name: str, value: Any) -> None:
    check_whole(ArgumentError, name, value, 0)


def token_ids(name: str, value: Any) -> None:
    """A list of token ids, not empty."""
    if not isinstance(value, list | tuple) or not value:
        raise ArgumentError(f"{name} must be a list of token ids, not empty; it is {value!r}")
    for token in value:
        token_id(name, token)


def one_or_many(name: str, value: Any) -> None:
    for token in value if isinstance(value, list | tuple) else [value]:
        token_id(name, token)


def words(name: str, value: Any) -> None:
    """A list of words, each a list of token ids."""
    if not isinstance(value, list | tuple) or not value:
        raise ArgumentError(f"{name} must be a list of lists of token ids; it is {value!r}")
    for word in value:
        token_ids(name, word)


def words_or_choices(name: str, value: Any) -> None:
    """A list of words, or of lists of words of which one must come."""
    if not isinstance(value, list | tuple) or not value:
        raise ArgumentError(f"{name} must be a list of lists of token ids; it is {value!r}")
    for word in value:
        nested = isinstance(word, list | tuple) and word and isinstance(word[0], list | tuple)
        (words if nested else token_ids)(name, word)


def bias_pairs(value: Any) -> list[tuple[tuple[int, ...], float]]:
    """sequence_bias as pairs of ids and number, from the documented dict or list of pairs."""
    pairs = value.items() if isinstance(value, Mapping) else value
    return [(tuple(ids), float(bias)) for ids, bias in pairs]


def bias(name: str, value: Any) -> None:
    error = ArgumentError(
        f"{name} must be a dict from tuples of token ids to numbers, or a list of "
        f"[ids, number] pairs, not empty; it is {value!r}"
    )
    if not isinstance(value, Mapping | list | tuple) or not value:
        raise error
    pairs = value.items() if isinstance(value, Mapping) else value
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not is_number(pair[1]):
            raise error
        token_ids(name, pair[0])
        if not math.isfinite(pair[1]):
            raise error


def strings(name: str, value: Any) -> None:
    strings = [value] if isinstance(value, str) else value
    if (
        not isinstance(strings, list | tuple)
        or not strings
        or not all(isinstance(s, str) and s for s in strings)
    ):
        raise ArgumentError(f"{name} must be a string or a list of them, none empty, not {value!r}")


def decay(name: str, value: Any) -> None:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or isinstance(value[0], bool)
        or not isinstance(value[0], int)
        or value[0] < 0
        or not is_number(value[1])
        or not 0 < value[1] < math.inf
    ):
        raise ArgumentError(
            f"{name} must be (start, factor): a whole number of new tokens of at least 0 and a "
            f"number above 0, not {value!r}"
        )


def early_stopping(name: str, value: Any) -> None:
    if value not in (True, False, "never") or not isinstance(value, bool | str):
        raise ArgumentError(f"{name} must be True, False or 'never', not {value!r}")


positive = number("a number above 0", lambda x: x > 0)
share = number("above 0 and at most 1", lambda x: 0 < x <= 1)
fraction = number("a number from 0 to 1", lambda x: 0 <= x <= 1)
finite = number("a finite number", lambda x: True)
not_negative = number("a number of at least 0", lambda x: x >= 0)
cutoff = number("at least 0 and below 1", lambda x: 0 <= x < 1)

#: what a setting needs to say anything: (in words, whether a config has it)
Need = tuple[str, Callable[["GenerationConfig"], bool]]
SAMPLING: Need = ("do_sample=True", lambda c: c.do_sample)
SAMPLING_OR_CONTRAST: Need = (
    "do_sample=True or penalty_alpha",
    lambda c: c.do_sample or bool(c.penalty_alpha),
)
BEAMS: Need = ("num_beams above 1", lambda c: c.num_beams > 1)
GROUPS: Need = ("num_beam_groups above 1", lambda c: c.num_beam_groups > 1)
A_DICT: Need = ("return_dict_in_generate=True", lambda c: c.return_dict_in_generate)
LOOKUP: Need = ("prompt_lookup_num_tokens", lambda c: c.prompt_lookup_num_tokens is not None)


def setting(
    check: Check,
    *,
    needs: Need | None = None,
    ids: Callable[[Any], list[int]] | None = None,
) -> dict[str, Any]:
    """The metadata of a field of GenerationConfig.

    ``check(name, value)`` raises ArgumentError for what cannot be (None, where
    it is the default, always can); without what it ``needs`` it is void;
    ``ids(value)`` are the token ids that it names.
    """
    return {"check": check, "needs": needs, "ids": ids}


def all_ids(value: Any) -> list[int]:
    """The token ids in a number, a list, or lists of lists."""
    if isinstance(value, list | tuple):
        return [token for part in value for token in all_ids(part)]
    return [] if value is None else [value]


def biased_ids(value: Any) -> list[int]:
    """The token ids of a sequence_bias."""
    return [token for ids, _ in bias_pairs(value or []) for token in ids]


def check_settings(config: GenerationConfig) -> None:
    """Raise ArgumentError for the first setting that cannot be, alone or beside another."""
    for each in fields(config):
        value = getattr(config, each.name)
        if "check" in each.metadata and not (value is None and each.default is None):
            each.metadata["check"](each.name, value)
    for wrong, message in _contradictions(config):
        if wrong:
            raise ArgumentError(message)


def _contradictions(c: GenerationConfig) -> Sequence[tuple[bool, str]]:
    beams, groups, given = c.num_beams, c.num_beam_groups, c.num_return_sequences
    longest, most = c.max_length, c.max_new_tokens
    return (
        (
            longest is not None and most is not None,
            f"max_length={longest} and max_new_tokens={most} say the same thing twice; "
            "give one of them",
        ),
        (
            longest is not None and c.min_length > longest,
            f"min_length={c.min_length} is above max_length={longest}",
        ),
        (
            most is not None and (c.min_new_tokens or 0) > most,
            f"min_new_tokens={c.min_new_tokens} is above max_new_tokens={most}",
        ),
        (
            given > 1 and beams == 1 and not c.do_sample,
            f"num_return_sequences={given} without do_sample=True or beams would give the same "
            "sequence several times",
        ),
        (
            1 < beams < given,
            f"num_return_sequences={given} is above num_beams={beams}; a row has only as many "
            "sequences as beams",
        ),
        (
            groups > 1 and beams % groups != 0,
            f"num_beams={beams} cannot be divided into num_beam_groups={groups} equal groups",
        ),
        (
            groups > 1 and c.do_sample,
            f"num_beam_groups={groups} (diverse beams) does not go with do_sample=True",
        ),
        (
            c.force_words_ids is not None and (beams == 1 or c.do_sample or groups > 1),
            f"force_words_ids needs num_beams above 1, no sampling and one group; found "
            f"num_beams={beams}, do_sample={c.do_sample}, num_beam_groups={groups}",
        ),
        (
            bool(c.penalty_alpha) and (c.do_sample or beams > 1),
            f"penalty_alpha={c.penalty_alpha} (contrastive search) does not go with "
            f"do_sample=True or beams; found do_sample={c.do_sample}, num_beams={beams}",
        ),
        (
            bool(c.penalty_alpha) and (c.top_k or 0) < 2,
            f"penalty_alpha={c.penalty_alpha} (contrastive search) needs top_k of at least 2, not "
            f"{c.top_k}",
        ),
        (
            c.prompt_lookup_num_tokens is not None and (beams > 1 or bool(c.penalty_alpha)),
            f"prompt_lookup_num_tokens={c.prompt_lookup_num_tokens} goes with greedy decoding and "
            "sampling only",
        ),
        (
            c.long_context is not None and c.mode not in ("greedy", "sample"),
            f"long_context={c.long_context!r} goes with greedy decoding and sampling only",
        ),
        (
            c.long_context is not None and c.prompt_lookup_num_tokens is not None,
            f"long_context={c.long_context!r} does not go with prompt_lookup_num_tokens",
        ),
        (
            c.exponential_decay_length_penalty is not None and not c.eos_token_ids,
            f"exponential_decay_length_penalty favours EOS, but eos_token_id is {c.eos_token_id}",
        ),
        (
            c.long_context is not None and not c.use_cache,
            f"long_context={c.long_context!r} needs use_cache=True",
        ),
        (
            c.long_context is not None and c.guidance_scale not in (None, 1),
            f"long_context={c.long_context!r} does not go with guidance_scale={c.guidance_scale}",
        ),
        (
            c.long_context is not None and (c.output_attentions or c.output_hidden_states),
            f"long_context={c.long_context!r} does not go with output_attentions or "
            "output_hidden_states: what a step sees begins elsewhere each time",
        ),
        (
            c.cache_implementation == "static" and not_static(c) is not None,
            f"cache_implementation='static' does not go with {not_static(c)}: a step is one token "
            "per row in a cache of fixed shape; leave it out, or say 'dynamic'",
        ),
    )


def not_static(c: GenerationConfig) -> str | None:
    """What is set that decoding over a cache of fixed shape cannot do, if anything is."""
    found = {
        "use_cache": not c.use_cache,
        "penalty_alpha": bool(c.penalty_alpha),
        "prompt_lookup_num_tokens": c.prompt_lookup_num_tokens is not None,
        "guidance_scale": c.guidance_scale not in (None, 1),
        "long_context": c.long_context is not None,
        "output_attentions": c.output_attentions,
        "output_hidden_states": c.output_hidden_states,
    }
    return next((f"{name}={getattr(c, name)!r}" for name, is_set in found.items() if is_set), None)


def void_settings(config: GenerationConfig, said: Mapping[str, Any]) -> list[str]:
    """Of what is ``said``, the settings that others of ``config`` make void; each with the reason.

    ``said`` has no settings at their defaults.
    """
    found = []
    for each in fields(config):
        needs = each.metadata.get("needs")
        if needs is not None and said.get(each.name) is not None and not needs[1](config):
            found.append(f"{each.name}={said[each.name]!r} has no effect without {needs[0]}")
    return found
