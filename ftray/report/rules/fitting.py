"""Rules about how much was learned: nothing, too slowly, too little, or the training rows by heart.

How high a loss is "high" depends on the task. Where answers are labels there is a measure: the loss of a model that
knows how often each label comes and nothing of the prompt (`Evidence.label_floor`).
"""

from __future__ import annotations

from ftray.evaluate.verdict import SIGNIFICANCE
from ftray.report.curve import Curve, jitter, reversals
from ftray.report.evidence import Evidence, label_of
from ftray.report.finding import Finding
from ftray.report.rules.remedies import epochs, higher_rate, less_capacity, more_capacity

FEWEST_STEPS = 10
HIGH_OF_FLOOR = 0.5
"""A training loss above half of what the labels' frequencies alone give has learned little of the prompts."""
HIGH_OF_START = 0.5
"""Without labels: more than half of the loss at the start, while the task is no better than the base's."""
FLAT = 0.03
"""Relative change, from the first quarter of the steps to the last, below which a loss is flat."""
BARELY_BELOW_START = 0.9
"""A loss that fell at once and then stayed flat has learned: flat counts above this share of the start."""
SAME_ANSWERS = 0.95
"""Share of rows answered word for word as the base does from which an adapter has no effect."""
BASE_IS_GOOD = 0.9
"""A base that is right on so many rows may well be answered like."""
KNOWN_LABELS = 0.8
"""Share of the answers that are labels of the task: which answers there are was learned."""
UNRELATED = 0.8
"""A training loss above so much of the labels' floor: which belongs to which prompt was not, not even by heart."""
DEVIATIONS = 2.0
"""Standard errors above always giving the commonest label that still are chance."""
STILL_FALLING = 0.02
"""Share of the start by which validation loss fell in the second half of the run: not done yet."""
STEADY = 0.25
"""Most reversals that a steady fall has."""
LIKE_TRAINING = 1.5
"""Validation loss up to so many times the training loss: nothing was learned by heart."""
GOOD_VALUE = 0.8
"""A task value from which nobody calls a model underfitted."""
FAR_ABOVE_USUAL = 10.0
"""Learning rates up to so many times the usual ones may underfit; beyond they are too high."""
RISEN = 1.15
"""Validation loss so many times its best: early stopping counts from 1.02, which may be chance."""
BEYOND_JITTER = 3.0
"""And so many deviations of its own jitter above its best."""
RISEN_OF_START = 0.005
"""And by this share of the loss at the start: near zero any move is a large one (healthy SNIPS runs rise by 0.001)."""
SETTLED = 3
"""Jitter is taken without the first one in so many evaluations, where the loss still falls in a curve."""
WITH_TRAINING = 0.25
"""Training loss may rise by this share of what validation loss does: learned to the end, it is noise around zero."""
APART = 1.5
"""And so many times the training loss."""


def is_better(evidence: Evidence) -> bool:
    """Return whether the tuned model beats its base on the task by more than noise."""
    task = evidence.task
    if task is None or task["tuned"]["value"] is None or task["base"]["value"] is None:
        return False
    sign = 1 if task["higher_is_better"] else -1
    gain = sign * (task["tuned"]["value"] - task["base"]["value"])
    return bool(gain > 0 and task["p_value"] is not None and task["p_value"] <= SIGNIFICANCE)


def is_high(evidence: Evidence) -> bool:
    """Return whether the training loss ended high for what the task is; False for a run that has not ended."""
    loss, floor = evidence.loss, evidence.label_floor
    if loss is None or not evidence.is_finished:
        return False
    if floor is not None:
        return loss.end > HIGH_OF_FLOOR * floor
    return loss.end > HIGH_OF_START * loss.start and not is_better(evidence)


def nothing_learned(evidence: Evidence) -> Finding | None:
    """A loss that never moved, or answers word for word the base's, at a learning rate that should do something."""
    failure = evidence.failure
    if failure is not None and failure["kind"] == "nothing_learned":
        return _nothing(evidence, f"The run failed: {failure['message']}", {"failure": failure["message"]})
    if evidence.learning_rate < evidence.usual_rates[0] or evidence.loss is None:
        return None
    if evidence.is_finished and _is_flat(evidence) and not is_better(evidence):
        loss = evidence.loss
        symptom = f"Training loss stayed where it was: {loss.start:.3g} at the start, {loss.end:.3g} at the end."
        return _nothing(evidence, symptom, {"start": loss.start, "end": loss.end})
    answers, task = evidence.answers, evidence.task
    same = sum(answer.base == answer.tuned for answer in answers)
    is_same = bool(answers) and same >= SAME_ANSWERS * len(answers)
    if task and is_same and not task["base"]["value"] >= BASE_IS_GOOD and not is_better(evidence):
        symptom = f"On {same} of {len(answers)} held-out rows the tuned model says word for word what the base says."
        return _nothing(evidence, symptom, {"same_answers": same, "rows": len(answers)})
    return _unrelated_labels(evidence)


def _unrelated_labels(evidence: Evidence) -> Finding | None:
    """The task's labels, given by chance: training knows how often each comes, and nothing of the prompts."""
    answers, loss, floor = evidence.answers, evidence.loss, evidence.label_floor
    if floor is None or loss is None or loss.end < UNRELATED * floor:
        return None
    expected = evidence.expected_counts
    known = sum(label_of(answer.tuned) in expected for answer in answers) / len(answers)
    right = sum(label_of(answer.tuned) == label_of(answer.expected) for answer in answers) / len(answers)
    chance = max(expected.values()) / len(answers)
    error = (chance * (1 - chance) / len(answers)) ** 0.5
    if known < KNOWN_LABELS or right > chance + DEVIATIONS * error:
        return None
    return Finding(
        kind="nothing_learned",
        severity="fail",
        symptom=f"{known:.0%} of the answers are labels of the task, and {right:.1%} are right: the commonest label "
        f"alone would be on {chance:.1%}. Training loss ended at {loss.end:.3g}; knowing how often each label comes, "
        f"and nothing else, gives {floor:.3g}.",
        evidence={"known_labels": known, "right": right, "chance": chance, "end": loss.end, "label_floor": floor},
        cause="The labels do not follow from the prompts: a column is out of step with its rows (sorted, shuffled or "
        "joined wrongly), or the prompt template leaves out what decides.",
        fix="Read twenty training rows as the model sees them (ftray check) and ask whether you could answer them. "
        "Correct the column or data.train.prompt; no setting helps before that.",
    )


def _nothing(evidence: Evidence, symptom: str, seen: dict[str, object]) -> Finding:
    method = evidence.job["method"]
    scale = method["alpha"] / method["rank"] if evidence.method == "lora" else None
    rank = method["rank"]
    return Finding(
        kind="nothing_learned",
        severity="fail",
        symptom=symptom,
        evidence={"learning_rate": evidence.learning_rate, "adapter_scale": scale, **seen},
        cause="The learning rate is ordinary, so the gradients do not reach what is trained: no learned tokens where "
        "the answers are, or an adapter whose scale (alpha/rank) is next to nothing"
        + (f"; here it is {scale:.2g}, usual is 1 to 2." if scale is not None else "."),
        fix="Look at the data first: ftray check shows which tokens are learned. Then at the adapter: alpha of twice "
        "the rank, on all linear layers.",
        sets=(f"method.alpha={2 * rank}", "method.target_modules=all-linear") if scale is not None else (),
    )


def lr_too_low(evidence: Evidence) -> Finding | None:
    """A loss that is far from done and only creeps, at a learning rate below the usual ones."""
    loss, (least, most) = evidence.loss, evidence.usual_rates
    if loss is None or len(loss.values) < FEWEST_STEPS or evidence.learning_rate > least or not is_high(evidence):
        return None
    if evidence.learning_rate == least and is_better(evidence):
        return None
    if not (_is_falling(evidence, loss) or _is_flat(evidence)):
        return None
    return Finding(
        kind="lr_too_low",
        severity="fail" if not is_better(evidence) else "warn",
        symptom=f"After {loss.steps[-1]} steps training loss went from {loss.start:.3g} only to {loss.end:.3g} and is "
        f"not done falling, at a learning rate of {evidence.learning_rate:g}.",
        evidence={
            "learning_rate": evidence.learning_rate,
            "usual": [least, most],
            "start": loss.start,
            "end": loss.end,
            "label_floor": evidence.label_floor,
        },
        cause=f"The learning rate is below what {evidence.method} runs usually take ({least:g} to {most:g}).",
        fix="Raise the learning rate before anything else; more epochs come after that.",
        sets=(higher_rate(evidence),),
    )


def underfitting(evidence: Evidence) -> Finding | None:
    """A training loss that ended high, validation alike, at an ordinary learning rate: too little can change."""
    loss, task = evidence.loss, evidence.task
    least, most = evidence.usual_rates
    if loss is None or len(loss.values) < FEWEST_STEPS or not is_high(evidence):
        return None
    if not least <= evidence.learning_rate <= FAR_ABOVE_USUAL * most or not evidence.evaluations:
        return None
    value = task["tuned"]["value"] if task else evidence.evaluations[-1].value
    if task and task["higher_is_better"] and value is not None and value >= GOOD_VALUE:
        return None
    last = evidence.evaluations[-1]
    if last.loss > LIKE_TRAINING * loss.end:
        return None
    return Finding(
        kind="underfitting",
        severity="fail" if not is_better(evidence) else "warn",
        symptom=f"Training loss ended at {loss.end:.3g} (from {loss.start:.3g}) and validation loss at {last.loss:.3g}"
        + ("" if value is None else f"; the task value is {value:.3g}")
        + ". Not even the training rows were learned.",
        evidence={
            "train_loss": loss.end,
            "validation_loss": last.loss,
            "start": loss.start,
            "value": value,
            "label_floor": evidence.label_floor,
            "learning_rate": evidence.learning_rate,
            "method": {key: evidence.job["method"][key] for key in ("kind", "rank", "alpha", "target_modules")},
            "epochs": evidence.job["train"]["epochs"],
        },
        cause="Too little can change, or too briefly: a small rank, few target modules, a low adapter scale, or too "
        "few epochs for this task.",
        fix="Give the adapter more room (all linear layers, a higher rank with alpha of twice the rank), then more "
        "epochs.",
        sets=(*more_capacity(evidence), epochs(evidence, 2)),
    )


def overfitting(evidence: Evidence) -> Finding | None:
    """Validation loss well above its best while training loss did not rise: rows learned by heart."""
    loss, points = evidence.loss, [point for point in evidence.evaluations if point.step > evidence.warmup_steps]
    if loss is None or len(points) < 3:
        return None
    best, last, before = min(points, key=lambda point: point.loss), points[-1], points[-2]
    # Levels of the steps just done: the moving average of a short run still holds its beginning.
    train_then, train_now, start = loss.level_at(best.step), loss.level_at(last.step), loss.start
    if train_now - train_then > WITH_TRAINING * (last.loss - best.loss):
        return None
    noise = jitter([point.loss for point in points[len(points) // SETTLED :]])
    least = max(RISEN * best.loss, best.loss + BEYOND_JITTER * noise, best.loss + RISEN_OF_START * start)
    # One bad evaluation at the end is no rise: the one before has to be half of the way up.
    if last.loss < least or before.loss < (best.loss + last.loss) / 2 or last.loss < APART * train_now:
        return None
    selected = evidence.selection["step"] if evidence.selection else None
    earlier = "" if selected is None or selected >= last.step else f" Checkpoint {selected} was selected, not the last."
    return Finding(
        kind="overfitting",
        severity="warn",
        symptom=f"Validation loss rose from its best, {best.loss:.3g} at step {best.step}, to {last.loss:.3g} at step "
        f"{last.step}, while training loss went from {train_then:.3g} to {train_now:.3g}.",
        evidence={
            "best": {"step": best.step, "validation_loss": best.loss, "train_loss": train_then},
            "last": {"step": last.step, "validation_loss": last.loss, "train_loss": train_now},
            "jitter": noise,
            "selected_step": selected,
            "epochs": evidence.job["train"]["epochs"],
        },
        cause="The model learns the training rows by heart: too few or too uniform rows for so many passes, or wrong "
        "answers among them.",
        fix="More and more varied rows help most. Else fewer passes, dropout, weight decay or a smaller rank."
        + earlier,
        sets=(
            epochs(evidence, max(0.1, round(best.step / last.step, 2))),
            *less_capacity(evidence),
            *(("train.weight_decay=0.1",) if not evidence.job["train"]["weight_decay"] else ()),
        ),
    )


def _is_flat(evidence: Evidence) -> bool:
    """Whether neither training nor validation loss moved."""
    loss = evidence.loss
    assert loss is not None
    if len(loss.values) < FEWEST_STEPS or loss.end < BARELY_BELOW_START * loss.start:
        return False
    points = evidence.evaluations
    # Validation rows are always the same, so the least change of their loss is seen; batches differ.
    if len(points) > 1:
        return abs(points[-1].loss - points[0].loss) < FLAT * points[0].loss
    first, last = loss.level_between(0, 0.25), loss.level_between(0.75, 1)
    return abs(last - first) < FLAT * first + loss.noise


def _is_falling(evidence: Evidence, loss: Curve) -> bool:
    """Whether validation loss (training loss where there is none) fell steadily, in the second half as well."""
    losses = [point.loss for point in evidence.evaluations]
    if len(losses) < 4:
        return loss.level_between(0.4, 0.6) - loss.end > STILL_FALLING * loss.start
    middle = losses[len(losses) // 2 - 1]
    return middle - losses[-1] > STILL_FALLING * loss.start and reversals(losses) <= STEADY
