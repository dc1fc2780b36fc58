"""Looking at a checkpoint without loading it into anything, and checking that it is sound."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from gpt2.checkpoints.configs import read_config
from gpt2.checkpoints.layouts import core_name, unwrapped
from gpt2.checkpoints.load import TensorReader
from gpt2.checkpoints.match import Match
from gpt2.checkpoints.weightfiles import WeightFiles, open_checkpoint
from gpt2.errors import GPT2Error, StateDictError
from gpt2.modeling.classifiers import (
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
)
from gpt2.modeling.heads import GPT2DoubleHeadsModel, GPT2LMHeadModel
from gpt2.modeling.transformer import GPT2Model
from gpt2.tokenization.tokenizer import GPT2Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpt2.checkpoints.report import LoadReport
    from gpt2.config import GPT2Config
    from gpt2.modeling.pretrained import GPT2PreTrainedModel

_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

# (n_layer, n_embd, n_head) of what OpenAI published, and of distilgpt2 -> parameters, with the
# published vocabulary and positions and a tied head
PUBLIC_SIZES = {
    (6, 768, 12): ("distilgpt2", 81_912_576),
    (12, 768, 12): ("gpt2", 124_439_808),
    (24, 1024, 16): ("gpt2-medium", 354_823_168),
    (36, 1280, 20): ("gpt2-large", 774_030_080),
    (48, 1600, 25): ("gpt2-xl", 1_557_611_200),
}
_VOCABULARY, _POSITIONS = 50257, 1024
_KNOWN_IDS = {
    "Hello world": [15496, 995],
    " Hello world": [18435, 995],
    "Hello, I'm a language model,": [15496, 11, 314, 1101, 257, 3303, 2746, 11],
    "<|endoftext|>": [50256],
}
_HEADS: dict[str, type[GPT2PreTrainedModel]] = {
    "score.": GPT2ForSequenceClassification,
    "qa_outputs.": GPT2ForQuestionAnswering,
    "classifier.": GPT2ForTokenClassification,
    "multiple_choice_head.": GPT2DoubleHeadsModel,
    "lm_head.": GPT2LMHeadModel,
}


def inspect_checkpoint(name_or_path: str | os.PathLike[str], **arguments: Any) -> LoadReport:
    """What loading would do with every tensor of a repository, a directory or a weight file.

    Only headers are read (a pickled file has none, and is read whole). The class is the one
    whose head is stored. What does not fit is in the report's ``problems``, not an error.

    Args:
        arguments: those of from_pretrained that say where and what to read (cache_dir,
            force_download, local_files_only, token, revision, subfolder, variant,
            use_safetensors), and config fields.

    Raises:
        ConfigError, FileAccessError, HubError, FileFormatError: it cannot be read so far.
    """
    with _Opened(name_or_path, arguments) as opened:
        return opened.report


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool | None
    """None where there was nothing to look at."""
    detail: str

    def __str__(self) -> str:
        mark = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        return f"{mark:<8}{self.name}: {self.detail}"


@dataclass
class Verification:
    """What `verify_checkpoint` found; ``print`` it."""

    report: LoadReport
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(str(check) for check in self.checks)


def verify_checkpoint(name_or_path: str | os.PathLike[str], **arguments: Any) -> Verification:
    """Read all of a checkpoint, and check what can be checked without running the model.

    Names and shapes, the tie of embedding and head, NaN and infinities, the special tokens and
    the tokenizer's vocabulary against the embedding; and for the public GPT-2 sizes the known
    number of parameters and ids of known texts. One tensor at a time is held.

    Args:
        arguments: see `inspect_checkpoint`.

    Raises:
        ConfigError, FileAccessError, HubError, FileFormatError: it cannot be read.
    """
    with _Opened(name_or_path, arguments) as opened:
        found = Verification(opened.report)
        found.checks += opened.check_weights()
        found.checks.append(_check_special_tokens(opened.config))
        found.checks += opened.check_tokenizer()
        return found


class _Opened:
    """A checkpoint whose headers are read and matched with the class that fits."""

    def __init__(self, name_or_path: str | os.PathLike[str], arguments: dict[str, Any]) -> None:
        where = {name: arguments.pop(name) for name in _WHERE if name in arguments}
        repository, file = open_checkpoint(name_or_path, **where)
        self._where = where
        self._weights = WeightFiles(
            repository,
            variant=arguments.pop("variant", None),
            use_safetensors=arguments.pop("use_safetensors", None),
            file=file,
        )
        try:
            self.config, notes = read_config(self._weights, arguments)
            self._match = self._matched()
        except BaseException:
            self._weights.__exit__()
            raise
        self.report = self._match.report
        self.report.notes += notes
        self.report.config = self.config
        self.report.loaded = len(self._match.found) + len(self.report.filled)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._weights.__exit__()

    def _matched(self) -> Match:
        sources = self._weights.sources
        names = [unwrapped(name) for source in sources for name in source.entries]
        tied = GPT2LMHeadModel if self.config.tie_word_embeddings else GPT2Model
        cls: type[GPT2PreTrainedModel] = next(
            (cls for head, cls in _HEADS.items() if any(name.startswith(head) for name in names)),
            tied,
        )
        model = cls.from_config(self.config, device="meta")
        match = Match(sources, model.expected_shapes(), model.loading_rules())
        match.report.model_class = cls.__name__
        stored = {piece.stored.dtype for pieces in match.found.values() for piece in pieces}
        match.report.dtype = stored.pop() if len(stored) == 1 else torch.float32
        return match

    def check_weights(self) -> Iterator[Check]:
        problems = self.report.problems
        if problems:
            yield Check("names and shapes", False, " ".join(p.strip() for p in problems))
            return
        yield Check(
            "names and shapes",
            True,
            f"{self.report.loaded} tensors fit {self.report.model_class} "
            f"(layout {self.report.layout!r})",
        )
        bad, tie_error = [], None
        reader = TensorReader(self._weights.sources, self._match, "the checkpoint")
        wide = any(r.stored_dtype == torch.float64 for r in self.report.tensors)
        stored = self.report.dtype
        try:
            for name, tensor in reader.tensors(
                torch.float64 if wide else torch.float32, torch.device("cpu")
            ):
                count = int(tensor.numel() - tensor.isfinite().sum())
                if count:
                    bad.append(f"{name} ({count})")
        except StateDictError as error:
            tie_error = str(error)
        self.report.dtype = stored
        yield self._tie(tie_error)
        if tie_error is None:
            yield Check(
                "finite values", not bad, f"NaN or infinite in {', '.join(bad)}" if bad else "all"
            )
        yield self._known_size()

    def _tie(self, error: str | None) -> Check:
        if error is not None:
            return Check("tied weights", False, error)
        if not self.config.tie_word_embeddings:
            return Check("tied weights", None, "the config ties none")
        copies = ", ".join(self.report.tied) or "none"
        return Check("tied weights", True, f"stored beside their twins, and equal: {copies}")

    def _known_size(self) -> Check:
        c = self.config
        known = PUBLIC_SIZES.get((c.n_layer, c.n_embd, c.n_head))
        if known is None or (c.vocab_size, c.n_positions) != (_VOCABULARY, _POSITIONS):
            return Check("known size", None, "none of the public GPT-2 sizes")
        name, expected = known
        shapes = self._match.expected
        core = [
            n
            for n in self._match.found
            if self.report.model_class == "GPT2Model" or core_name(n) != n
        ]
        count = sum(torch.Size(shapes[n]).numel() for n in core)
        return Check("known size", count == expected, f"{count:,}; {name} has {expected:,}")

    def check_tokenizer(self) -> Iterator[Check]:
        repository = self._weights.repository
        if all(repository.find(name) is None for name in ("tokenizer.json", "vocab.json")):
            yield Check("vocabulary", None, "there are no tokenizer files")
            return
        try:
            tokenizer = GPT2Tokenizer.from_pretrained(repository.name, **self._where)
        except GPT2Error as error:
            yield Check("vocabulary", False, str(error))
            return
        rows = self.config.vocab_size
        highest = max(tokenizer.get_vocab().values(), default=-1)
        yield Check(
            "vocabulary",
            highest < rows,
            f"{len(tokenizer)} tokens, the highest id {highest}; the embedding has {rows} rows",
        )
        if len(tokenizer) == _VOCABULARY and rows == _VOCABULARY:
            wrong = {
                text: found
                for text, ids in _KNOWN_IDS.items()
                if (found := tokenizer(text, add_special_tokens=False)["input_ids"]) != ids
            }
            yield Check(
                "known ids",
                not wrong,
                f"not those of GPT-2's published vocabulary: {wrong}"
                if wrong
                else f"{len(_KNOWN_IDS)} texts have the ids of GPT-2's published vocabulary",
            )


def _check_special_tokens(config: GPT2Config) -> Check:
    eos = config.eos_token_id
    ids = {
        "bos_token_id": [config.bos_token_id],
        "eos_token_id": eos if isinstance(eos, list) else [eos],
        "pad_token_id": [config.pad_token_id],
    }
    outside = {
        name: values
        for name, values in ids.items()
        if any(value is not None and value >= config.vocab_size for value in values)
    }
    return Check(
        "special tokens",
        not outside,
        f"not below vocab_size {config.vocab_size}: {outside}" if outside else "inside",
    )
