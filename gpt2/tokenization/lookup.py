"""The half of the tokenizer that knows tokens but no text: ids, spellings, bytes, roles."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from gpt2.errors import ArgumentError, ArgumentTypeError, TokenIdError, did_you_mean
from gpt2.tokenization.added import AddedToken

if TYPE_CHECKING:
    from gpt2.tokenization.vocabulary import Vocabulary

# The roles that special tokens can have, in the order in which new ones get ids.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class _Role:
    """A special token by its role: ``tokenizer.pad_token``, None where nothing has the role."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._role = name

    def __get__(self, tokens: TokenLookup, owner: type | None = None) -> str | None:
        return tokens._roles[self._role]

    def __set__(self, tokens: TokenLookup, token: str | None) -> None:
        tokens._give_role(self._role, token)


class _RoleId:
    """The id of a special token: ``tokenizer.pad_token_id``."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._role = name.removesuffix("_id")

    def __get__(self, tokens: TokenLookup, owner: type | None = None) -> int | None:
        token = tokens._roles[self._role]
        return None if token is None else tokens._vocabulary.id_of(token)

    def __set__(self, tokens: TokenLookup, token_id: int | None) -> None:
        token = None if token_id is None else tokens.convert_ids_to_tokens(token_id)
        tokens._give_role(self._role, token)


class TokenLookup:
    """Tokens by id, ids by token, and the special tokens by role.

    Each role is an attribute (``bos_token`` …) with its id (``bos_token_id`` …). Either can be set
    to a token that the vocabulary has (``tokenizer.pad_token = tokenizer.eos_token``); for a new
    one there is `add_special_tokens`.
    """

    bos_token, bos_token_id = _Role(), _RoleId()
    eos_token, eos_token_id = _Role(), _RoleId()
    unk_token, unk_token_id = _Role(), _RoleId()
    sep_token, sep_token_id = _Role(), _RoleId()
    pad_token, pad_token_id = _Role(), _RoleId()
    cls_token, cls_token_id = _Role(), _RoleId()
    mask_token, mask_token_id = _Role(), _RoleId()

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._roles: dict[str, str | None] = dict.fromkeys(ROLES)
        self._additional: list[str] = []

    def __len__(self) -> int:
        """The number of ids: the vocabulary and the tokens added to it."""
        return len(self._vocabulary)

    @property
    def vocab_size(self) -> int:
        """The number of ids without the tokens added later."""
        return len(self._vocabulary.base)

    def get_vocab(self) -> dict[str, int]:
        """Every token, as the vocabulary file spells it -> its id."""
        return {token: id_ for id_, token in enumerate(self._vocabulary.tokens)}

    def get_added_vocab(self) -> dict[str, int]:
        """Every added token -> its id; special tokens of the vocabulary file are among them."""
        added = self._vocabulary.added
        return {added[id_].content: id_ for id_ in sorted(added)}

    @property
    def vocab(self) -> dict[str, int]:
        """`get_vocab` under its other documented name."""
        return self.get_vocab()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """`get_added_vocab` under its other documented name."""
        return self.get_added_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The id of every added token -> the token with its flags."""
        return dict(sorted(self._vocabulary.added.items()))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one id stands for.

        >>> tokenizer.token_bytes(995)
        b' world'

        Raises:
            TokenIdError: the vocabulary does not have it.
        """
        (id_,) = self._checked_ids([token_id])
        return self._vocabulary.token_bytes[id_]

    # ------------------------------------------------------------------------ conversion

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...

    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """The id of a token, or of each of several; unk_token's for one that is not known.

        >>> tokenizer.convert_tokens_to_ids(["Hello", "Ġworld"])
        [15496, 995]

        Raises:
            ArgumentError: a token that is not known where there is no unk_token.
            ArgumentTypeError: a token is no text.
        """
        if isinstance(tokens, list | tuple):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if not isinstance(tokens, str):
            raise ArgumentTypeError(f"a token must be text, not {tokens!r:.200}")
        id_ = self._vocabulary.id_of(tokens)
        if id_ is None:
            id_ = self.unk_token_id
        if id_ is None:
            raise ArgumentError(
                f"the vocabulary has no token {tokens!r:.200}, and there is no unk_token to stand "
                "in for it"
            )
        return id_

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = ...) -> str: ...

    @overload
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = ...) -> list[str]: ...

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """The token of an id, or of each of several, as the vocabulary file spells it.

        Raises:
            TokenIdError: an id that the vocabulary does not have.
        """
        tokens = self._vocabulary.tokens
        checked = self._checked_ids(ids)
        if isinstance(ids, int):
            return tokens[checked[0]]
        special = self._special_ids() if skip_special_tokens else ()
        return [tokens[id_] for id_ in checked if id_ not in special]

    # -------------------------------------------------------------------- special tokens

    @property
    def additional_special_tokens(self) -> list[str]:
        """The special tokens without a role."""
        return list(self._additional)

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Their ids."""
        return self.convert_tokens_to_ids(self._additional)

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Role -> token for each role that is filled, and additional_special_tokens if any."""
        tokens: dict[str, str | list[str]] = {
            role: token for role, token in self._roles.items() if token is not None
        }
        if self._additional:
            tokens["additional_special_tokens"] = list(self._additional)
        return tokens

    @property
    def all_special_tokens(self) -> list[str]:
        """Every token with a role, then the additional ones; each once."""
        filled = [token for token in self._roles.values() if token is not None]
        return list(dict.fromkeys([*filled, *self._additional]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Any],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Fill roles with tokens, new ones or known ones; usable at once.

        >>> tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        1

        Args:
            special_tokens_dict: role -> token; "additional_special_tokens" -> list of tokens.
            replace_additional_special_tokens: False keeps those that there are, too.

        Returns:
            The number of new ids. If it is not 0, the model's embeddings must grow.

        Raises:
            ArgumentError: a role that does not exist, or a token that is none.
        """
        if not isinstance(special_tokens_dict, Mapping):
            raise ArgumentTypeError(
                "special_tokens_dict must map roles to tokens, as in {'pad_token': '<pad>'}; it is "
                f"a {type(special_tokens_dict).__name__}"
            )
        roles: dict[str, AddedToken] = {}
        additional: list[AddedToken] | None = None
        for role, value in special_tokens_dict.items():
            if role in ("additional_special_tokens", "extra_special_tokens"):
                if isinstance(value, str) or not isinstance(value, Iterable):
                    raise ArgumentTypeError(f"{role} must be a list of tokens, not {value!r:.200}")
                additional = [as_added_token(token, special=True) for token in value]
            elif role in ROLES:
                roles[role] = as_added_token(value, special=True)
            else:
                hint = did_you_mean(role, ROLES) or f"; the roles are {', '.join(ROLES)}"
                raise ArgumentError(f"there is no special token {role!r}{hint}")
        # New ids are given in the order of the roles, whatever the order of the arguments.
        ordered = [roles[role] for role in ROLES if role in roles] + (additional or [])
        count = self._vocabulary.add(self._with_known_flags(ordered))
        self._roles.update({role: token.content for role, token in roles.items()})
        if additional is not None:
            kept = [] if replace_additional_special_tokens else self._additional
            contents = [token.content for token in additional]
            self._additional = list(dict.fromkeys([*kept, *contents]))
        return count

    def add_tokens(
        self,
        new_tokens: str | AddedToken | Iterable[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Keep these tokens whole in text from now on; returns the number of new ids.

        Raises:
            ArgumentError, ArgumentTypeError: a token is empty, or no token.
        """
        single = isinstance(new_tokens, str) or hasattr(new_tokens, "content")
        tokens: list[Any] = [new_tokens] if single else list(new_tokens)  # type: ignore[arg-type]
        added = [as_added_token(token, special=special_tokens) for token in tokens]
        return self._vocabulary.add(self._with_known_flags(added))

    def _with_known_flags(self, tokens: list[AddedToken]) -> list[AddedToken]:
        """A token named again by its text alone keeps the flags that it was added with."""
        known = {token.content: token for token in self._vocabulary.added.values()}
        result = []
        for token in tokens:
            before = known.get(token.content)
            if before is not None and token == as_added_token(token.content, special=token.special):
                token = replace(before, special=before.special or token.special)
            result.append(token)
        return result

    def _give_role(self, role: str, token: object) -> None:
        if token is not None:
            content = as_added_token(token, special=True).content
            if self._vocabulary.id_of(content) is None:
                raise ArgumentError(
                    f"{role} = {content!r:.200}: the vocabulary has no such token; add it with "
                    f"add_special_tokens({{{role!r}: {content!r:.200}}})"
                )
            token = content
        self._roles[role] = token

    def _special_ids(self) -> set[int]:
        """The ids that skip_special_tokens leaves out."""
        marked = {id_ for id_, token in self._vocabulary.added.items() if token.special}
        return marked.union(self.all_special_ids)

    # ------------------------------------------------------------------------------- ids

    def _checked_ids(self, token_ids: Any) -> list[int]:
        """A list of the ids in a list, a one-dimensional tensor or array, or a single id."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids]
        if not set(map(type, ids)) <= {int}:
            ids = [_as_id(id_) for id_ in ids]
        size = len(self._vocabulary)
        if ids and (min(ids) < 0 or max(ids) >= size):
            wrong = next(id_ for id_ in ids if not 0 <= id_ < size)
            raise TokenIdError(f"token id {wrong}: the vocabulary has the ids 0 to {size - 1}")
        return ids


def as_added_token(token: Any, *, special: bool) -> AddedToken:
    """A token given as text, as an `AddedToken`, or as any object with the same attributes.

    Raises:
        ArgumentTypeError: it is none of these.
        ArgumentError: its text is empty.
    """
    content = token if isinstance(token, str) else getattr(token, "content", None)
    if not isinstance(content, str):
        raise ArgumentTypeError(f"a token must be text or an AddedToken, not {token!r:.200}")
    if not content:
        raise ArgumentError("a token must not be empty")
    if isinstance(token, str):
        return AddedToken(content, normalized=not special, special=special)
    return AddedToken(
        content,
        single_word=bool(token.single_word),
        lstrip=bool(token.lstrip),
        rstrip=bool(token.rstrip),
        normalized=bool(token.normalized),
        special=special or bool(getattr(token, "special", False)),
    )


def _as_id(value: Any) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # a number of numpy's, say
    except TypeError:
        pass
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        raise ArgumentTypeError(
            "expected the ids of one text, but found a list within the list; batch_decode takes "
            "a batch"
        )
    raise ArgumentTypeError(f"a token id must be an integer, not {value!r:.200}")
