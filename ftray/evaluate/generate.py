"""Generation in batches, token by token the same as one row at a time: greedy, or as `choose` says.

Rows of similar length share a batch, padded on the left; rows that ended leave it when enough have. Under ZeRO-3 every
rank runs equally many forward passes: each asks `keep_going` first, and a rank without work runs an empty one.
Shapes: R rows in the batch, L tokens of them in the cache, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftray.errors import InputError
from ftray.evaluate.cache import cache_argument, reserved_cache
from ftray.evaluate.likelihood import length_batches
from ftray.evaluate.mode import Asking, ask_the_model, evaluating, keep_while_work_is_left

MAX_BATCH_TOKENS = 16384
"""Rows times (prompt + new tokens) of one batch: bounds the cache."""
WORTH_REMOVING = 0.75
"""Ended rows are removed when at most this share is left: that copies the cache, about the cost of one step."""

Choose = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]
"""Gives the next token [R] of rows by their indices, their tokens so far (a number each) and their logits [R, V]."""


def likeliest(indices: Sequence[int], lengths: Sequence[int], logits: Tensor) -> Tensor:
    """Choose greedily."""
    return logits.argmax(dim=-1)


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    pad_token_id: int,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    keep_going: Callable[[bool], bool] = keep_while_work_is_left,
    asking: Asking = ask_the_model,
    choose: Choose = likeliest,
) -> list[list[int]]:
    """Return the next tokens of each prompt, up to `max_new_tokens` or a stop token, which is left out.

    They are the likeliest unless `choose` says otherwise. `asking` says whose answers are wanted where several adapters
    share the model. A row also ends where the model's positions end. Raises InputError `prompt_too_long` for a prompt
    beyond them.
    """
    limits = [token_limit(model, len(prompt), max_new_tokens) for prompt in prompts]
    costs = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
    waiting = iter(length_batches(costs, max_batch_tokens, layout="padded"))
    answers = [
        _Answer(index=index, prompt=prompt, limit=limit)
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    batch: _Batch | None = None
    with evaluating(model):
        while True:
            if batch is None and (indices := next(waiting, None)) is not None:
                rows = [answers[index] for index in indices]
                batch = _Batch(model, rows, frozenset(stop_token_ids), pad_token_id, asking, choose)
            if not keep_going(batch is not None):
                break
            if batch is None:
                _empty_pass(model, pad_token_id)
                continue
            batch.step()
            if not batch.remove_ended():
                batch = None
    assert batch is None, "keep_going ended before the work did"
    return [answer.tokens for answer in answers]


@dataclass(slots=True, kw_only=True)
class _Answer:
    """One row as it grows."""

    index: int
    prompt: Sequence[int]
    limit: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class _Batch:
    """Rows that take their next step together."""

    def __init__(
        self,
        model: PreTrainedModel,
        answers: list[_Answer],
        stops: frozenset[int],
        pad_token_id: int,
        asking: Asking,
        choose: Choose,
    ) -> None:
        self.asking = asking
        self.choose = choose
        self.model = model
        self.answers = answers
        self.stops = stops
        width = max(len(answer.prompt) for answer in answers)
        self.cache = reserved_cache(model.config, width + max(answer.limit for answer in answers))
        self.cached = {cache_argument(model): self.cache}
        padding = [width - len(answer.prompt) for answer in answers]
        rows = [[pad_token_id] * pad + list(answer.prompt) for answer, pad in zip(answers, padding, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        self.input_ids = torch.tensor(rows, device=model.device)  # [R, L], later the newest token [R, 1]
        self.mask = torch.tensor(mask, device=model.device)  # [R, L]
        self.position_ids = (self.mask.cumsum(dim=1) - 1).clamp(min=0)

    def step(self) -> None:
        """Run one forward pass and give every row its next token."""
        indices = [answer.index for answer in self.answers]
        with self.asking(indices, [self.input_ids.shape[1]] * len(self.answers)):
            logits: Tensor = self.model(
                input_ids=self.input_ids,
                attention_mask=self.mask,
                position_ids=self.position_ids,
                use_cache=True,
                logits_to_keep=1,
                **self.cached,
            ).logits
        lengths = [len(answer.tokens) for answer in self.answers]
        self.input_ids = self.choose(indices, lengths, logits[:, -1])[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.mask), 1))], dim=1)
        self.position_ids = self.position_ids[:, -1:] + 1
        for answer, token in zip(self.answers, self.input_ids.squeeze(1).tolist(), strict=True):
            if answer.ended:
                continue
            if token not in self.stops:
                answer.tokens.append(token)
            answer.ended = token in self.stops or len(answer.tokens) == answer.limit

    def remove_ended(self) -> bool:
        """Drop the rows that ended, if that pays. Return whether any row goes on."""
        kept = [row for row, answer in enumerate(self.answers) if not answer.ended]
        if not kept or len(kept) > WORTH_REMOVING * len(self.answers):
            return bool(kept)
        rows = torch.tensor(kept, device=self.mask.device)
        self.cache.batch_select_indices(rows)
        self.input_ids, self.mask, self.position_ids = (
            state.index_select(0, rows) for state in (self.input_ids, self.mask, self.position_ids)
        )
        self.answers = [self.answers[row] for row in kept]
        return True


def token_limit(model: PreTrainedModel, prompt_length: int, max_new_tokens: int) -> int:
    """Return the most tokens an answer may have; one that has fewer was ended by the model."""
    # Models without a fixed number of positions (ALiBi) have no such setting. The last token needs no position.
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return max_new_tokens
    if not 1 <= prompt_length <= positions:
        raise InputError(
            f"A prompt of {prompt_length} tokens does not fit the model, which has {positions} positions.",
            kind="prompt_too_long",
            given=prompt_length,
            allowed=f"1 to {positions}",
            hint="Shorten the prompt, or set data.max_length so that such rows are dropped and counted.",
        )
    return min(max_new_tokens, positions - prompt_length + 1)


def _empty_pass(model: PreTrainedModel, pad_token_id: int) -> None:
    one = torch.tensor([[pad_token_id]], device=model.device)
    model(input_ids=one, attention_mask=torch.ones_like(one), position_ids=torch.zeros_like(one), use_cache=False)
