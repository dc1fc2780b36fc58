"""GPT2DoubleHeadsModel: which of two endings is true?

    python examples/tasks/choose_endings.py

Each story comes with a right and a wrong last sentence, which differ in a person or a place
only. A new token, [CLS], is put behind either: the model is resized for it. An ending's score
is that of the multiple-choice head, which reads the story at the [CLS], plus the
log-probability that the language-modelling head gives to the ending's words. Both learn from
which of the two scores ought to be higher. A guess is right half of the time; before any
fine-tuning the language model alone is what is measured, and what there is to improve on.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
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
from torch import Tensor, nn

from gpt2 import GPT2DoubleHeadsModel, GPT2Tokenizer


def main() -> None:
    options = parse_options(
        __doc__, steps=350, lr=5e-4, batch_size=8, lora=Lora(lr=3e-3, steps=350)
    )
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT, add_bos_token=True)
    model = GPT2DoubleHeadsModel.from_pretrained(CHECKPOINT)
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    model.resize_token_embeddings(len(tokenizer))

    def step(stories: list[Story]) -> tuple[Tensor, Tensor]:
        right = torch.tensor([place_of_right_ending(s) for s in stories])  # (B,)
        endings = [
            f" {s.right_ending if choice == place else s.wrong_ending}[CLS]"
            for s, place in zip(stories, right.tolist(), strict=True)
            for choice in range(2)
        ]
        inputs = tokenizer(
            [s.context for s in stories for _ in range(2)],
            endings,
            padding=True,
            return_token_type_ids=True,  # 1 for the ending
            return_tensors="pt",
        )
        ids, mask, types = (
            inputs[name].unflatten(0, (-1, 2))  # (B, 2, T)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        )
        is_cls = ids == tokenizer.cls_token_id
        output = model(ids, attention_mask=mask, mc_token_ids=is_cls.int().argmax(-1))
        words = (types == 1) & ~is_cls  # padding has type 0
        log_probs = output.logits[..., :-1, :].log_softmax(-1)  # (B, 2, T − 1, V)
        of_words = log_probs.gather(-1, ids[..., 1:, None])[..., 0] * words[..., 1:]
        scores = output.mc_logits + of_words.sum(-1)  # (B, 2)
        return F.cross_entropy(scores, right), scores.argmax(-1) == right

    test = held_out(options)
    nn.init.zeros_(model.multiple_choice_head.summary.weight)  # so far it knows nothing
    before = evaluate(model, step, test)[1].float().mean()
    train(model, step, options, head="multiple_choice_head")
    after = evaluate(model, step, test)[1].float().mean()
    save(options, model, tokenizer)
    print(f"  the language model alone, before fine-tuning: {before:.1%}")
    baseline = majority(map(place_of_right_ending, test))
    report("endings", after.item(), baseline, "always the same place")


def place_of_right_ending(story: Story) -> int:
    """0 or 1, the same one every time that the story is shown."""
    return random.Random(story.text).randrange(2)


if __name__ == "__main__":
    main()
