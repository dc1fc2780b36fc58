"""The examples as a user runs them, without a network: one of each kind in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from tests.examples.scripts import EXAMPLES, run_here

STORIES = EXAMPLES / "stories-gpt2"
PROMPT = "One day a girl named Mia"


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example; a download would be an error."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def test_generate_streams_what_the_library_generates() -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(STORIES)
    model = GPT2LMHeadModel.from_pretrained(STORIES)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    expected = tokenizer.decode(
        model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True
    )
    done = run(
        "generate.py", "--prompt", PROMPT, "--greedy", "--max-new-tokens", "40", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == expected
    assert "tok/s" in done.stderr


def test_generate_by_seed_without_a_prompt() -> None:
    texts = [run_here("generate.py", "--seed", seed, "--device", "cpu") for seed in ("1", "1", "2")]
    assert all(done.returncode == 0 for done in texts), texts[0].stderr
    first, again, other = (done.stdout for done in texts)
    assert first == again != other
    assert len(first.split()) > 30


def test_generate_says_what_is_wrong_in_one_line() -> None:
    done = run("generate.py", "--model", "no/such/model")
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.startswith("error: 'no/such/model'")
    assert "Traceback" not in done.stderr
    done = run_here("generate.py", "--temperature", "0")
    assert done.returncode != 0
    assert done.stderr.startswith("error: temperature must be a number above 0")


def test_the_embedded_checkpoint_is_small_and_good() -> None:
    size = sum(file.stat().st_size for file in STORIES.iterdir())
    assert size <= 4_000_000
    tokenizer = GPT2Tokenizer.from_pretrained(STORIES)
    model = GPT2LMHeadModel.from_pretrained(STORIES)
    assert len(tokenizer) == model.config.vocab_size
    text = (
        "<|endoftext|>One rainy morning, a girl named Zoe was at the mill. There she met a boy "
        "named Tom."
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 2.0  # a uniform guess among the vocabulary would be 6.9


def test_benchmark_runs_without_a_peer() -> None:
    done = run_here("benchmark.py", "import", "--rounds", "1", "--against", "nothing")
    assert done.returncode == 0, done.stderr
    assert "tokenizer class" in done.stdout


def test_benchmark_of_the_tokenizer() -> None:
    sizes = ["--rounds", "1", "--size", "5000", "--against", "nothing"]
    done = run("benchmark.py", "tokenizer", "--vocabulary", str(STORIES), *sizes)
    assert done.returncode == 0, done.stderr
    for task in ("load", "encode cold, Python code", "batch of", "decode, non", "table of"):
        assert task in done.stdout


def test_benchmark_says_where_a_vocabulary_could_come_from(tmp_path: Path) -> None:
    done = run("benchmark.py", "tokenizer", "--against", "nothing", HF_HUB_CACHE=str(tmp_path))
    assert done.returncode != 0
    assert "--vocabulary DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_attention_map_draws_and_tells(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "map.png"
    done = run_here("attention_map.py", "--text", PROMPT, "--layer", "1", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "nats per token" in done.stdout
    done = run_here("attention_map.py", "--layer", "9", "--output", str(picture))
    assert done.returncode == 1
    assert "--layer must be from -4 to 3, not 9" in done.stderr
