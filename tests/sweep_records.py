"""Records of a campaign that never was: sixteen trials of every kind of end, and what is changed in them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import run_records

from ftray.artifacts import append_line, write_json
from ftray.campaign import SweepDirectory

SWEEP_ID = "cd56" * 16
DIGEST = "ef78" * 16
TOKENS_PER_STEP = 480
STEPS_PER_EPOCH = 40
Json = dict[str, Any]

# rank, alpha_over_rank, learning_rate, epochs, schedule; how it ended; the share of its steps it made.
TRIALS: list[tuple[int, float, float, int, str, str, float]] = [
    (16, 2, 2e-4, 2, "cosine", "completed", 1.0),
    (8, 1, 1.3e-3, 3, "wsd", "completed", 1.0),
    (32, 2, 7.1e-4, 3, "cosine", "completed", 1.0),
    (4, 4, 4.2e-4, 2, "cosine", "pruned", 0.5),
    (64, 1, 2.6e-5, 1, "linear", "pruned", 0.25),
    (16, 1, 9.8e-4, 2, "wsd", "completed", 1.0),
    (16, 1, 9.8e-4, 1, "wsd", "completed", 1.0),
    (8, 4, 6.4e-3, 3, "cosine", "diverged", 0.4),
    (32, 4, 1.9e-2, 2, "linear", "diverged", 0.1),
    (4, 2, 5.5e-5, 3, "cosine", "pruned", 0.25),
    (64, 2, 5.1e-4, 2, "cosine", "pruned", 0.5),
    (32, 1, 1.1e-3, 3, "linear", "completed", 1.0),
    (8, 2, 3.3e-4, 1, "wsd", "pruned", 0.5),
    (64, 4, 2.2e-3, 3, "cosine", "failed", 0.0),
    (4, 1, 1.2e-4, 2, "linear", "pruned", 0.25),
    (16, 2, 8.7e-4, 3, "cosine", "budget", 0.6),
]
FIELDS = ("rank", "alpha_over_rank", "learning_rate", "epochs", "schedule")
REASONS = {
    "completed": "it made all of its steps",
    "pruned": "asha: at {tokens} tokens its best value {value:.3f} was not among the better third",
    "diverged": "validation loss rose for 3 evaluations while training loss fell",
    "failed": "out of memory: 64 of rank do not fit beside the others",
    "budget": "the budget of 0.2 hours was used up",
}


def trial_id(number: int) -> str:
    """Return the id of the trial with this place in the list."""
    return f"{number:02x}" * 6


def config(number: int) -> Json:
    """Return what the trial searched."""
    return dict(zip(FIELDS, TRIALS[number][:5], strict=True))


def quality(number: int) -> float:
    """Return the accuracy that the trial would reach."""
    rank, ratio, rate, epochs, _, _, _ = TRIALS[number]
    strength = math.log10(rate * ratio) + 2.8
    return max(0.05, 0.93 - 0.16 * strength**2 + 0.012 * math.log2(rank / 4) + 0.015 * (epochs - 2))


def lines(number: int, *, quality_of: float | None = None) -> list[Json]:
    """Return metrics.jsonl of a trial: an evaluation every ten steps."""
    _, _, _, epochs, _, state, share = TRIALS[number]
    steps = round(epochs * STEPS_PER_EPOCH * share / 10) * 10
    reached = quality(number) if quality_of is None else quality_of
    written = []
    for index, step in enumerate(range(10, steps + 1, 10)):
        progress = 1 - math.exp(-step / 30)
        loss = 2.3 * (1 - 0.9 * reached * progress)
        if state == "diverged":
            loss = 1.2 + 0.9 * index
        written.append({
            "time": f"2026-03-04T05:{number:02d}:{step // 10:02d}.000Z", "attempt": 1, "step": step,
            "epoch": step / STEPS_PER_EPOCH, "kind": "evaluation", "val/loss": loss,
            "val/accuracy": round(reached * progress * (0.5 if state == "diverged" else 1.0), 4),
            "train/tokens": step * TOKENS_PER_STEP,
        })  # fmt: skip
    return written


def point(line: Json | None) -> Json | None:
    """Return an evaluation as the ledger has it."""
    if line is None:
        return None
    numbers = {"validation_accuracy": line["val/accuracy"], "validation_loss": line["val/loss"]}
    return {"step": line["step"], **numbers}


def trial(number: int) -> Json:
    """Return the trial's line of trials.jsonl."""
    state = TRIALS[number][5]
    evaluations = lines(number)
    best = max(evaluations, key=lambda line: line["val/accuracy"], default=None)
    last = evaluations[-1] if evaluations else None
    steps = last["step"] if last else 0
    value = best["val/accuracy"] if best else 0.0
    return {
        "trial_id": trial_id(number), "config": config(number), "seed": 0, "state": state,
        "reason": REASONS[state].format(tokens=steps * TOKENS_PER_STEP, value=value),
        "prefix_of": trial_id(5) if number == 6 else None, "steps": steps, "epochs": steps / STEPS_PER_EPOCH,
        "best": point(best), "last": point(last), "seconds": 12.5 + steps / 2, "tokens": steps * TOKENS_PER_STEP,
        "adapter": f"trials/{trial_id(number)}/adapter" if best else None, "is_default": number == 0,
        "role": "search",
    }  # fmt: skip


def estimate(value: float, spread: float = 0.03) -> Json:
    """Return a value with an interval around it."""
    return {"value": value, "low": value - spread, "high": min(1.0, value + spread)}


def candidate(number: int, *, test: float | None, difference: float | None, forgetting: float | None = None) -> Json:
    """Return a finalist, or the default."""
    record = trial(number)
    return {
        "trial_id": record["trial_id"], "config": record["config"],
        "validation": estimate(record["best"]["validation_accuracy"]),
        "test": None if test is None else estimate(test),
        "difference_from_default": None if difference is None else estimate(difference, 0.02),
        "forgetting": forgetting,
        "adapter": {"path": f"trials/{record['trial_id']}/adapter", "digest": DIGEST},
    }  # fmt: skip


def job_record() -> Json:
    """Return job.json of the campaign."""
    content = run_records.job()
    content["sweep"] = {"space": {"rank": [4, 8, 16, 32, 64], "learning_rate": {"loguniform": [1e-5, 3e-2]}}}
    return {
        "schema": "ftray/job/1", "sweep_id": SWEEP_ID, "smoke": False, "job": content, "model_digest": DIGEST,
        "data_digests": {"train": DIGEST, "test": DIGEST}, "ftray_version": "9.9.9",
    }  # fmt: skip


def sweep_record() -> Json:
    """Return sweep.json of the finished campaign: its winner can be told from the default."""
    winner = candidate(2, test=0.912, difference=0.051, forgetting=0.031)
    finalists = [winner, candidate(11, test=0.901, difference=0.04, forgetting=0.018),
                 candidate(1, test=0.889, difference=0.028, forgetting=0.012)]  # fmt: skip
    return {
        "schema": "ftray/sweep/1", "sweep_id": SWEEP_ID, "name": "router", "status": "completed", "mode": "shared",
        "mode_reason": "LoRA on a base that fits this machine: trials share it",
        "objective": {"metric": "exact_match", "split": "validation", "higher_is_better": True},
        "searcher": "optuna", "searcher_reason": "there are 10 trials or more", "scheduler": "asha",
        "scheduler_reason": "there are 8 trials or more", "seed": 0,
        "counts": {"requested": 16, "completed": 6, "pruned": 6, "diverged": 2, "failed": 1, "budget": 1,
                   "deduplicated": 2},
        "trials": 16,
        "base": {"validation": estimate(0.021, 0.015), "test": estimate(0.018, 0.012)},
        "default": candidate(0, test=0.861, difference=None, forgetting=0.009), "winner": winner,
        "finalists": finalists,
        "winner_vs_default": {"difference": 0.051, "low": 0.024, "high": 0.078, "p_value": 0.0004,
                              "distinguishable": True},
        "recommended": "winner",
        "reasons": ["The winner is better than the default by 5.1 points on the test rows (2.4 to 7.8).",
                    "The interval allows for having chosen among 3 finalists."],
        "pareto": [trial_id(2), trial_id(11), trial_id(1), trial_id(0)],
        "importance": {"learning_rate": 0.62, "alpha_over_rank": 0.21, "epochs": 0.09, "rank": 0.06, "schedule": 0.02},
        "forgetting": {trial_id(2): 0.031, trial_id(11): 0.018, trial_id(1): 0.012, trial_id(0): 0.009,
                       trial_id(5): 0.022},
        "forgetting_unit": "share",
        "seconds": {"startup": 6.2, "wall": 402.0, "to_decision": 371.0}, "accelerator_hours": 0.2141, "test_reads": 1,
        "path": "somewhere", "reused": False, "slots": 8, "workers": 2,
        "set": ["method.rank=32", "method.alpha=64", "train.learning_rate=0.00071", "train.epochs=3"],
        "notes": ["100 validation rows tell apart differences of 9.8 points or more; 2401 rows would tell 2."],
        "seeds": [{"seed": 0, "validation": 0.905, "test": 0.912}, {"seed": 1, "validation": 0.897, "test": 0.903},
                  {"seed": 2, "validation": 0.911, "test": None}],
        "started_at": "2026-03-04T05:00:00.000Z", "ended_at": "2026-03-04T05:06:42.000Z",
    }  # fmt: skip


def finished() -> Json:
    """Return all records of a finished campaign, by the name of their path."""
    audit = {
        "schema": "ftray/audit/1", "status": "warn",
        "datasets": [{"name": "train", "path": "train.jsonl", "rows": 600, "digest": DIGEST}],
        "checks": [run_records.check("duplicates_exact", "warn", count=2),
                   run_records.check("size", "pass", count=0)],
    }  # fmt: skip
    return {
        "job": job_record(),
        "audit": audit,
        "sweep": sweep_record(),
        "ledger": [trial(number) for number in range(len(TRIALS))],
        "metrics": {trial_id(number): lines(number) for number in range(len(TRIALS)) if number != 6},
    }


def unfinished() -> Json:
    """Return the records of a campaign whose process was killed: five trials ended, two under way, no sweep.json."""
    records = finished()
    started = {trial_id(number): {"trial_id": trial_id(number), "config": config(number)} for number in range(7)}
    metrics = {trial: records["metrics"].get(trial, []) for trial in started}
    del records["sweep"]
    return {**records, "ledger": records["ledger"][:5], "metrics": metrics, "started": started}


def write(root: Path, records: Json) -> SweepDirectory:
    """Write the records of a campaign to a folder."""
    sweep = SweepDirectory(root)
    sweep.trials.mkdir(parents=True)
    for name in ("job", "audit", "sweep"):
        if name in records:
            write_json(getattr(sweep, name), copy.deepcopy(records[name]))
    for line in records.get("ledger", []):
        append_line(sweep.ledger, line)
    for identity in {**records.get("metrics", {}), **records.get("started", {})}:
        sweep.trial(identity).root.mkdir()
    for identity, written in records.get("metrics", {}).items():
        for line in written:
            append_line(sweep.trial(identity).metrics, line)
    for identity, record in records.get("started", {}).items():
        write_json(sweep.trial(identity).record, record)
    return sweep
