"""Rows by lengths alone: windows, shares of a pair, special tokens, padding."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gpt2.errors import ArgumentError
from gpt2.tokenization.layout import Cut, Part, Row, lay_out


def stretches(rows: list[Row]) -> list[list[tuple[int, int, int]]]:
    return [[(p.text, p.start, p.stop) for p in row.parts if p.special is None] for row in rows]


def cut(limit: int, strategy: Any = "longest_first", side: Any = "right", **more: Any) -> Cut:
    return Cut(limit, strategy, side, **more)


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [
        ((3, 4), (3, 4)),
        ((3, 9), (3, 5)),
        ((9, 3), (5, 3)),
        ((9, 9), (4, 4)),
        ((4, 5), (4, 4)),
        ((20, 9), (4, 4)),
        ((0, 9), (0, 8)),
    ],
)
def test_the_longer_text_gives_way_first(lengths: tuple[int, int], kept: tuple[int, int]) -> None:
    (row,) = lay_out(0, lengths, (), (), cut(8))
    assert stretches([row]) == [[(0, 0, kept[0]), (1, 0, kept[1])]]


def test_an_odd_place_goes_to_the_longer_text_or_the_second() -> None:
    assert stretches(lay_out(0, (9, 8), (), (), cut(7))) == [[(0, 0, 4), (1, 0, 3)]]
    assert stretches(lay_out(0, (9, 9), (), (), cut(7))) == [[(0, 0, 3), (1, 0, 4)]]
    assert stretches(lay_out(0, (8, 9), (), (), cut(7))) == [[(0, 0, 3), (1, 0, 4)]]


def test_one_text_of_a_pair_is_cut() -> None:
    assert stretches(lay_out(0, (5, 5), (), (), cut(7, "only_first"))) == [[(0, 0, 2), (1, 0, 5)]]
    left = lay_out(0, (5, 5), (), (), cut(7, "only_second", "left"))
    assert stretches(left) == [[(0, 0, 5), (1, 3, 5)]]


def test_windows_repeat_the_stride_and_cover_the_text() -> None:
    right = lay_out(0, (10,), (), (), cut(4, stride=1, all_windows=True))
    assert stretches(right) == [[(0, 0, 4)], [(0, 3, 7)], [(0, 6, 10)]]
    left = lay_out(0, (9,), (), (), cut(4, side="left", stride=1, all_windows=True))
    assert stretches(left) == [[(0, 5, 9)], [(0, 2, 6)], [(0, 0, 3)]]
    for length in range(1, 30):
        for size in range(1, 9):
            for stride in range(size):
                rows = lay_out(0, (length,), (), (), cut(size, stride=stride, all_windows=True))
                spans = [part for row in stretches(rows) for _, *part in row]
                assert (spans[0][0], spans[-1][1]) == (0, length)
                for (_, stop), (start, _) in pairwise(spans):
                    assert stop - start == stride
                assert all(stop == length for _, stop in spans[-1:])
                assert all(stop < length for _, stop in spans[:-1])


def test_the_first_windows_of_both_texts_make_the_first_row() -> None:
    rows = lay_out(7, (4, 4), (), (), cut(4, all_windows=True))
    assert [[start for _, start, _ in row] for row in stretches(rows)] == [
        [0, 0],
        [2, 0],
        [2, 2],
        [0, 2],
    ]
    assert {row.sample for row in rows} == {7}


def test_columns_agree() -> None:
    (row,) = lay_out(0, (3, 2), (90,), (91,), cut(8))
    row.pad(10, "left")
    texts = [[1, 2, 3], [4, 5]]
    assert row.ids(texts, 99) == [99, 99, 90, 1, 2, 91, 90, 4, 5, 91]
    assert row.attention_mask() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert row.token_type_ids() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert row.special_tokens_mask() == [1, 1, 1, 0, 0, 1, 1, 0, 0, 1]
    assert row.text_numbers() == [None, None, None, 0, 0, None, None, 1, 1, None]
    assert row.column([["a", "b", "c"], ["d", "e"]], "-") == list("---ab--de-")


def test_a_longer_row_stays_as_it_is() -> None:
    row = Row(0, [Part(0, 0, 5)])
    row.pad(3, "right")
    assert (row.left, row.right) == (0, 0)
    assert row.ids([[1, 2, 3, 4, 5]], 0) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("lengths", "how", "message"),
    [
        ((3, 9), cut(4, "only_first"), r'"only_first" has 3 tokens to cut from, but max_length=4'),
        ((9, 3), cut(4, "only_second"), r'"only_second" has 3 tokens .* asks for 8 fewer'),
        ((9,), cut(4, "only_second"), 'truncation="only_second" needs a text_pair'),
        ((9,), cut(4, stride=4, all_windows=True), "stride=4 must be less than the 4 tokens"),
        ((9, 9), cut(8, stride=4, all_windows=True), "max_length=8 leaves in a row"),
        ((9,), cut(0, all_windows=True), "max_length=0 leaves no room in a row for the 9 tokens"),
    ],
)
def test_what_cannot_be_cut(lengths: tuple[int, ...], how: Cut, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        lay_out(0, lengths, (), (), how)
