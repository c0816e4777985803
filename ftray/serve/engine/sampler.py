"""The next token of every row of a batch, each by its own temperature, top_p, top_k and seed.

A row's randomness is one number per token, drawn from its own seed and put into the cumulative distribution: who shares
the batch makes no difference.
Shapes: R rows, V vocabulary, N candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ftray.serve.asking import Sampling

GREEDY_BELOW = 1e-5
"""Temperatures below this take the likeliest token."""
CANDIDATES = 1024
"""The likeliest tokens, which are nearly always enough for top_p and top_k; sorting a large vocabulary is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A row's next token, and its log-probabilities where they are wanted."""

    token: int | None
    """None where the logits are not numbers."""
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


class Draw:
    """How one row's tokens are drawn."""

    def __init__(self, sampling: Sampling, *, seed: int, index: int = 0) -> None:
        """Draw by `seed`; answers of other `index` are others."""
        self.temperature = sampling.temperature
        self.top_p = max(sampling.top_p, 1e-9)
        self.top_k = sampling.top_k
        self.logprobs = sampling.logprobs
        digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
        self._random = Random(int.from_bytes(digest, "big"))

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def is_cut(self) -> bool:
        """Whether only some of the likeliest tokens may be drawn."""
        return self.top_p < 1.0 or self.top_k > 0

    def next(self) -> float:
        """Return the next number, at least 0 and less than 1."""
        return self._random.random()


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[Chosen]:
    """Return the next token of each row of logits [R, V]."""
    best, likeliest = logits.max(dim=-1)  # a NaN is the largest of all
    tokens = torch.where(best.isfinite(), likeliest, -1).tolist()
    drawn = [row for row, draw in enumerate(draws) if not draw.is_greedy and tokens[row] >= 0]
    for cut in (False, True):
        rows = [row for row in drawn if draws[row].is_cut is cut]
        if rows:
            part = logits if len(rows) == len(draws) else logits[rows]
            sample = _sample_cut if cut else _sample
            for row, token in zip(rows, sample(part, [draws[row] for row in rows]), strict=True):
                tokens[row] = token
    chosen = [Chosen(token=token if token >= 0 else None) for token in tokens]
    for row, draw in enumerate(draws):
        if draw.logprobs is not None and tokens[row] >= 0:
            chosen[row] = _with_logprobs(logits[row], tokens[row], draw.logprobs)
    return chosen


def _sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw from the whole distribution."""
    probabilities = _scaled(logits, draws).softmax(dim=-1)
    return _pick(probabilities, draws).tolist()


def _sample_cut(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw from the top_k likeliest tokens, and of these from the fewest whose share is at least top_p."""
    scaled = _scaled(logits, draws)
    vocabulary = scaled.shape[-1]
    wanted = max((draw.top_k for draw in draws if draw.top_k < vocabulary), default=0)
    number = min(vocabulary, max(CANDIDATES, wanted))
    whole = scaled.logsumexp(dim=-1, keepdim=True)
    limits = torch.tensor([draw.top_k or vocabulary for draw in draws], device=scaled.device)[:, None]
    shares = torch.tensor([draw.top_p for draw in draws], dtype=torch.float64, device=scaled.device)[:, None]
    while True:
        values, indices = scaled.topk(number, dim=-1)  # [R, N], the likeliest first
        probabilities = (values - whole).exp()
        probabilities.masked_fill_(torch.arange(number, device=scaled.device) >= limits, 0.0)
        # Of what top_k leaves; without it that is everything, whatever the candidates are.
        total = torch.where(limits < vocabulary, probabilities.sum(dim=-1, keepdim=True), 1.0)
        above = probabilities.cumsum(dim=-1) - probabilities  # the share of all that are likelier
        enough = (above[:, -1:] + probabilities[:, -1:] >= shares * total) | (limits <= number)
        if number == vocabulary or bool(enough.all()):
            break
        number = vocabulary
    probabilities.masked_fill_(above >= shares * total, 0.0)
    return indices.gather(1, _pick(probabilities, draws)[:, None]).squeeze(1).tolist()


def _scaled(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    temperatures = [draw.temperature for draw in draws]
    return logits.double() / torch.tensor(temperatures, dtype=torch.float64, device=logits.device)[:, None]


def _pick(probabilities: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Return where each row's next number falls in its cumulative shares [R, N], which need not sum to 1."""
    cumulative = probabilities.cumsum(dim=-1)
    numbers = torch.tensor([draw.next() for draw in draws], dtype=torch.float64, device=probabilities.device)
    total = cumulative[:, -1:]
    # Less than all, or rounding could reach the end, where the tokens without a share are.
    reached = torch.minimum(numbers[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, reached, right=True).squeeze(1)


def _with_logprobs(logits: Tensor, token: int, number: int) -> Chosen:
    logprobs = logits.double().log_softmax(dim=-1)
    values, indices = logprobs.topk(min(number, len(logprobs)))
    return Chosen(
        token=token, logprob=float(logprobs[token]), top=tuple(zip(indices.tolist(), values.tolist(), strict=True))
    )
