"""Bad files by the thousand: a good one, damaged by a seeded generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# What a field may suddenly hold: wrong kinds, extremes, and what looks like paths and code
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**9, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "a",
    "0", "1e9", "nan", "../../etc/passwd", "/etc/passwd", "..\\x", "\x00", "é" * 40, "\ud800",
    [], {}, [[]], [0], ["a"], {"a": 1}, [None, {}], [1, -2, 10**20], {"": ""},
)  # fmt: skip


def damaged(good: Any, random: Random, times: int = 2) -> Any:
    """A copy of plain data with up to ``times`` entries replaced, dropped, doubled or renamed."""
    bad = copy.deepcopy(good)
    for _ in range(random.randint(1, times)):
        holder, key = random.choice(list(_places(bad)))
        what = random.randrange(6)
        if what == 0 and isinstance(holder, dict):
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[random.choice(VALUES[15:22]) or "x"] = holder.pop(key)
        elif what == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif what == 3:
            other_holder, other = random.choice(list(_places(bad)))
            holder[key] = copy.deepcopy(other_holder[other])
        elif what == 4 and type(holder[key]) is int:
            holder[key] += random.choice((-1, 1, 8, 2**20, 2**40))
        else:
            holder[key] = copy.deepcopy(random.choice(VALUES))
        if not list(_places(bad)):
            return bad
    return bad


def _places(value: Any) -> Any:
    """Every (container, key or index) inside ``value``."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            yield from _places(value[key])


def damaged_bytes(good: bytes, random: Random) -> bytes:
    """The bytes cut, flipped, doubled, or with a piece of others put in."""
    bad = bytearray(good)
    for _ in range(random.randint(1, 3)):
        where = random.randrange(len(bad) + 1)
        what = random.randrange(5)
        if what == 0:
            del bad[where:]
        elif what == 1 and where < len(bad):
            bad[where] ^= 1 << random.randrange(8)
        elif what == 2:
            bad[where:where] = bytes(random.randrange(256) for _ in range(random.randint(1, 9)))
        elif what == 3:
            del bad[where : where + random.randint(1, 9)]
        else:
            piece = random.randrange(len(bad) + 1)
            bad[where:where] = bad[piece : piece + random.randint(1, 30)]
    return bytes(bad)


def as_json(value: Any, random: Random) -> bytes:
    """The value as a file's bytes; now and then the text itself is damaged as well."""
    data = json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    return damaged_bytes(data, random) if random.random() < 0.2 else data
