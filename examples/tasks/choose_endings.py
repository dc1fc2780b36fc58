"""GPT2DoubleHeadsModel: which of two endings is true?

    python examples/tasks/choose_endings.py

Each story comes with a right and a wrong last sentence, which differ in a person or a place
only. A new token, [CLS], is put behind either: the model is resized for it, and the
multiple-choice head judges each ending by what the model knows there. The language-modelling
head learns beside it to name, behind the [CLS], the person or place that is right. That makes
the model look the fact up in the story, which one bit per story (this ending, not that one)
teaches far more slowly. A guess is right half of the time; the model before any fine-tuning
finds the right ending more probable for about 78 % of the stories, but has no head to say so.
"""

from __future__ import annotations

import random

import torch
from finetuning import (
    CHECKPOINT,
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

from gpt2 import GPT2DoubleHeadsModel, GPT2Tokenizer


def main() -> None:
    options = parse_options(__doc__, steps=650, batch_size=8)
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT, add_bos_token=True)
    model = GPT2DoubleHeadsModel.from_pretrained(CHECKPOINT)
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    model.resize_token_embeddings(len(tokenizer))

    def step(stories: list[Story]) -> tuple[Tensor, Tensor]:
        right = torch.tensor([place_of_right_ending(s) for s in stories])  # (B,)
        texts = [
            f"{s.context} {s.right_ending if choice == place else s.wrong_ending}[CLS]{truth(s)}"
            for s, place in zip(stories, right.tolist(), strict=True)
            for choice in range(2)
        ]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        ids = inputs["input_ids"].unflatten(0, (-1, 2))  # (B, 2, T)
        cls = (ids == tokenizer.cls_token_id).int().argmax(-1)  # (B, 2)
        is_truth = torch.arange(ids.shape[-1]) > cls[..., None]  # (B, 2, T), and padding
        output = model(
            input_ids=ids,
            attention_mask=inputs["attention_mask"].unflatten(0, (-1, 2)),
            mc_token_ids=cls,
            labels=ids.masked_fill(~is_truth, -100),
            mc_labels=right,
        )
        return output.mc_loss + output.loss, output.mc_logits.argmax(-1) == right

    test = held_out(options)
    train(model, step, options, lr=2e-3)
    _, right = evaluate(model, step, test)
    save(options, model, tokenizer)
    baseline = majority(map(place_of_right_ending, test))
    report("endings", right.float().mean().item(), baseline, "always the same place")


def truth(story: Story) -> str:
    """The words of the right ending that the wrong one does not have, a space before them."""
    right, wrong = story.right_ending.split(), story.wrong_ending.split()
    while right and wrong and right[0] == wrong[0]:
        del right[0], wrong[0]
    while right and wrong and right[-1] == wrong[-1]:
        del right[-1], wrong[-1]
    return "".join(f" {word}" for word in right).rstrip(".?")


def place_of_right_ending(story: Story) -> int:
    """0 or 1, the same one every time that the story is shown."""
    return random.Random(story.text).randrange(2)


if __name__ == "__main__":
    main()
