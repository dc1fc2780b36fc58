"""The benchmarks of the model, run on a tiny shape: they work, and say what they promise to say.

No time is asserted. What compiles is left to the benchmark itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.processes import forkserver

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
INSTALLED = [p for p in ("transformers", "ctranslate2", "torchao") if importlib.util.find_spec(p)]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of the examples, as benchmark.py does; nothing pauses between turns.

    A row's process is forked from one that has imported torch, and not spawned.
    """
    monkeypatch.syspath_prepend(str(EXAMPLES))
    common = importlib.import_module("benchmark_common")
    monkeypatch.setattr(common, "PAUSE", 0.0)
    monkeypatch.setattr(common, "get_context", lambda _spawn: forkserver())
    limits = importlib.import_module("benchmark_limits")
    monkeypatch.setattr(limits, "STREAM", 2**16)
    monkeypatch.setattr(limits, "SQUARE", 64)
    return importlib.import_module


def options(**settings: Any) -> Any:
    common = importlib.import_module("benchmark_common")
    given = {"rounds": 1, "threads": torch.get_num_threads(), "shape": "tiny", **settings}
    return common.Options(**given)


def table(text: str) -> dict[str, list[str]]:
    """The first word of every line -> the others."""
    return {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words}


def test_decoding_beside_the_peers(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    every = ["transformers", "ctranslate2-float32", "torchao-weights", "torchao-dynamic"]
    every += ["eager", "float32-prepared", "int8-prepared"]
    missing = {"transformers", "ctranslate2", "torchao"} - set(INSTALLED)
    rows = [row for row in every if row.split("-")[0] not in missing]
    load("benchmark_decode").run(options(against=INSTALLED, parts=["b1", "positions"], only=rows))
    printed = capsys.readouterr().out
    speeds, positions = printed.split("ms of a step around a position")
    assert "stream read" in speeds
    assert "GEMM" in speeds
    lines = table(speeds)
    for row in rows:
        assert len(lines[row]) == len(lines["eager"])
        if "int8" not in row and "torchao" not in row:
            assert lines[row][-1] == "100%"  # everybody makes the same ids
    for row in ("eager", "int8-prepared"):
        early, late, ratio = map(float, table(positions)[row])
        assert ratio == pytest.approx(late / early, rel=0.2)  # both are printed to 0.01 ms
    if "transformers" in INSTALLED:
        assert "decode B=1, fp32 eager, steps" in printed


def test_perplexity_of_prepared_models(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    decode = load("benchmark_decode")
    goals = decode.Goals()
    decode.perplexities(goals, stories=4, one_by_one=1, compiled=False)
    assert len(goals.lines) == 3
    lines = table(capsys.readouterr().out)
    for weights in ("float32", "bfloat16", "int8"):
        whole, change, _, few, *_ = lines[weights]
        assert 1 < float(whole) < 3
        assert 1 < float(few) < 3
        assert abs(float(change)) < 1


def test_prefill(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    against = [peer for peer in INSTALLED if peer == "transformers"]
    load("benchmark_prefill").run(options(against=against, parts=["bfloat16"]))
    printed = capsys.readouterr().out
    assert "the products alone" in printed
    assert "float32" not in printed
    assert printed.count("gpt2    ") == 1
    assert printed.count("prefill 1×1024, bfloat16") == len(against)  # the goal


def test_training_takes_the_steps_that_it_times(
    load: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    load("benchmark_train").run(options())
    printed = capsys.readouterr().out
    for row in ("gpt2, logits returned", "gpt2, return_logits=False"):
        line = next(line for line in printed.splitlines() if line.startswith(row))
        first, last = map(float, line.split()[-2:])
        assert last < first < 7  # V = 512: ln 512 = 6.2 at the start


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's VmHWM")
def test_memory_of_a_training_step(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    row = "gpt2, return_logits=False"
    load("benchmark_memory").run(options(only=[row]))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(row))
    peak, standing, on_top = map(float, line.removeprefix(row).split())
    assert peak > standing > 100
    assert on_top == pytest.approx(peak - standing, abs=1)


@pytest.fixture
def gpu(load: Any) -> ModuleType:
    return load("benchmark_gpu")


def test_gpu_tables(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    goals = gpu.Goals()
    gpu.tables(
        "cpu", "tiny", torch.float32, goals, rounds=1, batches=(1,), backends=("eager", "sdpa"),
        lengths={"training": (1024,), "inference": (128,)},
    )  # fmt: skip
    goals.show()
    printed = capsys.readouterr().out
    assert "(+50.8)" in printed  # documented for training 1×1024
    assert "(+14.7)" in printed  # and for inference 1×128
    assert "training 1×1024, sdpa over eager, speed-up" in printed


def test_gpu_tables_leave_out_what_cannot_run(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.tables(
        "cpu", "tiny", torch.float32, gpu.Goals(), rounds=1, batches=(1,),
        lengths={"training": (8,)}, backends=("eager", "flash_attention_2"),
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "flash_attention_2 is left out" in printed
    assert "1×8      eager" in printed


def test_gpu_tables_where_memory_runs_out(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(gpu, "_training", too_much)
    gpu.tables(
        "cpu", "tiny", torch.float32, gpu.Goals(), rounds=1, batches=(2,), backends=("eager",),
        lengths={"training": (1024,)},
    )  # fmt: skip
    assert "out of memory" in capsys.readouterr().out


def test_gpu_decoding(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    goals = gpu.Goals()
    gpu.decode("cpu", "tiny", 1e10, options(only=[gpu.EAGER]), goals)
    assert len(table(capsys.readouterr().out)[gpu.EAGER]) == 4


def test_gpu_training(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    goals = gpu.Goals()
    steps = [
        gpu.Step(1, 16, compiled=False, padded=True),
        gpu.Step(1, 16, compiled=False, padded=False, as_nanogpt=True),
    ]
    gpu.train("cpu", "tiny", 1e12, 1e12, goals, rounds=1, steps=steps)
    goals.show()
    printed = capsys.readouterr().out
    lines = {line[:36].strip(): line[36:].split() for line in printed.splitlines()}
    milliseconds, per_second, _, _, _, mfu, _ = lines["1×16, eager, V padded"]
    assert float(per_second.replace(",", "")) == pytest.approx(16000 / float(milliseconds), rel=0.1)
    assert 0 <= float(mfu) < 1
    assert lines["nanoGPT 1×16, eager"][1] == "~250"
    assert "115 ms a batch" in printed
    assert "train tiny bf16, 1×16, eager, V padded: MFU" in printed


def test_gpu_training_rows(gpu: ModuleType) -> None:
    """The vocabulary is padded where the row says so; nanoGPT has its size and no dropout."""
    assert len({step.name for step in gpu.STEPS}) == len(gpu.STEPS)
    published = {
        s.compiled for s in gpu.STEPS if s.as_nanogpt and (s.batch, s.length) == (12, 1024)
    }
    assert published == gpu.NANOGPT.keys()
    model = gpu._random_model("tiny", "cpu", torch.float32, dropout=0.0)
    assert not any(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))


def test_gpu_gains_are_what_eager_takes_more(gpu: ModuleType) -> None:
    """As documented: 0.316 s over 0.209 s is +51 %, 8682 MB over 4881 MB +78 %."""
    faster, smaller = gpu._gains(gpu.Cost(0.316, 8682.26), gpu.Cost(0.209, 4881.09))
    assert faster == pytest.approx(51.2, abs=0.05)
    assert smaller == pytest.approx(77.875, abs=0.001)
    assert gpu._gains(None, gpu.Cost(1, 1)) == (None, None)


def test_goals_are_met_or_not(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    goals = load("benchmark_common").Goals()
    goals.add("fast", 2.0, ">=", 1.5, "x")
    goals.add("slow", 1.4, ">=", 1.5, "x")
    goals.add("small", 0.44, "<=", 0.45)
    goals.add("large", 0.46, "<=", 0.45)
    goals.add("unmeasured", None, "<=", 0.45)
    goals.show()
    lines = table(capsys.readouterr().out)
    ends = {name: words[-1] for name, words in lines.items() if name != "asked"}
    assert ends == {"fast": "yes", "slow": "NO", "small": "yes", "large": "NO"}


def test_gpu_peaks_by_name(gpu: ModuleType) -> None:
    assert gpu.peak_flops("NVIDIA H200") == gpu.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert gpu.peak_flops("NVIDIA H20") == 148e12
    assert gpu.peak_flops("Something else") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["decode", "--parts", "b9"], "the parts of decode are: b1, b8"),
        (["decode", "--shape", "tiny", "--only", "quick"], "--only names 'quick'"),
        (["prefill", "--shape", "huge"], "--shape is 'huge'"),
        (["train", "--threads", "0"], "--threads must be at least 1"),
        (["train", "--against", "nanogpt"], "the peers are transformers"),
        pytest.param(
            ["gpu"],
            "gpu: this needs a CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
    ids=["part", "row", "shape", "threads", "peer", "no GPU"],
)
def test_what_cannot_be_is_said_in_a_line(
    load: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit) as left:
        load("benchmark").main()
    assert says in str(left.value) + capsys.readouterr().err
