"""GPT2ForTokenClassification: which words say who, which what, which where?

    python examples/tasks/tag_words.py

Each word of a story has one of four tags. GPT-2 reads from left to right, so a word is judged
at its last token, where it has been read as a whole but nothing after it; the other tokens are
left out of the loss (-100). That is enough here: an adjective is the thing's as soon as it is
read ("a paper boat"), and only the words before tell a toy boat from one to hide in.
"""

from __future__ import annotations

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

from gpt2 import BatchEncoding, GPT2ForTokenClassification, GPT2Tokenizer

TAGS = ("who", "what", "where", "other")


def main() -> None:
    options = parse_options(__doc__, steps=150, lora=Lora(lr=1e-2, steps=150))
    # Words that are given one by one get the space before them that they have in a text.
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT, add_bos_token=True, add_prefix_space=True)
    model = GPT2ForTokenClassification.from_pretrained(
        CHECKPOINT,
        id2label=dict(enumerate(TAGS)),
        label2id={tag: number for number, tag in enumerate(TAGS)},
    )

    def step(stories: list[Story]) -> tuple[Tensor, Tensor]:
        inputs = tokenizer(
            [s.words for s in stories],
            is_split_into_words=True,
            padding=True,
            return_tensors="pt",
        )
        labels = torch.tensor([labels_of(inputs, row, s) for row, s in enumerate(stories)])
        output = model(**inputs, labels=labels)  # logits (B, T, C)
        judged = labels != -100
        return output.loss, (output.logits.argmax(-1) == labels)[judged]

    test = held_out(options)
    train(model, step, options, head="classifier")
    _, right = evaluate(model, step, test)
    save(options, model, tokenizer)
    baseline = majority(tag for story in test for tag in story.tags)
    report("tags", right.float().mean().item(), baseline, "always other")


def labels_of(inputs: BatchEncoding, row: int, story: Story) -> list[int]:
    """The tag's number at the last token of each word, -100 at all else."""
    words = inputs.word_ids(row)  # per token the number of its word, None for padding
    return [
        -100 if word is None or word == after else TAGS.index(story.tags[word])
        for word, after in zip(words, [*words[1:], None], strict=True)
    ]


if __name__ == "__main__":
    main()
