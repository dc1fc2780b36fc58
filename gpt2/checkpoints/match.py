"""Comparing what is stored with what a model expects, before a tensor is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from gpt2.checkpoints.detect import detect_layout
from gpt2.checkpoints.layouts import (
    CORE_PREFIX,
    Row,
    Shape,
    block_numbers,
    core_name,
    model_name,
)
from gpt2.checkpoints.report import LoadReport, TensorRecord, sized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpt2.checkpoints.tensorfiles import Stored, TensorSource


@dataclass(frozen=True)
class Rules:
    """What may differ between a checkpoint and the model that it is loaded into."""

    tied: Mapping[str, str] = field(default_factory=dict)
    """Name -> the name it shares its tensor with. It may be missing; if stored, it must equal its
    twin (or stands in for it); it is never returned."""
    copied: Mapping[str, str] = field(default_factory=dict)
    """Name -> the name whose tensor it begins as a copy of, where it is missing."""
    may_initialize: Sequence[str] = ()
    """Patterns (``fnmatch``) of names that may be missing."""
    may_drop: Sequence[str] = ()
    """Patterns of names, stored or ours, that may be left out where the model has no place."""
    ignore_mismatched_sizes: bool = False
    """Leave out tensors of another shape instead of an error."""


@dataclass(frozen=True)
class Piece:
    """A stored tensor that the model has a place for."""

    source: TensorSource
    stored_name: str
    row: Row

    @property
    def stored(self) -> Stored:
        return self.source.entries[self.stored_name]


class Match:
    """The pieces of each expected tensor, and the report; `problems` says why not all is well.

    ``expected`` maps every name of the model, tied ones included, to its shape.
    """

    def __init__(
        self, sources: Sequence[TensorSource], expected: Mapping[str, Shape], rules: Rules
    ) -> None:
        self.expected = expected
        self.rules = rules
        self._entries = {name: s for source in sources for name, s in source.entries.items()}
        container = {k: v for source in sources for k, v in source.container.items()}
        width = next((s[-1] for n, s in expected.items() if n.endswith("wpe.weight")), None)
        self.layout = detect_layout(self._entries, container, width)
        self.report = LoadReport(
            files=[source.label for source in sources],
            layout=self.layout.name,
            orientation="conv1d" if self.layout.name == "huggingface" else "linear",
        )
        self.found: dict[str, list[Piece]] = {}
        self.copies: dict[str, Piece] = {}  # tied names that are stored beside their twins
        self._records: dict[str, TensorRecord] = {}
        self._prefixed = any(name.startswith(CORE_PREFIX) for name in expected)
        problems = self._find(sources)
        self._settle_ties()
        self._fill()
        problems += self._look_for_missing()
        problems += self._compare()
        self.report.problems = problems
        self.report.tensors += self._records.values()

    def _find(self, sources: Sequence[TensorSource]) -> list[str]:
        """Sort the stored names into found, dropped and ignored."""
        unexpected, twice = [], []
        for source in sources:
            for name, why in source.left_out.items():
                self._records[name] = TensorRecord(
                    source.label, name, (), None, None, "left out", why
                )
            for stored_name, stored in source.entries.items():
                row = self.layout.to_ours(stored_name)
                name = model_name(row.ours, prefixed=self._prefixed)
                beside = next((p for p in self.found.get(name, ()) if p.row.part == row.part), None)
                goes_to: str | None = None
                action, why = "unexpected", ""
                if self.layout.ignores(stored_name):
                    self.report.ignored.append(stored_name)
                    action, why = "ignored", "a mask that old versions stored; no weight"
                elif beside is not None:
                    twice.append(f"{stored_name!r} beside {beside.stored_name!r}")
                    why = f"{beside.stored_name!r} is the same tensor"
                elif name in self.expected:
                    self.found.setdefault(name, []).append(Piece(source, stored_name, row))
                    goes_to, action = name, row.action
                elif any(matches(n, self.rules.may_drop) for n in (stored_name, name)):
                    self.report.dropped.append(stored_name)
                    action, why = "left out", "the model has no place for it"
                else:
                    unexpected.append(f"{stored_name!r:.200} {sized(stored.shape)}")
                self._records[stored_name] = TensorRecord(
                    source.label, stored_name, stored.shape, stored.dtype, goes_to, action, why
                )
        advice = (
            "the model has no place for them; load with the checkpoint's own class and config, or "
            "name them in allow_unexpected=[...]"
        )
        if unexpected:
            advice = self._block_counts() or advice
        if not self.found:
            advice = "no stored name fits, so these are not GPT-2 weights in a layout known here"
        return [
            *listed("unexpected", unexpected, advice),
            *listed("stored twice", twice, "keep one of each"),
        ]

    def _settle_ties(self) -> None:
        for name, twin in self.rules.tied.items():
            pieces = self.found.pop(name, None)
            if pieces is not None:
                self.report.tied[name] = twin
                if twin in self.found:
                    self.copies[name] = pieces[0]
                    self._note(pieces[0], twin, "tied", f"must equal {twin}")
                else:  # some writers keep only this one of the two
                    self.found[twin] = pieces
                    self._note(pieces[0], twin, "tied", f"stands in for {twin}")

    def _fill(self) -> None:
        """Note what the checkpoint's kind of model does without: all of a group, or none."""
        for fill in self.layout.fills:
            group = [name for name in self.expected if fill.names.fullmatch(core_name(name))]
            if self.found and not any(name in self.found for name in group):
                self.report.filled.update(dict.fromkeys(group, fill.value))
                self._add_records(group, f"filled with {fill.value:g}", fill.why)

    def _look_for_missing(self) -> list[str]:
        missing, partial = [], []
        for name, shape in self.expected.items():
            pieces = self.found.get(name)
            if pieces is not None:
                if len(pieces) < pieces[0].row.parts:
                    has = ", ".join(repr(piece.stored_name) for piece in pieces)
                    partial.append(f"of {name!r} only {has}")
                continue
            if name in self.rules.tied or name in self.report.filled:
                continue
            if self.rules.copied.get(name) in self.found:
                self.report.copied[name] = self.rules.copied[name]
                continue
            if matches(name, self.rules.may_initialize):
                self.report.missing_keys.append(name)
            else:
                missing.append(f"{name!r} {sized(shape)}")
        for name, twin in self.report.copied.items():
            self._add_records([name], "copied", f"the checkpoint has it tied to {twin}")
        self._add_records(self.report.missing_keys, "newly initialised", "nothing is stored for it")
        advice = "the checkpoint is incomplete, or of another architecture or head"
        if missing:
            advice = self._block_counts() or advice
        return [
            *listed("missing", missing, advice),
            *listed("stored in part", partial, "the other parts are missing"),
        ]

    def _block_counts(self) -> str:
        """Why whole blocks do not fit, where their numbers differ."""
        stored = block_numbers(self.layout.to_ours(name).ours for name in self._entries)
        wanted = block_numbers(self.expected)
        if not stored or stored == wanted:
            return ""
        return f"the checkpoint has {len(stored)} blocks, the config n_layer={len(wanted)}"

    def _compare(self) -> list[str]:
        """Compare shapes and dtypes; take out what is misshapen."""
        against, misshapen, unusable = [], [], []
        candidates = [(name, piece) for name, pieces in self.found.items() for piece in pieces]
        for name, piece in [*candidates, *self.copies.items()]:
            shape, row, stored = self.expected[name], piece.row, piece.stored
            if not stored.dtype.is_floating_point:
                unusable.append(f"{piece.stored_name!r} {stored.dtype}")
                self._note(piece, name, "misfit", "not of floating point")
            wanted = row.stored_shape(shape)
            if stored.shape == wanted:
                continue
            if stored.shape == wanted[::-1] and self._is_projection(row):
                against.append(f"{piece.stored_name!r} {sized(stored.shape)}")
                self._note(piece, name, "misfit", "transposed against the rest")
                continue
            turned = stored.shape[::-1] if row.transposed else stored.shape
            wanted = shape if row.transposed else wanted
            self.report.mismatched_keys.append((name, turned, wanted))
            # A part of ours that is stored by itself goes by its stored name.
            label = name if row.parts == 1 else piece.stored_name
            misshapen.append(f"{label!r} {sized(turned)} instead of {sized(wanted)}")
            self._note(piece, name, "misfit", f"has not the shape {sized(wanted)}")
            (self.copies if name in self.copies else self.found).pop(name, None)
        if self.rules.ignore_mismatched_sizes:
            misshapen = []
        rest = "[in, out]" if self.report.orientation == "conv1d" else "[out, in]"
        return [
            *listed(
                "of another shape (stored instead of expected)",
                misshapen,
                "set the config's sizes as the checkpoint has them, or pass "
                "ignore_mismatched_sizes=True to initialise these anew",
            ),
            *listed(
                "transposed against the rest",
                against,
                f"the other projections are stored {rest}; transpose these",
            ),
            *listed("not of floating point", unusable, "weights are stored as numbers, not codes"),
        ]

    def _is_projection(self, row: Row) -> bool:
        """Whether the tensor belongs to a layer whose weight might be stored either way."""
        return row.ours.endswith(".weight") and core_name(row.ours).startswith("h.")

    def _note(self, piece: Piece, name: str, action: str, why: str) -> None:
        stored = piece.stored
        self._records[piece.stored_name] = TensorRecord(
            piece.source.label, piece.stored_name, stored.shape, stored.dtype, name, action, why
        )

    def _add_records(self, names: Sequence[str], action: str, why: str) -> None:
        for name in names:
            self.report.tensors.append(TensorRecord("", None, (), None, name, action, why))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern (``fnmatch``) fits the name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


_MOST_LISTED = 20


def listed(what: str, items: list[str], advice: str) -> list[str]:
    """One line of the error: a count, the first items, and what to do; none without items."""
    if not items:
        return []
    more = f", and {len(items) - _MOST_LISTED} more" if len(items) > _MOST_LISTED else ""
    return [f"  {what} ({len(items)}): {', '.join(items[:_MOST_LISTED])}{more}; {advice}"]
