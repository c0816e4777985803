"""The liveness proof: an adapter must change its base's answer as it did when it was registered.

A fingerprint keeps, for one probe, the logits of base and tuned model at the last position, at the tokens where they
say most. What is compared is the change that the adapter makes (tuned less base): a base whose files an engine answers
with silently makes none, another adapter makes another, and the rounding of a base in half precision is in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ftray.errors import InputError

KEPT = 64
"""Tokens whose logits a fingerprint keeps: half of them the likeliest, the others those that changed most."""
LONGEST_PROBE = 256
"""Tokens of a probe, where there is one so short: it is asked whenever the adapter is loaded."""
FEWEST = 8
"""Tokens that must be comparable where only some log-probabilities are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """What arithmetic of a precision may do to logits."""

    of_logits: float
    """Root mean square error of a logit, as a share of the largest."""
    of_change: float
    """The same of the change an adapter makes, as a share of that change."""


ROUNDING = {
    "float64": Rounding(of_logits=1e-5, of_change=0.001),
    "float32": Rounding(of_logits=2e-4, of_change=0.002),
    "float16": Rounding(of_logits=2**-10, of_change=0.01),
    "bfloat16": Rounding(of_logits=2**-7, of_change=0.02),
}
"""Two units in the last place of half precision; in fp32, what other kernels and orders of addition may come to.

Measured with fingerprints in fp32 on ten trials of one campaign (stories3M on SNIPS, changes of 9 to 13 logits): asked
in bf16, the right adapter is 0.06 to 0.16 logits away and the nearest of the others 0.46; in fp32, below 1e-5 and 0.45.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Why an adapter is believed to be live. Distances are root mean squares over the kept tokens, in logits."""

    max_abs_difference_from_base: float
    max_abs_difference_from_fingerprint: float
    change: float
    """What the adapter changed when it was registered."""
    distance: float
    """Between that change and the present one."""
    limit: float
    """The largest distance that rounding explains."""


def fingerprint(tuned: Tensor, base: Tensor, probe: Sequence[int], *, dtype: str) -> dict[str, Any]:
    """Return the fingerprint from both models' logits [V] after `probe`. `dtype`: what they computed in.

    Whether it can prove anything, `prove` says. Raises InputError `not_live` for logits that are not finite.
    """
    tuned, base = tuned.detach().double().cpu(), base.detach().double().cpu()
    _require_finite(tuned, base)
    change = (tuned - base).abs()
    half = min(KEPT // 2, len(tuned))
    kept = list(
        dict.fromkeys([*tuned.topk(half).indices.tolist(), *change.topk(min(KEPT, len(tuned))).indices.tolist()])
    )
    kept = sorted(kept[:KEPT], key=lambda token: -float(tuned[token]))
    return {
        "probe_tokens": [int(token) for token in probe],
        "logits_top": [[token, round(float(tuned[token]), 5)] for token in kept],
        "logits_base": [[token, round(float(base[token]), 5)] for token in kept],
        "dtype": dtype,
        "max_abs_difference_from_base": float(change.max()),
    }


def choose_probe(tuned: Tensor, base: Tensor, prefixes: Sequence[Sequence[int]]) -> int:
    """Return the row, of logits [M, V] after each prefix, where tuned and base differ most; long ones only if all are.

    Several adapters of one campaign differ most where each differs most from the base.
    """
    differences = (tuned.float() - base.float()).abs().amax(dim=1).tolist()
    short = [row for row, prefix in enumerate(prefixes) if len(prefix) <= LONGEST_PROBE]
    return max(short or range(len(prefixes)), key=lambda row: differences[row])


def prove(
    fingerprint: Mapping[str, Any], adapter_logits: Tensor, base_logits: Tensor, *, dtype: str | None = None
) -> Proof:
    """Return the proof that an adapter is live, from its logits and its base's [V] after the fingerprint's probe.

    `dtype`: what the model computes in, where that is not what the logits are in ("float32", "bfloat16", ...). An
    engine whose base is in half precision says so, or its rounding is taken for another adapter.

    Raises InputError `not_live`: it answers as the base, the base is another one, it is another adapter, or it changes
    too little to be told from rounding.
    """
    dtype = dtype or str(adapter_logits.dtype).removeprefix("torch.")
    tuned, base = adapter_logits.detach().double().cpu(), base_logits.detach().double().cpu()
    _require_finite(tuned, base)
    tokens = [token for token, _ in fingerprint["logits_top"]]
    if max(tokens) >= len(tuned):
        raise _not_live("the base has another vocabulary", given=len(tuned), allowed=f"more than {max(tokens)} tokens")
    told = _Told(
        tuned=_values(fingerprint["logits_top"], tokens),
        base=_values(fingerprint["logits_base"], tokens),
        tuned_now=tuned[tokens],
        base_now=base[tokens],
        difference=float((tuned - base).abs().max()),
    )
    return _judge(told, _coarser(fingerprint["dtype"], dtype))


def prove_logprobs(
    fingerprint: Mapping[str, Any],
    adapter_logprobs: Mapping[int, float],
    base_logprobs: Mapping[int, float],
    *,
    dtype: str,
) -> Proof:
    """Return the proof from log-probabilities of some tokens, as a server of another make gives them.

    They are logits but for a constant: means over the tokens that all sides know are taken off. Raises as `prove`;
    also when fewer than 8 tokens of the fingerprint are known.
    """
    kept = dict(fingerprint["logits_top"])
    tokens = [token for token in kept if token in adapter_logprobs and token in base_logprobs]
    if len(tokens) < FEWEST:
        raise _not_live("too few of the fingerprint's tokens are known", given=len(tokens), allowed=f"{FEWEST} or more")

    def centred(values: Tensor) -> Tensor:
        return values - values.mean()

    now = torch.tensor([adapter_logprobs[token] for token in tokens], dtype=torch.float64)
    base_now = torch.tensor([base_logprobs[token] for token in tokens], dtype=torch.float64)
    _require_finite(now, base_now)
    told = _Told(
        tuned=centred(_values(fingerprint["logits_top"], tokens)),
        base=centred(_values(fingerprint["logits_base"], tokens)),
        tuned_now=centred(now),
        base_now=centred(base_now),
        difference=float((centred(now) - centred(base_now)).abs().max()),
    )
    return _judge(told, _coarser(fingerprint["dtype"], dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """Logits at the same tokens, then and now."""

    tuned: Tensor
    base: Tensor
    tuned_now: Tensor
    base_now: Tensor
    difference: float
    """The largest difference that is known between tuned and base now."""


def _judge(told: _Told, dtype: str) -> Proof:
    rounding = ROUNDING[dtype]
    noise = rounding.of_logits * float(max(told.tuned.abs().max(), told.base.abs().max()))
    change, change_now = told.tuned - told.base, told.tuned_now - told.base_now
    size, distance = _rms(change), _rms(change_now - change)
    limit = noise + rounding.of_change * size
    numbers = {
        "max_abs_difference_from_base": told.difference,
        "max_abs_difference_from_fingerprint": float((told.tuned_now - told.tuned).abs().max()),
        "change": size,
        "distance": distance,
        "limit": limit,
    }
    if told.difference == 0.0 or (size > 2 * limit and _rms(change_now) <= limit):
        why = "it answers as its base: its B factors are zero, or it is not applied"
    elif size <= 2 * limit:
        why = f"what it changes ({size:.2g} logits) cannot be told from the rounding of {dtype}"
    elif (apart := _rms(told.base_now - told.base)) > noise:
        why = f"its base is another one: their answers are {apart:.2g} logits apart"
    elif distance > limit:
        why = "it does not answer as its fingerprint says: these are another adapter's files"
    else:
        return Proof(**numbers)
    raise _not_live(
        why, given={**numbers, "dtype": dtype}, allowed="a distance within the limit, on the adapter's base"
    )


def _values(pairs: Sequence[Sequence[float]], tokens: Sequence[int]) -> Tensor:
    known = {int(token): value for token, value in pairs}
    return torch.tensor([known[token] for token in tokens], dtype=torch.float64)


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))


def _coarser(one: str, other: str) -> str:
    return max(one, other, key=lambda dtype: ROUNDING[dtype].of_logits)


def _require_finite(*logits: Tensor) -> None:
    if not all(bool(one.isfinite().all()) for one in logits):
        raise _not_live("its logits are not finite", given="NaN or infinity", allowed="finite numbers")


def _not_live(why: str, *, given: Any, allowed: Any) -> InputError:
    return InputError(
        f"the adapter is not live: {why}",
        kind="not_live",
        given=given,
        allowed=allowed,
        hint="Register it again from its run (ftray train JOB), or import the right files; and see that the endpoint's "
        "base is the adapter's. An adapter that changes next to nothing needs fp32, or is not worth serving.",
    )
