"""GPT-2 in plain PyTorch: exact, never silent, right in padded batches.

The public names are looked up when first used, so that ``import gpt2`` costs
next to nothing and ``from gpt2 import GPT2Tokenizer`` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gpt2.config import GPT2Config as GPT2Config
    from gpt2.errors import GPT2Error as GPT2Error
    from gpt2.generation.config import GenerationConfig as GenerationConfig
    from gpt2.inspection import inspect_checkpoint as inspect_checkpoint
    from gpt2.inspection import verify_checkpoint as verify_checkpoint
    from gpt2.modeling.cache import KVCache as KVCache
    from gpt2.modeling.classifiers import GPT2ForQuestionAnswering as GPT2ForQuestionAnswering
    from gpt2.modeling.classifiers import (
        GPT2ForSequenceClassification as GPT2ForSequenceClassification,
    )
    from gpt2.modeling.classifiers import GPT2ForTokenClassification as GPT2ForTokenClassification
    from gpt2.modeling.heads import GPT2DoubleHeadsModel as GPT2DoubleHeadsModel
    from gpt2.modeling.heads import GPT2LMHeadModel as GPT2LMHeadModel
    from gpt2.modeling.pretrained import GPT2PreTrainedModel as GPT2PreTrainedModel
    from gpt2.modeling.static_cache import StaticCache as StaticCache
    from gpt2.modeling.transformer import GPT2Model as GPT2Model
    from gpt2.tokenization.batching import BatchEncoding as BatchEncoding
    from gpt2.tokenization.streaming import TextIteratorStreamer as TextIteratorStreamer
    from gpt2.tokenization.streaming import TextStreamer as TextStreamer
    from gpt2.tokenization.tokenizer import GPT2Tokenizer as GPT2Tokenizer
    from gpt2.tokenization.tokenizer import GPT2TokenizerFast as GPT2TokenizerFast

# public name -> the module that defines it
_HOMES = {
    "BatchEncoding": "gpt2.tokenization.batching",
    "GPT2Config": "gpt2.config",
    "GPT2DoubleHeadsModel": "gpt2.modeling.heads",
    "GPT2Error": "gpt2.errors",
    "GPT2ForQuestionAnswering": "gpt2.modeling.classifiers",
    "GPT2ForSequenceClassification": "gpt2.modeling.classifiers",
    "GPT2ForTokenClassification": "gpt2.modeling.classifiers",
    "GPT2LMHeadModel": "gpt2.modeling.heads",
    "GPT2Model": "gpt2.modeling.transformer",
    "GPT2PreTrainedModel": "gpt2.modeling.pretrained",
    "GPT2Tokenizer": "gpt2.tokenization.tokenizer",
    "GPT2TokenizerFast": "gpt2.tokenization.tokenizer",
    "GenerationConfig": "gpt2.generation.config",
    "KVCache": "gpt2.modeling.cache",
    "StaticCache": "gpt2.modeling.static_cache",
    "TextIteratorStreamer": "gpt2.tokenization.streaming",
    "TextStreamer": "gpt2.tokenization.streaming",
    "inspect_checkpoint": "gpt2.inspection",
    "verify_checkpoint": "gpt2.inspection",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gpt2' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
