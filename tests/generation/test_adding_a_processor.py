"""Adding a processor touches one file: done here, to a copy of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "gpt2"

SETTING = """    pushed_token_id: int | None = field(
        default=None, metadata=setting(checks.token_id, ids=checks.all_ids)
    )
    # -- beginnings and ends --"""
FUNCTION = '''def push(_ids: Tensor, scores: Tensor, *, token: int) -> Tensor:
    """Add 1000 to one score."""
    return scores.index_add(
        -1, torch.tensor([token]), torch.full((len(scores), 1), 1000.0)
    )


# -- all of them --'''
ENTRY = """    if c.pushed_token_id is not None:
        chosen.append(partial(push, token=c.pushed_token_id))
    if c.renormalize_logits:"""

USE = """
import torch
from gpt2 import GenerationConfig, GPT2Config, GPT2LMHeadModel
from gpt2.errors import ArgumentError, TokenIdError

model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1,
                                   bos_token_id=0, eos_token_id=None)).eval()
ids = torch.tensor([[1, 2]])
for method in ({}, {"do_sample": True}, {"num_beams": 2}, {"penalty_alpha": 0.1, "top_k": 4}):
    found = model.generate(ids, pushed_token_id=7, max_new_tokens=4, **method)
    assert found[0, 2:].tolist() == [7] * 4, (method, found)
settings = GenerationConfig(pushed_token_id=7)
assert GenerationConfig.from_dict(settings.to_dict()) == settings
for wrong, kind in ((-1, ArgumentError), ("x", ArgumentError), (20, TokenIdError)):
    try:
        model.generate(ids, pushed_token_id=wrong)
    except kind as error:
        assert "pushed_token_id" in str(error)
    else:
        raise AssertionError(wrong)
"""


def test_one_file_is_enough(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "gpt2", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "gpt2" / "generation" / "processors.py"
    source = path.read_text()
    for before, after in (
        ("    # -- beginnings and ends --", SETTING),
        ("# -- all of them --", FUNCTION),
        ("    if c.renormalize_logits:", ENTRY),
    ):
        assert source.count(before) == 1
        source = source.replace(before, after)
    path.write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", USE], env=environment, cwd=tmp_path, check=True)
