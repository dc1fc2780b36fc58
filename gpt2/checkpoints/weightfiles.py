"""Which files of a repository hold the weights: their names, and the index of a sharded set."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gpt2.checkpoints.pickledfiles import PickledFile
from gpt2.checkpoints.tensorfiles import SafetensorsFile
from gpt2.errors import ArgumentError, FileAccessError, FileFormatError
from gpt2.storage.hub import open_repository
from gpt2.storage.jsonfiles import read_json_object

if TYPE_CHECKING:
    from gpt2.checkpoints.tensorfiles import TensorSource
    from gpt2.storage.hub import Repository


@dataclass(frozen=True)
class Kind:
    """One of the two forms that weights are stored in."""

    stem: str
    extension: str

    def single(self, variant: str | None) -> str:
        """``model.safetensors``; of a variant, ``model.fp16.safetensors``."""
        return f"{self.stem}{_dotted(variant)}.{self.extension}"

    def index(self, variant: str | None) -> str:
        """``model.safetensors.index.json``; of a variant, ``model.safetensors.index.fp16.json``."""
        return f"{self.stem}.{self.extension}.index{_dotted(variant)}.json"

    def shard(self, variant: str | None, number: int, count: int) -> str:
        """``model-00001-of-00002.safetensors``, the first having the number 1."""
        return f"{self.stem}{_dotted(variant)}-{number:05}-of-{count:05}.{self.extension}"

    def indexes(self, variant: str | None) -> list[str]:
        """The names that an index may have; some writers put the variant in front."""
        other = f"{self.single(variant)}.index.json"
        return [self.index(variant)] if variant is None else [self.index(variant), other]


SAFETENSORS = Kind("model", "safetensors")
PICKLED = Kind("pytorch_model", "bin")

TRAINING_FILES = ("ckpt.pt", "model.pt")
"""What nanoGPT and minGPT save; looked for last."""

WEIGHT_FILE_PATTERNS = tuple(
    f"{kind.stem}{infix}"
    for kind in (SAFETENSORS, PICKLED)
    for infix in (
        f".{kind.extension}",
        f".*.{kind.extension}",
        f"-*.{kind.extension}",
        f"*.{kind.extension}.index.json",
        f".{kind.extension}.index.*.json",
    )
)
"""The names of all weight files, of every variant: what a save supersedes (``fnmatch``)."""


def weight_file_patterns(variant: str | None = None) -> tuple[str, ...]:
    """The names of the weight files that a save of ``variant`` supersedes (``fnmatch``).

    A save without a variant replaces the model, and so every variant of it; a save of a variant
    stands beside the others.
    """
    if variant is None:
        return WEIGHT_FILE_PATTERNS
    check_variant(variant)
    return tuple(
        name
        for kind in (SAFETENSORS, PICKLED)
        for name in (
            kind.single(variant),
            f"{kind.stem}.{variant}-*.{kind.extension}",
            *kind.indexes(variant),
        )
    )


def open_checkpoint(
    name_or_path: str | os.PathLike[str], **where: Any
) -> tuple[Repository, str | None]:
    """The repository of that name or path, or that of one weight file, and then its name."""
    path = Path(name_or_path) if isinstance(name_or_path, str | os.PathLike) else None
    if path is not None and "\0" not in str(path) and path.is_file():
        return open_repository(path.parent, **where), path.name
    return open_repository(name_or_path, **where), None


class WeightFiles:
    """The weight files of a repository, opened when first asked for; leaving the block closes them.

    safetensors come before .bin, one file before shards, and both before `TRAINING_FILES`.
    ``use_safetensors`` restricts to safetensors (True) or to the others (False); ``file`` names
    the one file to take.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        file: str | None = None,
    ) -> None:
        self.repository = repository
        self._variant = variant
        self._use_safetensors = use_safetensors
        self._file = file
        self._stack = ExitStack()

    @cached_property
    def sources(self) -> list[TensorSource]:
        """The opened files.

        Raises:
            ArgumentError: ``variant`` cannot be part of a file name, or ``file`` has an ending
                that no weight file has.
            FileAccessError: there are no weights; the message lists the names looked for.
            FileFormatError: an index or a file is broken, or the two disagree.
        """
        if self._file is not None:
            return [_open_named(self.repository, self._file, self._stack)]
        return _open_weight_files(
            self.repository, self._variant, self._use_safetensors, self._stack
        )

    @property
    def container(self) -> dict[str, Any]:
        """What a training program kept beside the weights."""
        return {key: value for source in self.sources for key, value in source.container.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _open_named(repository: Repository, file: str, stack: ExitStack) -> TensorSource:
    kind = {"safetensors": SAFETENSORS, "bin": PICKLED, "pt": PICKLED, "pth": PICKLED}.get(
        file.rpartition(".")[2]
    )
    if kind is None:
        raise ArgumentError(
            f"{file!r} is not the name of a weight file: those end in .safetensors, .bin, .pt or "
            ".pth; or give the directory that holds the model's files"
        )
    return _open(repository.require(file), kind, stack)


def _open_weight_files(
    repository: Repository,
    variant: str | None,
    use_safetensors: bool | None,
    stack: ExitStack,
) -> list[TensorSource]:
    check_variant(variant)
    kinds = {None: (SAFETENSORS, PICKLED), True: (SAFETENSORS,), False: (PICKLED,)}
    if use_safetensors not in kinds:
        raise ArgumentError(f"use_safetensors must be True, False or None, not {use_safetensors!r}")
    looked_for = []
    for kind in kinds[use_safetensors]:
        looked_for.append(kind.single(variant))
        path = repository.find(looked_for[-1])
        if path is not None:
            return [_open(path, kind, stack)]
        for name in kind.indexes(variant):
            looked_for.append(name)
            path = repository.find(name)
            if path is not None:
                return _open_shards(repository, path, kind, stack)
    if variant is None and use_safetensors is not True:
        for name in TRAINING_FILES:
            looked_for.append(name)
            path = repository.find(name)
            if path is not None:
                return [_open(path, PICKLED, stack)]
    raise FileAccessError(
        f"{repository.name!r} has no weights: there is no {' and no '.join(looked_for)}"
        + _hint(repository, variant, use_safetensors)
    )


def check_variant(variant: str | None) -> None:
    """Refuse a variant that would not be one part of a plain file name."""
    if variant is not None and not (
        isinstance(variant, str) and re.fullmatch(r"[A-Za-z0-9_+-]{1,64}", variant)
    ):
        raise ArgumentError(
            f"variant={variant!r} must be a short name such as 'fp16', of letters, digits, "
            "'_', '+' and '-'"
        )


def _open(path: Path, kind: Kind, stack: ExitStack) -> TensorSource:
    source: TensorSource
    source = SafetensorsFile(path) if kind is SAFETENSORS else PickledFile(path)
    return stack.enter_context(closing(source))


def _open_shards(
    repository: Repository, index: Path, kind: Kind, stack: ExitStack
) -> list[TensorSource]:
    places = _read_index(index, kind)
    names_by_file: dict[str, set[str]] = {}
    for name, file in places.items():
        names_by_file.setdefault(file, set()).add(name)
    sources = []
    for file, names in sorted(names_by_file.items()):
        path = repository.find(file)
        if path is None:
            raise FileAccessError(
                f"{index} names the shard {file!r}, which {repository.name!r} does not have; "
                "download it too"
            )
        source = _open(path, kind, stack)
        for problem, extra in (
            (f"lacks, though {index.name} says it has, ", names - source.entries.keys()),
            (f"has, though {index.name} does not say so, ", source.entries.keys() - names),
        ):
            if extra:
                raise FileFormatError(
                    f"{path} {problem}{_some(extra)}: the two are not of one checkpoint"
                )
        sources.append(source)
    return sources


def _read_index(path: Path, kind: Kind) -> dict[str, str]:
    """Tensor name -> file name. Only plain names of the right kind get through."""
    places = read_json_object(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FileFormatError(
            f"{path}: weight_map must be an object that gives the file of each tensor"
        )
    for name, file in places.items():
        if not isinstance(file, str):
            raise FileFormatError(
                f"{path}: weight_map gives {name!r:.200} the file {file!r:.80}, not a string"
            )
        if file in ("", ".", "..") or re.search(r"[/\\:\0]", file) or not file.isprintable():
            raise FileFormatError(
                f"{path}: weight_map sends {name!r:.200} to {file!r:.200}; only plain file names "
                "beside the index are opened"
            )
        if not file.endswith(f".{kind.extension}"):
            raise FileFormatError(
                f"{path}: weight_map sends {name!r:.200} to {file!r:.200}; an index of "
                f"{kind.extension} files may name only .{kind.extension} files"
            )
    return places


def _hint(repository: Repository, variant: str | None, use_safetensors: bool | None) -> str:
    """What there is instead, for the error that there are no weights."""
    if variant is not None and any(
        repository.find(name) is not None
        for kind in (SAFETENSORS, PICKLED)
        for name in (kind.single(None), kind.index(None))
    ):
        return "; there are weights without a variant: leave variant out"
    if use_safetensors is True and repository.find(PICKLED.single(variant)) is not None:
        return f"; there is {PICKLED.single(variant)}, which use_safetensors=None allows"
    if use_safetensors is False and repository.find(SAFETENSORS.single(variant)) is not None:
        return f"; there is {SAFETENSORS.single(variant)}, which use_safetensors=None prefers"
    return ""


def _dotted(variant: str | None) -> str:
    return "" if variant is None else f".{variant}"


def _some(names: set[str]) -> str:
    first = sorted(names)[:5]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"{name!r:.200}" for name in first) + more
