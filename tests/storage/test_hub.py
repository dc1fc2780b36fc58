"""Repositories: local directories, and the hub, by a hub of our own on the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from gpt2.errors import ArgumentError, ArgumentTypeError, FileAccessError
from gpt2.storage.hub import open_repository
from tests.hubserver import Fault, HubServer

ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------- local directories


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "inner").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "inner" / "config.json").write_text('{"inner": 1}')
    return directory


def test_directory(model: Path) -> None:
    for name in (model, str(model)):
        repository = open_repository(name)
        assert repository.name == str(model)
        assert repository.find("config.json") == model / "config.json"
        assert repository.require("config.json") == model / "config.json"
        assert repository.find("vocab.json") is None
        with pytest.raises(FileAccessError, match=r"has no file 'vocab\.json'"):
            repository.require("vocab.json")
    inner = open_repository(model, subfolder="inner")
    assert inner.require("config.json") == model / "inner" / "config.json"


def test_directory_that_has_the_form_of_a_repository_name(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    with pytest.raises(FileAccessError, match="local directory 'model' was taken, not the hub"):
        open_repository("model").require("vocab.json")


@pytest.mark.parametrize(
    "name",
    [
        "no/such/path",
        "./here",
        "/nowhere",
        "a b",
        "a--b",
        "a..b",
        ".a",
        "a-",
        "x.git",
        "a/b/c",
        "ä",
    ],
)
def test_neither_directory_nor_repository(name: str) -> None:
    with pytest.raises(FileAccessError, match="neither an existing directory nor the name"):
        open_repository(name)


def test_file_in_place_of_the_directory(model: Path) -> None:
    with pytest.raises(FileAccessError, match="is not a directory"):
        open_repository(model / "config.json")


@pytest.mark.parametrize(
    "filename", ["", ".", "..", "../a", "/etc/passwd", "a/b", "a\\b", "c:a", "a\nb", "a\0b"]
)
def test_only_plain_file_names(model: Path, filename: str) -> None:
    for repository in (open_repository(model), open_repository("owner/name")):
        with pytest.raises(ArgumentError, match="plain file name"):
            repository.find(filename)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subfolder": "../model"}, "subfolder="),
        ({"subfolder": "/etc"}, "subfolder="),
        ({"subfolder": "a\\b"}, "subfolder="),
        ({"revision": "v1"}, "has no revisions"),
    ],
)
def test_arguments_that_a_directory_cannot_honour(
    model: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        open_repository(model, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"revision": "../main"}, "revision="),
        ({"revision": ""}, "revision="),
        ({"revision": "a\nb"}, "revision="),
        ({"token": ""}, "token is empty"),
        ({"token": "secret\n"}, "token is empty or holds"),
        ({"force_download": True, "local_files_only": True}, "force_download=True needs"),
    ],
)
def test_arguments_that_the_hub_cannot_honour(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        open_repository("owner/name", **arguments)
    assert "secret" not in str(caught.value)


def test_wrong_types(model: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="name_or_path"):
        open_repository(7)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="name_or_path"):
        open_repository(b"model")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="name_or_path"):
        open_repository("")
    with pytest.raises(ArgumentTypeError, match="subfolder"):
        open_repository(model, subfolder=1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="token"):
        open_repository("owner/name", token=3)  # type: ignore[arg-type]
    with pytest.raises(FileAccessError, match="no subfolder 'none'"):
        open_repository(model, subfolder="none")


def test_links_lead_only_within_the_directory(model: Path) -> None:
    (model.parent / "secret").write_text("s")
    (model / "good").symlink_to("inner/config.json")
    (model / "bad").symlink_to("../secret")
    (model / "absolute").symlink_to(model.parent / "secret")
    (model / "dangling").symlink_to("nowhere")
    (model / "loop").symlink_to("loop")
    repository = open_repository(model)
    assert repository.require("good").read_text() == '{"inner": 1}'
    for name, message in [
        ("bad", "leads outside"),
        ("absolute", "leads outside"),
        ("dangling", "leads nowhere"),
        ("loop", "leads nowhere"),
        ("inner", "not a regular file"),
    ]:
        with pytest.raises(FileAccessError, match=message):
            repository.find(name)
    inner = open_repository(model, subfolder="inner")
    (model / "inner" / "up").symlink_to("../config.json")
    assert inner.require("up").read_text() == "{}"


def test_directory_of_the_hubs_cache_keeps_its_links(tmp_path: Path) -> None:
    storage = tmp_path / "models--owner--name"
    snapshot = storage / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for blobs in (storage / "blobs", tmp_path / "blobs"):
        blobs.mkdir()
        (blobs / "b").write_text("content")
    (snapshot / "own").symlink_to("../../blobs/b")
    (snapshot / "shared").symlink_to("../../../blobs/b")
    (snapshot / "out").symlink_to("../../../secret")
    (tmp_path / "secret").write_text("s")
    repository = open_repository(snapshot)
    assert repository.require("own").read_text() == "content"
    assert repository.require("shared").read_text() == "content"
    with pytest.raises(FileAccessError, match="leads outside"):
        repository.find("out")


def test_directory_that_is_replaced_while_it_is_read(model: Path) -> None:
    repository = open_repository(model)
    repository.require("config.json")
    os.rename(model, model.parent / "old")
    model.mkdir()
    (model / "config.json").write_text("{}")
    with pytest.raises(FileAccessError, match="was replaced"):
        repository.find("config.json")


def test_interrupted_save_is_recovered_when_opened(model: Path) -> None:
    os.rename(model, model.parent / ".model.previous")
    assert open_repository(model).require("config.json") == model / "config.json"


def test_importing_does_not_import_the_hub() -> None:
    script = "import sys, gpt2.storage.hub, gpt2.storage.jsonfiles, gpt2.storage.atomic\n"
    script += "print([m for m in ('huggingface_hub', 'numpy', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


# ---------------------------------------------------------------- the hub
# huggingface_hub reads its settings when it is imported: each state of the world is a subprocess.

ASK = """
    import json, sys, time
    time.sleep = lambda seconds: None  # the client waits between its tries; tests need not
    from gpt2.errors import GPT2Error
    from gpt2.storage.hub import open_repository
    answers, opened = [], {}
    for method, name, filename, options in json.loads(sys.argv[1]):
        try:
            key = json.dumps([name, options])
            if key not in opened:
                opened[key] = open_repository(name, **options)
            path = getattr(opened[key], method)(filename)
            answers.append(path and ["found", str(path), path.read_text()])
        except GPT2Error as error:
            answers.append([type(error).__name__, str(error)])
    print(json.dumps(answers))
"""
GPT2 = "openai-community/gpt2"


def ask(environment: dict[str, str], *questions: tuple[Any, ...]) -> list[Any]:
    """What a fresh process finds: for each (method, repository, file, options) an answer."""
    padded = [[*question, {}][:4] for question in questions]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK), json.dumps(padded)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_online_then_offline_warm_then_offline_cold(model: Path, home: Path) -> None:
    with HubServer({GPT2: model}) as hub:
        environment = hub.environment(home)
        found, absent, inner = ask(
            environment,
            ("require", GPT2, "config.json"),
            ("find", GPT2, "generation_config.json"),
            ("require", GPT2, "config.json", {"subfolder": "inner"}),
        )
        assert found[0] == "found"
        assert found[2] == "{}"
        assert found[1].startswith(str(home))
        assert absent is None
        assert inner[2] == '{"inner": 1}'
    # The server is gone now: the cache, without and with the word to stay offline.
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        again, still_absent, missing = ask(
            environment | offline,
            ("require", GPT2, "config.json"),
            ("find", GPT2, "generation_config.json"),
            ("require", GPT2, "vocab.json"),
        )
        assert again == found
        assert still_absent is None
        assert missing[0] == "HubError"
        assert "vocab.json" in missing[1]
        assert GPT2 in missing[1]
    (local,) = ask(environment, ("require", GPT2, "config.json", {"local_files_only": True}))
    assert local == found
    cold = environment | {"HF_HOME": str(home / "other"), "HF_HUB_OFFLINE": "1"}
    for question in (("require", GPT2, "config.json"), ("find", GPT2, "config.json")):
        ((kind, message),) = ask(cold, question)
        assert kind == "HubError"
        for part in (
            "'config.json'",
            f"'{GPT2}'",
            "'main'",
            str(home / "other"),
            "HF_HUB_OFFLINE is set",
            "Load it once with a connection",
            "pass the path of a directory",
        ):
            assert part in message
    ((kind, message),) = ask(
        environment | {"HF_HOME": str(home / "third")}, ("find", GPT2, "config.json")
    )
    assert kind == "HubError"
    assert "the hub gave no answer" in message


def test_whole_snapshot_offline_needs_no_note_of_what_is_absent(model: Path, home: Path) -> None:
    with HubServer({GPT2: model}) as hub:
        environment = hub.environment(home)
        ask(environment, ("require", GPT2, "config.json"))
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    unknown, required = ask(offline, ("find", GPT2, "other.json"), ("require", GPT2, "other.json"))
    assert unknown is None
    assert required[0] == "HubError"
    assert "the cached copy in" in required[1]


def test_what_the_hub_refuses(model: Path, home: Path) -> None:
    with HubServer({GPT2: model, "owner/gated": model, "owner/closed": model}) as hub:
        environment = hub.environment(home)
        cases = [
            (("find", "owner/none", "config.json"), "has no such repository"),
            (("find", GPT2, "config.json", {"revision": "v9"}), "no revision 'v9'"),
            (("require", GPT2, "vocab.json"), "the repository has no such file"),
            (("find", GPT2, "config.json", {"token": True}), "there is none"),
            (
                ("find", "owner/none", "config.json", {"force_download": True, "token": "hf_x"}),
                "the token given may not",
            ),
        ]
        answers = ask(environment, *(question for question, _ in cases))
        for (question, expected), (kind, message) in zip(cases, answers, strict=True):
            assert kind == "HubError"
            for part in (expected, question[1], question[2]):
                assert part in message
            assert "hf_x" not in message
        for status, code, expected in [
            (403, "GatedRepo", "is gated"),
            (401, None, "has no such repository, or it is private"),
            (403, None, "403"),
            (500, None, "500"),
        ]:
            hub.faults = [Fault(status=status, error_code=code)]
            for options in ({}, {"force_download": True}):
                ((kind, message),) = ask(environment, ("find", GPT2, "config.json", options))
                assert kind == "HubError"
                assert expected in message
                assert "config.json" in message


def test_broken_transfers(model: Path, home: Path) -> None:
    (model / "config.json").write_text("{" + " " * 50_000 + "}")
    with HubServer({GPT2: model}) as hub:
        for fault in (
            Fault(method="GET", cut_after=1000),
            Fault(method="GET", body=b"short", headers={"Content-Length": "5"}),
            Fault(without=("X-Repo-Commit",)),
            Fault(without=("ETag",)),
        ):
            hub.faults = [fault]
            ((kind, message),) = ask(hub.environment(home), ("find", GPT2, "config.json"))
            assert kind == "HubError", fault
            assert "config.json" in message
        hub.faults = []
        ((kind, *_),) = ask(hub.environment(home), ("find", GPT2, "config.json"))
        assert kind == "found"


def test_token_is_sent(model: Path, home: Path) -> None:
    with HubServer({GPT2: model}) as hub:
        ask(hub.environment(home), ("find", GPT2, "config.json", {"token": "hf_mine"}))
        assert {request.token for request in hub.requests} == {"hf_mine"}


def test_force_download_fetches_again(model: Path, home: Path) -> None:
    with HubServer({GPT2: model}) as hub:
        environment = hub.environment(home)
        ask(environment, ("find", GPT2, "config.json"))
        ask(environment, ("find", GPT2, "config.json"))
        downloads = [request for request in hub.requests if request.method == "GET"]
        assert len(downloads) == 1
        ask(environment, ("find", GPT2, "config.json", {"force_download": True}))
        downloads = [request for request in hub.requests if request.method == "GET"]
        assert len(downloads) == 2


def test_what_a_commit_lacks_is_not_asked_again(model: Path, home: Path) -> None:
    with HubServer({GPT2: model}) as hub:
        asked = []
        for _ in range(2):
            questions = [("require", GPT2, "config.json"), ("find", GPT2, "absent.json")]
            assert ask(hub.environment(home), *questions)[1] is None
            asked.append([r.method for r in hub.requests if r.path.endswith("absent.json")])
        assert asked[0] == asked[1]
        assert set(asked[0]) == {"HEAD"}


PUSHED_BETWEEN = """
    import sys, urllib.request
    from gpt2.storage.hub import open_repository
    repository = open_repository("openai-community/gpt2")
    print(repository.find("config.json").read_text())
    input()
    print(repository.find("weights").read_text())
    print(repository.find("added"))
    print(open_repository("openai-community/gpt2").find("weights").read_text())
"""


@pytest.mark.parametrize("first", ["config.json", "absent.json"])
def test_a_push_between_two_files_does_not_mix_them(tmp_path: Path, home: Path, first: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for directory, text in ((old, "old"), (new, "new")):
        directory.mkdir()
        (directory / "config.json").write_text(text)
        (directory / "weights").write_text(text)
    (new / "added").write_text("added")
    script = textwrap.dedent(PUSHED_BETWEEN)
    if first == "absent.json":  # the answer "no such file" tells the commit as well
        script = script.replace('find("config.json").read_text()', 'find("absent.json")')
    with HubServer({GPT2: old}) as hub:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", script],
            cwd=ROOT,
            env=hub.environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            expected = "old" if first == "config.json" else "None"
            assert process.stdout.readline().strip() == expected
            hub.push(GPT2, new)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.read().split() == ["old", "None", "new"]
