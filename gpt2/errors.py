"""Every error that this library raises on purpose.

One base class, so that ``except gpt2.errors.GPT2Error`` catches them all; each
also derives from the built-in that a caller would expect. A message names the
argument, or the file and the field, gives the value found, and says what would
be right.
"""

from __future__ import annotations

import difflib
import queue
from collections.abc import Iterable


class GPT2Error(Exception):
    """Base of all errors of this library."""


class ArgumentError(GPT2Error, ValueError):
    """An argument has a value, a shape or a length that cannot be used."""


class ArgumentTypeError(GPT2Error, TypeError):
    """An argument is unknown, missing, given twice, or of the wrong type."""


class TokenIdError(ArgumentError, IndexError):
    """A token id is negative or not below the size of the vocabulary."""


class SequenceLengthError(ArgumentError):
    """More real tokens, or a higher position, than the model has positions for."""


class ConfigError(GPT2Error, ValueError):
    """A configuration field has an impossible or contradictory value."""


class BackendError(GPT2Error, ValueError):
    """An attention backend is unknown, not installed, or cannot do what is asked."""


class FileAccessError(GPT2Error, OSError):
    """A file or directory is missing, unreadable or unwritable."""


class HubError(FileAccessError):
    """A repository or file could not be had from the hub, or from its cache."""


class FileFormatError(GPT2Error, ValueError, OSError):
    """A file was read, but what it holds is broken or not what its name says."""


class StreamTimeoutError(GPT2Error, TimeoutError, queue.Empty):
    """No text came from the generating thread in the time that was given."""


class DistributedError(GPT2Error, RuntimeError):
    """Another process of a distributed run failed in a step that all of them take together."""


class StateDictError(GPT2Error, RuntimeError):
    """Tensors do not fit the model: missing, unexpected, misshapen or contradictory keys."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'n_layer'?"`` where a known name is close, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> ArgumentTypeError:
    """The error for an argument that ``owner`` does not have, with the nearest name it has."""
    names = sorted(known)
    hint = did_you_mean(name, names) or f"; it takes {', '.join(names)}"
    return ArgumentTypeError(f"{owner} has no argument {name!r}{hint}")
