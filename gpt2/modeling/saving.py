"""Models into files: save_pretrained and push_to_hub."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from gpt2.checkpoints.card import CARD_NAME, model_card
from gpt2.checkpoints.packed import marked, write_packed
from gpt2.checkpoints.save import fitting_tensors, superseded_files, write_model
from gpt2.checkpoints.weightfiles import weight_file_patterns
from gpt2.config import GPT2Config
from gpt2.errors import ArgumentError, ArgumentTypeError, unknown_argument
from gpt2.modeling.loading import Loadable
from gpt2.storage.atomic import staged_directory
from gpt2.storage.upload import upload_directory


class SavedBeside(Protocol):
    """A tokenizer that can be saved with a model, in the same step: GPT2Tokenizer."""

    file_names: tuple[str, ...]

    def write_to(self, stage: Path) -> Any:
        """Write its files into a directory that is being staged."""

    def __len__(self) -> int: ...


class Savable(Loadable):
    """Saving, for GPT2PreTrainedModel."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        is_main_process: bool = True,
        tokenizer: SavedBeside | None = None,
        layout: str = "huggingface",
        **unknown: Any,
    ) -> None:
        """Write config, weights, generation settings and, if given, the tokenizer.

        The directory is replaced as a whole, so that it is complete or as it
        was before; other files in it stay. ``layout``: "huggingface", which
        transformers loads; "nanogpt" or "mingpt", one pickled file (ckpt.pt,
        model.pt) whatever ``safe_serialization`` says; or "opt". A model that
        the layout's program could not compute is refused. ``state_dict``:
        weights to write in place of the model's own, all of them.
        ``max_shard_size``: bytes, or "200MB". A model prepared with int8
        weights is saved with them, in one file that this library alone loads.
        ``is_main_process=False`` writes
        nothing, for all ranks but one.

        Raises ArgumentError, ConfigError, StateDictError, and FileAccessError
        where the disk refuses.
        """
        for name in unknown:
            known = set(inspect.signature(self.save_pretrained).parameters) - {"unknown"}
            raise unknown_argument(f"{type(self).__name__}.save_pretrained", name, known)
        if not is_main_process:
            return
        packed = self.packed == "int8"
        if packed:
            _refuse_for_packed(layout, state_dict, max_shard_size, safe_serialization, variant)
        config = marked(self.config, packed).replaced(
            architectures=[type(self).__name__],
            torch_dtype=str(next(self.parameters()).dtype).removeprefix("torch."),
        )
        tensors = dict(self.state_dict() if state_dict is None else state_dict)
        for name, tensor in tensors.items():
            if hasattr(tensor, "full_tensor"):  # a DTensor, of which this process has a part
                raise ArgumentError(
                    f"{name} is spread over processes; save the model with "
                    "gpt2.training.sharded.export_pretrained, on all of them"
                )
        if state_dict is not None:
            tied = self.tied_weights if config.tie_word_embeddings else {}
            whole = type(self).from_config(config, device="meta").state_dict()
            tensors = fitting_tensors(tensors, whole, tied)
            written = (t.dtype for t in tensors.values() if t.is_floating_point())
            config = config.replaced(torch_dtype=next(written, config.torch_dtype))
        replaces = [*superseded_files(layout, variant), *self._extra_files()]
        if tokenizer is not None:
            _check_tokenizer(tokenizer, config)
            replaces += tokenizer.file_names
        with staged_directory(save_directory, replaces=replaces) as stage:
            if packed:
                write_packed(stage, tensors, config)
            else:
                write_model(
                    stage,
                    tensors,
                    config,
                    layout=layout,
                    max_shard_size=max_shard_size,
                    variant=variant,
                    safe_serialization=safe_serialization,
                )
            self._write_extras(stage)
            if tokenizer is not None:
                tokenizer.write_to(stage)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: SavedBeside | None = None,
        commit_message: str = "Upload a GPT-2 model",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> str:
        """Save to a repository of the hub, which is made if need be; returns the commit's URL.

        All files go up in one commit, with a model card where the repository has none; weight
        files that this save supersedes are deleted. ``private``: for a new repository.
        ``revision``: the branch; ``create_pr``: open a pull request instead.

        Raises HubError where the hub refuses, and what save_pretrained raises.
        """
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(temporary) / "model"
            self.save_pretrained(
                directory,
                max_shard_size=max_shard_size,
                safe_serialization=safe_serialization,
                variant=variant,
                tokenizer=tokenizer,
            )
            card = partial(
                model_card,
                config=self.config,
                model_class=type(self).__name__,
                parameters=self.num_parameters(),
                dtype=next(self.parameters()).dtype,
                with_tokenizer=tokenizer is not None,
            )
            return upload_directory(
                directory,
                repo_id,
                if_absent={CARD_NAME: card},
                supersedes=weight_file_patterns(variant),
                commit_message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def _extra_files(self) -> list[str]:
        """Names of what `_write_extras` writes."""
        return []

    def _write_extras(self, stage: Path) -> None:
        """Write what else belongs to this class into the staged directory."""


def _refuse_for_packed(
    layout: str,
    state_dict: object,
    max_shard_size: int | str,
    safe_serialization: bool,
    variant: str | None,
) -> None:
    """ArgumentError for what the one file of int8 weights cannot honour."""
    given = {
        f"layout={layout!r}": layout != "huggingface",
        "state_dict": state_dict is not None,
        f"max_shard_size={max_shard_size!r}": max_shard_size != "5GB",
        f"safe_serialization={safe_serialization}": not safe_serialization,
        f"variant={variant!r}": variant is not None,
    }
    for argument, is_given in given.items():
        if is_given:
            raise ArgumentError(
                f"{argument} does not go with int8 weights, which are saved as one "
                "model.safetensors of this library; save the model that they were made of"
            )


def _check_tokenizer(tokenizer: SavedBeside, config: GPT2Config) -> None:
    if not hasattr(tokenizer, "write_to"):
        raise ArgumentTypeError(
            f"tokenizer must be a GPT2Tokenizer, not a {type(tokenizer).__name__}; save another "
            "kind with its own save_pretrained"
        )
    if len(tokenizer) > config.vocab_size:
        raise ArgumentError(
            f"the tokenizer has {len(tokenizer)} tokens and the model vocab_size "
            f"{config.vocab_size}; call model.resize_token_embeddings({len(tokenizer)}) first"
        )
