"""Run every task example, one after the other, and repeat their last lines at the end.

python examples/tasks/all.py            about ten minutes on two cores
python examples/tasks/all.py --quick    to see that they run
"""

from __future__ import annotations

import argparse
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of each")
    parser.add_argument("--seed", default="0", help="as in the examples")
    options = parser.parse_args()
    lines = []
    for script, *arguments in TASKS:
        command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
        command += ["--seed", options.seed, *(["--quick"] if options.quick else [])]
        print(f"\n== {script} {' '.join(arguments)}", flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            return done.returncode
        lines.append(done.stdout.splitlines()[-1])
    print("\n" + "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
