"""Checkpoints of a model with int8 weights, as prepare_for_inference makes them.

One model.safetensors with this library's names and orientation: the linear
layers' weights int8 (out, in), beside each a ``.scale`` (out,) bfloat16, and
everything else as it is. config.json says so in ``quantization_config``, where
transformers looks as well, and refuses a method that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpt2.checkpoints.report import LoadReport, TensorRecord, sized
from gpt2.checkpoints.tensorfiles import Stored, write_safetensors
from gpt2.checkpoints.weightfiles import SAFETENSORS, WeightFiles
from gpt2.config import GPT2Config
from gpt2.errors import ConfigError, StateDictError

#: what config.json's quantization_config is for these files
QUANTIZATION = {"quant_method": "gpt2_int8", "bits": 8, "scales": "per output, bfloat16"}
_FIELD = "quantization_config"


def is_packed(config: GPT2Config) -> bool:
    """Whether the config is of such a checkpoint; ConfigError where it is of a newer kind."""
    found = config.extra.get(_FIELD)
    if not isinstance(found, dict) or found.get("quant_method") != QUANTIZATION["quant_method"]:
        return False
    if found != QUANTIZATION:
        raise ConfigError(f"{_FIELD} is {found}; this version reads {QUANTIZATION}")
    return True


def marked(config: GPT2Config, packed: bool) -> GPT2Config:
    """A copy of the config that says whether its weights are packed."""
    copy = config.replaced()
    if packed:
        copy.extra[_FIELD] = dict(QUANTIZATION)
    elif is_packed(copy):
        del copy.extra[_FIELD]
    return copy


def write_packed(stage: Path, tensors: Mapping[str, Tensor], config: GPT2Config) -> None:
    """Write config.json and the tensors, under their names, into the directory ``stage``.

    Raises FileAccessError where a file cannot be written.
    """
    config.write_to(stage)
    shapes = {name: Stored(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_safetensors(stage / SAFETENSORS.single(None), shapes, iter(tensors.values()))


def read_packed(
    weights: WeightFiles, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """The stored tensors, which must be those expected, in name, shape and dtype.

    Raises StateDictError, which lists what does not fit, FileAccessError and FileFormatError.
    """
    report = LoadReport(layout="packed", orientation="linear", dtype=torch.int8)
    where = repr(weights.repository.name)
    entries = {name: source for source in weights.sources for name in source.entries}
    problems = [f"missing: {name!r}" for name in expected if name not in entries]
    for name, source in entries.items():
        stored, want = source.entries[name], expected.get(name)
        if want is None:
            problems.append(f"unexpected: {name!r}")
        elif (stored.shape, stored.dtype) != (tuple(want.shape), want.dtype):
            problems.append(
                f"{name!r} is {sized(stored.shape)} {stored.dtype}; expected "
                f"{sized(tuple(want.shape))} {want.dtype}"
            )
    if problems:
        raise StateDictError("\n".join([f"{where} does not fit the model:", *problems]))
    tensors = {}
    for name, source in entries.items():
        stored = source.entries[name]
        tensor, own = source.read(name)
        tensors[name] = tensor if own else tensor.clone()
        report.tensors.append(
            TensorRecord(source.label, name, stored.shape, stored.dtype, name, "as it is")
        )
    report.files = [source.label for source in weights.sources]
    report.loaded = len(tensors)
    return tensors, report
