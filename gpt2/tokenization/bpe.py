"""Byte-pair encoding itself: the bytes of one word -> token ids. No files, no options.

Start with one token per byte; then, as long as any two neighbours have a rule, merge the pair
whose rule has the lowest rank, the leftmost where several have it (Sennrich et al. 2016).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any, NamedTuple

# Up to this many bytes, scanning a list of ranks beats the heap's bookkeeping.
_SHORT = 48

_GONE = -1000  # in place of a token that was merged into its left neighbour


class MergeRules(NamedTuple):
    """What may be merged.

    Attributes:
        ranks: (left id, right id) -> rank of the rule that merges them.
        merged: rank -> id of the token that the rule makes.
    """

    ranks: Mapping[tuple[int, int], int]
    merged: Sequence[int]


class BytePairEncoder:
    """Merges by rank.

    Args:
        byte_ids: 256 token ids, one per byte. A negative number is none's id: it has no rule,
            and comes out as it went in.
        make_rules: called at the first word, since a tokenizer that only decodes needs no rules.
    """

    def __init__(self, byte_ids: Sequence[int], make_rules: Callable[[], MergeRules]) -> None:
        self._byte_ids = byte_ids
        self._make_rules = make_rules

    @cached_property
    def _rules(self) -> MergeRules:
        # Threads that meet here may make them twice, and then have equal ones.
        return self._make_rules()

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays: a tenth of the size of the dictionary, and equal bytes for equal rules.
        ranks, merged = self._rules
        pairs = sorted(ranks, key=ranks.__getitem__)
        columns = (self._byte_ids, [a for a, _ in pairs], [b for _, b in pairs], merged)
        return _from_columns, tuple(array("i", column).tobytes() for column in columns)

    def encode(self, word: bytes) -> list[int]:
        """The ids of one word; O(n log n) in its length at worst."""
        ids = list(map(self._byte_ids.__getitem__, word))
        return self._merge_short(ids) if len(ids) <= _SHORT else self._merge_long(ids)

    def _merge_short(self, ids: list[int]) -> list[int]:
        merged = self._rules.merged
        no_rule = len(merged)
        rank_of = self._rules.ranks.get
        # ranks[i] is the rank of the pair (ids[i], ids[i + 1])
        ranks = [rank_of(pair, no_rule) for pair in pairwise(ids)]
        while ranks:
            best = min(ranks)
            if best == no_rule:
                break
            at = ranks.index(best)
            token = merged[best]
            ids[at : at + 2] = (token,)
            del ranks[at]
            if at:
                ranks[at - 1] = rank_of((ids[at - 1], token), no_rule)
            if at < len(ranks):
                ranks[at] = rank_of((token, ids[at + 1]), no_rule)
        return ids

    def _merge_long(self, ids: list[int]) -> list[int]:
        size = len(ids)
        merged = self._rules.merged
        rank_of = self._rules.ranks.get
        after = array("q", range(1, size + 1))
        before = array("q", range(-1, size - 1))
        # rank -> where a pair may have it, as a heap; and the ranks, as one.
        places: dict[int, list[int]] = {}
        ranks: list[int] = []

        def note(pair: tuple[int, int], at: int) -> None:
            rank = rank_of(pair)
            if rank is None:
                return
            if rank in places:
                heappush(places[rank], at)
            else:
                places[rank] = [at]
                heappush(ranks, rank)

        for at, pair in enumerate(pairwise(ids)):
            note(pair, at)
        while ranks:
            rank = ranks[0]
            if not places[rank]:
                del places[heappop(ranks)]
                continue
            at = heappop(places[rank])
            right = after[at]
            # A place is out of date when a neighbour's merge has changed the pair.
            if right == size or rank_of((ids[at], ids[right])) != rank:
                continue
            ids[at], ids[right] = merged[rank], _GONE
            end = after[at] = after[right]
            if end < size:
                before[end] = at
                note((ids[at], ids[end]), at)
            start = before[at]
            if start >= 0:
                note((ids[start], ids[at]), start)
        return [token for token in ids if token != _GONE]


def _from_columns(*columns: bytes) -> BytePairEncoder:
    byte_ids, left, right, merged = (array("i", column).tolist() for column in columns)
    ranks = {pair: rank for rank, pair in enumerate(zip(left, right, strict=True))}
    return BytePairEncoder(byte_ids, lambda: MergeRules(ranks, merged))
