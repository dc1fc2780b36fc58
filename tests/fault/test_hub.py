"""Rows 24 to 26: a hub that breaks off, refuses, lies; and two processes at once.

huggingface_hub reads its settings when it is imported: each state of the world
is a subprocess, against a hub on the loopback interface.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.hubserver import Fault, HubServer

ROOT = Path(__file__).resolve().parents[2]
NAME = "openai-community/gpt2"

LOAD = """
    import json, sys, time
    waited = []
    time.sleep = waited.append  # the client waits between its tries; tests need not
    import torch
    from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
    from gpt2.errors import GPT2Error
    try:
        model = GPT2LMHeadModel.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
        print(json.dumps(["loaded", float(model(torch.tensor([[1, 2, 3]])).logits.sum())]))
    except GPT2Error as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def start(environment: dict[str, str], script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def load(environment: dict[str, str], **options: Any) -> tuple[str, Any]:
    """What loading by name in a fresh process comes to: an error's class and words, or a sum."""
    process = start(environment, LOAD, NAME, json.dumps(options))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    kind, what = json.loads(out.strip().splitlines()[-1])
    return kind, what


def bytes_of(good: Path) -> bytes:
    return (good / "model.safetensors").read_bytes()


def large_file(good: Path) -> dict[str, str]:
    """The headers by which the hub says what a large file's SHA-256 is."""
    digest = hashlib.sha256(bytes_of(good)).hexdigest()
    return {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"'}


FAULTS = {
    "cut": Fault(file="model.safetensors", method="GET", cut_after=5000),
    "stalled": Fault(file="model.safetensors", stall=4.0),
    "429": Fault(status=429, headers={"Retry-After": "1"}),
    "500": Fault(status=500),
    "503": Fault(file="model.safetensors", status=503),
    "wrong size": Fault(file="model.safetensors", method="GET", body=b"x" * 77),
    "no ETag": Fault(without=("ETag",)),
    "no commit": Fault(without=("X-Repo-Commit",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_row_24_a_broken_transfer_is_told_and_the_next_try_succeeds(
    good: Path, tmp_path: Path, fault: str
) -> None:
    with HubServer({NAME: good}) as hub:
        environment = hub.environment(tmp_path)
        hub.faults = [FAULTS[fault]]
        kind, message = load(environment)
        assert kind == "HubError", message
        assert NAME in message
        hub.faults = []
        assert load(environment)[0] == "loaded"


def test_row_25_refusals_each_say_what_to_do(good: Path, tmp_path: Path) -> None:
    with HubServer({NAME: good}) as hub:
        environment = hub.environment(tmp_path / "home")
        for fault, words in (
            (Fault(status=401), "no such repository, or it is private"),
            (Fault(status=403, error_code="GatedRepo"), "is gated. Ask for access"),
            (Fault(status=404, error_code="RepoNotFound"), "no such repository"),
            (Fault(status=404, error_code="RevisionNotFound"), "no revision"),
            (Fault(status=404, error_code="EntryNotFound"), "no such file"),
        ):
            hub.faults = [fault]
            kind, message = load(environment)
            assert kind == "HubError"
            assert words in message
            assert NAME in message
        hub.faults = []
        expected = load(environment)
        assert expected[0] == "loaded"
        asked = len(hub.requests)
        warm = load(environment | {"HF_HUB_OFFLINE": "1"})
        assert warm == expected
        cold = load(hub.environment(tmp_path / "elsewhere", HF_HUB_OFFLINE="1"))
        assert cold[0] == "HubError"
        assert "Load it once with a connection" in cold[1]
        assert len(hub.requests) == asked  # offline is offline


def test_row_26_corruption_of_the_same_size_is_seen_by_the_hash(good: Path, tmp_path: Path) -> None:
    data = bytearray(bytes_of(good))
    data[len(data) // 2] ^= 0x40  # one bit of one weight: the file is whole, and its size right
    with HubServer({NAME: good}) as hub:
        environment = hub.environment(tmp_path)
        stated = Fault(file="model.safetensors", headers=large_file(good))
        hub.faults = [Fault(file="model.safetensors", headers=large_file(good), body=bytes(data))]
        kind, message = load(environment)
        assert kind == "HubError"
        assert "SHA-256" in message
        assert hashlib.sha256(data).hexdigest() in message
        hub.faults = [stated]
        expected = load(environment)
        assert expected[0] == "loaded"  # the bad copy is not in the cache any more
        assert load(environment) == expected


@pytest.mark.parametrize("etag", ["../../../escaped", "/tmp/escaped-by-etag", "..", "a/b", "a\\b"])
def test_row_26_a_hostile_etag_writes_nothing_outside_the_cache(
    good: Path, tmp_path: Path, etag: str
) -> None:
    home = tmp_path / "a" / "b" / "home"
    with HubServer({NAME: good}) as hub:
        hub.faults = [Fault(file="config.json", headers={"ETag": f'"{etag}"'})]
        kind, message = load(hub.environment(home))
    assert kind == "HubError"
    assert "is no name of a file" in message
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and home not in p.parents]
    assert not outside
    assert not Path("/tmp/escaped-by-etag").exists()


def test_row_26_two_processes_download_at_once(good: Path, tmp_path: Path) -> None:
    with HubServer({NAME: good}) as hub:
        hub.faults = [Fault(file="model.safetensors", method="GET", stall=0.5)]
        environment = hub.environment(tmp_path)
        both = [start(environment, LOAD, NAME, "{}") for _ in range(2)]
        results = [json.loads(p.communicate(timeout=120)[0].strip().splitlines()[-1]) for p in both]
    assert results[0] == results[1]
    assert results[0][0] == "loaded"


SAVE = """
    import sys
    from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
    source, target, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model = GPT2LMHeadModel.from_pretrained(source)
    tokenizer = GPT2Tokenizer.from_pretrained(source)
    tokenizer.add_tokens([f"<{i}>" for i in range(number)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for _ in range(15):
        model.save_pretrained(target, tokenizer=tokenizer)
"""


def test_row_26_two_processes_save_at_once(good: Path, tmp_path: Path) -> None:
    from gpt2 import GPT2LMHeadModel, GPT2Tokenizer

    target = tmp_path / "shared"
    both = [start(dict(os.environ), SAVE, str(good), str(target), n) for n in ("1", "2")]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    rows = GPT2LMHeadModel.from_pretrained(target).config.vocab_size
    assert len(GPT2Tokenizer.from_pretrained(target)) == rows
    assert os.listdir(tmp_path) == ["shared"]


WATCHED = """
    import json, os, sys
    seen = {"open": [], "socket": [], "import": []}
    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            seen["open"].append(os.fsdecode(arguments[0]))
        elif event.startswith("socket.") and event != "socket.__new__":
            seen["socket"].append(event)
        elif event in ("exec", "compile", "subprocess.Popen", "os.system", "pickle.find_class"):
            seen["import"].append(f"{event} {arguments}"[:200])
    import torch
    import gpt2
    from gpt2 import GPT2LMHeadModel, GPT2Tokenizer
    calls = (GPT2LMHeadModel.from_pretrained, GPT2Tokenizer.from_pretrained, gpt2.verify_checkpoint)
    for call in calls:  # whatever is imported late is imported now
        call(sys.argv[1])
    sys.addaudithook(watch)
    for call in calls:
        call(sys.argv[2])
    print(json.dumps(seen))
"""


def test_nothing_in_a_checkpoint_runs_code_leaves_its_directory_or_reaches_the_network(
    good: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = bad / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content |= {
            "auto_map": {"AutoModel": "http://127.0.0.1:1/x--modeling.Model"},
            "trust_remote_code": True, "_name_or_path": "/etc/passwd",
            "adapter_file": "../../secret", "vocab_file": "/etc/passwd",
        }  # fmt: skip
        if name != "generation_config.json":  # whose unknown settings are refused
            path.write_text(json.dumps(content))
    (bad / "modeling.py").write_text("raise SystemExit('ran')")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WATCHED), str(good), str(bad)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert not seen["socket"]
    assert not seen["import"]
    inside = (str(bad), str(good))
    strange = [p for p in seen["open"] if not os.path.realpath(p).startswith(inside)]
    assert not strange
    assert any(p.startswith(str(bad)) for p in seen["open"])  # the hook does see what is opened
