"""Calling the tokenizer: texts, pairs and words -> rows of ids with all that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, ArgumentTypeError, unknown_argument
from gpt2.tokenization.added import AddedTokens
from gpt2.tokenization.alignment import Encoding
from gpt2.tokenization.arguments import (
    Padding,
    SpecialText,
    Text,
    Truncation,
    check_lengths,
    samples_of,
    special_text_policy,
)
from gpt2.tokenization.batching import BatchEncoding, TensorKind, batch_of
from gpt2.tokenization.decoding import TokenDecoder
from gpt2.tokenization.layout import Row, lay_out
from gpt2.tokenization.reading import Span, TextReader, Traced
from gpt2.tokenization.settings import complaint_about

if TYPE_CHECKING:
    from gpt2.tokenization.words import TextEncoder


@dataclass(frozen=True)
class _Origin:
    """What the rows of a call were made of, for whoever asks where a token comes from."""

    reader: TextReader
    samples: Sequence[tuple[Text, ...]]
    rows: Sequence[Row]
    filler: int

    @cached_property
    def traced(self) -> list[list[Traced]]:
        return [[self.reader.trace(text) for text in sample] for sample in self.samples]

    def offsets(self) -> list[list[Span]]:
        return [
            row.column([text.spans for text in self.traced[row.sample]], (0, 0))
            for row in self.rows
        ]

    def encodings(self) -> list[Encoding]:
        encodings = []
        for row, offsets in zip(self.rows, self.offsets(), strict=True):
            texts = self.traced[row.sample]
            ids = row.ids([text.ids for text in texts], self.filler)
            tokens = row.column([text.tokens for text in texts], None)
            encodings.append(
                Encoding(
                    ids=ids,
                    type_ids=row.token_type_ids(),
                    tokens=[
                        self.reader.tokens[id_] if token is None else token
                        for id_, token in zip(ids, tokens, strict=True)
                    ],
                    offsets=offsets,
                    attention_mask=row.attention_mask(),
                    special_tokens_mask=row.special_tokens_mask(),
                    word_ids=row.column([text.words for text in texts], None),
                    sequence_ids=row.text_numbers(),
                )
            )
        return encodings


class TextCalls(TokenDecoder):
    """The half of the tokenizer that turns text into ids.

    Attributes:
        add_prefix_space: begin every text with a space, unless it has one.
        add_bos_token, add_eos_token: put these tokens around every text.
        padding_side, truncation_side: "right" or "left".
        model_max_length: the longest row, used where ``max_length`` is not given.
        special_text: default of that argument of a call.
    """

    add_prefix_space: bool
    add_bos_token: bool
    add_eos_token: bool
    padding_side: str
    truncation_side: str
    model_max_length: int
    special_text: SpecialText
    _encoder: TextEncoder
    _lacks_bytes: bool

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: Truncation = False,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: TensorKind | None = None,
        return_token_type_ids: bool = False,
        return_attention_mask: bool | None = True,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        special_text: SpecialText | None = None,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
        **unknown: Any,
    ) -> BatchEncoding:
        """The ids and the mask of a text, or of each text of a list.

        Where the tokenizer has no pad token, padding is filled with the EOS token (or else id 0):
        the mask tells it from text, and is all that this library's models look at.

        Everything is as transformers 5.23 has it, also where its older classes differ: words that
        were split before get no space (unless the tokenizer has ``add_prefix_space``), and white
        space around added tokens stays. One thing is more regular: an empty ``text_pair`` of a
        single text is a pair as it is in a list, so that it gets its BOS and EOS.

        Args:
            text: one text, or a list of them; in a list, a tuple is a text and its pair.
            text_pair: a second text for each; the pair becomes one row.
            text_target, text_pair_target: texts (and pairs) that are to be told apart from these:
                their ids become the entry "labels". Without ``text``, all entries are theirs.
            add_special_tokens: put BOS and EOS around each text, if the tokenizer is set to.
            padding: True or "longest", "max_length", or False or "do_not_pad".
            truncation: True or "longest_first" cuts rows to ``max_length`` (else
                ``model_max_length``) tokens, BOS and EOS included, on the side
                ``truncation_side``; of a pair the longer text first. "only_first" and
                "only_second" cut only that text. False or "do_not_truncate" cuts none.
            max_length: the length in tokens for both.
            stride: how many tokens each further row of a long text repeats of the one before.
            is_split_into_words: each text is a list of words, which are encoded one by one.
            pad_to_multiple_of: round the padded length up to a multiple of it.
            padding_side: "left" or "right", in place of the tokenizer's.
            return_tensors: "pt" (torch) or "np" (numpy) for int64 tensors (B, T), one text being
                a batch of one; None for lists.
            return_token_type_ids: add token_type_ids, 1 for the second text of a pair, else 0.
            return_attention_mask: False leaves attention_mask out.
            return_overflowing_tokens: make further rows of what is cut off, and add
                overflow_to_sample_mapping (B,): the number of the text that each row is of.
            return_special_tokens_mask: add special_tokens_mask, 1 for BOS and EOS that were put
                around texts and for padding, else 0.
            return_offsets_mapping: add offset_mapping (B, T, 2): the first character of each
                token and the one behind its last; (0, 0) for special tokens and padding.
            return_length: add length (B,): tokens in each row, padding included.
            special_text: what a special token that is spelt out in a text means. "allow" (as the
                reference): the token, so that whoever wrote the text can end it or change roles.
                For text that is not to be trusted "plain" reads it as any other characters, and
                "error" refuses the text. None for the tokenizer's own setting.
            split_special_tokens: the documented name: True is "plain", False is "allow".
            verbose: accepted as documented; a call never prints anything.

        Returns:
            input_ids and attention_mask (1 for a token, 0 for padding), and what was asked for.

        Raises:
            ArgumentTypeError: an unknown argument, or text that is no text.
            ArgumentError: lone surrogates in a text; arguments that contradict each other; a text
                that cannot be cut as asked for; rows of different lengths for a tensor.
        """
        for name in unknown:
            raise unknown_argument("GPT2Tokenizer()", name, keywords_of(TextCalls.__call__))
        reader = self._reader(
            special_text_policy(special_text, split_special_tokens, self.special_text)
        )

        def batch(text: Any, text_pair: Any, names: tuple[str, str]) -> BatchEncoding:
            samples, is_batch = samples_of(text, text_pair, is_split_into_words, names)
            return self._batch(
                [tuple(map(reader.ids, sample)) for sample in samples],
                lambda rows: _Origin(reader, samples, rows, self._filler),
                is_batch=is_batch,
                add_special_tokens=add_special_tokens,
                lengths={
                    "padding": padding,
                    "truncation": truncation,
                    "max_length": max_length,
                    "stride": stride,
                    "pad_to_multiple_of": pad_to_multiple_of,
                    "padding_side": self.padding_side if padding_side is None else padding_side,
                    "return_overflowing_tokens": return_overflowing_tokens,
                },
                return_tensors=return_tensors,
                entries={
                    "input_ids": True,
                    "token_type_ids": return_token_type_ids,
                    "attention_mask": return_attention_mask is not False,
                    "special_tokens_mask": return_special_tokens_mask,
                    "offset_mapping": return_offsets_mapping,
                    "length": return_length,
                    "overflow_to_sample_mapping": return_overflowing_tokens,
                },
            )

        has_target = text_target is not None or text_pair_target is not None
        if not has_target or text is not None or text_pair is not None:
            inputs = batch(text, text_pair, ("text", "text_pair"))
            if not has_target:
                return inputs
        targets = batch(text_target, text_pair_target, ("text_target", "text_pair_target"))
        if text is None and text_pair is None:
            return targets
        inputs["labels"] = targets["input_ids"]
        return inputs

    def _batch(
        self,
        texts: Sequence[tuple[list[int], ...]],
        origin: Callable[[Sequence[Row]], _Origin] | None,
        *,
        is_batch: bool,
        add_special_tokens: bool,
        lengths: dict[str, Any],
        return_tensors: TensorKind | None,
        entries: dict[str, bool],
    ) -> BatchEncoding:
        """Rows of ids -> the batch: special tokens, truncation, padding, the entries asked for."""
        cut, pad_to = check_lengths(
            **lengths,
            model_max_length=self.model_max_length,
            truncation_side=self.truncation_side,
        )
        before, after = self._around() if add_special_tokens else ((), ())

        def laid_out() -> list[Row]:
            rows: list[Row] = []
            for sample, of_sample in enumerate(texts):
                rows += lay_out(sample, [len(ids) for ids in of_sample], before, after, cut)
            if pad_to is not None:
                pad_to.apply(rows)
            return rows

        wanted = {name for name, is_wanted in entries.items() if is_wanted}
        if (
            origin is not None
            and cut is None
            and pad_to is None
            and not (before or after or wanted - {"input_ids", "attention_mask"})
            and all(len(of_sample) == 1 for of_sample in texts)
        ):
            # Most calls: each row is one text as it is, and nobody may ever ask for its layout.
            columns: dict[str, list[Any]] = {"input_ids": [ids for (ids,) in texts]}
            if "attention_mask" in wanted:
                columns["attention_mask"] = [[1] * len(ids) for (ids,) in texts]
            return batch_of(
                columns,
                single=not is_batch,
                return_tensors=return_tensors,
                encodings=lambda: origin(laid_out()).encodings(),
            )
        rows = laid_out()
        known = None if origin is None else origin(rows)
        filler = self._filler
        makers: dict[str, Callable[[], list[Any]]] = {
            "input_ids": lambda: [row.ids(texts[row.sample], filler) for row in rows],
            "token_type_ids": lambda: [row.token_type_ids() for row in rows],
            "attention_mask": lambda: [row.attention_mask() for row in rows],
            "special_tokens_mask": lambda: [row.special_tokens_mask() for row in rows],
            "length": lambda: [row.left + len(row) + row.right for row in rows],
            "overflow_to_sample_mapping": lambda: [row.sample for row in rows],
        }
        if known is not None:
            makers["offset_mapping"] = known.offsets
        return batch_of(
            {name: makers[name]() for name in entries if name in wanted},
            single=not is_batch and not lengths["return_overflowing_tokens"],
            return_tensors=return_tensors,
            encodings=None if known is None else known.encodings,
        )

    def encode(self, text: Any, text_pair: Any = None, **arguments: Any) -> Any:
        """The ids of one text: ``tokenizer(text, text_pair, **arguments)["input_ids"]``.

        >>> tokenizer.encode("Hello world")
        [15496, 995]

        Raises:
            ArgumentTypeError: ``text`` is no string (nor words, with ``is_split_into_words``).
        """
        if not isinstance(text, str) and not arguments.get("is_split_into_words"):
            raise ArgumentTypeError(
                f"encode takes one text, not {type(text).__name__}; for several there is "
                "tokenizer(texts)"
            )
        if not arguments and text_pair is None:
            before, after = self._around()
            ids = self._reader(self.special_text).ids(text)
            return [*before, *ids, *after] if before or after else ids
        return self(text, text_pair, **arguments)["input_ids"]

    def tokenize(
        self,
        text: str,
        pair: str | None = None,
        add_special_tokens: bool = False,
        **arguments: Any,
    ) -> list[str]:
        """The tokens of one text (and its pair) as the vocabulary file spells them.

        An added token comes as the text has it, with the white space that it takes along (lstrip,
        rstrip), as in transformers 5.

        >>> tokenizer.tokenize("Hello world")
        ['Hello', 'Ġworld']

        Args:
            text, pair: the texts.
            add_special_tokens: with BOS and EOS, if the tokenizer is set to.
            arguments: further ones of a call.
        """
        arguments["add_special_tokens"] = add_special_tokens
        given: Any = text
        if not isinstance(given, str) and not arguments.get("is_split_into_words"):
            raise ArgumentTypeError(f"tokenize takes one text, not {type(given).__name__}")
        tokens: list[str] = self(text, pair, **arguments).tokens()
        return tokens

    # ------------------------------------------------------------------ documented other names

    def encode_plus(self, text: Any, text_pair: Any = None, **arguments: Any) -> BatchEncoding:
        """``tokenizer(text, text_pair, **arguments)`` for one text."""
        if not isinstance(text, str) and not arguments.get("is_split_into_words"):
            raise ArgumentTypeError(
                f"encode_plus takes one text, not {type(text).__name__}; for several there is "
                "batch_encode_plus"
            )
        return self(text, text_pair, **arguments)

    def batch_encode_plus(self, batch_text_or_text_pairs: Any, **arguments: Any) -> BatchEncoding:
        """``tokenizer(texts, **arguments)`` for a list of texts, or of tuples (text, pair)."""
        if isinstance(batch_text_or_text_pairs, str):
            raise ArgumentTypeError(
                "batch_encode_plus takes a list of texts, not one; for that there is encode_plus"
            )
        return self(batch_text_or_text_pairs, **arguments)

    # ------------------------------------------------------------------------------- reading

    def _reader(self, special_text: SpecialText) -> TextReader:
        vocabulary = self._vocabulary
        finder, forbidden = vocabulary.finder, frozenset[int]()
        if special_text == "plain":
            special = self._special_ids()
            finder = AddedTokens({i: t for i, t in vocabulary.added.items() if i not in special})
        elif special_text == "error":
            forbidden = frozenset(self._special_ids())
        elif special_text != "allow":
            raise ArgumentError(complaint_about("special_text", special_text))
        return TextReader(
            finder,
            self._encoder,
            vocabulary.tokens,
            self.add_prefix_space,
            self.unk_token_id,
            self._lacks_bytes,
            forbidden,
        )

    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that are put before and behind every text."""
        return self._ids_around("bos_token"), self._ids_around("eos_token")

    def _ids_around(self, role: str) -> list[int]:
        if not getattr(self, f"add_{role}"):
            return []
        id_ = getattr(self, f"{role}_id")
        if id_ is None:
            raise ArgumentError(f"add_{role} is set, but the tokenizer has no {role}")
        return [id_]

    @property
    def _filler(self) -> int:
        for id_ in (self.pad_token_id, self.eos_token_id):
            if id_ is not None:
                return id_
        return 0


def keywords_of(function: Any) -> set[str]:
    """The names of a function's keyword-only arguments."""
    return set(function.__kwdefaults__)
