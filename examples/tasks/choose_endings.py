"""GPT2DoubleHeadsModel: which of two endings is true?

    python examples/tasks/choose_endings.py

Each story comes with a right and a wrong last sentence, which differ in a person or a place
only. A new token, [CLS], is put behind either: the model is resized for it, and the
multiple-choice head reads what the model knows there. The language-modelling head goes on
learning beside it, from the right ending. A guess is right half of the time.
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
    options = parse_options(__doc__, steps=400, batch_size=8)
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT, add_bos_token=True)
    model = GPT2DoubleHeadsModel.from_pretrained(CHECKPOINT)
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    model.resize_token_embeddings(len(tokenizer))

    def step(stories: list[Story]) -> tuple[Tensor, Tensor]:
        right = torch.tensor([place_of_right_ending(s) for s in stories])  # (B,)
        texts = [
            f"{s.context} {s.right_ending if choice == place else s.wrong_ending}[CLS]"
            for s, place in zip(stories, right.tolist(), strict=True)
            for choice in range(2)
        ]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        ids = inputs["input_ids"].unflatten(0, (-1, 2))  # (B, 2, T)
        mask = inputs["attention_mask"].unflatten(0, (-1, 2))
        is_right = torch.arange(2) == right[:, None]  # (B, 2)
        output = model(
            input_ids=ids,
            attention_mask=mask,
            mc_token_ids=(ids == tokenizer.cls_token_id).int().argmax(-1),  # (B, 2)
            labels=ids.masked_fill(~is_right[..., None], -100),
            mc_labels=right,
        )
        return output.mc_loss + 0.5 * output.loss, output.mc_logits.argmax(-1) == right

    test = held_out(options)
    _, before = evaluate(model, step, test[:200])
    print("before", before.float().mean())
    train(model, step, options)
    _, right = evaluate(model, step, test)
    save(options, model, tokenizer)
    baseline = majority(map(place_of_right_ending, test))
    report("endings", right.float().mean().item(), baseline, "always the same place")


def place_of_right_ending(story: Story) -> int:
    """0 or 1, the same one every time that the story is shown."""
    return random.Random(story.text).randrange(2)


if __name__ == "__main__":
    main()
