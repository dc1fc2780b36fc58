"""GPT2ForQuestionAnswering: which words of the story are the answer?

    python examples/tasks/answer_questions.py

The question comes first and the story after it, since GPT-2 reads from left to right and should
know what to look for. The head scores every token as the first and as the last of the answer;
the best span of a few tokens is the answer, and it counts where its words are exactly the right
ones. Some answers cannot be known where they stand ("Tom took the kite": on reading "Tom",
nothing has been taken), the model then bets on who is likely.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import torch
from finetuning import (
    CHECKPOINT,
    Lora,
    Story,
    evaluate,
    held_out,
    majority,
    parse_options,
    report,
    save,
    train,
)
from torch import Tensor

from gpt2 import GPT2ForQuestionAnswering, GPT2Tokenizer

LONGEST = 8  # tokens that an answer may have


def main() -> None:
    options = parse_options(__doc__, steps=330, lr=1.5e-3, lora=Lora(lr=7e-3, steps=330))
    # Question and story begin behind an <|endoftext|> each, as in the checkpoint's training.
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT, add_bos_token=True)
    model = GPT2ForQuestionAnswering.from_pretrained(CHECKPOINT)

    def step(stories: list[Story]) -> tuple[Tensor, Tensor]:
        inputs = tokenizer(
            [s.question for s in stories],
            [s.text for s in stories],
            padding=True,
            return_tensors="pt",
        )
        # The tokens of the answer's first and last character, in the second text of the pair.
        first = [inputs.char_to_token(i, s.answer_start, 1) for i, s in enumerate(stories)]
        last = [inputs.char_to_token(i, s.answer_end - 1, 1) for i, s in enumerate(stories)]
        output = model(
            **inputs, start_positions=torch.tensor(first), end_positions=torch.tensor(last)
        )
        right = []
        for row, (start, end) in enumerate(best_spans(output.start_logits, output.end_logits)):
            answer = tokenizer.decode(inputs["input_ids"][row, start : end + 1])
            right.append(answer.strip() == stories[row].answer)
        return output.loss, torch.tensor(right)

    test = held_out(options)
    train(model, step, options, head="qa_outputs")
    _, right = evaluate(model, step, test)
    save(options, model, tokenizer)
    baseline, what = best_baseline(test)
    report("answers", right.float().mean().item(), baseline, what)


def best_spans(start_logits: Tensor, end_logits: Tensor) -> list[list[int]]:
    """First and last token of the likeliest answer in each row; logits (B, T)."""
    scores = start_logits[:, :, None] + end_logits[:, None, :]  # (B, first, last)
    allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(LONGEST - 1)
    best = scores.masked_fill(~allowed, -torch.inf).flatten(1).argmax(-1)  # (B,)
    return torch.stack(torch.unravel_index(best, scores.shape[1:]), -1).tolist()


def best_baseline(stories: Sequence[Story]) -> tuple[float, str]:
    """The best of the simple rules, each at its best on these very stories.

    For each kind of question ("Who has …", "Where is …") always the same answer, or always the
    same mention of somebody, something or some place in the story, such as the last one.
    """
    kinds = defaultdict(list)
    for story in stories:
        kinds[" ".join(story.question.split()[:2])].append(story)
    same = sum(majority(s.answer for s in kind) * len(kind) for kind in kinds.values())
    rules = {"the most frequent answer to that kind of question": same / len(stories)}
    for number, name in [(0, "first"), (1, "second"), (-2, "last but one"), (-1, "last")]:
        hits = [is_mention(story, number) for story in stories]
        rules[f"the {name} mention that fits the question"] = sum(hits) / len(hits)
    return max((accuracy, rule) for rule, accuracy in rules.items())


def is_mention(story: Story, number: int) -> bool:
    """Whether that mention of who, what or where, as the question asks, is the answer.

    Only the last word is compared, in favour of the baseline.
    """
    asked = story.question.split()[0].lower()
    words = [word.strip('.,!?":') for word in story.words]
    groups = groupby(zip(story.tags, words, strict=True), key=lambda pair: pair[0])
    found = [list(group)[-1][1] for tag, group in groups if tag == asked]
    return -len(found) <= number < len(found) and found[number] == story.answer.split()[-1]


if __name__ == "__main__":
    main()
