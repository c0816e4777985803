"""Rules about what the tuned model says: one thing to everyone, one label too often, no end, a format that is lost."""

from __future__ import annotations

from collections import Counter, defaultdict

from ftray.audit.labels import entropy
from ftray.report.evidence import Answer, Evidence, label_of, normalised
from ftray.report.finding import Finding

FEWEST_ROWS = 20
"""Rows from which shares of answers say something."""
TOP_SHARE = 0.5
"""One answer to half of all rows."""
TOP_FACTOR = 3.0
"""And so many times as often as any answer is expected."""
ENTROPY_SHARE = 0.5
"""And less than half of the variety (entropy) that the expected answers have."""
DOMINANT = 0.5
"""A label that is more than half of all rows dominates,"""
DOMINANT_FACTOR = 3.0
"""where it also has this many times its share in balance,"""
DOMINANT_OF_FEW = 0.8
"""or, among two or three labels, four fifths of the rows."""
SWALLOWED = 0.15
"""Share of the other labels' rows answered with the dominant one; confusion alone gave 0.03 (SNIPS, 93 % right)."""
FEWEST_MINOR_ROWS = 3
RUNS_ON = 0.5
"""Share of the answers that run to max_new_tokens: half of them do not end."""
BEGINS_RIGHT = 0.3
"""Share of the answers that begin as expected and go on: what was to be learned was learned, but for the end."""
STARTS_VALID = 0.8
"""Share of the outputs whose first tokens are in the format."""
LOST_VALIDITY = 0.3
"""So much less of them are in the format at their end."""
NUM_EXAMPLES = 5


def label_imbalance(evidence: Evidence) -> Finding | None:
    """One label dominates the data, and rows of the others are answered with it."""
    if len(evidence.answers) < FEWEST_ROWS or not evidence.is_label_task:
        return None
    counts = evidence.train_counts or evidence.expected_counts
    label, top = counts.most_common(1)[0]
    share = top / counts.total()
    least = max(DOMINANT, min(DOMINANT_OF_FEW, DOMINANT_FACTOR / len(counts)))
    minor = [answer for answer in evidence.answers if label_of(answer.expected) != label]
    swallowed = [answer for answer in minor if label_of(answer.tuned) == label]
    if share < least or len(minor) < FEWEST_MINOR_ROWS or len(swallowed) < SWALLOWED * len(minor):
        return None
    where = "training" if evidence.train_counts else "held-out"
    return Finding(
        kind="label_imbalance",
        severity="fail",
        symptom=f"{label!r} is {share:.1%} of the {where} answers, and {len(swallowed)} of {len(minor)} held-out rows "
        f"with another label are answered with it.",
        evidence={
            "label": label,
            "share": share,
            "counts": dict(counts.most_common()),
            "counted_in": where,
            "recall": recall(evidence.answers),
            "rows": [answer.row for answer in swallowed[:NUM_EXAMPLES]],
        },
        cause="Saying the commonest label is nearly always right on such data, so that is what is learned.",
        fix="Balance the labels: add rows of the others, or give them a source of their own with a larger `weight`. "
        "Grade by macro_f1, which counts every label alike.",
        sets=("evaluate.task.metric=macro_f1",) if evidence.job["evaluate"]["task"]["metric"] == "exact_match" else (),
    )


def recall(answers: tuple[Answer, ...]) -> dict[str, float]:
    """Return for each expected label the share of its rows that are answered with it."""
    right: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        label = label_of(answer.expected)
        right[label].append(label_of(answer.tuned) == label)
    return {label: sum(rows) / len(rows) for label, rows in sorted(right.items())}


def mode_collapse(evidence: Evidence) -> Finding | None:
    """Much less variety in the answers than is expected of them."""
    answers = evidence.answers
    if len(answers) < FEWEST_ROWS:
        return None
    said, wanted = Counter(label_of(answer.tuned) for answer in answers), evidence.expected_counts
    answer, top = said.most_common(1)[0]
    share, expected_share = top / len(answers), wanted.most_common(1)[0][1] / len(answers)
    variety, expected_variety = entropy(said), entropy(wanted)
    # Where one answer is expected often, half of what is left to it counts instead.
    least = max(TOP_SHARE, min(TOP_FACTOR * expected_share, (1 + expected_share) / 2))
    if share < least or not variety < ENTROPY_SHARE * expected_variety:
        return None
    return Finding(
        kind="mode_collapse",
        severity="fail",
        symptom=f"{share:.0%} of the held-out rows get one and the same answer, {answer[:60]!r}; no answer is expected "
        f"on more than {expected_share:.0%}.",
        evidence={
            "answer": answer[:200],
            "share": share,
            "expected_share": expected_share,
            "distinct": len(said),
            "entropy_nats": variety,
            "expected_entropy_nats": expected_variety,
        },
        cause="The answers do not follow from the prompts: many training rows share one stock answer, labels are out "
        "of step with their rows, or the prompt leaves out what the answer depends on.",
        fix=f"Count the training answers ({answer[:40]!r} and its like), read twenty training rows as the model sees "
        "them (ftray check), and correct them. Then train again.",
    )


def untrained_end_token(evidence: Evidence) -> Finding | None:
    """Answers that begin as they should and never end."""
    answers, task = evidence.answers, evidence.task
    if len(answers) < FEWEST_ROWS or task is None:
        return None
    going_on = [answer for answer in answers if _goes_on(answer)]
    share = len(going_on) / len(answers)
    ended = (task.get("ended") or {}).get("tuned")
    if share < BEGINS_RIGHT or (ended is not None and ended > 1 - RUNS_ON):
        return None
    template = evidence.job["data"]["template"]
    known = f"only {ended:.0%} of the answers end by themselves, and " if ended is not None else ""
    return Finding(
        kind="untrained_end_token",
        severity="fail",
        symptom=f"{known}{share:.0%} begin with the expected answer and go on after it.".capitalize(),
        evidence={
            "ended": ended,
            "begin_right_and_go_on": share,
            "template": template,
            "max_new_tokens": evidence.job["evaluate"]["task"]["max_new_tokens"],
            "rows": [answer.row for answer in going_on[:NUM_EXAMPLES]],
            "examples": [answer.tuned[:120] for answer in going_on[:NUM_EXAMPLES]],
        },
        cause="The token that ends a turn was not learned: the base never saw it and its embedding is frozen (an "
        f"adapter cannot teach it), or it is not among the learned tokens. The template is {template!r}.",
        fix="End turns with a token that the base knows: its own template, or its end-of-text token in yours, inside "
        "{% generation %}. Else train all weights.",
        sets=("data.template=tokenizer",) if template != "tokenizer" else (),
    )


def _goes_on(answer: Answer) -> bool:
    expected, said = normalised(answer.expected), normalised(answer.tuned)
    return bool(expected) and said != expected and said.startswith(expected)


def format_drift(evidence: Evidence) -> Finding | None:
    """Answers that begin in their format and leave it."""
    validity = (evidence.evaluation or {}).get("prefix_validity")
    check = evidence.checks.get("format_drift", {})
    trained = check["count"] if check.get("status") in ("warn", "fail") else 0
    if not validity or len(evidence.answers) < FEWEST_ROWS:
        return None
    start, end = validity[0], validity[-1]
    if start < STARTS_VALID or start - end < LOST_VALIDITY:
        return None
    half = next((k for k, share in enumerate(validity, start=1) if share < (start + end) / 2), len(validity))
    rows = [one["row"] for one in check.get("examples", [])]
    why = f"{trained} of {check['rows']} rows that the gate read do so themselves" if trained else ""
    return Finding(
        kind="format_drift",
        severity="fail",
        symptom=f"{start:.0%} of the answers begin in their format, {end:.0%} are in it at their end; most leave it "
        f"near token {half}.",
        evidence={
            "prefix_validity": validity,
            "half_lost_at_token": half,
            "training_rows": trained,
            "training_row_numbers": rows,
        },
        cause=f"The training answers leave their format: {why}."
        if why
        else "Training answers begin in the format and go on otherwise, or are cut off, and that is what is learned.",
        fix="Check every training answer to its end, not its beginning only: `ftray audit` (format_drift) names the "
        "rows. Remove or repair them and train again.",
    )
