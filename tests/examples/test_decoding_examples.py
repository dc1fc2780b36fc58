"""examples/decoding.py and examples/chat.py: as scripts, and the chat's turns from inside."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2 import GPT2LMHeadModel, GPT2Tokenizer, TextStreamer
from tests.examples.scripts import run_here as run_script_here
from tests.parity.record import count

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STORIES = EXAMPLES / "stories-gpt2"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def run(script: str, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run an example on the CPU; a download would be an error."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments, "--device", "cpu"],
        input=stdin, capture_output=True, text=True, errors="surrogateescape",
        timeout=120, check=False, env=ENVIRONMENT,
    )  # fmt: skip


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run_here(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> Any:
    """Run an example in this process, where torch is imported already; returns its module."""
    example = module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--device", "cpu"])
    example.main()
    return example


@pytest.fixture(scope="module")
def tokenizer() -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(STORIES)


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(STORIES)


# ---------------------------------------------------------------------------------- decoding.py


def test_decoding_shows_every_method(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer) -> None:
    example = module("decoding")
    done = run_script_here("decoding.py", "--max-new-tokens", "30", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    parts = re.split(r"\n\n(?=[a-zA-Z -]+: )", done.stdout)
    shown = {part.split(":")[0]: part for part in parts[1:]}
    assert list(shown) == list(example.METHODS)
    found = {
        name: re.search(r"\[(\d+) tokens, (\d+) forward", part) for name, part in shown.items()
    }
    passes = {name: int(match[2]) for name, match in found.items() if match}
    assert len(passes) == len(example.METHODS)
    assert passes["greedy"] == passes["beams"] == 30
    assert passes["prompt lookup"] < 30
    assert "the ids of greedy: yes" in shown["prompt lookup"]
    assert "spade" in shown["constrained"].split("]")[1]
    inputs = tokenizer(example.STORY, return_tensors="pt")
    for name in ("greedy", "beams", "diverse beams", "contrastive"):
        ids = model.generate(
            **inputs, **example.METHODS[name][1], max_new_tokens=30, return_only_new_tokens=True
        )
        lines = [line[2:] for line in shown[name].splitlines()[2:]]
        texts = tokenizer.batch_decode(ids)
        assert lines == [line for text in texts for line in textwrap.wrap(text.strip(), 94)]


def test_decoding_of_some_methods_and_by_seed(
    model: GPT2LMHeadModel,
    tokenizer: GPT2Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ["--only", "top-p", "--max-new-tokens", "15", "--seed", "7"]
    example = run_here(monkeypatch, "decoding", *settings)
    shown = capsys.readouterr().out
    assert shown.count(" forward passes") == 1
    torch.manual_seed(7)
    inputs = tokenizer(example.STORY, return_tensors="pt")
    ids = model.generate(
        **inputs, **example.METHODS["top-p"][1], max_new_tokens=15, return_only_new_tokens=True
    )
    assert shown.endswith(f" s]\n  {tokenizer.decode(ids[0]).strip()}\n")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("decoding", ["--max-new-tokens", "1000"], "error: a prompt of "),
        ("decoding", ["--model", "no/such/model"], "error: 'no/such/model'"),
        ("chat", ["--max-new-tokens", "256"], "--max-new-tokens must be from 1 to 255, not 256"),
    ],
)
def test_they_say_what_is_wrong_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit, match=re.escape(message)) as ended:
        run_here(monkeypatch, name, *arguments)
    assert "\n" not in str(ended.value)


# -------------------------------------------------------------------------------------- chat.py

LINES = ["One day a girl named Mia was at the mill.", "", "Then a dog came."]


def test_chat_goes_on_as_without_a_cache(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer) -> None:
    stdin = "\n".join(LINES) + "\n"
    done = run("chat.py", "--greedy", "--max-new-tokens", "12", stdin=stdin)
    assert done.returncode == 0, done.stderr
    ids, expected, notes = [tokenizer.bos_token_id], "", []
    for i, line in enumerate(LINES):
        reused = 0 if i == 0 else len(ids) - 1
        ids += tokenizer.encode(" " * (i > 0 and line != "") + line)
        whole = model.generate(torch.tensor([ids]), max_new_tokens=12)[0].tolist()
        new = whole[len(ids) :]
        expected += f"{line}\n" * bool(line) + tokenizer.decode(new) + "\n"
        notes.append(
            f"[{reused} tokens reused from the cache, {len(ids) - reused} read, 12 written]"
        )
        ids = whole
    assert done.stdout == expected
    assert done.stderr.splitlines()[1:] == [*notes, "[goodbye]"]


def test_chat_beyond_the_positions_says_so_and_goes_on() -> None:
    line = "Mia \udcff and Tom went to the mill and the river and the barn. " + "They ran. " * 50
    more = ("--seed", "1", "--max-new-tokens", "40", "--device", "cpu")
    done = run_script_here("chat.py", *more, stdin=f"{line}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Mia \ufffd and Tom")  # a byte that is no text
    assert re.search(
        r"\[\d+ tokens and a turn are more than the model's 256 positions: it goes on from the "
        r"last 128\]\n\[0 tokens reused from the cache, 128 read, \d+ written\]",
        done.stderr,
    )


def test_chat_ends_by_control_c_between_turns() -> None:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "chat.py"), "--device", "cpu", "--greedy"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("Mia\n")
        process.stdin.flush()
        notes = [process.stderr.readline(), process.stderr.readline()]
        assert "written]" in notes[1]  # the turn is over: it waits for a line
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert rest == "[goodbye]\n"


class Pressing(TextStreamer):
    """Presses Ctrl-C behind the third new token."""

    tokens = 0

    def put(self, value: Any) -> None:
        super().put(value)
        self.tokens += 1
        if self.tokens == 4:  # the prompt comes first
            signal.raise_signal(signal.SIGINT)


def test_control_c_stops_a_turn_and_keeps_its_text(
    model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    story = module("chat").Story(model, tokenizer, {"max_new_tokens": 20})
    story.add("One day a girl named Mia")
    before = list(story.ids)
    handler = signal.getsignal(signal.SIGINT)
    story.go_on(Pressing(tokenizer, skip_prompt=True))
    assert signal.getsignal(signal.SIGINT) is handler
    stopped = list(story.ids)
    assert stopped[: len(before)] == before
    assert 3 <= len(stopped) - len(before) <= 4
    captured = capsys.readouterr()
    assert captured.out == tokenizer.decode(stopped[len(before) :]) + "\n"
    assert "[stopped; 0 tokens reused" in captured.err
    story.go_on(TextStreamer(tokenizer, skip_prompt=True))  # and goes on from there
    assert f"[{len(stopped) - 1} tokens reused from the cache, 1 read" in capsys.readouterr().err
    whole = model.generate(torch.tensor([before]), max_new_tokens=24)[0].tolist()
    assert story.ids == whole[: len(story.ids)]
    assert len(story.ids) == len(stopped) + 20


def test_chat_reads_special_tokens_of_the_user_as_text(
    model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer
) -> None:
    story = module("chat").Story(model, tokenizer, {"max_new_tokens": 5})
    story.add("Mia <|endoftext|>")
    assert story.ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(story.ids[1:]) == "Mia <|endoftext|>"


def test_prompt_lookup_saves_passes_on_the_stories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out stories, continued from their middle; pytest's summary tells the figures."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from stories import held_out_stories

    tokenizer = GPT2Tokenizer.from_pretrained(STORIES)
    model = GPT2LMHeadModel.from_pretrained(STORIES)
    passes = 0

    def one_more(*_: object) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_hook(one_more)
    taken = {"greedy": 0, "prompt-lookup": 0}
    tokens = 0
    for story in held_out_stories(8):
        ids = tokenizer.encode(f"<|endoftext|>{story.text}")
        prompt = torch.tensor([ids[: len(ids) // 2]])
        outputs = []
        for name, more in (("greedy", {}), ("prompt-lookup", {"prompt_lookup_num_tokens": 10})):
            passes = 0
            outputs.append(model.generate(prompt, max_new_tokens=100, **more))
            taken[name] += passes
        assert torch.equal(*outputs)
        tokens += outputs[0].shape[1] - prompt.shape[1]
    assert taken["greedy"] == tokens
    assert taken["prompt-lookup"] < tokens
    count("prompt-lookup on the stories: tokens", tokens)
    count("prompt-lookup on the stories: forward passes", taken["prompt-lookup"])
