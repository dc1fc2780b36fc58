"""push_to_hub, as a user does it: a new process, and a hub on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
from tests.helpers import tiny_model
from tests.hubserver import Fault, HubServer

NAME = "tester/mine"
USER = """
import json, sys
from gpt2 import GPT2Error, GPT2LMHeadModel, GPT2Tokenizer
model = GPT2LMHeadModel.from_pretrained(sys.argv[1])
tokenizer = GPT2Tokenizer.from_pretrained(sys.argv[1])
answers = []
for name, arguments in json.loads(sys.argv[2]):
    if arguments.pop("with_tokenizer", False):
        arguments["tokenizer"] = tokenizer
    pushed = tokenizer if arguments.pop("tokenizer_alone", False) else model
    try:
        answers.append({"url": pushed.push_to_hub(name, **arguments)})
    except GPT2Error as error:
        answers.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer = GPT2Tokenizer.train(["a hen and a hat"] * 9, vocab_size=270, show_progress=False)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.top_k = 7
    model.save_pretrained(directory, tokenizer=tokenizer)
    return directory


def push(
    hub: HubServer, home: Path, checkpoint: Path, *pushes: tuple[str, dict[str, object]]
) -> list[dict[str, str]]:
    """Push once for each (repository, arguments); returns the URLs or errors."""
    done = subprocess.run(
        [sys.executable, "-c", USER, str(checkpoint), json.dumps(pushes)],
        env=hub.environment(home, HF_TOKEN="hf_secret"),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    answers: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_a_new_repository_then_a_new_version(checkpoint: Path, tmp_path: Path) -> None:
    first = ("mine", {"with_tokenizer": True, "max_shard_size": "20KB"})  # of the token's user
    second = (NAME, {"commit_message": "Again, in one file"})
    with HubServer({}, uploads=tmp_path) as hub:
        (answer,) = push(hub, tmp_path / "home", checkpoint, first)
        commit = hub.commit_of(NAME, "main")
        assert commit is not None
        assert answer == {"url": f"{hub.url}/{NAME}/commit/{commit}"}
        files = hub.directory_of(NAME, commit)
        loaded = GPT2LMHeadModel.from_pretrained(files)
        tokenizer = GPT2Tokenizer.from_pretrained(files)
        assert len(list(files.glob("model-*-of-*.safetensors"))) > 1
        check_card((files / "README.md").read_text(), loaded.num_parameters())
        (files / "README.md").write_text("my own words")

        (again,) = push(hub, tmp_path / "home", checkpoint, second)
        newer = hub.directory_of(NAME, hub.commit_of(NAME, "main") or "")
        assert again["url"] != answer["url"]
    made = GPT2LMHeadModel.from_pretrained(checkpoint)
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(loaded(ids).logits, made(ids).logits)
    assert loaded.generation_config.top_k == 7
    assert tokenizer("a hen") == GPT2Tokenizer.from_pretrained(checkpoint)("a hen")
    # One commit each; what the second supersedes is gone, what it does not know is left.
    assert hub.messages == ["Upload a GPT-2 model", "Again, in one file"]
    assert not list(newer.glob("model-*"))
    assert (newer / "model.safetensors").exists()
    assert (newer / "vocab.json").exists()
    assert (newer / "README.md").read_text() == "my own words"


def check_card(card: str, parameters: int) -> None:
    _, header, text = card.split("---\n", 2)
    for line in ("library_name: transformers", "pipeline_tag: text-generation", "- gpt2"):
        assert f"{line}\n" in header
    assert f"| parameters | {parameters:,} |" in text
    assert "| layers × heads × width | 2 × 4 × 32 |" in text
    assert f'model = GPT2LMHeadModel.from_pretrained("{NAME}")' in text
    assert f'tokenizer = GPT2Tokenizer.from_pretrained("{NAME}")' in text


def test_refusals_and_then_a_tokenizer_alone(checkpoint: Path, tmp_path: Path) -> None:
    with HubServer({}, uploads=tmp_path) as hub:
        hub.faults += [
            Fault(method="POST", file="/api/repos/create", status=400, times=1),
            Fault(method="POST", file="*/commit/*", status=403, times=1),
        ]
        no_name, broken, forbidden, no_login, alone = push(
            hub,
            tmp_path / "home",
            checkpoint,
            ("no/such/name", {}),
            (NAME, {}),
            (NAME, {}),
            (NAME, {"token": False}),
            (NAME, {"tokenizer_alone": True}),
        )
        commit = hub.commit_of(NAME, "main") or ""
        assert alone == {"url": f"{hub.url}/{NAME}/commit/{commit}"}
        files = hub.directory_of(NAME, commit)
        pushed = GPT2Tokenizer.from_pretrained(files)
    assert no_name["error"] == "ArgumentError"
    assert "repo_id is 'no/such/name'" in no_name["message"]
    for answer in (no_login, broken, forbidden):
        assert answer["error"] == "HubError"
        assert f"cannot upload to '{NAME}'" in answer["message"]
    for answer in (no_login, forbidden):
        assert "hf auth login" in answer["message"]
    assert "BadRequest" in broken["message"]
    assert hub.messages == ["Upload a GPT-2 tokenizer"]  # nothing that was refused left a commit
    assert not list(files.glob("*.safetensors"))
    assert pushed("a hen") == GPT2Tokenizer.from_pretrained(checkpoint)("a hen")
