"""The task examples run, end with a figure beside its baseline, and save what they trained.

One of them runs as a process, the others in this one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gpt2
from gpt2.training.lora import LoraConfig, add_lora
from tests.examples.scripts import EXAMPLES, run_here

TASKS = EXAMPLES / "tasks"
CHECKPOINT = TASKS.parent / "stories-gpt2"
RUNS = [
    ("probe_features.py", "GPT2Model", "features"),
    ("learn_quizzes.py", "GPT2LMHeadModel", "quizzes"),
    ("choose_endings.py", "GPT2DoubleHeadsModel", "endings"),
    ("answer_questions.py", "GPT2ForQuestionAnswering", "answers"),
    ("classify_stories.py", "GPT2ForSequenceClassification", "mood"),
    ("classify_stories.py --topics", "GPT2ForSequenceClassification", "topics"),
    ("tag_words.py", "GPT2ForTokenClassification", "tags"),
]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here(f"tasks/{script}", *arguments)


def run_as_a_process(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TASKS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(("command", "name", "task"), RUNS, ids=[task for *_, task in RUNS])
def test_a_task_trains_measures_and_saves(
    tmp_path: Path, command: str, name: str, task: str
) -> None:
    start = run_as_a_process if task == "mood" else run
    done = start(*command.split(), "--quick", "--save", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        rf"{task}: held-out accuracy [\d.]+%, baseline [\d.]+% \(.+\), \d+ s, torch \S+",
        done.stdout.splitlines()[-1],
    )
    assert re.search(r"\] step 3/3  loss \d+\.\d+  accuracy [\d.]+%  0:00 left", done.stderr)
    model = getattr(gpt2, name).from_pretrained(tmp_path / "out")
    tokenizer = gpt2.GPT2Tokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer)
    assert (tokenizer.cls_token is not None) == (task == "endings")


def test_with_lora_few_parameters_train_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    adapters = ("--lora", "--rank", "2", "--targets", "c_attn,mlp.c_fc", "--lr", "0.01")
    done = run("choose_endings.py", "--quick", *adapters, "--save", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    said = re.search(r"LoRA of rank 2 in c_attn,mlp.c_fc: ([\d,]+) of ([\d,]+) param", done.stdout)
    assert said is not None
    count, whole = (int(number.replace(",", "")) for number in said.groups())
    # A (r, in) and B (out, r) in each of four blocks, and the head with its bias
    assert count == 4 * 2 * ((160 + 480) + (160 + 640)) + 161
    assert count < 0.02 * whole
    before = dict(gpt2.GPT2LMHeadModel.from_pretrained(CHECKPOINT).named_parameters())
    after = gpt2.GPT2LMHeadModel.from_pretrained(tmp_path / "out")  # merged: a plain model
    for name, parameter in after.named_parameters():
        same = torch.equal(parameter[: len(before[name])], before[name])  # but for the new [CLS]
        assert same == (not name.endswith(("c_attn.weight", "c_fc.weight"))), name


def test_quizzes_with_lora_have_a_head_of_its_own_which_is_saved_merged(
    tmp_path: Path, modules: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    done = run("learn_quizzes.py", "--quick", "--lora", "--lr", "0.05", "--save", str(out))
    assert done.returncode == 0, done.stderr
    # of the tied model's parameters: a second table would make the share look smaller
    assert "27,776 of 1,442,240 parameters train (1.93%); the head's copy of the" in done.stdout
    before = gpt2.GPT2LMHeadModel.from_pretrained(CHECKPOINT)
    after = gpt2.GPT2LMHeadModel.from_pretrained(out)
    assert not after.config.tie_word_embeddings
    table = before.transformer.wte.weight
    assert torch.equal(after.transformer.wte.weight, table)
    assert (after.lm_head.weight - table).abs().max() > 0.01
    story = next(modules["finetuning"].held_out_stories(1))
    tokenizer = gpt2.GPT2Tokenizer.from_pretrained(out)
    quizzes = modules["learn_quizzes"]
    said = []
    for model in (after, before):
        quizzes.show(model, tokenizer, story)
        said.append(capsys.readouterr().out)
    assert said[0] in done.stdout  # loaded again, it answers as it did
    assert said[1] not in done.stdout


@pytest.mark.parametrize("command", [c for c, *_, task in RUNS if task != "features"])
def test_a_tasks_own_adapters_are_below_two_percent(command: str) -> None:
    done = run(*command.split(), "--quick", "--lora")
    assert done.returncode == 0, done.stderr
    said = re.search(r"LoRA of rank .+: ([\d,]+) of ([\d,]+) parameters train", done.stdout)
    assert said is not None
    count, whole = (int(number.replace(",", "")) for number in said.groups())
    assert 0 < count < 0.02 * whole  # the head included


def test_each_mode_has_its_own_defaults() -> None:
    moods = " ".join(run("classify_stories.py", "--help").stdout.split())
    topics = " ".join(run("classify_stories.py", "--topics", "--help").stdout.split())
    for text in (moods, topics):
        assert re.search(r"highest learning rate \(default: 0.001, with --lora 0.0\d+\)", text)
    # Topics take other layers than moods.
    assert ("by commas (c_attn)" in moods, "by commas (c_attn)" in topics) == (True, False)
    done = run("classify_stories.py", "--topic", "--quick")  # half an option is none
    assert done.returncode == 2
    assert "unrecognized arguments: --topic" in done.stderr


def test_all_compares_lora_with_full_fine_tuning(modules: dict[str, ModuleType]) -> None:
    whole = "mood: held-out accuracy 99.9%, baseline 28.1% (always sad), 60 s, torch 2"
    adapted = (
        "  LoRA of rank 8 in c_attn: 21,124 of 1,443,040 parameters train (1.46%)\n"
        "mood: held-out accuracy 98.1%, baseline 28.1% (always sad), 50 s, torch 2"
    )
    row = modules["all"].compare(whole, adapted)
    numbers = ["28.1", "99.9", "98.1", "97.5%", "21,124", "(1.46", "%)", "60", "50"]
    assert row.split() == ["mood", *numbers]
    row = modules["all"].compare(whole.replace("99.9", "28.1"), adapted)
    assert row.split()[4:6] == ["no", "gain"]


def test_the_probe_has_nothing_to_adapt() -> None:
    done = run("probe_features.py", "--quick", "--lora")
    assert done.returncode == 2
    assert "unrecognized arguments: --lora" in done.stderr


def test_every_class_has_its_example_and_all_runs_them() -> None:
    lines = (TASKS / "all.py").read_text()
    for command, name, _ in RUNS:
        script = command.split()[0]
        assert f"{name}.from_pretrained(" in (TASKS / script).read_text()
        assert f'"{script}"' in lines


def test_options_that_cannot_be_are_refused() -> None:
    for option, value in (("--steps", "0"), ("--seed", "-1")):
        done = run("tag_words.py", option, value)
        assert done.returncode == 2
        assert f"argument {option}: must be" in done.stderr


# The parts ---------------------------------------------------------------------------


def test_the_adapters_b_learns_faster_than_the_rest(modules: dict[str, ModuleType]) -> None:
    model = gpt2.GPT2ForSequenceClassification.from_pretrained(CHECKPOINT)
    before = modules["finetuning"].rates(model, 1e-3, 1.0)
    assert [len(group["params"]) for group in before] == [0, 0, len(list(model.parameters()))]
    assert before[2]["lr"] == 1e-3
    add_lora(model, LoraConfig(target_modules=["c_attn", "wte"], modules_to_save=["score"]))
    fast, between, slow = modules["finetuning"].rates(model, 1e-2, 10.0)
    assert (fast["lr"], slow["lr"]) == (1e-2, 1e-3)
    assert between["lr"] == pytest.approx(10**-2.5)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in between["params"]] == ["transformer.wte.lora_embedding_A"]
    assert all(names[id(p)].endswith("c_attn.lora_B.weight") for p in fast["params"])
    ends = {names[id(p)].rpartition("c_attn.")[2] for p in slow["params"]}
    assert ends == {"lora_A.weight", "score.weight", "transformer.wte.lora_embedding_B"}
    assert len(fast["params"]) == len(slow["params"]) - 2 == 4


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    names = (
        "finetuning",
        "choose_endings",
        "answer_questions",
        "tag_words",
        "learn_quizzes",
        "all",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TASKS.parent))
        patch.syspath_prepend(str(TASKS))
        return {name: __import__(name) for name in names}


def test_batches_have_each_story_once_and_little_padding(modules: dict[str, ModuleType]) -> None:
    finetuning = modules["finetuning"]
    stories = list(finetuning.held_out_stories(70))
    batches = list(finetuning.batches(stories, 8))
    assert sorted(len(batch) for batch in batches) == [6, *[8] * 8]
    assert sorted(s.text for batch in batches for s in batch) == sorted(s.text for s in stories)

    def padded(groups: list[list[finetuning.Story]]) -> int:
        return sum(max(len(s.text) for s in g) * len(g) for g in groups)

    assert padded(batches) < padded([stories[i : i + 8] for i in range(0, 70, 8)])


def test_majority(modules: dict[str, ModuleType]) -> None:
    assert modules["finetuning"].majority(["a", "b", "a", "c"]) == 0.5


def test_the_best_span_is_not_backwards_and_not_long(modules: dict[str, ModuleType]) -> None:
    qa = modules["answer_questions"]
    start, end = torch.zeros(2, 30), torch.zeros(2, 30)
    start[0, 20], end[0, 10], end[0, 22] = 5.0, 9.0, 1.0  # the best end lies before the start
    start[1, 3], end[1, 25], end[1, 4] = 5.0, 4.0, 3.0  # … and here too far behind it
    spans = qa.best_spans(start, end)
    assert spans[1] == [3, 4]
    first, last = spans[0]
    assert 0 <= last - first < qa.LONGEST
    assert spans[0] == [10, 10] or first <= 10 == last


def test_tags_stand_at_the_last_token_of_each_word(modules: dict[str, ModuleType]) -> None:
    finetuning, tagging = modules["finetuning"], modules["tag_words"]
    tokenizer = gpt2.GPT2Tokenizer.from_pretrained(
        finetuning.CHECKPOINT, add_bos_token=True, add_prefix_space=True
    )
    story = next(finetuning.held_out_stories(1))
    inputs = tokenizer(
        [story.words], is_split_into_words=True, padding="max_length", max_length=250
    )
    labels = tagging.labels_of(inputs, 0, story)
    assert [tagging.TAGS[label] for label in labels if label != -100] == list(story.tags)
    columns = [column for column, label in enumerate(labels) if label != -100]
    ids, start = inputs["input_ids"][0], 1
    for column, word in zip(columns, story.words, strict=True):
        assert tokenizer.decode(ids[start : column + 1]) == f" {word}"
        start = column + 1


def test_the_right_ending_stands_in_either_place(modules: dict[str, ModuleType]) -> None:
    endings = modules["choose_endings"]
    places = [endings.place_of_right_ending(s) for s in modules["finetuning"].held_out_stories(200)]
    assert 70 < sum(places) < 130
