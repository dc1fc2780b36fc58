"""The tables of a tokenizer: which token has which id and which bytes, and how they merge."""

from __future__ import annotations

import gc
import json
from array import array
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import filterfalse
from operator import countOf, itemgetter
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, FileFormatError
from gpt2.tokenization.added import AddedToken, AddedTokens
from gpt2.tokenization.bpe import BytePairEncoder, MergeRules
from gpt2.tokenization.byte_alphabet import BYTE_CHARACTERS, to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection meanwhile (also as a decorator).

    Tables of 50 000 entries are built of so many small objects that the collector would walk
    through all of them several times, and find nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class Tables:
    """A vocabulary as files hold it, not yet checked, with where it came from for messages.

    Attributes:
        vocab: token, in the byte alphabet -> id.
        merges: "left right", by rank.
        added: id -> added token; also those that ``vocab`` has.
        vocab_source: what to call the vocabulary in a message: the file.
        vocab_line: finds the line of the file on which a token is given an id.
        merges_source: what to call the merges, and a single one: "merges.txt, line".
        first_merge: the number of the first merge, in the unit that merges_source names.
        from_files: whether a fault is a file's or an argument's.
    """

    vocab: dict[str, int]
    merges: list[str]
    added: dict[int, AddedToken] = field(default_factory=dict)
    vocab_source: str = "vocab"
    vocab_line: Callable[[str, Any], int | None] | None = None
    merges_source: str = "merges, entry"
    first_merge: int = 0
    from_files: bool = False

    def fault(self, message: str) -> ArgumentError | FileFormatError:
        return FileFormatError(message) if self.from_files else ArgumentError(message)

    def vocab_fault(self, token: str, message: str) -> ArgumentError | FileFormatError:
        line = self.vocab_line and self.vocab_line(token, self.vocab.get(token))
        return self.fault(f"{self.vocab_source}{f', line {line}' if line else ''}: {message}")

    def merge_fault(self, index: int, message: str) -> ArgumentError | FileFormatError:
        where = f"{self.merges_source} {self.first_merge + index}"
        return self.fault(f"{where}: {self.merges[index]!r:.200} {message}")


class Vocabulary:
    """Tokens by id, ids by token, bytes by id; grows only at its end.

    Args:
        tables: checked here: ids are 0 … n-1, each given once; every merge joins two tokens of
            the vocabulary to a third.

    Raises:
        FileFormatError: (an ArgumentError where the tables came as arguments) they are not so;
            names the file and the entry.
    """

    def __init__(self, tables: Tables) -> None:
        self.base = tables.vocab
        self.merges = tables.merges
        self.added = dict(tables.added)
        self.tokens = _tokens_by_id(tables)
        made = _checked_merges(tables, self.tokens)
        self.byte_ids = _byte_ids(tables.vocab)
        self.encoder = BytePairEncoder(
            self.byte_ids, partial(_merge_rules, self.base, self.merges, made)
        )
        self._index_added()

    def __getstate__(self) -> dict[str, Any]:
        # A few long strings: the same bytes for equal vocabularies, whatever was asked of them
        # before and wherever they came from. Caches of datasets are found by these bytes.
        return {
            "added": json.dumps([[id_, asdict(self.added[id_])] for id_ in sorted(self.added)]),
            "base": json.dumps(dict(sorted(self.base.items(), key=itemgetter(1)))),
            "encoder": self.encoder,
            "merges": "\n".join(self.merges),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.added = {id_: AddedToken(**token) for id_, token in json.loads(state["added"])}
        self.base = json.loads(state["base"])
        self.encoder = state["encoder"]
        self.merges = state["merges"].split("\n") if state["merges"] else []
        self.tokens = _tokens_by_id(Tables(self.base, self.merges, self.added))
        self.byte_ids = _byte_ids(self.base)
        self._index_added()

    def __len__(self) -> int:
        return len(self.tokens)

    def tables(self) -> Tables:
        """What files are to hold."""
        return Tables(self.base, self.merges, self.added)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the files spell it, None if there is none."""
        known = self._added_ids.get(token)
        return self.base.get(token) if known is None else known

    def add(self, tokens: Iterable[AddedToken]) -> int:
        """Keep these whole from now on; those that the vocabulary lacks get the next ids.

        Returns the number of ids that are new.
        """
        before = len(self.tokens)
        added, names = dict(self.added), list(self.tokens)
        ids = dict(self._added_ids)
        for token in tokens:
            id_ = ids.get(token.content, self.base.get(token.content))
            if id_ is None:
                id_ = len(names)
                names.append(token.content)
            added[id_] = token
            ids[token.content] = id_
        # Replaced, not changed in place: another thread may be encoding.
        self.added, self.tokens = added, names
        self._index_added()
        return len(names) - before

    def bytes_of(self, ids: list[int], skipped: AbstractSet[int] = frozenset()) -> bytes:
        """The bytes of several ids, put together, without those of the skipped ones.

        Raises:
            IndexError, OverflowError, TypeError: something in ``ids`` is no id of this vocabulary.
        """
        # Some thousands at a time, so that all that is made on the way stays in the cache.
        return b"".join(
            self._bytes_of_some(ids[at : at + 4096], skipped) for at in range(0, len(ids), 4096)
        )

    def _bytes_of_some(self, ids: list[int], skipped: AbstractSet[int]) -> bytes:
        # Whole passes in C, the cheapest for each check; a number past the end fails by itself.
        if countOf(map(type, ids), int) != len(ids):
            raise TypeError("an id is an int")
        array("I", ids)  # refuses negative numbers, which would count from the end
        if skipped:
            ids = list(filterfalse(skipped.__contains__, ids))
        table = self.token_bytes
        if len(ids) < 2:  # for a single one itemgetter gives no tuple
            return table[ids[0]] if ids else b""
        return b"".join(itemgetter(*ids)(table))

    @property
    def token_bytes(self) -> list[bytes]:
        """id -> the bytes that it stands for in text."""
        return self._spelt.by_id

    def _index_added(self) -> None:
        self._added_ids = {token.content: id_ for id_, token in self.added.items()}
        self.finder = AddedTokens(self.added)
        self._spelt = _Spelt(self.tokens, self.added)


class _Spelt:
    """What each id stands for, worked out when first asked for.

    An object of its own, so that a thread that is still at work on it when tokens are added
    finishes it for nobody, and does not put it in place of the new one.
    """

    def __init__(self, tokens: list[str], added: dict[int, AddedToken]) -> None:
        self._tokens, self._added = tokens, added

    @cached_property
    def by_id(self) -> list[bytes]:
        added = self._added
        return [
            added[id_].content.encode("utf-8", "surrogatepass") if id_ in added else to_bytes(token)
            for id_, token in enumerate(self._tokens)
        ]


def _byte_ids(vocab: dict[str, int]) -> list[int]:
    return [vocab.get(character, -1 - byte) for byte, character in enumerate(BYTE_CHARACTERS)]


def _tokens_by_id(tables: Tables) -> list[str]:
    tokens, ids = list(tables.vocab), list(tables.vocab.values())
    if (  # as files mostly have it: in order
        tokens
        and set(map(type, ids)) == {int}
        and ids == list(range(len(ids)))
        and all(tokens[id_ : id_ + 1] == [token.content] for id_, token in tables.added.items())
    ):
        return tokens
    by_id = {id_: token.content for id_, token in tables.added.items()}
    for token, id_ in tables.vocab.items():
        if type(id_) is not int or id_ < 0:
            raise tables.vocab_fault(
                token,
                f"token {token!r:.200} has the id {id_!r:.200}; an id is an integer from 0 up",
            )
        if by_id.setdefault(id_, token) != token:
            raise tables.vocab_fault(
                token,
                f"the id {id_} is given to two tokens, {by_id[id_]!r:.200} and {token!r:.200}",
            )
    for id_, added in tables.added.items():
        if tables.vocab.get(added.content, id_) != id_:
            raise tables.vocab_fault(
                added.content,
                f"{added.content!r:.200} has the id {tables.vocab[added.content]}, but the id "
                f"{id_} as an added token",
            )
    contents = {added.content for added in tables.added.values()}
    if len(contents) != len(tables.added):
        raise tables.fault(f"{tables.vocab_source}: an added token is given two ids")
    if len(by_id) != max(by_id, default=-1) + 1:
        gap = next(id_ for id_ in range(len(by_id) + 1) if id_ not in by_id)
        last = max(by_id)
        raise tables.vocab_fault(
            by_id[last],
            f"no token has the id {gap}, but {by_id[last]!r:.200} has {last}; ids must be without "
            "gaps",
        )
    if not by_id:
        raise tables.fault(f"{tables.vocab_source}: the vocabulary is empty")
    return [by_id[id_] for id_ in range(len(by_id))]


def _checked_merges(tables: Tables, tokens: list[str]) -> Sequence[int]:
    """Rank -> id of what the merge makes; every merge is found to join two tokens to a third.

    Half of the time of loading a vocabulary would go here, were it not for doing everything to
    the whole text of the merges at once.
    """
    known, count = tables.vocab.keys(), len(tables.merges)
    if not count:
        return ()
    try:
        text = "\n".join(tables.merges)
    except TypeError:
        raise _bad_merge(tables) from None  # which one it is, is found there
    separators = text.encode("utf-8", "surrogatepass").translate(None, _NO_SEPARATORS)
    if separators != (b" \n" * count)[:-1]:  # one space in every line
        raise _bad_merge(tables)
    if not known >= set(text.replace("\n", " ").split(" ")):
        raise _bad_merge(tables)
    # In most vocabularies what the merges make has ids in their order: a comparison tells, and
    # tells too that no merge is given twice.
    made = text.replace(" ", "")
    first = tables.vocab.get(made.partition("\n")[0], len(tokens))
    if "\n".join(tokens[first : first + count]) == made:
        return range(first, first + count)
    products = made.split("\n")
    if not known >= set(products) or len(set(tables.merges)) != count:
        raise _bad_merge(tables)
    return list(map(tables.vocab.__getitem__, products))


@collector_paused()
def _merge_rules(vocab: dict[str, int], merges: list[str], made: Sequence[int]) -> MergeRules:
    ids = list(map(vocab.__getitem__, " ".join(merges).split(" "))) if merges else []
    pairs = zip(ids[::2], ids[1::2], strict=True)
    return MergeRules(dict(zip(pairs, range(len(merges)), strict=True)), list(made))


_NO_SEPARATORS = bytes(set(range(256)) - set(b" \n"))


def _bad_merge(tables: Tables) -> ArgumentError | FileFormatError:
    seen: dict[str, int] = {}
    for index, merge in enumerate(tables.merges):
        parts = merge.split(" ") if isinstance(merge, str) and "\n" not in merge else []
        if len(parts) != 2 or not all(parts):
            return tables.merge_fault(index, "is not two tokens with one space between them")
        for token in (*parts, "".join(parts)):
            if token not in tables.vocab:
                return tables.merge_fault(
                    index, f"needs the token {token!r:.200}, which {tables.vocab_source} lacks"
                )
        if merge in seen:
            first = tables.first_merge + seen[merge]
            return tables.merge_fault(index, f"was given before, as {first}")
        seen[merge] = index
    raise AssertionError("called for merges without a fault")
