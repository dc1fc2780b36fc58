"""From a repository, or a state dict at hand, to tensors that fit the model: all, or an error.

The work has two halves. `_match` compares names, shapes and dtypes, which the headers of the
files tell, with what the model expects, and raises one error that lists everything wrong. Only
then are tensors read, one at a time, each into its final dtype, device and orientation.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import torch

from gpt2.checkpoints.layouts import (
    CORE_PREFIX,
    HUGGING_FACE,
    Layout,
    block_numbers,
    model_name,
)
from gpt2.checkpoints.tensorfiles import Scratch, StateDict
from gpt2.checkpoints.weightfiles import open_weight_files
from gpt2.errors import ArgumentError, StateDictError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpt2.checkpoints.tensorfiles import TensorSource
    from gpt2.storage.hub import Repository

Shape = tuple[int, ...]
Dtype = torch.dtype | Literal["auto"] | None

_log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What became of every tensor. Names are the model's, but for the two lists of stored names."""

    missing_keys: list[str] = field(default_factory=list)
    """Not stored, and the model may initialise them: the caller has to."""
    mismatched_keys: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    """(name, stored shape, expected shape), left out by ignore_mismatched_sizes: likewise. Both
    shapes as ``nn.Linear`` has them."""
    dropped: list[str] = field(default_factory=list)
    """Stored names that the model has no place for, and may leave out: another head's."""
    ignored: list[str] = field(default_factory=list)
    """Stored names of buffers of old versions, which hold no weights."""
    tied: dict[str, str] = field(default_factory=dict)
    """Name that is stored once -> the name it is stored under, as far as the file had the first."""
    loaded: int = 0
    """How many tensors the model gets."""
    files: list[str] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    """The dtype of the loaded tensors."""
    orientation: Literal["conv1d", "linear"] = "conv1d"
    """How the source stored the blocks' projections: [in, out] or [out, in]."""

    @property
    def unexpected_keys(self) -> list[str]:
        """The name that transformers' loading info has for `dropped`."""
        return self.dropped

    def summary(self) -> str:
        """One line for the log."""
        parts = [
            f"loaded {self.loaded} tensors as {str(self.dtype).removeprefix('torch.')} "
            f"from {_some(self.files)}"
        ]
        mismatched = [name for name, _, _ in self.mismatched_keys]
        for what, names in (
            ("newly initialised", self.missing_keys),
            ("of another size and newly initialised", mismatched),
            ("left out", self.dropped),
        ):
            if names:
                parts.append(f"{what}: {_some(names)}")
        if self.ignored:
            parts.append(f"ignored {len(self.ignored)} mask buffers of an old version")
        return "; ".join(parts)


@dataclass
class LoadedTensors:
    """Tensors under the model's names, in ``nn.Linear`` orientation, contiguous, each in memory
    of its own; and what became of the rest."""

    tensors: dict[str, torch.Tensor]
    report: LoadReport


def load_tensors(
    repository: Repository,
    expected: Mapping[str, Shape],
    *,
    dtype: Dtype = None,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    tied: Mapping[str, str] | None = None,
    may_initialize: Sequence[str] = (),
    may_drop: Sequence[str] = (),
    ignore_mismatched_sizes: bool = False,
) -> LoadedTensors:
    """Load what the model expects from the weight files of a repository.

    ``expected`` maps every name of the model, tied ones included, to its shape. Names may be
    stored with or without the prefix ``transformer.``, whichever the model has. The blocks'
    projections may be stored [in, out] (as Hugging Face does) or [out, in]: the whole source
    goes by its first that is not square, usually ``h.0.attn.c_attn.weight``, and one that
    disagrees is an error. (A single square matrix that is transposed cannot be told by anyone.)

    Args:
        dtype: of the result; None means float32, "auto" the one that is stored.
        device: of the result.
        variant: of the files' names, such as "fp16".
        use_safetensors: True for safetensors only, False for .bin only.
        tied: name -> the name it shares its tensor with. It may be missing; if stored, it must
            equal its twin (or stands in for it); it is never returned.
        may_initialize: patterns (``fnmatch``) of names that may be missing.
        may_drop: patterns of names that may be left out when the model has no place for them.
        ignore_mismatched_sizes: leave out tensors of another shape instead of an error.

    Raises:
        StateDictError: names, shapes or dtypes do not fit (one error lists all of them), or
            tied weights differ.
        ArgumentError: dtype="auto", and more than one dtype is stored.
        FileAccessError, FileFormatError: see `open_weight_files`.
    """
    with ExitStack() as stack:
        sources = open_weight_files(
            repository, variant=variant, use_safetensors=use_safetensors, stack=stack
        )
        loader = _Loader(
            sources,
            expected,
            where=repr(repository.name),
            tied=tied or {},
            may_initialize=may_initialize,
            may_drop=may_drop,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        return loader.load(dtype, torch.device(device))


def normalize_state_dict(
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, Shape],
    *,
    dtype: Dtype = None,
    device: torch.device | str = "cpu",
    tied: Mapping[str, str] | None = None,
    may_initialize: Sequence[str] = (),
    may_drop: Sequence[str] = (),
    ignore_mismatched_sizes: bool = False,
) -> LoadedTensors:
    """As `load_tensors`, from a state dict at hand, whose tensors are copied.

    Raises:
        StateDictError, ArgumentError: as `load_tensors`; or a value is not a tensor.
    """
    loader = _Loader(
        [StateDict(tensors)],
        expected,
        where="state_dict",
        tied=tied or {},
        may_initialize=may_initialize,
        may_drop=may_drop,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    return loader.load(dtype, torch.device(device))


@dataclass(frozen=True)
class _Found:
    """A stored tensor that the model has a place for."""

    source: TensorSource
    stored_name: str
    projection: bool  # whether Hugging Face stores it [in, out]

    @property
    def shape(self) -> Shape:
        return self.source.entries[self.stored_name].shape

    @property
    def dtype(self) -> torch.dtype:
        return self.source.entries[self.stored_name].dtype


class _Loader:
    """Matches sources with a model's names when made, and reads them when asked."""

    def __init__(
        self,
        sources: list[TensorSource],
        expected: Mapping[str, Shape],
        *,
        where: str,
        tied: Mapping[str, str],
        may_initialize: Sequence[str],
        may_drop: Sequence[str],
        ignore_mismatched_sizes: bool,
    ) -> None:
        self._sources = sources
        self._expected = expected
        self._where = where
        self.report = LoadReport(files=[source.label for source in sources])
        self._found: dict[str, _Found] = {}
        self._copies: dict[str, _Found] = {}  # tied names that are stored beside their twins
        problems = self._find(HUGGING_FACE, may_drop)
        self.report.orientation = self._orientation()
        self._settle_ties(tied)
        problems += self._look_for_missing(tied, may_initialize)
        problems += self._compare(ignore_mismatched_sizes)
        if problems:
            raise StateDictError("\n".join([f"{where} does not fit the model:", *problems]))

    # ------------------------------------------------------------ matching

    def _find(self, layout: Layout, may_drop: Sequence[str]) -> list[str]:
        """Sort the stored names into found, dropped and ignored."""
        prefixed = any(name.startswith(CORE_PREFIX) for name in self._expected)
        unexpected, twice = [], []
        for source in self._sources:
            for stored_name, stored in source.entries.items():
                row = layout.to_ours(stored_name)
                name = model_name(row.ours, prefixed=prefixed)
                if layout.ignores(stored_name):
                    self.report.ignored.append(stored_name)
                elif name in self._found:
                    twice.append(f"{stored_name!r} beside {self._found[name].stored_name!r}")
                elif name in self._expected:
                    self._found[name] = _Found(source, stored_name, row.transposed)
                elif _matches(stored_name, may_drop) or _matches(name, may_drop):
                    self.report.dropped.append(stored_name)
                else:
                    unexpected.append(f"{stored_name!r:.200} {_sized(stored.shape)}")
        advice = "the model has no place for them; load with the checkpoint's own class and config"
        if not self._found:
            advice = "no stored name fits, so these are not GPT-2 weights in a layout known here"
        return [
            *_listed("unexpected", unexpected, self._block_counts() or advice),
            *_listed("stored twice", twice, "keep one of each"),
        ]

    def _orientation(self) -> Literal["conv1d", "linear"]:
        """That of the first projection whose shape tells: h.0.attn.c_attn, in a whole model."""
        for name, shape in self._expected.items():
            found = self._found.get(name)
            if found is not None and found.projection and shape != shape[::-1]:
                if found.shape == shape[::-1]:
                    return "conv1d"
                if found.shape == shape:
                    return "linear"
        return "conv1d"

    def _settle_ties(self, tied: Mapping[str, str]) -> None:
        for name, twin in tied.items():
            copy = self._found.pop(name, None)
            if copy is not None:
                self.report.tied[name] = twin
                if twin in self._found:
                    self._copies[name] = copy
                else:  # some writers keep only this one of the two
                    self._found[twin] = copy

    def _look_for_missing(
        self, tied: Mapping[str, str], may_initialize: Sequence[str]
    ) -> list[str]:
        missing = []
        for name, shape in self._expected.items():
            if name in self._found or name in tied:
                continue
            if _matches(name, may_initialize):
                self.report.missing_keys.append(name)
            else:
                missing.append(f"{name!r} {_sized(shape)}")
        advice = "the checkpoint is incomplete, or of another architecture or head"
        return _listed("missing", missing, self._block_counts() or advice)

    def _block_counts(self) -> str:
        """Why whole blocks do not fit, where their numbers differ."""
        stored = {n for source in self._sources for n in block_numbers(source.entries)}
        wanted = block_numbers(self._expected)
        if not stored or stored == wanted:
            return ""
        return f"the checkpoint has {len(stored)} blocks, the config n_layer={len(wanted)}"

    def _compare(self, ignore_mismatched_sizes: bool) -> list[str]:
        """Compare shapes and dtypes; take out what is misshapen."""
        against, misshapen, unusable = [], [], []
        for name, found in [*self._found.items(), *self._copies.items()]:
            shape = self._expected[name]
            if not found.dtype.is_floating_point:
                unusable.append(f"{found.stored_name!r} {found.dtype}")
            turned = found.shape[::-1] if self._is_turned(found) else found.shape
            if turned == shape:
                continue
            if found.projection and found.shape in (shape, shape[::-1]):
                against.append(f"{found.stored_name!r} {_sized(found.shape)}")
                continue
            self.report.mismatched_keys.append((name, turned, shape))
            misshapen.append(f"{name!r} {_sized(turned)} instead of {_sized(shape)}")
            (self._copies if name in self._copies else self._found).pop(name)
        rest = "[in, out]" if self.report.orientation == "conv1d" else "[out, in]"
        if ignore_mismatched_sizes:
            misshapen = []
        return [
            *_listed(
                "of another shape (stored instead of expected)",
                misshapen,
                "set the config's sizes as the checkpoint has them, or pass "
                "ignore_mismatched_sizes=True to initialise these anew",
            ),
            *_listed(
                "transposed against the rest",
                against,
                f"the other projections are stored {rest}; transpose these",
            ),
            *_listed("not of floating point", unusable, "weights are stored as numbers, not codes"),
        ]

    def _is_turned(self, found: _Found) -> bool:
        """Whether the tensor has to be transposed to be as ``nn.Linear`` has it."""
        return found.projection and self.report.orientation == "conv1d"

    # ------------------------------------------------------------ reading

    def load(self, dtype: Dtype, device: torch.device) -> LoadedTensors:
        report = self.report
        report.dtype = self._resolve(dtype)
        by_place = {
            (id(found.source), found.stored_name): (name, found)
            for name, found in self._found.items()
        }
        tensors: dict[str, torch.Tensor] = {}
        for name, copy in self._copies.items():
            # First, while little else is held: both must be looked at as they are stored.
            twin = report.tied[name]
            found = self._found.get(twin)
            if found is not None:
                tensor, own = found.source.read(found.stored_name)
                self._check_tie(name, copy, twin, tensor)
                tensors[twin] = self._finished(twin, found, tensor, own, device)
                del tensor
        scratch = Scratch()
        for source in self._sources:
            for stored_name in list(source.entries):
                name, found = by_place.get((id(source), stored_name), ("", None))
                if found is not None and name not in tensors:
                    tensor, own = source.read(
                        stored_name, scratch if self._is_changed(found, device) else None
                    )
                    tensors[name] = self._finished(name, found, tensor, own, device)
        report.loaded = len(tensors)
        _log.info("%s: %s", self._where, report.summary())
        return LoadedTensors(tensors, report)

    def _resolve(self, dtype: Dtype) -> torch.dtype:
        if dtype is None:
            return torch.float32
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return dtype
        if dtype != "auto":
            raise ArgumentError(
                f"dtype={dtype!r} must be a floating-point torch.dtype, 'auto' or None (float32)"
            )
        stored = {found.dtype for found in self._found.values()}
        if len(stored) > 1:
            raise ArgumentError(
                f"dtype='auto' cannot be honoured: {self._where} stores more than one, "
                f"{', '.join(sorted(map(str, stored)))}; name the one to use"
            )
        return stored.pop() if stored else torch.float32

    def _check_tie(self, name: str, copy: _Found, twin: str, tensor: torch.Tensor) -> None:
        other, _ = copy.source.read(copy.stored_name)
        if not _same_values(other, tensor):
            raise StateDictError(
                f"{self._where}: {name!r} and {twin!r} are tied, but their stored values differ. "
                "If the checkpoint was trained untied, load it with the config's "
                "tie_word_embeddings=False"
            )

    def _is_changed(self, found: _Found, device: torch.device) -> bool:
        """Whether the tensor as read is not yet the result."""
        same = found.dtype == self.report.dtype and device.type == "cpu"
        return self._is_turned(found) or not same

    def _finished(
        self, name: str, found: _Found, tensor: torch.Tensor, own: bool, device: torch.device
    ) -> torch.Tensor:
        turned = self._is_turned(found)
        if own and not turned and tensor.is_contiguous():
            return tensor.to(device=device, dtype=self.report.dtype)
        result = torch.empty(self._expected[name], dtype=self.report.dtype, device=device)
        return result.copy_(tensor.t() if turned else tensor)


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal bit for bit, or, where the dtypes differ, in value."""
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype and one.device == other.device:
        # As integers, because a NaN does not equal itself.
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = integer[one.element_size()]
        return torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))
    wide = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.to(wide), other.to(device=one.device, dtype=wide))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


_MOST_LISTED = 20


def _listed(what: str, items: list[str], advice: str) -> list[str]:
    """One line of the error: a count, the first items, and what to do; none without items."""
    if not items:
        return []
    more = f", and {len(items) - _MOST_LISTED} more" if len(items) > _MOST_LISTED else ""
    return [f"  {what} ({len(items)}): {', '.join(items[:_MOST_LISTED])}{more}; {advice}"]


def _sized(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
