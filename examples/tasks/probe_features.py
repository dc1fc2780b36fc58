"""GPT2Model: what do its features know, without any fine-tuning?

    python examples/tasks/probe_features.py

The model stays as it is. Its hidden states, averaged over each story's real tokens, are the
features of the story, and a linear layer on top of them (a probe) learns to tell the mood in
which the story ends. Only the probe is trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
from stories import MOODS
from torch import Tensor, nn

from gpt2 import GPT2Model, GPT2Tokenizer


def main() -> None:
    options = parse_options(__doc__, steps=250, lr=1e-2)
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT, add_bos_token=True)
    model = GPT2Model.from_pretrained(CHECKPOINT)
    width = model.config.n_embd
    # Features of about the same size: each less its mean, over its standard deviation.
    probe = nn.Sequential(nn.BatchNorm1d(width, affine=False), nn.Linear(width, len(MOODS)))

    @torch.no_grad()
    def features(stories: list[Story]) -> Tensor:
        """(B, D): the last layer's hidden states, averaged over each story's tokens."""
        inputs = tokenizer([s.text for s in stories], padding=True, return_tensors="pt")
        states = model(**inputs).last_hidden_state  # (B, T, D)
        weights = inputs["attention_mask"][..., None]  # (B, T, 1), 0 at padding
        return (states * weights).sum(1) / weights.sum(1)

    def step(stories: list[Story]) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([MOODS.index(s.mood) for s in stories])
        logits = probe(features(stories))
        return F.cross_entropy(logits, labels), logits.argmax(-1) == labels

    test = held_out(options)
    train(probe, step, options)
    _, right = evaluate(probe, step, test)
    save(options, model, tokenizer)
    if options.save is not None:
        torch.save(probe.state_dict(), options.save / "probe.pt")
    baseline = majority(story.mood for story in test)
    report("features", right.float().mean().item(), baseline, "the most frequent mood")


if __name__ == "__main__":
    main()
