"""Learn a byte-level BPE vocabulary from texts: which pairs to merge, in which order.

The words of the corpus are counted once, and merged in place from then on. Of the pairs of
neighbouring tokens, the most frequent becomes the next token; of equally frequent ones that whose
(left id, right id) comes first. Counts are kept up to date where a merge changes them, so one
merge costs as much as the words that it touches. Vocabulary and merges are those that the
tokenizers library's BpeTrainer learns with its ByteLevel pre-tokenizer and alphabet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

from gpt2.errors import ArgumentError, ArgumentTypeError
from gpt2.progress import Progress
from gpt2.tokenization.byte_alphabet import BYTE_CHARACTERS
from gpt2.tokenization.pretokenization import split_words

_Pair = tuple[int, int]

_WORK = "training the tokenizer"


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    min_frequency: int,
    special_tokens: list[str],
    add_prefix_space: bool,
    show_progress: bool,
    length: int | None = None,
) -> tuple[dict[str, int], list[str]]:
    """(vocab: token -> id, merges: "left right" by rank); see `GPT2Tokenizer.train`.

    Ids go to the special tokens first, then to the 256 bytes in the order of their characters,
    then to the merges. Special tokens in the texts are text like any other.

    Raises:
        ArgumentTypeError, ArgumentError: an argument that cannot be used.
    """
    _check(vocab_size, min_frequency, special_tokens)
    reading = Progress(_WORK, "texts read", length, show_progress)
    counts = _count_words(texts, add_prefix_space, reading)
    tokens = [*special_tokens, *sorted(BYTE_CHARACTERS)]
    ids = {token: id_ for id_, token in enumerate(tokens)}
    byte_ids = [ids[character] for character in BYTE_CHARACTERS]
    try:
        words = [list(map(byte_ids.__getitem__, word.encode("utf-8"))) for word in counts]
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"the texts have a lone surrogate, in {error.object!r:.100}: it is half a character "
            "and has no UTF-8 form"
        ) from None
    progress = Progress(_WORK, "tokens", vocab_size, show_progress)
    rules = _learn(words, list(counts.values()), tokens, vocab_size, min_frequency, progress)
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    return vocab, [f"{tokens[left]} {tokens[right]}" for left, right in rules]


def one_by_one(texts: Iterable[str] | Iterable[Iterable[str]]) -> Iterator[str]:
    """The texts of an iterable of texts, or of batches of them.

    Raises:
        ArgumentTypeError: it is neither.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise ArgumentTypeError(
            "text_iterator must be an iterable of texts, or of batches of texts, not "
            f"{type(texts).__name__}"
        )
    for entry in texts:
        if isinstance(entry, str) or not isinstance(entry, Iterable):
            yield entry  # what is no text is refused where texts are counted
        else:
            yield from entry


def _count_words(texts: Iterable[str], add_prefix_space: bool, progress: Progress) -> Counter[str]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise ArgumentTypeError(f"texts must be an iterable of texts, not {type(texts).__name__}")
    counts: Counter[str] = Counter()
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ArgumentTypeError(f"texts[{index}] must be a string, not {type(text).__name__}")
        prefixed = " " + text if add_prefix_space and text and not text.startswith(" ") else text
        counts.update(split_words(prefixed))
        progress.show(index + 1)
    progress.close()
    return counts


def _learn(
    words: list[list[int]],
    counts: list[int],
    tokens: list[str],
    vocab_size: int,
    min_frequency: int,
    progress: Progress,
) -> list[_Pair]:
    """The merged pairs in order of rank; ``tokens`` grows, and ``words`` are merged."""
    ids = {token: id_ for id_, token in enumerate(tokens)}
    pair_counts: defaultdict[_Pair, int] = defaultdict(int)
    places: defaultdict[_Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += counts[index]
            places[pair].add(index)
    # An entry's count may be out of date; it is checked, and put back corrected, when popped.
    queue = [_Candidate((-pair_counts[pair], pair, where)) for pair, where in places.items()]
    heapify(queue)
    rules: list[_Pair] = []
    while queue and len(tokens) < vocab_size:
        negative_count, pair, where = heappop(queue)
        if -negative_count != pair_counts[pair]:
            heappush(queue, _Candidate((-pair_counts[pair], pair, where)))
            continue
        if -negative_count < max(min_frequency, 1):
            break
        token = tokens[pair[0]] + tokens[pair[1]]
        # A merge can spell a special token; it then takes that token's id. Otherwise no two pairs
        # make the same token: how a stretch of text was merged depends on that stretch alone.
        new = ids.setdefault(token, len(tokens))
        if new == len(tokens):
            tokens.append(token)
        rules.append(pair)
        touched: defaultdict[_Pair, set[int]] = defaultdict(set)
        for index in where:
            _merge(words[index], pair, new, index, counts[index], pair_counts, touched)
        for changed, changed_where in touched.items():
            if pair_counts[changed] > 0:
                heappush(queue, _Candidate((-pair_counts[changed], changed, changed_where)))
        progress.show(len(tokens))
    progress.close()
    return rules


class _Candidate(tuple[int, _Pair, set[int]]):
    """(negative count, pair, words); ordered by the first two alone: sets have no order."""

    __slots__ = ()

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        return self[:2] < other[:2]


def _merge(
    word: list[int],
    pair: _Pair,
    new: int,
    index: int,
    count: int,
    pair_counts: defaultdict[_Pair, int],
    touched: defaultdict[_Pair, set[int]],
) -> None:
    """Merge the pair in one word, from the left; note the pairs that this breaks and makes."""
    left, right = pair
    at = -1
    while True:
        try:
            at = word.index(left, at + 1)
        except ValueError:
            return
        if at + 1 == len(word):
            return
        if word[at + 1] != right:
            continue
        word[at : at + 2] = (new,)
        if at > 0:
            pair_counts[word[at - 1], left] -= count
            pair_counts[word[at - 1], new] += count
            touched[word[at - 1], new].add(index)
        if at + 1 < len(word):
            pair_counts[right, word[at + 1]] -= count
            pair_counts[new, word[at + 1]] += count
            touched[new, word[at + 1]].add(index)


def _check(vocab_size: int, min_frequency: int, special_tokens: list[str]) -> None:
    for name, value in (("vocab_size", vocab_size), ("min_frequency", min_frequency)):
        if type(value) is not int or value < 0:
            raise ArgumentError(f"{name} must be an integer from 0 up, not {value!r}")
    for token in special_tokens:
        if not isinstance(token, str) or len(token) < 2:
            raise ArgumentError(
                f"special_tokens has {token!r:.200}; a special token is text of two or more "
                "characters"
            )
    if len(set(special_tokens)) != len(special_tokens):
        raise ArgumentError(f"special_tokens names a token twice: {special_tokens}")
    least = len(special_tokens) + len(BYTE_CHARACTERS)
    if vocab_size < least:
        raise ArgumentError(
            f"vocab_size={vocab_size} is too small: {len(special_tokens)} special tokens and the "
            f"256 bytes need {least}"
        )
