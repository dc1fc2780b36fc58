"""Run every task example, one after the other, and repeat their last lines at the end.

python examples/tasks/all.py            about ten minutes on two cores
python examples/tasks/all.py --lora     each with LoRA as well, and how much of the gain that has
python examples/tasks/all.py --quick    to see that they run
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

TASKS = (
    ("probe_features.py",),
    ("learn_quizzes.py",),
    ("choose_endings.py",),
    ("answer_questions.py",),
    ("classify_stories.py",),
    ("classify_stories.py", "--topics"),
    ("tag_words.py",),
)
HEADER = "task     baseline   full   LoRA  share of the gain  trained parameters  seconds, LoRA"
FROZEN = "probe_features.py"  # trains no weight of the model, so there is nothing to adapt


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    parser.add_argument("--lora", action="store_true", help="each with adapters as well")
    parser.add_argument("--seed", default="0", help="as in the examples")
    options = parser.parse_args()
    common = ["--seed", options.seed, *(["--quick"] if options.quick else [])]
    lines, rows = [], []
    for task in TASKS:
        whole = run([*task, *common])
        lines.append(whole.splitlines()[-1])
        if options.lora and task[0] != FROZEN:
            adapted = run([*task, *common, "--lora"])
            lines.append(f"{adapted.splitlines()[-1]}, with LoRA")
            rows.append(compare(whole, adapted))
    print("\n" + "\n".join(lines))
    if rows:
        print(f"\n{HEADER}")
        print("\n".join(rows))
    return 0


def run(arguments: list[str]) -> str:
    """What the example printed; ends this process if the example failed."""
    print(f"\n== {' '.join(arguments)}", flush=True)
    command = [sys.executable, str(Path(__file__).with_name(arguments[0])), *arguments[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def compare(whole: str, adapted: str) -> str:
    """A row of the table: accuracies in percent, of the two outputs of one task."""
    pattern = r"(\w+): held-out accuracy ([\d.]+)%, baseline ([\d.]+)% .*, (\d+) s, torch"
    task, *numbers, seconds = re.findall(pattern, whole)[-1]
    full, baseline = map(float, numbers)
    _, lora, _, seconds_lora = re.findall(pattern, adapted)[-1]
    count, part = re.findall(r"([\d,]+) of [\d,]+ parameters train \(([\d.]+)%\)", adapted)[-1]
    share = "no gain"
    if full > baseline:
        share = f"{(float(lora) - baseline) / (full - baseline):.1%}"
    return (
        f"{task:<8} {baseline:8.1f} {full:6.1f} {lora:>6} {share:>18} {count:>11} ({part} %) "
        f"{seconds:>8} {seconds_lora:>5}"
    )


if __name__ == "__main__":
    sys.exit(main())
