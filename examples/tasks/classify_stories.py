"""GPT2ForSequenceClassification: how does the hero feel in the end? What is the story about?

    python examples/tasks/classify_stories.py            one of four moods
    python examples/tasks/classify_stories.py --topics   any of nine topics

The first is single-label classification (one class is right, cross-entropy), the second
multi-label (each class is right or not, binary cross-entropy). The head reads the last real
token of each row, so rows of different lengths need their mask and no pad token.
"""

from __future__ import annotations

import sys

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
from stories import MOODS, TOPICS
from torch import Tensor

from gpt2 import GPT2ForSequenceClassification, GPT2Tokenizer


def main() -> None:
    # "windy", "rainy", "sunny" and five more words for the weather are close together in the
    # frozen table. Adapters in the blocks alone do not find the storms among them.
    of_topics = Lora(lr=1.5e-2, steps=1000, rank=3, targets="c_attn,mlp.c_fc,wte", ratio=10)
    options = parse_options(
        __doc__,
        steps=400,
        lora=of_topics if "--topics" in sys.argv else Lora(lr=5e-3, steps=400),
        more=lambda parser: parser.add_argument(
            "--topics", action="store_true", help="multi-label: topics instead of moods"
        ),
    )
    names = list(TOPICS) if options.topics else list(MOODS)
    # The checkpoint has seen every story begin behind an <|endoftext|>.
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT, add_bos_token=True)
    model = GPT2ForSequenceClassification.from_pretrained(
        CHECKPOINT,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        problem_type=f"{'multi' if options.topics else 'single'}_label_classification",
    )

    def mood(stories: list[Story]) -> tuple[Tensor, Tensor]:
        inputs = tokenizer([s.text for s in stories], padding=True, return_tensors="pt")
        labels = torch.tensor([names.index(s.mood) for s in stories])  # (B,)
        output = model(**inputs, labels=labels)
        return output.loss, output.logits.argmax(-1) == labels

    def topics(stories: list[Story]) -> tuple[Tensor, Tensor]:
        inputs = tokenizer([s.text for s in stories], padding=True, return_tensors="pt")
        labels = torch.tensor([[float(name in s.topics) for name in names] for s in stories])
        output = model(**inputs, labels=labels)  # labels and logits (B, C)
        return output.loss, (output.logits > 0) == labels.bool()

    test = held_out(options)
    if not options.topics:
        train(model, mood, options, head="score")
        _, right = evaluate(model, mood, test)
        save(options, model, tokenizer)
        baseline = majority(story.mood for story in test)
        report("mood", right.float().mean().item(), baseline, "the most frequent mood")
        return
    train(model, topics, options, head="score")
    _, right = evaluate(model, topics, test)  # (stories, C)
    save(options, model, tokenizer)
    for number, name in enumerate(names):
        usual = majority(name in story.topics for story in test)
        print(f"  {name:<10} {right[:, number].float().mean():.1%} (baseline {usual:.1%})")
    baseline = majority(story.topics for story in test)
    report("topics", right.all(-1).float().mean().item(), baseline, "the most frequent set")


if __name__ == "__main__":
    main()
