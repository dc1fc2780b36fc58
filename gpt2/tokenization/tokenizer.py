"""GPT2Tokenizer: text <-> ids, with special tokens, batches and files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.errors import ArgumentError, ArgumentTypeError, FileFormatError, unknown_argument
from gpt2.fieldchecks import check_bool, take_no_ops
from gpt2.storage.atomic import staged_directory
from gpt2.tokenization import files, saving
from gpt2.tokenization.arguments import NO_LIMIT, SpecialText, special_text_policy
from gpt2.tokenization.calls import keywords_of
from gpt2.tokenization.collating import IdCalls
from gpt2.tokenization.corpus_calls import CorpusCalls
from gpt2.tokenization.settings import complaint_about
from gpt2.tokenization.vocabulary import Tables, Vocabulary
from gpt2.tokenization.words import TextEncoder

if TYPE_CHECKING:
    from typing import Self

    from gpt2.tokenization.added import AddedToken

_END = "<|endoftext|>"
#: documented arguments of from_pretrained that may be False, which does nothing -> what else to do
_NO_OPS = {"trust_remote_code": "no code of a repository is ever run; leave it out"}
#: documented arguments of save_pretrained that may be None or False -> what else to do
_SAVING_NO_OPS = {
    "legacy_format": "both forms, tokenizer.json and vocab.json with merges.txt, are written",
    "filename_prefix": "from_pretrained would not find the files; save_vocabulary takes it",
    "push_to_hub": "call push_to_hub(repo_id)",
}
_SPECIAL_TEXT = ("special_text", "split_special_tokens")  # two names of one setting


class GPT2Tokenizer(IdCalls, CorpusCalls):
    """Byte-level BPE, as GPT-2 has it: every string has ids, and the ids give it back.

    >>> tokenizer = GPT2Tokenizer.from_pretrained("openai-community/gpt2")
    >>> tokenizer("Hello world")["input_ids"]
    [15496, 995]
    >>> tokenizer(" Hello world")["input_ids"]
    [18435, 995]

    Special and added tokens are kept whole wherever they stand in a text (the longest, where
    several could start). Safe to share between threads, and picklable: equal tokenizers have equal
    pickles, whatever they were used for. Words that were met are remembered, 131 072 at most: 22 MB
    of English ones, never more than 80 MB.

    Args:
        vocab_file: vocab.json, or its content (token -> id).
        merges_file: merges.txt, or its content ("left right", or pairs, by rank).
        errors: what `decode` does with bytes that are not UTF-8 (as in ``bytes.decode``).
        unk_token: stands in for a byte or token that the vocabulary lacks. GPT-2's lacks no byte.
        bos_token, eos_token, pad_token, sep_token, cls_token, mask_token: special tokens; one
            that the vocabulary lacks is added at its end.
        additional_special_tokens: further ones.
        add_prefix_space: begin every text with a space, unless it has one.
        add_bos_token, add_eos_token: put these tokens around every text.
        tokenizer_file: tokenizer.json, in place of the other two files. Where it asks for a
            prefix space, BOS or EOS, they are added too.
        padding_side, truncation_side: "right" or "left".
        model_max_length: the longest text in tokens, used where ``max_length`` is not given;
            None for no limit (the attribute is then 10**30, as documented).
        clean_up_tokenization_spaces: default of that argument of `decode`. Off, so that
            ``decode(encode(text)) == text``.
        special_text: what a special token spelt out in a text means, "allow", "plain" or "error":
            the default of that argument of a call; None for "allow".
        split_special_tokens: the documented name: True is "plain", False is "allow".
        surrogates: "strict" refuses text with lone surrogates, "replace" reads each as U+FFFD.
        name_or_path: where it came from, for the reader.

    Raises:
        ArgumentTypeError: an unknown argument, or no vocabulary.
        ArgumentError: an argument that cannot be used.
        FileAccessError, FileFormatError: a file is missing, or broken: names file and entry.
    """

    model_input_names = ("input_ids", "attention_mask")
    file_names = saving.FILE_NAMES

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | Mapping[str, int] | None = None,
        merges_file: str | os.PathLike[str] | Iterable[str | Sequence[str]] | None = None,
        errors: str = "replace",
        unk_token: str | AddedToken | None = _END,
        bos_token: str | AddedToken | None = _END,
        eos_token: str | AddedToken | None = _END,
        pad_token: str | AddedToken | None = None,
        add_prefix_space: bool = False,
        add_bos_token: bool = False,
        *,
        tokenizer_file: str | os.PathLike[str] | None = None,
        add_eos_token: bool = False,
        sep_token: str | AddedToken | None = None,
        cls_token: str | AddedToken | None = None,
        mask_token: str | AddedToken | None = None,
        additional_special_tokens: Iterable[str | AddedToken] | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_max_length: int | None = None,
        clean_up_tokenization_spaces: bool = False,
        special_text: SpecialText | None = None,
        split_special_tokens: bool | None = None,
        surrogates: str = "strict",
        name_or_path: str = "",
        _tables: Tables | None = None,
        **unknown: Any,
    ) -> None:
        for name in unknown:
            raise unknown_argument("GPT2Tokenizer", name, _argument_names())
        settings = {
            "add_bos_token": add_bos_token,
            "add_eos_token": add_eos_token,
            "add_prefix_space": add_prefix_space,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
            "errors": errors,
            "model_max_length": model_max_length,
            "padding_side": padding_side,
            "special_text": special_text,
            "surrogates": surrogates,
            "truncation_side": truncation_side,
        }
        for name, value in settings.items():
            if complaint := complaint_about(name, value):
                raise ArgumentError(complaint)
        roles = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        if _tables is None:
            _tables, implied = files.read_arguments(vocab_file, merges_file, tokenizer_file)
            add_prefix_space |= implied.pop("add_prefix_space", False)
            add_bos_token |= implied.pop("add_bos_token", False)
            add_eos_token |= implied.pop("add_eos_token", False)
            roles |= implied
        super().__init__(Vocabulary(_tables))
        self._encoder = TextEncoder(
            self._vocabulary.encoder, replace_surrogates=surrogates == "replace"
        )
        self._lacks_bytes = min(self._vocabulary.byte_ids) < 0
        self._surrogates = surrogates
        self.special_text = special_text_policy(special_text, split_special_tokens, "allow")
        self.errors = errors
        self.add_prefix_space = add_prefix_space
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.model_max_length = NO_LIMIT if model_max_length is None else int(model_max_length)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.name_or_path = name_or_path
        self._other_settings: dict[str, Any] = {}
        given = {role: token for role, token in roles.items() if token is not None}
        self.add_special_tokens(
            {**given, "additional_special_tokens": additional_special_tokens or ()}
        )

    # ------------------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        **overrides: Any,
    ) -> Self:
        """The tokenizer of a repository on the hub, or of a directory.

        tokenizer.json is read where there is one, else vocab.json, merges.txt and
        added_tokens.json; tokenizer_config.json and special_tokens_map.json say the rest. Their
        clean_up_tokenization_spaces is passed over, as transformers 5 does: old versions wrote
        it into every repository, and decoding would no longer give back what was encoded.

        Args:
            name_or_path: "openai-community/gpt2", or a directory.
            cache_dir, force_download, local_files_only, token, revision, subfolder: how the
                repository is read; see `gpt2.storage.hub.open_repository`.
            overrides: arguments of the constructor, in place of what the files say. The documented
                ``use_fast`` (there is one class) and ``trust_remote_code=False`` do nothing.

        Raises:
            ArgumentTypeError: an argument that neither this method nor the constructor has.
            FileAccessError: no such repository, directory or file (a HubError for the hub).
            FileFormatError: a file is broken; names it and the entry.
        """
        check_bool(ArgumentError, "use_fast", overrides.pop("use_fast", True))
        take_no_ops(overrides, _NO_OPS)
        known = _argument_names() - {"vocab_file", "merges_file", "tokenizer_file", "name_or_path"}
        for name in overrides:
            if name not in known:
                own = keywords_of(cls.from_pretrained)
                raise unknown_argument("GPT2Tokenizer.from_pretrained", name, known | own)
        from gpt2.storage.hub import open_repository

        repository = open_repository(
            name_or_path,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        tables, settings = files.read_repository(repository)
        settings.pop("clean_up_tokenization_spaces", None)
        if not overrides.keys().isdisjoint(_SPECIAL_TEXT):
            for name in _SPECIAL_TEXT:
                settings.pop(name, None)
        for name, value in settings.items():
            if name not in overrides and (complaint := complaint_about(name, value)):
                raise FileFormatError(f"{repository.name}: tokenizer_config.json: {complaint}")
        chosen = {name: value for name, value in settings.items() if name in known} | overrides
        tokenizer = cls(_tables=tables, name_or_path=repository.name, **chosen)
        tokenizer._other_settings = {
            name: value for name, value in settings.items() if name not in known
        }
        return tokenizer

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        min_frequency: int = 2,
        special_tokens: Iterable[str] = (_END,),
        add_prefix_space: bool = False,
        show_progress: bool = True,
        **settings: Any,
    ) -> Self:
        """A tokenizer whose vocabulary is learnt from texts.

        Vocabulary, ids and merges are those of the tokenizers library's byte-level BPE trainer on
        the same texts (of equally frequent pairs, the one with the lower ids is merged first):
        the special tokens, then the 256 bytes, then one token per merge.

        Args:
            texts: the corpus; each text is cut into words on its own, and read once.
            vocab_size: stop at this many tokens; fewer where the texts have no more to merge.
            min_frequency: merge no pair that is rarer.
            special_tokens: in the order of their ids. ``<|endoftext|>``, if among them, is the
                BOS, EOS and unknown token; else there is none unless ``settings`` name it.
            add_prefix_space: begin every text with a space, in training and afterwards.
            show_progress: tell on stderr how far it is, where it takes more than a few seconds.
            settings: further arguments of the constructor.

        Raises:
            ArgumentTypeError, ArgumentError: an argument that cannot be used.
        """
        from gpt2.tokenization import training

        known = _argument_names() - {"vocab_file", "merges_file", "tokenizer_file"}
        for name in settings:
            if name not in known:
                own = keywords_of(cls.train)
                raise unknown_argument("GPT2Tokenizer.train", name, known | own)
        special = list(special_tokens)
        vocab, merges = training.train(
            texts,
            vocab_size,
            min_frequency=min_frequency,
            special_tokens=special,
            add_prefix_space=add_prefix_space,
            show_progress=show_progress,
        )
        end = _END if _END in special else None
        roles = {"bos_token": end, "eos_token": end, "unk_token": end}
        others = [token for token in special if token != end]
        settings = {**roles, "additional_special_tokens": others, **settings}
        return cls(vocab, merges, add_prefix_space=add_prefix_space, **settings)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], **no_ops: Any
    ) -> tuple[Path, ...]:
        """Write vocab.json, merges.txt, tokenizer.json and their companions; returns the paths.

        All of them or none: the directory is swapped in whole, its other files stay. transformers
        4 and 5 and the tokenizers library load the result and give the same ids. The documented
        ``legacy_format=None``, ``filename_prefix=None`` and ``push_to_hub=False`` do nothing.

        Raises:
            ArgumentTypeError: another argument, or another value of these.
            FileAccessError: the directory cannot be written; it is then as it was.
        """
        for name, value in no_ops.items():
            if name not in _SAVING_NO_OPS:
                known = {"save_directory", *_SAVING_NO_OPS}
                raise unknown_argument("GPT2Tokenizer.save_pretrained", name, known)
            if value is not (False if name == "push_to_hub" else None):
                raise ArgumentTypeError(f"{name}={value!r:.200}: {_SAVING_NO_OPS[name]}")
        with staged_directory(save_directory, replaces=self.file_names) as stage:
            names = self.write_to(stage)
        return tuple(Path(save_directory) / name for name in names)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a GPT-2 tokenizer",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Save to a repository of the hub, which is made if need be; returns the commit's URL.

        All files go up in one commit. ``private``: for a new repository. ``revision``: the branch;
        ``create_pr``: open a pull request instead. A model's push_to_hub takes a tokenizer along.

        Raises:
            HubError: the hub refuses, or cannot be reached.
            ArgumentError: ``repo_id`` or ``token`` cannot be one.
        """
        from gpt2.storage.upload import upload_directory

        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary) / "tokenizer"
            self.save_pretrained(directory)
            return upload_directory(
                directory,
                repo_id,
                if_absent={},
                supersedes=self.file_names,
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def write_to(self, stage: Path) -> list[str]:
        """Write the files into a directory that is being staged by the caller; returns their names.

        ``file_names`` has all that it may write.
        """
        settings = {
            **self._other_settings,
            "add_bos_token": self.add_bos_token,
            "add_eos_token": self.add_eos_token,
            "add_prefix_space": self.add_prefix_space,
            "additional_special_tokens": self.additional_special_tokens,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "errors": self.errors,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "special_text": self.special_text,
            "split_special_tokens": self.special_text == "plain",
            "surrogates": self._surrogates,
            "tokenizer_class": "GPT2Tokenizer",
            "truncation_side": self.truncation_side,
            **self._roles,
        }
        return saving.write_files(
            stage,
            self._vocabulary.tables(),
            settings,
            before=self.bos_token if self.add_bos_token else None,
            after=self.eos_token if self.add_eos_token else None,
        )

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, str]:
        """Write vocab.json and merges.txt alone, without added tokens; returns their paths.

        Args:
            save_directory: created if it is not there; its other files stay.
            filename_prefix: the files are then called ``<prefix>-vocab.json`` and so on.

        Raises:
            ArgumentError: the prefix is no part of a file name.
            FileAccessError: the directory cannot be written; it is then as it was.
        """
        if filename_prefix and Path(filename_prefix).name != filename_prefix:
            raise ArgumentError(
                f"filename_prefix must be part of a file name, not a path: {filename_prefix!r:.200}"
            )
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        return saving.write_vocabulary(save_directory, self._vocabulary.tables(), prefix)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, {len(self)} tokens, "
            f"special_tokens={self.special_tokens_map})"
        )


GPT2TokenizerFast = GPT2Tokenizer
"""The same class under the name that the reference gives its Rust-backed twin."""


def _argument_names() -> set[str]:
    code = GPT2Tokenizer.__init__.__code__
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return {name for name in names if not name.startswith("_")}
