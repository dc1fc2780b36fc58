"""The model card, README.md, of a repository on the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gpt2.config import GPT2Config

CARD_NAME = "README.md"

_TASKS = {
    "GPT2LMHeadModel": "text-generation",
    "GPT2DoubleHeadsModel": "text-generation",
    "GPT2ForSequenceClassification": "text-classification",
    "GPT2ForTokenClassification": "token-classification",
    "GPT2ForQuestionAnswering": "question-answering",
    "GPT2Model": "feature-extraction",
}


def model_card(
    repo_id: str,
    *,
    config: GPT2Config,
    model_class: str,
    parameters: int,
    dtype: torch.dtype,
    with_tokenizer: bool,
) -> str:
    """The card's text: what the hub indexes, the sizes, and how to load it.

    Only what the model itself tells. Data, purpose and limits are its author's to add.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="transformers",  # which loads it, and which the hub knows
        pipeline_tag=_TASKS.get(model_class),
        tags=["gpt2"],
    )
    rows = {
        "class": f"`{model_class}`",
        "parameters": f"{parameters:,}",
        "dtype of the weights": f"`{str(dtype).removeprefix('torch.')}`",
        "layers × heads × width": f"{config.n_layer} × {config.n_head} × {config.n_embd}",
        "width of the MLP": f"{config.inner_dim}",
        "positions": f"{config.n_positions}",
        "vocabulary": f"{config.vocab_size}",
        "activation": f"`{config.activation_function}`",
        "head tied to the embedding": "yes" if config.tie_word_embeddings else "no",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    names = f"GPT2Tokenizer, {model_class}" if with_tokenizer else model_class
    lines = [f"from gpt2 import {names}", ""]
    if with_tokenizer:
        lines.append(f'tokenizer = GPT2Tokenizer.from_pretrained("{repo_id}")')
    lines.append(f'model = {model_class}.from_pretrained("{repo_id}")')
    code = "\n".join(lines)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id.rpartition('/')[2]}\n\n"
        f"A GPT-2 model.\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Use\n\n```python\n{code}\n```\n\n"
        "transformers loads it under the same class names.\n"
    )
