"""The diagnosis: every kind is found where it is, and nowhere else; one cause gets one finding."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_records import (
    HEALTHY_VALIDATION,
    LABELS,
    START,
    STEPS,
    check,
    compared,
    evaluation,
    falling,
    noisy,
    predictions,
    records,
    spike,
)  # fmt: skip

from ftray.artifacts import jsonable
from ftray.job import Job
from ftray.jobfile import apply_sets, validate
from ftray.report.curve import Curve
from ftray.report.diagnose import EXPLAINS, diagnose, root_causes
from ftray.report.evidence import gather
from ftray.report.finding import Finding, Kind
from ftray.report.render import FINDINGS

Json = dict[str, Any]
BAD_TASK = compared("task", "task", 0.0, 0.0, p_value=1.0)
RISING = tuple(0.1 + 0.02 * step for step in range(10))
STUCK = [START] * 3 + [3.0] * (STEPS - 3)
CREEPING = falling(end=2.0, rate=0.7)
"""Halfway down after the whole run, and falling."""
CREEPING_VALIDATION = [CREEPING[12 * index - 1] for index in range(1, 11)]
ALIKE = {"validation": [5.0, 4.2, 3.6, 3.2, 2.9, 2.7, 2.55, 2.5, 2.48, 2.47], "train": [2.5] * 10}
CAPPED = falling(end=2.4, rate=8)
COLLAPSED = predictions(["play music"] * 100)
DOMINATED = ["get weather"] * 90 + list(LABELS[1:3]) * 5
TO_SEE = evaluation(compared("stories", "general", 0.67, 1.2, bits=True), forgot=True)


def found(**changes: Any) -> list[Json]:
    findings: list[Json] = diagnose(records(**changes))["findings"]
    return findings


def kinds(**changes: Any) -> list[str]:
    return [finding["kind"] for finding in found(**changes)]


FAILURES: dict[str, Json] = {
    "contamination": {"checks": [check("overlap_normalised", "fail", count=20, accepted="we know")]},
    "lr_too_high": {
        "sets": ["train.learning_rate=0.1"], "losses": noisy(STUCK, noise=0.1), "validation": [3.0] * 10,
        "train": [3.0] * 10, "answers": COLLAPSED, "compared_on": evaluation(BAD_TASK),
    },
    "diverging": {
        "losses": noisy([*falling(steps=60), *[0.05 + 0.06 * step for step in range(60)]], noise=0.1),
        "validation": [0.6, 0.2, 0.15, 0.1, 0.3, 1.0, 1.8, 2.5, 3.1, 3.5],
        "train": [0.6, 0.2, 0.15, 0.1, 0.3, 1.0, 1.8, 2.5, 3.1, 3.6],
    },
    "oscillating": {
        "losses": noisy(falling(end=0.9), noise=0.3),
        "validation": [1.1, 0.5, 1.1, 1.2, 0.7, 0.6, 0.95, 0.5, 1.0, 0.6], "train": [1.0] * 10,
    },
    "loss_spike": {"events": [spike(40, 17, 300), spike(80, 17, 41)]},
    "lr_too_low": {
        "sets": ["train.learning_rate=1e-5"], "losses": noisy(CREEPING, noise=0.2), "validation": CREEPING_VALIDATION,
        "train": CREEPING_VALIDATION, "compared_on": evaluation(BAD_TASK),
        "answers": predictions([f"{row} words" for row in range(100)]),
    },
    "nothing_learned": {
        "losses": noisy([START] * STEPS, noise=0.3), "validation": [9.0 - 0.003 * n for n in range(10)],
        "train": [9.0] * 10, "compared_on": evaluation(BAD_TASK),
        "answers": predictions([f"Once upon {row}" for row in range(100)]),
    },
    "label_imbalance": {"answers": predictions(["get weather"] * 100, expected=DOMINATED)},
    "untrained_end_token": {
        "answers": predictions([f"{LABELS[row % 5]} and so on and on" for row in range(100)]),
        "compared_on": evaluation({**BAD_TASK, "ended": {"base": 0.4, "tuned": 0.0}}),
        "losses": noisy(falling(end=1.2), noise=0.05), "validation": [1.2] * 10, "train": [1.2] * 10,
    },
    "format_drift": {
        "compared_on": evaluation(prefix_validity=[1.0] * 4 + [0.9, 0.5, 0.3, 0.2, 0.2]),
        "checks": [check("format_drift", "warn", count=40)],
    },
    "mode_collapse": {"answers": COLLAPSED, "compared_on": evaluation(compared("task", "task", 0.0, 0.2))},
    "underfitting": {
        "losses": noisy(CAPPED, noise=0.2), **ALIKE, "compared_on": evaluation(BAD_TASK),
        "sets": ["method.rank=1", "method.alpha=1", "method.target_modules=[q_proj]"],
        "answers": predictions([f"{row} words" for row in range(100)]),
    },
    "overfitting": {
        "validation": [0.6, 0.4, 0.3, 0.25, 0.3, 0.36, 0.43, 0.5, 0.58, 0.66],
        "train": [0.7, 0.4, 0.25, 0.2, 0.12, 0.08, 0.05, 0.03, 0.02, 0.01],
    },
    "forgetting": {"compared_on": TO_SEE},
    "alignment_tax": {"compared_on": evaluation(compared("rules", "instruction", 0.8, 0.3))},
}  # fmt: skip


def test_a_healthy_run_has_no_finding() -> None:
    assert diagnose(records()) == {"schema": "ftray/diagnosis/1", "findings": []}


def test_every_kind_has_a_failure_and_a_name() -> None:
    assert set(FAILURES) == set(get_args(Kind)) == set(FINDINGS)


@pytest.mark.parametrize("kind", FAILURES)
def test_each_failure_is_found_alone(kind: str) -> None:
    assert kinds(**FAILURES[kind]) == [kind]


@pytest.mark.parametrize("kind", FAILURES)
def test_a_finding_says_what_why_and_what_to_do(kind: str) -> None:
    (finding,) = found(**FAILURES[kind])
    assert finding["severity"] in {"info", "warn", "fail"}
    for part in ("symptom", "cause", "fix"):
        assert finding[part].endswith((".", "'.")), part
        assert len(finding[part]) > 30
        assert "None" not in finding[part]
        assert "nan" not in finding[part].split()
    assert finding["evidence"]
    assert json.loads(json.dumps(jsonable(finding), allow_nan=False)) == jsonable(finding)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", FAILURES)
def test_what_a_finding_sets_makes_a_valid_job(kind: str, method: str) -> None:
    changes = dict(FAILURES[kind])
    if method == "full":
        rate = {"lr_too_low": 1e-6, "lr_too_high": 1e-2}.get(kind, 2e-5)
        changes["sets"] = ["method={kind: full}", f"train.learning_rate={rate}"]
    given = records(**changes)
    (finding,) = diagnose(given)["findings"]
    assert finding["kind"] == kind
    for one in (*([change] for change in finding["set"]), finding["set"]):
        content = json.loads(json.dumps(given.job["job"]))
        apply_sets(content, one)
        changed = validate(Job, content, file=None, lines={})
        assert not one or changed.model_dump(mode="json") != given.job["job"], one
    if method == "full":
        assert not any(change.startswith("method.") for change in finding["set"])


# Near misses: what looks alike and is none


@pytest.mark.parametrize(
    "changes",
    [
        {"checks": [check("overlap_exact", "pass", count=0)]},
        {"checks": [check("overlap_near", "warn", count=1, rows=1000)]},
        {"checks": [check("duplicates_exact", "warn", count=30)]},
        {"losses": [START, START * 1.15, START, *falling()]},
        {"sets": ["train.learning_rate=0.01"]},  # high, and it went well
        {"losses": noisy(falling(end=0.5), noise=0.3), "validation": [0.5] * 10, "train": [0.5] * 10,
         "checks": [], "compared_on": evaluation(compared("task", "task", 0.0, 0.9))},
        {"validation": [0.5, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.11, 0.115]},  # 15 % above its best
        {"validation": [0.4, 0.1, 0.05, 0.05, 0.04, 0.04, 0.04, 0.05, 0.06, 0.07]},  # much, and next to nothing
        {"validation": RISING, "losses": [START, 3.0, 1.0, *[0.05 + 0.002 * step for step in range(STEPS - 3)]]},
        {"validation": [0.6, 0.25, 0.1, 0.2, 0.12, 0.2, 0.1, 0.19, 0.11, 0.15]},  # the rise is jitter
        {"sets": ["train.learning_rate=1e-5"]},  # low, and it was enough
        {"compared_on": evaluation(compared("stories", "general", 0.67, 0.7, bits=True))},
        {"compared_on": evaluation(compared("sums", "general", 0.5, 0.48))},
        {"compared_on": evaluation(compared("rules", "instruction", 0.8, 0.7, p_value=0.2))},
        {"compared_on": evaluation(compared("rules", "instruction", 0.3, 0.8))},
        {"compared_on": evaluation(prefix_validity=[1.0, 1.0, 0.95, 0.9])},
        {"compared_on": evaluation(prefix_validity=[0.3, 0.2, 0.1, 0.0])},  # never in the format: that is another fault
        {"answers": predictions(expected=["get weather"] * 90 + list(LABELS) * 2)},  # imbalanced, and well answered
        {"answers": predictions(["yes"] * 100, expected=["yes"] * 100)},
        {"answers": predictions(["play music"] * 12, expected=[f"answer {row}" for row in range(12)])},  # too few rows
        {"answers": predictions([f"{LABELS[row % 5]} now" if row < 20 else LABELS[row % 5] for row in range(100)])},
    ],
)  # fmt: skip
def test_near_misses_are_none(changes: Json) -> None:
    assert kinds(**changes) == []


def test_the_learning_rate_tells_too_low_from_too_little() -> None:
    assert kinds(**{**FAILURES["lr_too_low"], "sets": ["train.learning_rate=3e-4"], **ALIKE}) == ["underfitting"]
    assert kinds(**{**FAILURES["underfitting"], "sets": ["train.learning_rate=3e-2"]}) == ["lr_too_high"]


def test_nothing_learned_at_a_low_rate_is_a_low_rate() -> None:
    assert kinds(**{**FAILURES["nothing_learned"], "sets": ["train.learning_rate=1e-6"]}) == ["lr_too_low"]


def test_equal_answers_alone_are_nothing_learned() -> None:
    same = predictions([f"Once upon {row}" for row in range(100)])
    assert kinds(answers=same, compared_on=evaluation(BAD_TASK)) == ["nothing_learned"]
    good = evaluation(compared("task", "task", 0.97, 0.97, p_value=1.0))
    assert kinds(answers=same, compared_on=good) == []


def test_labels_out_of_step_with_their_rows_are_nothing_learned() -> None:
    said = [LABELS[(row * 7 + row // 5) % 5] for row in range(100)]
    by_chance = {
        "losses": noisy(falling(end=0.36), noise=0.03), "validation": [0.4] * 10, "train": [0.4] * 10,
        "compared_on": evaluation(compared("task", "task", 0.0, 0.2)),
    }  # fmt: skip
    (finding,) = found(**by_chance, answers=predictions(said))
    assert (finding["kind"], finding["explains"]) == ("nothing_learned", ["underfitting"])
    assert finding["evidence"]["right"] <= 0.28
    assert finding["set"] == []
    mostly_right = [LABELS[row % 5] if row % 2 else said[row] for row in range(100)]
    assert kinds(**by_chance, answers=predictions(mostly_right)) == ["underfitting"]
    learned_by_heart = {**by_chance, "losses": noisy(falling(end=0.05), noise=0.03)}
    assert kinds(**learned_by_heart, answers=predictions(said)) == []


def test_equal_answers_are_no_failure_where_the_task_got_better() -> None:
    same = predictions([f"Once upon {row}" for row in range(100)])
    assert kinds(answers=same, compared_on=evaluation(compared("task", "task", 0.5, 0.9))) == []


# Contamination: `decontaminate` is proposed where it finds the rows


def overlapping(name: str, dataset: str) -> Json:
    example = {"dataset": dataset, "row": 7, "other_dataset": "train", "other_row": 3, "similarity": 1.0}
    return check(name, "fail", count=20, examples=[example])


@pytest.mark.parametrize(
    ("name", "dataset", "sets", "is_dropped"),
    [
        ("overlap_exact", "test", [], True),
        ("overlap_normalised", "validation", ["data.validation={path: validation.jsonl}"], True),
        ("overlap_normalised", "validation", [], False),  # a share of the training rows
        ("overlap_near", "test", [], False),
        ("overlap_ngram", "test", [], False),
        ("overlap_exact", "stories", [], False),  # a probe
    ],
)
def test_decontaminate_is_proposed_for_what_it_drops(
    name: str, dataset: str, sets: list[str], is_dropped: bool
) -> None:
    (finding,) = found(checks=[overlapping(name, dataset)], sets=sets)
    assert finding["set"] == (["data.train.decontaminate=true"] if is_dropped else [])
    assert ("decontaminate: true" in finding["fix"]) == is_dropped
    assert ("ftray audit TRAIN --against FILE --write-clean CLEAN" in finding["fix"]) != is_dropped


# What the verdict refuses, the diagnosis names


def probe(name: str, role: str, *, base: float, tuned: float, degraded: int, n: int = 100) -> Json:
    """Return a probe of items that are right or wrong."""
    return {**compared(name, role, base, tuned, p_value=0.5), "n": n, "degraded": degraded, "paired": {"both": 1}}


def counted(*probes: Json, passed: bool, task: Json | None = None) -> Json:
    """Return evaluation.json as the forgetting of its items has it."""
    graded = [one for one in probes if one["paired"] is not None]
    n, degraded = sum(one["n"] for one in graded), sum(one["degraded"] for one in graded)
    part = {"score": degraded / max(1, n), "n": n, "degraded": degraded}
    parts = {"right_or_wrong": part} if graded else {"likelihood": {"score": 0.0, "n": 10, "degraded": 0}}
    forgotten = {**part, "parts": parts, "limit": 0.05, "max_bits_per_byte_increase": 0.1, "passed": passed}
    return {**evaluation(*probes, *([task] if task else [])), "forgetting": forgotten}


def test_items_forgotten_are_forgetting_though_others_were_learned() -> None:
    sums = probe("sums", "general", base=0.5, tuned=0.6, degraded=12)
    (finding,) = found(compared_on=counted(sums, passed=False))
    assert finding["kind"] == "forgetting"
    assert "12 of 100" in finding["symptom"]
    assert kinds(compared_on=counted({**sums, "degraded": 5}, passed=True)) == []


def test_a_fall_of_one_probe_within_the_pooled_limit_is_none() -> None:
    small = probe("small", "general", base=0.5, tuned=0.3, degraded=2, n=10)
    large = probe("large", "general", base=0.5, tuned=0.5, degraded=0)
    assert kinds(compared_on=counted(small, large, passed=True)) == []


def test_instructions_alone_beyond_the_limit_are_the_price_of_a_better_task() -> None:
    rules = probe("rules", "instruction", base=0.8, tuned=0.7, degraded=20)
    kept = probe("sums", "general", base=0.5, tuned=0.5, degraded=1)
    (finding,) = found(compared_on=counted(rules, kept, passed=False))
    assert (finding["kind"], finding["severity"]) == ("alignment_tax", "fail")
    assert "20 of 100 forgotten" in finding["symptom"]
    unlearned = compared("task", "task", 0.91, 0.91, p_value=1.0)
    assert kinds(compared_on=counted(rules, kept, passed=False, task=unlearned)) == ["forgetting"]
    lost = probe("sums", "general", base=0.5, tuned=0.4, degraded=11)
    assert kinds(compared_on=counted(rules, lost, passed=False)) == ["forgetting"]


def test_forgetting_is_named_where_a_likelihood_is_no_number() -> None:
    bits = {**compared("stories", "general", 0.7, 0.7), "degraded": 0, "tuned": {"value": None}}
    (finding,) = found(compared_on=counted(bits, passed=False))
    assert finding["kind"] == "forgetting"
    assert "stories has no value" in finding["symptom"]


@given(
    st.lists(st.tuples(st.sampled_from(["general", "instruction"]), st.integers(0, 20)), min_size=1, max_size=5),
    st.booleans(),
)
def test_the_diagnosis_refuses_what_the_verdict_refuses(given: list[tuple[str, int]], is_better: bool) -> None:
    probes = [
        probe(f"probe {index}", role, base=0.5, tuned=0.5, degraded=lost) for index, (role, lost) in enumerate(given)
    ]
    passed = sum(lost for _, lost in given) <= 5 * len(given)
    task = compared("task", "task", 0.0, 0.95) if is_better else compared("task", "task", 0.91, 0.91, p_value=1.0)
    said = kinds(compared_on=counted(*probes, passed=passed, task=task))
    assert said == [] if passed else said in (["forgetting"], ["alignment_tax"])


# Labels and curves as they were recorded


def test_the_gates_labels_are_those_of_the_held_out_rows() -> None:
    long = "a label that goes on and on until it is longer than what the gate shows of it"
    shown = {long[:59] + "…": 500, "Play music!": 20, "play  music": 3}
    balance = check("label_balance", "warn", count=500, rows=523, facts={"labels": shown})
    expected = [long] * 6 + ["play music."] * 6 + ["play music"] * 6
    evidence = gather(records(answers=predictions(expected=expected), checks=[balance]))
    assert evidence.train_counts == {long: 500, "play music": 23}
    assert evidence.expected_counts == {long: 6, "play music": 12}


def test_the_start_is_of_the_first_steps_alone() -> None:
    assert Curve(steps=(1, 2, 3, 4), values=(9.0, 8.0, 7.0, 1.0)).start == 8.0
    assert Curve(steps=(1, 69, 70), values=(9.0, 1.0, 1.0)).start == 9.0


# Overfitting and forgetting: neither is called the other, both where both are


def test_overfitting_is_not_forgetting() -> None:
    kept = evaluation(compared("stories", "general", 0.67, 0.68, bits=True))
    assert kinds(**FAILURES["overfitting"], compared_on=kept) == ["overfitting"]
    assert kinds(**FAILURES["overfitting"], compared_on=TO_SEE) == ["overfitting", "forgetting"]


def test_the_earlier_checkpoint_is_named_where_it_was_selected() -> None:
    (finding,) = found(**FAILURES["overfitting"])
    assert "Checkpoint 90 was selected" in finding["fix"]
    assert finding["evidence"]["best"]["step"] == 48


# One cause, one finding


@pytest.mark.parametrize("cause", ["lr_too_high", "diverging", "oscillating"])
def test_an_unstable_training_explains_what_it_broke(cause: str) -> None:
    broken = {**FAILURES[cause], "compared_on": TO_SEE, "answers": COLLAPSED}
    (finding,) = found(**broken)
    assert finding["kind"] == cause
    assert set(finding["explains"]) >= {"mode_collapse", "forgetting"}


def test_imbalance_explains_the_one_answer() -> None:
    (finding,) = found(**FAILURES["label_imbalance"], checks=[])
    assert finding["evidence"]["recall"] == {"get weather": 1.0, "play music": 0.0, "rate book": 0.0}
    counts = {"get weather": 900, "play music": 20, "rate book": 20, "book restaurant": 30, "add to playlist": 30}
    counted = check("label_balance", "warn", count=900, rows=1000, facts={"labels": counts})
    (finding,) = found(answers=predictions(["get weather"] * 100), checks=[counted])
    assert (finding["kind"], finding["explains"]) == ("label_imbalance", ["mode_collapse"])
    assert finding["evidence"]["counted_in"] == "training"


def test_an_end_that_is_not_learned_explains_the_broken_format() -> None:
    given = dict(FAILURES["untrained_end_token"])
    given["compared_on"] = {**given["compared_on"], "prefix_validity": [1.0, 0.9, 0.2]}
    (finding,) = found(**given)
    assert finding["kind"] == "untrained_end_token"
    assert {"format_drift", "underfitting"} == set(finding["explains"])


def test_contamination_is_reported_beside_anything() -> None:
    overlap = [check("overlap_near", "warn", count=5)]
    for kind, changes in FAILURES.items():
        if "checks" not in changes:
            assert kinds(**changes, checks=overlap) == ["contamination", kind]


def test_spikes_of_an_unstable_training_are_its_own() -> None:
    assert kinds(**FAILURES["diverging"], events=[spike(70, 3)]) == ["diverging"]


def test_the_rows_of_spikes_are_ranked_by_how_often_they_are_in_one() -> None:
    (finding,) = found(events=[spike(40, 17, 300), spike(80, 41, 17)])
    assert finding["evidence"]["steps"] == [40, 80]
    assert finding["evidence"]["rows"][0] == {"dataset": "train", "row": 17, "loss": 9.0, "spikes": 2}
    assert "train row 17" in finding["fix"]


def test_the_table_of_causes_has_no_circle_and_no_unknown_kind() -> None:
    known = set(get_args(Kind))
    assert set(EXPLAINS) <= known

    def reached(kind: Kind, seen: tuple[Kind, ...] = ()) -> None:
        assert kind not in seen, seen
        for other in EXPLAINS.get(kind, ()):
            assert other in known
            reached(other, (*seen, kind))

    for kind in EXPLAINS:
        reached(kind)


@given(st.lists(st.sampled_from(sorted(get_args(Kind))), unique=True))
def test_root_causes_keep_every_finding_or_its_reason(names: list[Kind]) -> None:
    findings = [Finding(kind=name, severity="warn", symptom="", evidence={}, cause="", fix="") for name in names]
    kept = root_causes(findings)
    assert {one.kind for one in kept} | {name for one in kept for name in one.explains} == set(names)
    assert bool(kept) == bool(names)
    for one in kept:
        assert not any(
            one.kind in EXPLAINS.get(other.kind, ())
            for other in kept
            if names.index(other.kind) < names.index(one.kind)
        )


# Runs that have not much to show


@pytest.mark.parametrize("kind", ["nonfinite", "nothing_learned"])
def test_a_failed_run_is_diagnosed_by_its_failure(kind: str) -> None:
    failure = {"kind": kind, "message": "the loss of step 7 is not a finite number", "given": [["train", 5]]}
    (finding,) = found(failure=failure, losses=falling(steps=6), validation=[], train=[], values=[])
    assert finding["kind"] == {"nonfinite": "lr_too_high", "nothing_learned": "nothing_learned"}[kind]
    assert "step 7" in finding["symptom"]


@pytest.mark.parametrize("kind", ["oom", "data", "node", "communication", "unknown"])
def test_other_failures_are_no_finding(kind: str) -> None:
    failure = {"kind": kind, "message": "it ended", "given": None}
    assert found(failure=failure, losses=falling(steps=6), validation=[], train=[], values=[]) == []


@pytest.mark.parametrize("kind", ["lr_too_low", "underfitting", "nothing_learned"])
def test_how_much_was_learned_is_not_said_of_a_run_that_has_not_ended(kind: str) -> None:
    failure = {"kind": "oom", "message": "out of memory", "given": None}
    assert kinds(**FAILURES[kind], failure=failure) == []


@pytest.mark.parametrize("kind", ["contamination", "diverging", "oscillating", "loss_spike", "overfitting"])
def test_what_shows_before_the_end_is_said_of_a_failed_run(kind: str) -> None:
    failure = {"kind": "node", "message": "a worker was lost", "given": None}
    assert kinds(**FAILURES[kind], failure=failure) == [kind]


def test_a_smoke_run_is_only_asked_about_its_data() -> None:
    for kind, changes in FAILURES.items():
        assert kinds(**changes, smoke=True) == (["contamination"] if kind == "contamination" else [])


def test_lines_of_older_versions_are_read() -> None:
    given = records(**FAILURES["diverging"])
    for line in given.lines:
        for key in ("train/losses", "train/grad_norms", "train/loss_average"):
            line.pop(key, None)
    assert diagnose(given)["findings"] == []  # thirteen points are no course
    assert diagnose(records(losses=[1.0], validation=[], train=[], values=[]))["findings"] == []


@settings(max_examples=60, deadline=None)
@given(
    losses=st.lists(st.floats(0, 1e4, allow_nan=False), max_size=60),
    validation=st.lists(st.floats(0, 1e4), max_size=12),
    rate=st.sampled_from([1e-6, 1e-4, 1e-3, 0.5]),
)
def test_any_curve_is_diagnosed_without_an_error(losses: list[float], validation: list[float], rate: float) -> None:
    given = records(
        losses=losses, validation=validation, train=validation, values=[0.0] * len(validation),
        sets=[f"train.learning_rate={rate}"],
    )  # fmt: skip
    document = diagnose(given)
    json.dumps(jsonable(document), allow_nan=False)
    names = [finding["kind"] for finding in document["findings"]]
    assert len(set(names) & {"lr_too_high", "diverging", "oscillating", "loss_spike"}) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_fault(seed: int) -> None:
    curve = noisy(falling(end=0.05), noise=0.04, seed=seed)
    validation = noisy(HEALTHY_VALIDATION, noise=0.004, seed=seed)
    assert kinds(losses=curve, validation=validation) == []
    assert not any(math.isnan(loss) for loss in curve)
