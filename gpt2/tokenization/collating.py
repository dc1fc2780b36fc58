"""What collators and older code call: ids that were tokenized before -> padded batches."""

from __future__ import annotations

from typing import Any

from gpt2.errors import ArgumentError, ArgumentTypeError, unknown_argument
from gpt2.tokenization.arguments import Padding, Truncation, check_lengths
from gpt2.tokenization.batching import BatchEncoding, TensorKind, pad_columns
from gpt2.tokenization.calls import TextCalls, keywords_of
from gpt2.tokenization.layout import lay_out


class IdCalls(TextCalls):
    """The half of the calls that takes ids in place of text."""

    pad_token_type_id = 0
    is_fast = True  # what collators ask before they use offsets and words

    def pad(
        self,
        encoded_inputs: Any,
        padding: Padding = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: TensorKind | None = None,
        verbose: bool = True,
        **unknown: Any,
    ) -> BatchEncoding:
        """Make rows that were tokenized before equally long; the inputs stay as they are.

        input_ids, attention_mask (made where it is missing), token_type_ids and
        special_tokens_mask are padded; every other entry, labels say, is passed on as it is.

        >>> tokenizer.pad([{"input_ids": [15496, 995]}, {"input_ids": [15496]}])["attention_mask"]
        [[1, 1], [1, 0]]

        Args:
            encoded_inputs: what the tokenizer returned for one text or for several, or a list of
                such results, as a DataLoader hands it to ``collate_fn``.
            padding, max_length, pad_to_multiple_of, padding_side: as in a call.
            return_attention_mask: False leaves attention_mask out.
            return_tensors: "pt" or "np"; None for what the ids came in. A single text that comes
                as one row goes as one, (T,).
            verbose: accepted as documented; nothing is ever printed.

        Raises:
            ArgumentTypeError: the inputs are none, or an argument is unknown.
            ArgumentError: entries that differ between rows, or in length; arguments that
                contradict each other; rows of different lengths for a tensor.
        """
        for name in unknown:
            known = ("padding", "max_length", "pad_to_multiple_of", "padding_side")
            raise unknown_argument(
                "GPT2Tokenizer.pad", name, (*known, "return_attention_mask", "return_tensors")
            )
        _, pad_to = check_lengths(
            padding=padding,
            max_length=max_length,
            model_max_length=self.model_max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=self.padding_side if padding_side is None else padding_side,
        )
        return pad_columns(
            encoded_inputs,
            pad_to,
            filler=self._filler,
            return_attention_mask=return_attention_mask is not False,
            return_tensors=return_tensors,
        )

    def prepare_for_model(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: Truncation = False,
        max_length: int | None = None,
        stride: int = 0,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: TensorKind | None = None,
        return_token_type_ids: bool = False,
        return_attention_mask: bool | None = True,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **unknown: Any,
    ) -> BatchEncoding:
        """What a call makes of a text (and its pair), of their ids without special tokens.

        The arguments, the entries and the errors are those of a call; what is cut off comes as
        further rows (the slow class of the reference gave it as "overflowing_tokens").

        Raises:
            TokenIdError: an id that the vocabulary does not have.
        """
        for name in unknown:
            own = keywords_of(IdCalls.prepare_for_model)
            raise unknown_argument("GPT2Tokenizer.prepare_for_model", name, own)
        texts = [self._checked_ids(ids)]
        if pair_ids is not None:
            texts.append(self._checked_ids(pair_ids))
        return self._batch(
            [tuple(texts)],
            None,
            is_batch=False,
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
                "length": return_length,
                "overflow_to_sample_mapping": return_overflowing_tokens,
            },
        )

    # ------------------------------------------------------------------------- special tokens

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids of a text (and its pair) with BOS and EOS, if the tokenizer is set to."""
        return list(self._framed(token_ids_0, token_ids_1)["input_ids"])

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for the text, 1 for its pair, in the length of what the method above returns."""
        return list(self._framed(token_ids_0, token_ids_1)["token_type_ids"])

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others.

        Args:
            token_ids_0, token_ids_1: ids of a text and its pair.
            already_has_special_tokens: the ids are a finished row: 1 for every id of
                `all_special_ids`. Else 1 for those that a call would put around the texts.

        Raises:
            ArgumentError: a pair beside a finished row.
        """
        if not already_has_special_tokens:
            return list(self._framed(token_ids_0, token_ids_1)["special_tokens_mask"])
        if token_ids_1 is not None:
            raise ArgumentError(
                "already_has_special_tokens=True says that token_ids_0 is the whole row, but "
                "token_ids_1 is given, too"
            )
        special = set(self.all_special_ids)
        return [int(id_ in special) for id_ in self._checked_ids(token_ids_0)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens a call adds to a text, or to a pair of them."""
        if not isinstance(pair, bool):
            raise ArgumentTypeError(f"pair must be True or False, not {pair!r:.200}")
        before, after = self._around()
        (row,) = lay_out(0, [0, 0] if pair else [0], before, after, None)
        return len(row)

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text fit into `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of a pair of texts fit into `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _framed(self, ids: list[int], pair_ids: list[int] | None) -> BatchEncoding:
        return self.prepare_for_model(
            ids, pair_ids, return_token_type_ids=True, return_special_tokens_mask=True
        )
