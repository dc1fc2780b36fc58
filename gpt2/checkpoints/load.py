"""From a repository, or a state dict at hand, to tensors that fit the model: all, or an error.

The work has two halves. `gpt2.checkpoints.match` compares names, shapes and dtypes, which the
headers of the files tell, with what the model expects, and lists everything wrong. Only then
are tensors read, one at a time, each into its final dtype, device and orientation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from gpt2.checkpoints.match import Match, Piece, Rules
from gpt2.checkpoints.report import LoadReport
from gpt2.checkpoints.tensorfiles import Scratch, StateDict, empty
from gpt2.checkpoints.weightfiles import WeightFiles
from gpt2.errors import ArgumentError, StateDictError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gpt2.checkpoints.layouts import Shape
    from gpt2.checkpoints.tensorfiles import TensorSource

Dtype = torch.dtype | Literal["auto"] | None

_log = logging.getLogger(__name__)


@dataclass
class LoadedTensors:
    """Tensors under the model's names, in ``nn.Linear`` orientation, contiguous, each in memory
    of its own; and what became of the rest."""

    tensors: dict[str, torch.Tensor]
    report: LoadReport


def load_tensors(
    weights: WeightFiles | Mapping[str, torch.Tensor],
    expected: Mapping[str, Shape],
    rules: Rules | None = None,
    *,
    dtype: Dtype = None,
    device: torch.device | str = "cpu",
    notes: Sequence[str] = (),
) -> LoadedTensors:
    """Load what the model expects from weight files, or (copied) from a state dict.

    ``expected`` maps every name of the model, tied ones included, to its shape. The layout is
    read off the names and shapes (`gpt2.checkpoints.detect`); names may have or lack the prefix
    ``transformer.``, whichever the model has. (A single square matrix that is transposed cannot
    be told by anyone.)

    Args:
        rules: what may be missing, left out or tied.
        dtype: of the result; None means float32, "auto" the one that is stored.
        device: of the result.
        notes: what the report is to say besides.

    Raises:
        StateDictError: names, shapes or dtypes do not fit (one error lists all of them), or
            tied weights differ; or a value of a state dict is not a tensor.
        ArgumentError: dtype="auto", and more than one dtype is stored.
        FileAccessError, FileFormatError: see `WeightFiles`.
    """
    if isinstance(weights, WeightFiles):
        sources, where = weights.sources, repr(weights.repository.name)
    else:
        sources, where = [StateDict(weights)], "state_dict"
    reader = TensorReader(sources, Match(sources, expected, rules or Rules()), where)
    reader.report.notes += notes
    tensors = dict(reader.tensors(dtype, torch.device(device)))
    reader.report.loaded = len(tensors)
    _log.info("%s: %s", where, reader.report.summary())
    return LoadedTensors(tensors, reader.report)


class TensorReader:
    """Reads the tensors of a match, one after another."""

    def __init__(self, sources: Sequence[TensorSource], match: Match, where: str) -> None:
        self._sources = sources
        self._match = match
        self._where = where
        self._place = {
            (id(piece.source), piece.stored_name): name
            for name, pieces in match.found.items()
            for piece in pieces
        }
        self._settled: set[str] = set()  # what was read when its tied copy was looked at

    @property
    def report(self) -> LoadReport:
        return self._match.report

    def tensors(self, dtype: Dtype, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of all that the model gets, each once; nothing is held here meanwhile.

        Raises:
            StateDictError: the match has problems, or tied weights differ.
        """
        if self.report.problems:
            raise StateDictError(
                "\n".join([f"{self._where} does not fit the model:", *self.report.problems])
            )
        self.report.dtype = self._resolve(dtype)
        for name, copy in self._match.copies.items():
            # First, while little else is held: both must be looked at as they are stored.
            twin = self.report.tied[name]
            (piece,) = self._match.found.get(twin, [None])
            if piece is not None:
                stored, own = piece.source.read(piece.stored_name)
                self._check_tie(name, copy, twin, stored)
                self._settled.add(twin)
                yield twin, self._finished(twin, piece, stored, own, device, None)
                del stored
        for name, tensor in self._read_all(device):
            yield name, tensor
            for untied, twin in self.report.copied.items():
                if twin == name:
                    yield untied, tensor.clone()
        for name, value in self.report.filled.items():
            shape = self._match.expected[name]
            yield name, torch.full(shape, value, dtype=self.report.dtype, device=device)

    def _read_all(self, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
        scratch = Scratch()
        growing: dict[str, torch.Tensor] = {}
        left = {name: len(pieces) for name, pieces in self._match.found.items()}
        for source in self._sources:
            for stored_name in list(source.entries):
                name = self._place.get((id(source), stored_name))
                if name is None or name in self._settled:
                    continue
                piece = next(
                    p
                    for p in self._match.found[name]
                    if p.source is source and p.stored_name == stored_name
                )
                stored, own = source.read(
                    stored_name, scratch if self._is_changed(piece, device) else None
                )
                result = self._finished(name, piece, stored, own, device, growing.pop(name, None))
                del stored
                left[name] -= 1
                if left[name]:
                    growing[name] = result
                else:
                    yield name, result
                del result

    def _resolve(self, dtype: Dtype) -> torch.dtype:
        if dtype is None:
            return torch.float32
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            return dtype
        if dtype != "auto":
            raise ArgumentError(
                f"dtype={dtype!r} must be a floating-point torch.dtype, 'auto' or None (float32)"
            )
        stored = {piece.stored.dtype for pieces in self._match.found.values() for piece in pieces}
        if len(stored) > 1:
            raise ArgumentError(
                f"dtype='auto' cannot be honoured: {self._where} stores more than one, "
                f"{', '.join(sorted(map(str, stored)))}; name the one to use"
            )
        return stored.pop() if stored else torch.float32

    def _check_tie(self, name: str, copy: Piece, twin: str, tensor: torch.Tensor) -> None:
        other, _ = copy.source.read(copy.stored_name)
        if not same_values(other, tensor):
            raise StateDictError(
                f"{self._where}: {name!r} and {twin!r} are tied, but their stored values differ. "
                "If the checkpoint was trained untied, load it with the config's "
                "tie_word_embeddings=False"
            )

    def _is_changed(self, piece: Piece, device: torch.device) -> bool:
        """Whether the tensor as read is not yet the result."""
        same = piece.stored.dtype == self.report.dtype and device.type == "cpu"
        return piece.row.action != "as it is" or not same

    def _finished(
        self,
        name: str,
        piece: Piece,
        stored: torch.Tensor,
        own: bool,
        device: torch.device,
        begun: torch.Tensor | None,
    ) -> torch.Tensor:
        """Our tensor with the stored one put in place; ``begun`` holds what was there before."""
        if own and piece.row.action == "as it is" and stored.is_contiguous():
            return stored.to(device=device, dtype=self.report.dtype)
        if begun is None:
            shape = self._match.expected[name]
            begun = empty(shape, self.report.dtype, device)
        piece.row.in_ours(begun).copy_(piece.row.in_stored(stored))
        return begun


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
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
