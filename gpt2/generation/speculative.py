"""Assisted decoding: guess several tokens, check them in one forward pass, keep those that hold.

The tokens are those of plain decoding: the model itself chooses each of them,
from the same scores and, in sampling, with the same noise; a guess only saves
the pass that would have brought its scores. So the distribution is the model's
own whatever is guessed, and the same seed gives the same text with and without
an assistant. A draft model draws with that noise as well, so that it mostly
guesses what will be drawn.

Rows of a batch go on at their own pace: what was guessed wrong stays in the
cache as padding where another row's guess was right, and is cut off elsewhere.

Shapes: R rows of the result, k columns fed at once, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpt2.errors import ArgumentError, ArgumentTypeError, SequenceLengthError
from gpt2.generation.decoder import Decoder
from gpt2.generation.drafting import Draft, LookupDraft, ModelDraft, Rows, padded
from gpt2.generation.outputs import GenerateDecoderOnlyOutput
from gpt2.generation.processors import ABSENT
from gpt2.generation.run import Run
from gpt2.modeling.cache import KVCache

DEFAULT_NGRAM = 2  # the documented default of max_matching_ngram_size


class Noise:
    """The exponential noise of sampling, (R, V) for each new token, drawn in their order.

    The same numbers that plain sampling draws, kept while a row may need them.
    """

    def __init__(self, generators: list[torch.Generator] | None) -> None:
        self._generators, self._drawn = generators, dict[int, Tensor]()
        self._next = self._oldest = 0

    def at(self, step: int, like: Tensor) -> Tensor:
        """Of the new token number ``step``; ``like`` (R, V) are scores."""
        step = max(step, self._oldest)  # only rows that have ended ask for what is forgotten
        while self._next <= step:
            noise = torch.empty_like(like)
            if self._generators is None:
                noise.exponential_(1)
            else:
                for row, generator in zip(noise, self._generators, strict=True):
                    row.exponential_(1, generator=generator)
            self._drawn[self._next] = noise
            self._next += 1
        return self._drawn[step]

    def forget_before(self, step: int) -> None:
        self._drawn = {at: noise for at, noise in self._drawn.items() if at >= step}
        self._oldest = step


class Chooser:
    """How a token is chosen, for several columns at once: the same for model and draft."""

    def __init__(self, run: Run) -> None:
        self.run, self.noise = run, Noise(run.generators)
        rows = torch.arange(run.prompt.rows, device=run.device)
        self._prompt_rows = rows.repeat_interleave(run.config.num_return_sequences)  # (R,)

    def __call__(
        self, scores: Tensor, begun: Rows, guesses: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores after the processors (R, k, V), and the tokens (R, k) they choose.

        Row r's column i follows ``begun[r]`` and the first i of ``guesses[r]``.
        """
        run = self.run
        if run.processors:
            scores = scores.clone()
            for row, new in enumerate(begun):
                guess, prompt_row = guesses[row] if guesses else [], self._prompt_rows[row, None]
                for i in range(len(guess) + 1):
                    so_far = torch.tensor([new + guess[:i]], dtype=torch.int64, device=run.device)
                    scores[row, i] = run.process(scores[row, i, None], so_far, prompt_row)[0]
        if not run.config.do_sample:
            return scores, scores.argmax(-1)
        probabilities, last = scores.softmax(-1), run.new_tokens - 1
        noise = torch.ones_like(scores)
        for row, new in enumerate(begun):
            for i in range(scores.shape[1]):
                noise[row, i] = self.noise.at(min(len(new) + i, last), scores[:, 0])[row]
        return scores, (probabilities / noise).argmax(-1)


class Sequences:
    """The R rows as they grow, on the host, each at its own pace."""

    def __init__(self, run: Run) -> None:
        self.run, times = run, run.config.num_return_sequences
        self.prompt_rows = [row for row in range(run.prompt.rows) for _ in range(times)]
        self.limits = [run.limits[row] for row in self.prompt_rows]
        self.new: Rows = [[] for _ in self.prompt_rows]
        self.going = [True] * len(self.new)
        self._eos = set(run.config.eos_token_ids)
        self._recorded: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in self.new] for name in run.recorder.wanted
        }
        self._streamed = 0
        run.stream_prompt(torch.tensor(self.prompt_rows, device=run.device))

    def append(self, scores: Tensor, processed: Tensor, chosen: Tensor, guesses: Rows) -> list[int]:
        """Add what was chosen as long as the guesses hold; returns how many tokens to each row."""
        run = self.run
        broken = run.broken(scores.flatten(0, 1), processed.flatten(0, 1)).view_as(chosen)
        tokens, wrong = torch.stack([chosen, broken]).tolist()  # the pass's one synchronisation
        added = [0] * len(self.new)
        for row in [r for r, on in enumerate(self.going) if on]:
            for i, token in enumerate(tokens[row][: len(guesses[row]) + 1]):
                if wrong[row][i]:
                    raise run.refuse_broken(scores[row, i], len(self.new[row]))
                self.new[row].append(token)
                added[row] += 1
                for name, of in (("scores", processed), ("logits", scores)):
                    if name in self._recorded:
                        self._recorded[name][row].append(of[row, i])
                self.going[row] = not self._ended(row)
                if not self.going[row] or guesses[row][i : i + 1] != [token]:
                    break
        self._stream()
        return added

    def room(self, most: int) -> list[int]:
        """How many guesses each row has use for, ``most`` at most: the last token needs none."""
        return [
            min(most, limit - len(new) - 1) if on else 0
            for new, limit, on in zip(self.new, self.limits, self.going, strict=True)
        ]

    def shortest(self) -> int:
        """New tokens of the row that has the fewest, of those still going on."""
        return min(len(new) for new, on in zip(self.new, self.going, strict=True) if on)

    def _ended(self, row: int) -> bool:
        new, stopping, prompt_row = self.new[row], self.run.stopping, self.prompt_rows[row]
        if new[-1] in self._eos or len(new) >= self.limits[row]:
            return True
        if stopping.strings is not None and stopping.strings.ended(prompt_row, new):
            return True
        if not stopping.criteria:
            return False
        ids = self.run.given_ids(
            torch.tensor([new], device=self.run.device),
            torch.tensor([prompt_row], device=self.run.device),
        )
        return bool(stopping.told(ids, None)[0])

    def _stream(self) -> None:
        """Give the streamer the columns that every row has by now, or has ended before."""
        if self.run.streamer is None:
            return
        ready = self.shortest() if any(self.going) else max(map(len, self.new))
        for column in range(self._streamed, ready):
            tokens = [new[column] if column < len(new) else ABSENT for new in self.new]
            self.run.streamer.put(torch.tensor(tokens))
        self._streamed = ready

    def output(self) -> GenerateDecoderOnlyOutput:
        """What is returned; recorded scores are 0 behind the end of a row."""
        run, length = self.run, max(map(len, self.new))
        if run.streamer is not None:
            self.going = [False] * len(self.new)  # out of time: some have not ended
            self._stream()
            run.streamer.end()
        ids = [new + [run.filler] * (length - len(new)) for new in self.new]
        for name, rows in self._recorded.items():
            nothing = torch.zeros_like(rows[0][0])
            for step in range(length):
                each = [row[step] if step < len(row) else nothing for row in rows]
                run.recorder.steps[name].append(torch.stack(each))
        return GenerateDecoderOnlyOutput(
            sequences=torch.tensor(ids, device=run.device),
            past_key_values=self._cache(length) if run.config.return_dict_in_generate else None,
            **run.recorder.fields(),
        )

    def _cache(self, length: int) -> KVCache | None:
        """The cache of all but the last column of the sequences, of ``length`` new ids."""
        last = [[] if len(new) == length else [new[-1]] for new in self.new]  # chosen, not yet fed
        if any(last):
            self.run.decoder.decode_block(padded(last, self.run.device), list(map(len, last)))
        return self.run.decoder.cache_of([min(len(new), length - 1) for new in self.new])


def assisted_decoding(run: Run) -> GenerateDecoderOnlyOutput:
    """Greedy decoding or sampling with the guesses of a draft model or of prompt-lookup."""
    require_assistance(run)
    config, decoder, rows, choose = run.config, run.decoder, Sequences(run), Chooser(run)
    most = config.prompt_lookup_num_tokens or config.num_assistant_tokens
    decoder.make_room(most)
    logits = decoder.prefill()
    decoder.expand(config.num_return_sequences)
    logits = logits.repeat_interleave(config.num_return_sequences, dim=0)[:, None]  # (R, 1, V)
    processed, chosen = choose(logits, rows.new)
    rows.append(logits, processed, chosen, [[] for _ in rows.new])
    draft = _draft(run, choose) if any(rows.going) else None
    while draft is not None and any(rows.going) and not run.stopping.out_of_time():
        guesses = draft.propose(rows.new, rows.room(most))
        blocks = [
            [new[-1], *guess] if on else []
            for new, guess, on in zip(rows.new, guesses, rows.going, strict=True)
        ]
        counts = [len(block) for block in blocks]
        logits = decoder.decode_block(padded(blocks, run.device), counts)  # (R, k, V)
        processed, chosen = choose(logits, rows.new, guesses)
        added = rows.append(logits, processed, chosen, guesses)
        decoder.keep_first(added, logits.shape[1])
        if any(rows.going):
            draft.confirm([max(n - 1, 0) for n in added])
            choose.noise.forget_before(rows.shortest())
        if config.num_assistant_tokens_schedule != "constant":
            most = most + 2 if added == counts else max(1, most - 1)
    return rows.output()


def _draft(run: Run, choose: Chooser) -> Draft:
    config = run.config
    if run.assistant is None:
        prompts = [[i for i in row if i >= 0] for row in run.prompt.tokens().tolist()]
        prompts = [ids for ids in prompts for _ in range(config.num_return_sequences)]
        return LookupDraft(prompts, config.max_matching_ngram_size or DEFAULT_NGRAM)
    decoder = Decoder(run.assistant, run.prompt, run.new_tokens + config.num_assistant_tokens)
    return ModelDraft(
        decoder, config.num_return_sequences, choose, config.assistant_confidence_threshold
    )


def require_assistance(run: Run) -> None:
    """Refuse, before the first forward pass, what cannot be assisted."""
    config, assistant, model = run.config, run.assistant, run.decoder.model
    if not config.use_cache:
        raise ArgumentError("use_cache=False: assisted decoding needs the cache; leave it out")
    if config.guidance_scale not in (None, 1.0):
        raise ArgumentError(
            f"guidance_scale={config.guidance_scale} does not go with assisted decoding, which "
            "would have to check every guess behind the negative prompt too; leave out one of them"
        )
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name):
            raise ArgumentError(
                f"{name}=True cannot be had from assisted decoding, whose passes hold several "
                "tokens; leave it out, or leave out the assistance"
            )
    if assistant is None:
        return
    if config.prompt_lookup_num_tokens is not None:
        raise ArgumentError(
            "assistant_model and prompt_lookup_num_tokens="
            f"{config.prompt_lookup_num_tokens} both say what to guess from; give one of them"
        )
    if not isinstance(assistant, nn.Module) or not hasattr(assistant, "generation_config"):
        raise ArgumentTypeError(
            f"assistant_model must be a GPT2LMHeadModel, not {type(assistant).__name__}"
        )
    if run.prompt.ids is None:
        raise ArgumentError("assistant_model needs input_ids; it cannot read inputs_embeds")
    ours, theirs = model.config.vocab_size, assistant.config.vocab_size
    if ours != theirs:
        raise ArgumentError(
            f"assistant_model has vocab_size {theirs}, the model {ours}; both must have the same "
            "tokenizer"
        )
    if assistant.device != model.device:
        raise ArgumentError(
            f"assistant_model is on {assistant.device}, the model on {model.device}; move it there"
        )
    longest = max(map(sum, zip(run.prompt.lengths, run.limits, strict=True)))
    if longest > assistant.config.n_positions:
        raise SequenceLengthError(
            f"prompt and new tokens make {longest}, but assistant_model has n_positions = "
            f"{assistant.config.n_positions}"
        )
