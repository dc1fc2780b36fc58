"""Ids equal to tiktoken's and transformers', code point by code point and on generated text."""

from __future__ import annotations

import copy
import json
import random
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2 import GPT2Tokenizer
from gpt2.errors import ArgumentError
from gpt2.tokenization import unicode_classes
from gpt2.tokenization.added import AddedToken
from gpt2.tokenization.byte_alphabet import to_bytes
from gpt2.tokenization.pretokenization import split_words
from tests.parity.record import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Encode = Callable[[str], list[int]]
    EncodeAll = Callable[[list[str]], list[list[int]]]

SHARED = Path(__file__).parents[3] / "shared"
VOCAB = SHARED / "gpt2-vocab"
END = "<|endoftext|>"

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not VOCAB.is_dir(), reason="needs ../shared/gpt2-vocab"),
]

# The pattern that tiktoken's "gpt2" encoding names.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@pytest.fixture(scope="module")
def ours() -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(VOCAB)


@pytest.fixture(scope="module")
def tiktoken_encoding(ours: GPT2Tokenizer) -> Any:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {to_bytes(token): id_ for token, id_ in ours.get_vocab().items() if token != END}
    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END: 50256}
    )


@pytest.fixture(scope="module")
def encode_tiktoken(tiktoken_encoding: Any) -> Encode:
    return lambda text: tiktoken_encoding.encode(text, allowed_special="all")


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    files = [str(VOCAB / "vocab.json"), str(VOCAB / "merges.txt")]
    return transformers.GPT2TokenizerFast(*files)


def transformers_version() -> int:
    return int(pytest.importorskip("transformers").__version__.split(".")[0])


@pytest.fixture(scope="module")
def encode_transformers(transformers_tokenizer: Any) -> Encode:
    backend = transformers_tokenizer.backend_tokenizer  # without the cost of the Python layer
    return lambda text: backend.encode(text).ids


@pytest.fixture(scope="module")
def references(tiktoken_encoding: Any, transformers_tokenizer: Any) -> dict[str, EncodeAll]:
    """Name -> what encodes many texts."""
    backend = transformers_tokenizer.backend_tokenizer
    return {
        "tiktoken": lambda texts: tiktoken_encoding.encode_batch(
            texts, allowed_special="all", num_threads=1
        ),
        "transformers": lambda texts: [e.ids for e in backend.encode_batch_fast(texts)],
    }


def compare_all(
    ours: GPT2Tokenizer, references: dict[str, EncodeAll], texts: list[str], what: str
) -> None:
    """Ids equal to both references', and the same text back."""
    rows = [ours.encode(text) for text in texts]
    for name, encode_all in references.items():
        expected = encode_all(texts)
        wrong = [t for t, row, ids in zip(texts, rows, expected, strict=True) if row != ids]
        count(f"tokenizer: {what} compared with {name}", len(texts))
        count(f"tokenizer: mismatches with {name}", len(wrong))
        assert not wrong, (name, wrong[0])
    assert [ours.decode(row) for row in rows] == texts
    count(f"tokenizer: {what} that came back from their ids", len(texts))


def chunks(code_points: Iterable[int]) -> Iterator[list[str]]:
    characters = [chr(c) for c in code_points if not 0xD800 <= c < 0xE000]
    return (characters[start : start + 8192] for start in range(0, len(characters), 8192))


def test_every_code_point_is_cut_as_tokenizers_cuts_it() -> None:
    pre_tokenizers = pytest.importorskip("tokenizers.pre_tokenizers")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for characters in chunks(range(0x110000)):
        # A letter, a number, white space and anything else each cut this in its own way.
        text = "".join(f"a{c}1{c}!" for c in characters)
        theirs = [text[start:end] for _, (start, end) in byte_level.pre_tokenize_str(text)]
        assert split_words(text) == theirs


ASSIGNED = [*range(0x40000), *range(0xE0000, 0xE1000)]
UNASSIGNED = [*range(0x40000, 0xE0000), *range(0xE1000, 0x110000)]


@pytest.mark.parametrize(
    "code_points",
    [
        pytest.param(ASSIGNED, id="planes-with-characters"),
        pytest.param(UNASSIGNED[::97], id="a-sample-of-the-rest"),
        pytest.param(UNASSIGNED, id="the-rest", marks=pytest.mark.slow),
    ],
)
def test_every_code_point_alone_and_in_company(
    ours: GPT2Tokenizer,
    encode_tiktoken: Encode,
    encode_transformers: Encode,
    code_points: list[int],
) -> None:
    for characters in chunks(code_points):
        text = "".join(f"{END}{c}{END}x{c} {c}" for c in characters)
        ids = ours.encode(text)
        assert ids == encode_tiktoken(text)
        assert ids == encode_transformers(text)
        assert ours.decode(ids) == text


# ------------------------------------------------------------------------------ generated text

WHITE = [
    chr(c) for a, b in unicode_classes.ranges(unicode_classes.WHITE_SPACE) for c in range(a, b + 1)
]
MARKS = [
    chr(c) for c in (*range(0x300, 0x340), 0x200D, 0xFE0F, 0x1F3FB, 0x1F3FF, 0x20E3, 0xAD, 0x200B)
]
SNIPPETS = [
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "''", "'", "don't", "I'd've"),
    *("the", " and", "Hello", "THE", "x=1;", "http://a.b/c?d=e&f", "3.14", "1,000", "½", "²"),
    *("<|endoftext|>", "<|endoftext|", "<|endoftext|><|endoftext|>", " <|endoftext|> "),
    *("\r\n", "\n\n", "\r", "\t", "  ", "   ", "\n ", " \n", "\x85", "\u2028", "\x0b\x0c", "\x1c"),
    *(
        "\0",
        "\ufeff",
        "\ufffd",
        "\uffff",
        "\U0010ffff",
        "👩‍👩‍👧",
        "🇩🇪",
        "👍🏽",
        "日本語",
        "한국어",
        "עברית",
    ),
    *("हिन्दी", "ไทย", "é", "e\u0301", "ﬃ", "𝐱", "𝟙", "𐍈", "٣٤", "Ⅷ", "٪", "_", "__init__", "中1文"),
]


def random_text(rng: random.Random) -> str:
    planes = (0x80, 0x250, 0x3000, 0x10000, 0x20000, 0x110000)

    def any_character() -> str:
        code_point = rng.randrange(rng.choice(planes))
        return chr(code_point) if not 0xD800 <= code_point < 0xE000 else "\ue000"

    kinds = (
        lambda: rng.choice(SNIPPETS),
        lambda: rng.choice(WHITE) * rng.randrange(1, 4),
        lambda: " " * rng.randrange(1, 4),
        lambda: rng.choice(MARKS),
        lambda: "".join(any_character() for _ in range(rng.randrange(1, 6))),
        lambda: "".join(chr(rng.randrange(0x20, 0x7F)) for _ in range(rng.randrange(1, 12))),
    )
    return "".join(rng.choice(kinds)() for _ in range(rng.randrange(1, 12)))


@pytest.mark.parametrize("seed", range(10))
def test_generated_texts(ours: GPT2Tokenizer, references: dict[str, EncodeAll], seed: int) -> None:
    rng = random.Random(20261121 + seed)
    texts = [random_text(rng) for _ in range(19_500)]  # 195 000 in all
    compare_all(ours, references, texts, "generated texts")


HYPOTHESIS_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(
        st.one_of(st.sampled_from(SNIPPETS + WHITE), st.characters(exclude_categories=["Cs"]))
    ).map("".join),
)


def test_texts_of_hypothesis(ours: GPT2Tokenizer, references: dict[str, EncodeAll]) -> None:
    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.lists(HYPOTHESIS_TEXTS, min_size=20, max_size=40))
    def check(texts: list[str]) -> None:
        compare_all(ours, references, texts, "generated texts")

    check()


def test_lone_surrogates(
    ours: GPT2Tokenizer, references: dict[str, EncodeAll], tiktoken_encoding: Any
) -> None:
    """Refused; or replaced as tiktoken replaces them, pairs of them being characters."""
    rng = random.Random(7)
    replacing = GPT2Tokenizer.from_pretrained(VOCAB, surrogates="replace")
    for _ in range(5_000):
        pieces = [random_text(rng), *(chr(rng.randrange(0xD800, 0xE000)) for _ in range(3))]
        rng.shuffle(pieces)
        text = "".join(pieces)
        with pytest.raises(ArgumentError, match="lone surrogate"):
            ours.encode(text)
        # Between two special tokens tiktoken sees one surrogate of a pair at a time.
        ids = replacing.encode(text, special_text="plain")
        assert ids == tiktoken_encoding.encode_ordinary(text), repr(text)
        read = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        assert replacing.encode(text) == references["transformers"]([read])[0], repr(text)
        assert replacing.decode(ids) == read
    count("tokenizer: texts with lone surrogates refused, and replaced as tiktoken does", 5_000)


def whole_files() -> list[str]:
    """Prose, this repository's README, and a part of Python's own library."""
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[::3]
    paths = [SHARED / "text" / "shakespeare.txt", Path(__file__).parents[2] / "README.md", *library]
    # As bytes, so that \r\n stays \r\n.
    return [path.read_bytes().decode("utf-8") for path in paths if path.is_file()]


def test_whole_files(ours: GPT2Tokenizer, references: dict[str, EncodeAll]) -> None:
    texts = whole_files()
    assert sum(map(len, texts)) > 1_000_000
    compare_all(ours, references, texts, "whole files")


def test_long_words(ours: GPT2Tokenizer, encode_tiktoken: Encode) -> None:
    rng = random.Random(3)
    for length in (40, 49, 300, 5000):
        for alphabet in ("a", "ab", "etaoin", "日本", "=-", " "):
            text = "".join(rng.choices(alphabet, k=length))
            assert ours.encode(text) == encode_tiktoken(text)


# ---------------------------------------------------------------------- transformers' own layer


def test_calls_as_transformers(ours: GPT2Tokenizer, transformers_tokenizer: Any) -> None:
    texts = ["Hello world", "", "a <|endoftext|> b", " I'm  here\n"]
    theirs, mine = copy.deepcopy(transformers_tokenizer), copy.deepcopy(ours)
    for tokenizer in (theirs, mine):
        tokenizer.pad_token = "<|endoftext|>"
    for arguments in (
        {},
        {"padding": True},
        {"padding": "max_length", "max_length": 6},
        {"padding": True, "pad_to_multiple_of": 8},
        {"truncation": True, "max_length": 3},
        {"truncation": True, "padding": "max_length", "max_length": 3},
    ):
        for side in ("left", "right"):
            theirs.padding_side = mine.padding_side = side
            theirs.truncation_side = mine.truncation_side = side
            expected = theirs(texts, **arguments)
            assert dict(mine(texts, **arguments)) == dict(expected)
    tensors, expected = (t(texts, padding=True, return_tensors="pt") for t in (mine, theirs))
    for name in expected:
        assert tensors[name].dtype == expected[name].dtype
        assert tensors[name].tolist() == expected[name].tolist()
    assert (
        mine.encode("x", return_tensors="pt").shape == theirs.encode("x", return_tensors="pt").shape
    )
    ids = expected["input_ids"]
    assert mine.batch_decode(ids) == theirs.batch_decode(ids)
    skip = {"skip_special_tokens": True}
    assert mine.batch_decode(ids, **skip) == theirs.batch_decode(ids, **skip)
    assert mine.tokenize(texts[3]) == theirs.tokenize(texts[3])


def test_clean_up_as_transformers_4(ours: GPT2Tokenizer, transformers_tokenizer: Any) -> None:
    if transformers_version() > 4:
        pytest.skip("transformers 5 does not clean up byte-level BPE")
    text = "It 's , well , old . He does n't ' know ' that I 'm here !"
    ids = ours.encode(text)
    theirs = transformers_tokenizer.decode(ids, clean_up_tokenization_spaces=True)
    assert ours.decode(ids, clean_up_tokenization_spaces=True) == theirs


def added_to(tokenizer: Any, added_token: Any) -> Any:
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["<new>", "<new><er>", "hat stand"])
    tokenizer.add_tokens([added_token("<left>", lstrip=True, normalized=False)])
    tokenizer.add_tokens([added_token("<right>", rstrip=True)])
    tokenizer.add_tokens([added_token("word", single_word=True)])
    return tokenizer


@pytest.fixture
def with_added(ours: GPT2Tokenizer) -> GPT2Tokenizer:
    tokenizer: GPT2Tokenizer = added_to(copy.deepcopy(ours), AddedToken)
    return tokenizer


def test_added_tokens_as_transformers(
    with_added: GPT2Tokenizer, transformers_tokenizer: Any
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = added_to(copy.deepcopy(transformers_tokenizer), tokenizers.AddedToken)
    assert with_added.get_vocab() == theirs.get_vocab()
    rng = random.Random(5)
    pieces = [
        *(
            "<new>",
            "<er>",
            "hat stand",
            "hat",
            "<left>",
            "<right>",
            "word",
            "words",
            "sword",
            "<pad>",
        ),
        *(" ", "  ", "\n", "\u3000", "a", "é", "_", ".", "1", "\u0301", "<|endoftext|>", "日"),
    ]
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 9)))
        assert with_added.encode(text) == theirs.encode(text), repr(text)
        assert with_added.tokenize(text) == theirs.tokenize(text), repr(text)
        assert with_added(text).tokens() == theirs(text).tokens(), repr(text)


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}, {"add_bos_token": True}])
def test_what_is_saved_loads_in_transformers_with_the_same_ids(
    ours: GPT2Tokenizer, tmp_path: Path, settings: dict[str, bool]
) -> None:
    transformers = pytest.importorskip("transformers")
    ours.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text('{"model_type": "gpt2"}')
    mine = GPT2Tokenizer.from_pretrained(tmp_path / "plain", padding_side="left", **settings)
    added_to(mine, AddedToken)
    mine.save_pretrained(tmp_path / "full")
    (tmp_path / "full" / "config.json").write_text('{"model_type": "gpt2"}')
    texts = [
        "Hello world",
        "a<pad>b <new><er> hat stand <left> <right>  c sword word",
        "日<|endoftext|>x",
    ]
    for name in ("AutoTokenizer", "GPT2TokenizerFast"):
        theirs = getattr(transformers, name).from_pretrained(tmp_path / "full")
        assert len(theirs) == len(mine)
        assert theirs.padding_side == "left"
        assert (theirs.pad_token, theirs.eos_token) == ("<pad>", "<|endoftext|>")
        for text in texts:
            assert mine.encode(text) == theirs.encode(text)
        again = tmp_path / name
        theirs.save_pretrained(again)
        back = GPT2Tokenizer.from_pretrained(again)
        assert back.get_vocab() == mine.get_vocab()
        assert back.special_tokens_map == mine.special_tokens_map
        assert [back.encode(text) for text in texts] == [mine.encode(text) for text in texts]


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}, {"add_bos_token": True}])
def test_what_is_saved_loads_in_tokenizers_with_the_same_ids(
    tmp_path: Path, settings: dict[str, bool]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    mine = GPT2Tokenizer.from_pretrained(VOCAB, **settings)
    vocab, merges = mine.save_vocabulary(tmp_path)
    by_parts = tokenizers.ByteLevelBPETokenizer.from_file(
        vocab, merges, add_prefix_space=mine.add_prefix_space
    )
    added_to(mine, AddedToken)
    mine.save_pretrained(tmp_path)
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rng = random.Random(17)
    for _ in range(500):
        text = random_text(rng).replace(END, "")
        alone = mine.encode(text, special_text="plain", add_special_tokens=False)
        assert by_parts.encode(text).ids == alone, repr(text)
        text += rng.choice(["<pad>", "<new><er>", " <left>", "<right> ", f"{END}x", "word"])
        encoding = whole.encode(text)
        assert encoding.ids == mine.encode(text), repr(text)
        assert whole.decode(encoding.ids, skip_special_tokens=False) == mine.decode(encoding.ids)


def test_the_slow_class_of_transformers_4_loads_it_too(ours: GPT2Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if transformers_version() > 4:
        pytest.skip("transformers 5 has no second class")
    mine = added_to(copy.deepcopy(ours), AddedToken)
    mine.add_bos_token = True
    mine.save_pretrained(tmp_path)
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    assert theirs.pad_token_id == mine.pad_token_id
    for text in ("Hello world", "a<pad>b", "x<new><er>y"):
        assert theirs.encode(text) == mine.encode(text)


# ------------------------------------------------------------------------------------ training


def learnt_by_tokenizers(
    texts: list[str], vocab_size: int, **arguments: Any
) -> tuple[dict[str, int], list[str]]:
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.ByteLevelBPETokenizer(
        add_prefix_space=arguments.pop("add_prefix_space", False)
    )
    theirs.train_from_iterator(texts, vocab_size=vocab_size, show_progress=False, **arguments)
    model = json.loads(theirs._tokenizer.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return model["vocab"], merges


@pytest.mark.parametrize("seed", range(8))
def test_training_equals_tokenizers(seed: int) -> None:
    """Small alphabets and low counts: ties everywhere, and merges that spell special tokens."""
    rng = random.Random(seed)
    alphabet = ["ab", "abc ", "abcdé ", "a日本 '"][seed % 4]
    for _ in range(40):
        texts = [
            "".join(rng.choices(alphabet, k=rng.randrange(1, 40)))
            for _ in range(rng.randrange(1, 12))
        ]
        texts += ["see <|endoftext|> here"] * rng.randrange(3)
        arguments = {
            "vocab_size": rng.choice([259, 270, 300, 1000]),
            "min_frequency": rng.choice([0, 1, 2, 3]),
            "special_tokens": rng.choice(
                [[], ["ab", "bca"], ["<|endoftext|>"], ["<pad>", "<|endoftext|>", "<m>"]]
            ),
            "add_prefix_space": rng.random() < 0.3,
        }
        mine = GPT2Tokenizer.train(texts, show_progress=False, **arguments)
        vocab, merges = learnt_by_tokenizers(texts, **arguments)
        assert mine.get_vocab() == vocab, (texts, arguments)
        assert mine._vocabulary.merges == merges, (texts, arguments)


def test_training_on_a_whole_file_equals_tokenizers() -> None:
    path = SHARED / "text" / "shakespeare.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/text/shakespeare.txt")
    texts = path.read_text("utf-8").split("\n\n")
    special = ["<|endoftext|>"]
    mine = GPT2Tokenizer.train(texts, 4000, special_tokens=special, show_progress=False)
    vocab, merges = learnt_by_tokenizers(texts, 4000, special_tokens=special, min_frequency=2)
    assert mine.get_vocab() == vocab
    assert mine._vocabulary.merges == merges
