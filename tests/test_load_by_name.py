"""The main job as a user does it: load by name from a hub, generate; then offline.

The hub is one on the loopback interface, and the user a new process, since
huggingface_hub reads its settings when it is imported.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from tests.helpers import tiny_model
from tests.hubserver import HubServer

NAME = "openai-community/gpt2"
PROMPTS = ["one two three", "two"]

USER = f"""
import json, sys
from gpt2 import GPT2Error, GPT2LMHeadModel, GPT2Tokenizer
for where in json.loads(sys.argv[1]):
    try:
        variant = where.pop("variant", None)
        tokenizer = GPT2Tokenizer.from_pretrained({NAME!r}, **where)
        model = GPT2LMHeadModel.from_pretrained({NAME!r}, variant=variant, **where)
    except GPT2Error as error:
        print(json.dumps({{"error": type(error).__name__, "message": str(error)}}))
    else:
        inputs = tokenizer({PROMPTS!r}, padding=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=6)
        print(json.dumps({{"ids": ids.tolist(), "text": tokenizer.batch_decode(ids)}}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its tokenizer, in the form in which a hub serves them."""
    directory = tmp_path_factory.mktemp("checkpoint")
    words = ["one two three four five six seven eight nine ten"] * 20
    tokenizer = GPT2Tokenizer.train(words, vocab_size=300, show_progress=False)
    model = tiny_model(GPT2LMHeadModel, vocab_size=len(tokenizer), n_positions=128)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def use(environment: dict[str, str], *loads: dict[str, object]) -> list[dict[str, object]]:
    """Run the user's program, which loads once with each of the arguments; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", USER, json.dumps(loads)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_online_then_offline_warm_then_offline_cold(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)
    model = GPT2LMHeadModel.from_pretrained(checkpoint)
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=6)

    with HubServer({NAME: checkpoint}) as hub:
        (online,) = use(hub.environment(tmp_path / "home"), {})
        asked = len(hub.requests)
        offline = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
        warm, cold = use(offline, {}, {"cache_dir": str(tmp_path / "other")})
        (local_only,) = use(hub.environment(tmp_path / "home"), {"local_files_only": True})
        assert len(hub.requests) == asked, "an offline run asked the hub"

    assert online["ids"] == expected.tolist()
    assert online["text"] == tokenizer.batch_decode(expected)
    assert warm == online
    assert local_only == online
    assert cold["error"] == "HubError"
    assert NAME in str(cold["message"])
    assert "offline" in str(cold["message"])


def test_the_quick_start_of_the_readme(checkpoint: Path, tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    program = readme.split("## Quick start")[1].split("```python\n")[1].split("```")[0]
    with HubServer({NAME: checkpoint}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    first, second = ast.literal_eval(done.stdout)
    assert first.startswith("Hello, I'm a language model,")
    assert second.startswith("Once")
    assert len(second) > len("Once")


def test_revision_subfolder_and_variant_by_name(checkpoint: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)
    vocab_size = len(tokenizer)
    for directory, seed in ((first, 1), (second, 2)):
        model = tiny_model(GPT2LMHeadModel, seed=seed, vocab_size=vocab_size)
        model.save_pretrained(directory / "inner", variant="fp16")
        tokenizer.save_pretrained(directory / "inner")
    with HubServer({NAME: first}) as hub:
        commit = hub.commit_of(NAME, "main")
        hub.push(NAME, second)
        old, new, absent = use(
            hub.environment(tmp_path / "home"),
            {"revision": commit, "subfolder": "inner", "variant": "fp16"},
            {"subfolder": "inner", "variant": "fp16"},
            {"subfolder": "inner"},
        )

    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    for result, directory in ((old, first), (new, second)):
        model = GPT2LMHeadModel.from_pretrained(directory, subfolder="inner", variant="fp16")
        assert result["ids"] == model.generate(**inputs, max_new_tokens=6).tolist()
    assert not torch.equal(torch.tensor(old["ids"]), torch.tensor(new["ids"]))
    assert "model.safetensors" in str(absent["message"])
