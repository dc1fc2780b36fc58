"""The tokenizer's methods for corpora: encode one whole, or learn a vocabulary from one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError
from gpt2.tokenization import training
from gpt2.tokenization.arguments import special_text_policy
from gpt2.tokenization.calls import TextCalls
from gpt2.tokenization.corpus import CorpusEncoder
from gpt2.tokenization.lookup import ROLES, as_added_token

if TYPE_CHECKING:
    from typing import Self

    import numpy

    from gpt2.tokenization.added import AddedToken
    from gpt2.tokenization.arguments import SpecialText

_SETTINGS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "errors",
    "model_max_length",
    "padding_side",
    "special_text",
    "truncation_side",
)


class CorpusCalls(TextCalls):
    """What is done to many texts at once, and in other processes.

    A pickle has the same bytes for equal tokenizers, whatever they were used for before: what
    ``datasets.map`` makes of it, say, is found again in its cache.
    """

    _surrogates: str

    def __getstate__(self) -> dict[str, Any]:
        return {name: _interned(value) for name, value in sorted(self.__dict__.items())}

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        workers: int = 1,
        start_method: str | None = None,
        special_text: SpecialText | None = None,
        show_progress: bool = True,
    ) -> list[list[int]]:
        """``[tokenizer.encode(text) for text in texts]``, shared out to several processes.

        >>> tokenizer.encode_batch(["Hello world", " Hello world"])
        [[15496, 995], [18435, 995]]

        A process takes a second or so to start and its ids must be sent back, so that more
        workers pay from some tens of megabytes on.

        Args:
            texts: the texts; read as they are needed, not all at once.
            workers: the number of processes; 1 encodes in this one.
            start_method: how they start: "fork", "spawn" or "forkserver"; None for what the
                platform or the program has chosen (``multiprocessing.set_start_method``).
            special_text: as of calling the tokenizer.
            show_progress: tell on stderr how far it is, where it takes more than a few seconds.

        Raises:
            ArgumentTypeError: ``texts`` is no iterable of texts.
            ArgumentError: an argument that cannot be used, or a text, which it names by number.
        """
        before, after = self._around()
        return self._corpus(
            before, after, workers, start_method, special_text, show_progress
        ).lists(texts)

    def encode_to_array(
        self,
        texts: Iterable[str],
        *,
        append_eos: bool = True,
        workers: int = 1,
        start_method: str | None = None,
        special_text: SpecialText | None = None,
        show_progress: bool = True,
    ) -> numpy.ndarray[Any, Any]:
        """The ids of all texts in one array (N,), as training sets are kept.

        >>> tokenizer.encode_to_array(["Hello world", "Hello"])
        array([15496,   995, 50256, 15496, 50256], dtype=uint16)

        uint16 where the vocabulary has up to 65 536 ids, else uint32. Memory: 2 or 4 bytes per id
        and at most a sixteenth more, and about 20 MB per worker for the texts under way, however
        long the corpus is. A single text takes about 17 times its bytes while it is encoded, one of
        white space 35 times, one without any 70 times.

        Args:
            append_eos: end every text with the EOS token, so that a model learns where texts end.
            texts, workers, start_method, special_text, show_progress: as in `encode_batch`.

        Raises:
            ArgumentTypeError, ArgumentError: as in `encode_batch`; ``append_eos`` without an EOS
                token.
        """
        before, after = self._around()
        if append_eos and not after:
            if self.eos_token_id is None:
                raise ArgumentError(
                    "append_eos=True, but the tokenizer has no eos_token; set one, or pass "
                    "append_eos=False to put the texts together without a mark between them"
                )
            after = [self.eos_token_id]
        encoder = self._corpus(before, after, workers, start_method, special_text, show_progress)
        return encoder.array(texts, len(self))

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[Iterable[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Iterable[str | AddedToken] | None = None,
        special_tokens_map: Mapping[str, str] | None = None,
        *,
        min_frequency: int = 0,
        show_progress: bool = True,
    ) -> Self:
        """A tokenizer with this one's special tokens and settings, and a vocabulary of its own.

        Added tokens that are not special stay behind, as in the reference.

        Args:
            text_iterator: texts, or batches of texts; read once.
            vocab_size: stop at this many tokens; fewer where the texts have no more to merge.
            length: how many texts there are, if that is known: for the progress.
            new_special_tokens: further ones; their ids follow those of this tokenizer's.
            special_tokens_map: new names of special tokens: old -> new.
            min_frequency: merge no pair that is rarer.
            show_progress: tell on stderr how far it is, where it takes more than a few seconds.

        Raises:
            ArgumentTypeError, ArgumentError: an argument that cannot be used.
        """
        names = dict(special_tokens_map or {})
        for name in names:
            if name not in self.all_special_tokens:
                raise ArgumentError(
                    f"special_tokens_map renames {name!r:.200}, which is no special token; those "
                    f"are {', '.join(self.all_special_tokens)}"
                )
        added = self._vocabulary.added
        special = [
            replace(added[id_], content=names.get(added[id_].content, added[id_].content))
            for id_ in sorted(self._special_ids() & added.keys())
        ]
        new = [as_added_token(token, special=True) for token in new_special_tokens or ()]
        known = {token.content for token in special}
        special += [token for token in new if token.content not in known]
        vocab, merges = training.train(
            training.one_by_one(text_iterator),
            vocab_size,
            min_frequency=min_frequency,
            special_tokens=[token.content for token in special],
            add_prefix_space=self.add_prefix_space,
            show_progress=show_progress,
            length=length,
        )
        roles = {role: names.get(token, token) for role, token in self._roles.items() if token}
        additional = [names.get(token, token) for token in self.additional_special_tokens]
        create: Any = type(self)
        tokenizer: Self = create(
            vocab,
            merges,
            surrogates=self._surrogates,
            **{name: getattr(self, name) for name in _SETTINGS},
            **{role: roles.get(role) for role in ROLES},
            additional_special_tokens=[*additional, *(token.content for token in new)],
        )
        tokenizer.add_tokens(special, special_tokens=True)  # with their flags
        return tokenizer

    def _corpus(
        self,
        before: list[int],
        after: list[int],
        workers: int,
        start_method: str | None,
        special_text: SpecialText | None,
        show_progress: bool,
    ) -> CorpusEncoder:
        return CorpusEncoder(
            self._reader(special_text_policy(special_text, None, self.special_text)),
            before,
            after,
            workers=workers,
            start_method=start_method,
            show_progress=show_progress,
        )


def _interned(value: Any) -> Any:
    """The value with equal strings made the same object, as pickle tells the two apart."""
    if type(value) is str:
        return sys.intern(value)
    if type(value) is list:
        return [_interned(entry) for entry in value]
    if type(value) is dict:
        return {_interned(key): _interned(entry) for key, entry in value.items()}
    return value
