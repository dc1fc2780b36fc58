"""Rows 24 to 26: a hub that breaks off, refuses, lies; and two processes at once.

huggingface_hub reads its settings when it is imported: each state of the world
is a subprocess, against a hub on the loopback interface. What differs only in
how the hub answers asks one process for all of it, each time with an empty cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hubserver import Fault, HubServer

ROOT = Path(__file__).resolve().parents[2]
NAME = "openai-community/gpt2"

LOAD = """
    import json, sys, time
    time.sleep = lambda seconds: None  # the client waits between its tries; tests need not
    import torch
    from gpt2 import GPT2LMHeadModel
    from gpt2.errors import GPT2Error
    for line in sys.stdin:
        try:
            model = GPT2LMHeadModel.from_pretrained(sys.argv[1], **json.loads(line))
            answer = ["loaded", float(model(torch.tensor([[1, 2, 3]])).logits.sum())]
        except GPT2Error as error:
            answer = [type(error).__name__, str(error)]
        print(json.dumps(answer), flush=True)
"""


class Loader:
    """A process that loads by name, as often as it is asked to."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(LOAD), NAME],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0

    def ask(self, cache: Path | None = None) -> None:
        options = {} if cache is None else {"cache_dir": str(cache)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(options) + "\n")
        self.process.stdin.flush()

    def answer(self) -> tuple[str, Any]:
        """An error's class and words, or "loaded" and a sum; a process that hangs is killed."""
        assert self.process.stdout is not None
        watch = threading.Timer(120, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        assert line, "the process died, or hung and was killed"
        kind, what = json.loads(line)
        return kind, what

    def load(self, cache: Path | None = None) -> tuple[str, Any]:
        self.ask(cache)
        return self.answer()


@pytest.fixture(scope="module")
def served(
    good: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HubServer, Loader]]:
    """A hub, and a process that loads from it."""
    with HubServer({NAME: good}) as hub:
        # A second is the least that huggingface_hub's settings can say.
        timeouts = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
        with Loader(hub.environment(tmp_path_factory.mktemp("home"), **timeouts)) as loader:
            yield hub, loader


def bytes_of(good: Path) -> bytes:
    return (good / "model.safetensors").read_bytes()


def large_file(good: Path) -> dict[str, str]:
    """The headers by which the hub says what a large file's SHA-256 is."""
    digest = hashlib.sha256(bytes_of(good)).hexdigest()
    return {"ETag": f'"{digest}"', "X-Linked-Etag": f'"{digest}"'}


FAULTS = {
    "cut": Fault(file="model.safetensors", method="GET", cut_after=5000),
    "stalled": Fault(file="model.safetensors", stall=1.5),
    "429": Fault(status=429, headers={"Retry-After": "1"}),
    "500": Fault(status=500),
    "503": Fault(file="model.safetensors", status=503),
    "wrong size": Fault(file="model.safetensors", method="GET", body=b"x" * 77),
    "no ETag": Fault(without=("ETag",)),
    "no commit": Fault(without=("X-Repo-Commit",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_row_24_a_broken_transfer_is_told_and_the_next_try_succeeds(
    served: tuple[HubServer, Loader], tmp_path: Path, fault: str
) -> None:
    hub, loader = served
    hub.faults = [FAULTS[fault]]
    kind, message = loader.load(tmp_path)
    assert kind == "HubError", message
    assert NAME in message
    hub.faults = []
    assert loader.load(tmp_path)[0] == "loaded"


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, None, "no such repository, or it is private"),
        (403, "GatedRepo", "is gated. Ask for access"),
        (404, "RepoNotFound", "no such repository"),
        (404, "RevisionNotFound", "no revision"),
        (404, "EntryNotFound", "no such file"),
    ],
)
def test_row_25_a_refusal_says_what_to_do(
    served: tuple[HubServer, Loader], tmp_path: Path, status: int, code: str | None, words: str
) -> None:
    hub, loader = served
    hub.faults = [Fault(status=status, error_code=code)]
    kind, message = loader.load(tmp_path)
    assert kind == "HubError"
    assert words in message
    assert NAME in message
    hub.faults = []
    assert loader.load(tmp_path)[0] == "loaded"


def test_row_25_offline_with_a_warm_and_a_cold_cache(
    served: tuple[HubServer, Loader], tmp_path: Path
) -> None:
    hub, loader = served
    hub.faults = []
    expected = loader.load()  # into the cache of its home
    assert expected[0] == "loaded"
    asked = len(hub.requests)
    with Loader(loader.environment | {"HF_HUB_OFFLINE": "1"}) as offline:
        assert offline.load() == expected
        cold = offline.load(tmp_path / "elsewhere")
    assert cold[0] == "HubError"
    assert "Load it once with a connection" in cold[1]
    assert len(hub.requests) == asked  # offline is offline


def test_row_26_corruption_of_the_same_size_is_seen_by_the_hash(
    good: Path, served: tuple[HubServer, Loader], tmp_path: Path
) -> None:
    hub, loader = served
    data = bytearray(bytes_of(good))
    data[len(data) // 2] ^= 0x40  # one bit of one weight: the file is whole, and its size right
    stated = Fault(file="model.safetensors", headers=large_file(good))
    hub.faults = [Fault(file="model.safetensors", headers=large_file(good), body=bytes(data))]
    kind, message = loader.load(tmp_path)
    assert kind == "HubError"
    assert "SHA-256" in message
    assert hashlib.sha256(data).hexdigest() in message
    hub.faults = [stated]
    expected = loader.load(tmp_path)
    assert expected[0] == "loaded"  # the bad copy is not in the cache any more
    assert loader.load(tmp_path) == expected


@pytest.mark.parametrize("etag", ["../../../escaped", "{tmp_path}/escaped", "..", "a/b", "a\\b"])
def test_row_26_a_hostile_etag_writes_nothing_outside_the_cache(
    served: tuple[HubServer, Loader], tmp_path: Path, etag: str
) -> None:
    hub, loader = served
    cache, stated = tmp_path / "a" / "b" / "cache", etag.format(tmp_path=tmp_path)
    hub.faults = [Fault(file="config.json", headers={"ETag": f'"{stated}"'})]
    kind, message = loader.load(cache)
    assert kind == "HubError"
    assert "is no name of a file" in message
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and cache not in p.parents]
    assert not outside


def test_row_26_two_processes_download_at_once(
    served: tuple[HubServer, Loader], tmp_path: Path
) -> None:
    hub, one = served
    hub.faults = []
    with Loader(one.environment) as other:
        assert other.load(tmp_path / "first")[0] == "loaded"  # it has imported all that it needs
        hub.faults = [Fault(file="model.safetensors", method="GET", stall=0.5)]
        one.ask(tmp_path / "cache")
        other.ask(tmp_path / "cache")
        results = [one.answer(), other.answer()]
    hub.faults = []
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
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVE), str(good), str(target), number],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for number in ("1", "2")
    ]  # fmt: skip
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
