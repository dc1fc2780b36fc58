"""GPT2LMHeadModel: go on training, on a kind of text that the model has never seen.

    python examples/tasks/learn_quizzes.py

The new texts are stories with a quiz behind them: "… Question: Who has the kite now? Answer:
Zoe." The story is given, so only the quiz counts in the loss (-100 elsewhere). Loss and
accuracy of the next token are measured before and after, and how many whole answers are right,
which is what greedy decoding would write.

With --lora the head has a weight of its own, which begins as a copy of the embedding, and an
adapter like the blocks. For the stories lack "Question" and "who": the tokens of these words have
all but the same row in the table, which a frozen head cannot tell apart.
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

from gpt2 import BatchEncoding, GPT2LMHeadModel, GPT2Tokenizer

END = "<|endoftext|>"


def main() -> None:
    options = parse_options(
        __doc__,
        steps=400,
        lora=Lora(lr=1e-2, steps=450, rank=4, targets="c_attn,mlp.c_fc,lm_head", ratio=10),
    )
    tokenizer = GPT2Tokenizer.from_pretrained(CHECKPOINT)
    model = GPT2LMHeadModel.from_pretrained(CHECKPOINT, tie_word_embeddings=not options.lora)

    def read(stories: list[Story]) -> tuple[BatchEncoding, Tensor]:
        inputs = tokenizer(
            [f"{END}{s.text}" for s in stories],
            [quiz(s) for s in stories],
            padding=True,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        of_quiz = inputs.pop("token_type_ids") == 1  # (B, T): not story, not padding
        return inputs, inputs["input_ids"].masked_fill(~of_quiz, -100)

    def step(stories: list[Story]) -> tuple[Tensor, Tensor]:
        inputs, labels = read(stories)
        output = model(**inputs, labels=labels)
        right = output.logits[:, :-1].argmax(-1) == labels[:, 1:]  # each token by those before
        return output.loss, right[labels[:, 1:] != -100]

    def answers(stories: list[Story]) -> tuple[Tensor, Tensor]:
        inputs, labels = read(stories)
        for row, story in enumerate(stories):
            question = quiz(story).index("Answer:") + len("Answer")
            labels[row, : inputs.char_to_token(row, question, 1) + 1] = -100
        output = model(**inputs, labels=labels)
        right = output.logits[:, :-1].argmax(-1) == labels[:, 1:]
        return output.loss, (right | (labels[:, 1:] == -100)).all(-1)  # (B,)

    test = held_out(options)
    before = evaluate(model, step, test)
    train(model, step, options)
    after = evaluate(model, step, test)
    whole = evaluate(model, answers, test)[1].float().mean()
    save(options, model, tokenizer)
    show(model, tokenizer, test[0])
    for when, (loss, right) in (("before", before), ("after", after)):
        print(f"  {when:<7} loss {loss:.3f} nats per token, accuracy {right.float().mean():.1%}")
    usual = majority(story.answer for story in test)
    print(f"  whole answers right: {whole:.1%} (the most frequent answer: {usual:.1%})")
    ids = [id_ for story in test for id_ in tokenizer.encode(quiz(story))]
    accuracy = after[1].float().mean().item()
    report("quizzes", accuracy, majority(ids), "always the most frequent token")


def quiz(story: Story) -> str:
    """What comes behind the story."""
    return f" Question: {story.question} Answer: {story.answer}.{END}"


def show(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, story: Story) -> None:
    """Print a story and what the model answers."""
    text = f"{story.text} Question: {story.question} Answer:"
    inputs = tokenizer(f"{END}{text}", return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    print(tokenizer.decode(ids[0], skip_special_tokens=True), f"({story.answer} is right)\n")


if __name__ == "__main__":
    main()
