"""What each setting of a tokenizer may be, be it an argument or in tokenizer_config.json."""

from __future__ import annotations

import codecs
from typing import Any

_SWITCHES = ("clean_up_tokenization_spaces", "split_special_tokens")


def complaint_about(name: str, value: Any) -> str | None:
    """What is wrong with a setting, None if nothing is; one that is not known is not judged."""
    if name == "split_special_tokens" and value is None:
        return None
    if name.startswith("add_") or name in _SWITCHES:
        if not isinstance(value, bool):
            return f"{name} must be True or False, not {value!r:.200}"
    elif name in ("padding_side", "truncation_side"):
        if value not in ("left", "right"):
            return f'{name} must be "left" or "right", not {value!r:.200}'
    elif name == "surrogates":
        if value not in ("strict", "replace"):
            return f'surrogates must be "strict" or "replace", not {value!r:.200}'
    elif name == "special_text":
        if value not in (None, "allow", "plain", "error"):
            return f'special_text must be "allow", "plain" or "error", not {value!r:.200}'
    elif name == "errors":
        try:
            codecs.lookup_error(value)
        except (LookupError, TypeError):
            return (
                f'errors must be a way of bytes.decode to treat errors ("replace", "strict", '
                f'"ignore" …), not {value!r:.200}'
            )
    elif name == "model_max_length" and not (
        value is None or (isinstance(value, int | float) and value >= 1 and value == int(value))
    ):
        return f"model_max_length must be an integer from 1 up, or None, not {value!r:.200}"
    return None
