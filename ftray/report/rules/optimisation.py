"""Rules about the course of the training loss: a curve gets one name, the first of these that fits.

They look at the training loss, or at validation loss going up and down; validation loss that rises while training loss
falls is overfitting and none of theirs.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ftray.report.curve import Curve, reversals
from ftray.report.evidence import Evidence
from ftray.report.finding import Finding
from ftray.report.rules.fitting import is_better, is_high
from ftray.report.rules.remedies import lower_rate

FEWEST_STEPS = 20
"""A shorter curve has no course to speak of."""
OVERSHOOT = 1.2
"""A level so many times the loss at the start: the steps lead away. Batches alone moved levels by 6 % (SNIPS)."""
NO_RECOVERY = 0.9
"""An end above this share of the start has not come back from an overshoot."""
FAR_ABOVE_USUAL = 10.0
"""So many times the upper end of the usual rates is far: small models bear some times it, none bears more."""
PLATEAU = 0.1
"""A fall since the middle of the run by less than this share of the start is a plateau."""
UNSTABLE_NORM = 100.0
"""Gradient norms of 0.1 to 10 are normal, above 100 unstable (numbers from the field)."""
UNSTABLE_SHARE = 0.1
"""Share of the steps after warm-up with such norms that is more than accidents."""
LEARNED = 0.1
"""A fall by this share of the start: there was something that could be lost again."""
GIVEN_BACK = 0.15
"""Share of the fall that a diverging run loses again; swinging ones had 0.09, diverging ones 0.26 on SNIPS."""
RISEN = 1.5
"""And it is at least so many times its lowest level."""
LAST_PART = 0.3
"""Share of the steps over which the loss has to be that high, not in the last ones alone."""
BEYOND_NOISE = 3.0
"""A difference of levels counts from so many deviations of single steps."""
FEWEST_EVALUATIONS = 6
"""Evaluations that back-and-forth can be seen in."""
REVERSALS = 0.4
"""Share of moves against the move before; independent noise around a level has two thirds."""
SWING_OF_LEVEL = 0.15
"""A typical move between evaluations, as a share of the loss; healthy runs have 0.07 to 0.12 on SNIPS."""
SWING_OF_START = 0.01
"""And as a share of the loss at the start: near zero every move is a large share of the loss. The noise of the training
loss has to be as large: validation rows that differ from training swing alone."""
MOST_ROWS = 16


def course(evidence: Evidence) -> Finding | None:
    """Return the one name of this run's curve, or None for a curve without fault."""
    rules = (exploding, diverging, oscillating, too_high_plateau, loss_spike)
    return next((finding for rule in rules if (finding := rule(evidence))), None)


def exploding(evidence: Evidence) -> Finding | None:
    """Numbers that are not finite, or a loss that rose above its start and stayed there."""
    failure, loss = evidence.failure, evidence.loss
    if failure is not None and failure["kind"] == "nonfinite":
        seen = {"failure": failure["message"], "rows": failure.get("given")}
        return _too_high(evidence, f"The run failed: {failure['message']}", seen)
    after = loss.after(evidence.warmup_steps) if loss else None
    if loss is None or after is None or len(loss.values) < FEWEST_STEPS:
        return None
    rose = after.highest > OVERSHOOT * loss.start and after.highest - loss.start > BEYOND_NOISE * loss.noise
    if not (rose and loss.end > NO_RECOVERY * loss.start):
        return None
    if loss.lowest < (1 - LEARNED) * loss.start and loss.end - loss.lowest > GIVEN_BACK * (loss.start - loss.lowest):
        return None  # it fell first: that is diverging
    symptom = (
        f"Training loss started at {loss.start:.3g}, rose to {after.highest:.3g} after warm-up and ended at "
        f"{loss.end:.3g}."
    )
    return _too_high(evidence, symptom, {**_levels(loss), "highest": after.highest})


def too_high_plateau(evidence: Evidence) -> Finding | None:
    """A loss that ended high, at a learning rate far beyond the usual, or stuck with gradients beyond bounds."""
    loss = evidence.loss
    if loss is None or len(loss.values) < FEWEST_STEPS or not is_high(evidence):
        return None
    least, most = evidence.usual_rates
    unstable = _unstable_share(evidence)
    is_plateau = loss.level_between(0.4, 0.6) - loss.end <= PLATEAU * loss.start
    is_far = evidence.learning_rate > FAR_ABOVE_USUAL * most
    if not is_far and not (unstable >= UNSTABLE_SHARE and is_plateau):
        return None
    symptom = (
        f"Training loss {'stopped falling' if is_plateau else 'is still'} at {loss.end:.3g} (it started at "
        f"{loss.start:.3g}) at a learning rate of {evidence.learning_rate:g}; {evidence.method} runs usually take "
        f"{least:g} to {most:g}."
    )
    return _too_high(evidence, symptom, {**_levels(loss), "share_of_norms_above_100": unstable})


def _too_high(evidence: Evidence, symptom: str, seen: dict[str, object]) -> Finding:
    least, most = evidence.usual_rates
    return Finding(
        kind="lr_too_high",
        severity="fail",
        symptom=symptom,
        evidence={"learning_rate": evidence.learning_rate, "usual": [least, most], **seen},
        cause="The learning rate is too high: steps overshoot, and the adapter ends where no prompt matters any more.",
        fix=f"Lower the learning rate ({least:g} to {most:g} is usual for {evidence.method}) and warm up for 10 % of "
        "the steps. If the rows named here are broken, correct them first.",
        sets=(lower_rate(evidence), "train.warmup=0.1"),
    )


def diverging(evidence: Evidence) -> Finding | None:
    """A training loss that fell and rose again for good."""
    loss = evidence.loss
    if loss is None or len(loss.values) < FEWEST_STEPS:
        return None
    # A loss that swings is high for a moment; one that diverged stays high.
    risen = min(loss.end, loss.level_between(1 - LAST_PART, 1))
    fall, rise = loss.start - loss.lowest, risen - loss.lowest
    if fall < LEARNED * loss.start or rise < max(GIVEN_BACK * fall, BEYOND_NOISE * loss.noise):
        return None
    if risen < RISEN * loss.lowest:
        return None
    return Finding(
        kind="diverging",
        severity="fail",
        symptom=f"Training loss fell from {loss.start:.3g} to {loss.lowest:.3g} near step {loss.lowest_at} and then "
        f"rose to {loss.end:.3g} by step {loss.steps[-1]}.",
        evidence={"learning_rate": evidence.learning_rate, **_levels(loss)},
        cause="Training became unstable: from some point on the learning rate was higher than the loss can follow.",
        fix=f"Lower the learning rate, or let it fall (schedule: cosine) from a short warm-up. The checkpoint near "
        f"step {loss.lowest_at} is the last good one.",
        sets=(lower_rate(evidence), "train.schedule=cosine", "train.warmup=0.03"),
    )


def oscillating(evidence: Evidence) -> Finding | None:
    """Validation loss, always of the same rows, that goes up and down by much: the weights jump back and forth."""
    losses = [point.loss for point in evidence.evaluations if point.step > evidence.warmup_steps]
    if evidence.loss is None or len(losses) < FEWEST_EVALUATIONS:
        return None
    settled = losses[len(losses) // 4 :]
    swing = float(np.median(np.abs(np.diff(settled))))
    level = float(np.median(settled))
    turns = reversals(settled)
    start, noise = evidence.loss.start, evidence.loss.noise
    if turns < REVERSALS or swing < SWING_OF_LEVEL * level or min(swing, noise) < SWING_OF_START * start:
        return None
    return Finding(
        kind="oscillating",
        severity="fail" if not is_better(evidence) else "warn",
        symptom=f"Validation loss goes up and down by {swing:.3g} from one evaluation to the next, around {level:.3g}: "
        f"{turns:.0%} of its moves go back on the move before.",
        evidence={
            "learning_rate": evidence.learning_rate,
            "batch_size": evidence.job["train"]["batch_size"],
            "typical_move": swing,
            "level": level,
            "reversals": turns,
            "noise_of_training_loss": noise,
            "validation_losses": losses,
        },
        cause="Each step overshoots the minimum and the next one comes back: the learning rate is too high for this "
        "batch size.",
        fix="Lower the learning rate, let it fall (schedule: cosine), or average over larger batches.",
        sets=(
            lower_rate(evidence),
            "train.schedule=cosine",
            f"train.batch_size={2 * evidence.job['train']['batch_size']}",
        ),
    )


def loss_spike(evidence: Evidence) -> Finding | None:
    """Single steps whose loss stands out, with the rows that made them."""
    spikes = evidence.spikes
    if not spikes:
        return None
    worst = max(spikes, key=lambda spike: float(spike["train/loss"]))
    suspects: Counter[tuple[str, int]] = Counter()
    losses: dict[tuple[str, int], float] = {}
    for spike in spikes:
        top = max((row["loss"] for row in spike["rows"]), default=0.0)
        for row in (one for one in spike["rows"] if one["loss"] >= top / 2):
            place = (row["dataset"], row["row"])
            suspects[place] += 1
            losses[place] = max(row["loss"], losses.get(place, 0.0))
    ranked = sorted(suspects, key=lambda place: (-suspects[place], -losses[place], place))[:MOST_ROWS]
    names = ", ".join(f"{dataset} row {row}" for dataset, row in ranked[:5])
    rows = [{"dataset": one[0], "row": one[1], "loss": losses[one], "spikes": suspects[one]} for one in ranked]
    lower = min(0.3, (evidence.job["train"]["max_grad_norm"] or 1.0) / 3)
    return Finding(
        kind="loss_spike",
        severity="warn",
        symptom=f"The loss of {len(spikes)} step{'s' if len(spikes) > 1 else ''} stood far out; the largest is "
        f"{worst['train/loss']:.3g} at step {worst['step']}, where the moving average was "
        f"{worst['train/loss_average']:.3g}.",
        evidence={"steps": [int(spike["step"]) for spike in spikes], "rows": rows},
        cause=f"A few rows that are nothing like the others, or broken: {names}.",
        fix=f"Look at these rows first ({names}) and correct or remove them. A lower max_grad_norm limits what such "
        "a step can do.",
        sets=(f"train.max_grad_norm={lower:.2g}",),
    )


def _unstable_share(evidence: Evidence) -> float:
    norms = evidence.norms.after(evidence.warmup_steps) if evidence.norms else None
    return float(np.mean([norm > UNSTABLE_NORM for norm in norms.values])) if norms else 0.0


def _levels(loss: Curve) -> dict[str, object]:
    return {
        "start": loss.start,
        "lowest": loss.lowest,
        "lowest_at_step": loss.lowest_at,
        "end": loss.end,
        "noise": loss.noise,
    }
