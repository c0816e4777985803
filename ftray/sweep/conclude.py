"""The end of a campaign: choose by validation, compare on rows that chose nothing, recommend; written as sweep.json."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftray import __version__
from ftray.artifacts import RunDirectory, now, read_json, write_json
from ftray.campaign import Config, Ledger, State, TrialResult
from ftray.evaluate.intervals import wilson
from ftray.evaluate.metrics import estimate
from ftray.evaluate.predict import Answers, RowPrediction
from ftray.finish import FinalTasks, digest_folder, write_evaluation
from ftray.sweep.choice import Choice, choose, pareto
from ftray.sweep.finals import Finals, ask_general, compare_on_held_out_rows, measure_all_forgetting
from ftray.sweep.importance import importance
from ftray.sweep.mode import BASE, Mode
from ftray.sweep.prepare import Campaign
from ftray.sweep.recommendation import Recommendation, recommend
from ftray.sweep.spent import Spent

PACKAGES = ("ray", "torch", "transformers", "peft", "optuna")
STATES: tuple[State, ...] = ("completed", "pruned", "diverged", "failed", "budget")
Again = Callable[[Config, Sequence[int]], list[TrialResult]]
"""Trains a configuration with other seeds."""


def conclude(
    campaign: Campaign,
    mode: Mode,
    spent: Spent,
    *,
    ended_by_budget: bool,
    deduplicated: int,
    startup_seconds: float,
    again: Again,
    say: Callable[[str], None],
    started_at: str,
) -> dict[str, Any]:
    """Choose, compare, recommend; return sweep.json."""
    results = [result for result in Ledger(campaign.directory.ledger).results() if result.role == "search"]
    evaluate = campaign.loaded.job.evaluate
    say("Asking the trials what they have forgotten, and the finalists the held-out rows")
    general = ask_general(mode, results, campaign.final)
    forgotten = measure_all_forgetting(general, campaign.final, evaluate)
    forgetting = forgotten.by_trial
    higher_is_better = campaign.higher_is_better
    choice = choose(
        results,
        higher_is_better=higher_is_better,
        finalists=campaign.settings.finalists,
        forgetting=forgetting,
    )
    record = _head(campaign, mode, results, deduplicated=deduplicated, started_at=started_at) | {
        "forgetting": forgetting,
        "forgetting_unit": forgotten.unit,
        "pareto": pareto(results, forgetting, higher_is_better=higher_is_better),
        "importance": importance(results, higher_is_better=higher_is_better),
    }
    if choice.winner is None:
        found = record | _without_winner(campaign, spent, startup_seconds)
        return found | ({"status": "budget"} if ended_by_budget else {})
    finals = compare_on_held_out_rows(
        mode,
        choice,
        campaign.directory,
        task=campaign.final.tasks[0],
        split=campaign.split,
        higher_is_better=higher_is_better,
    )
    recommendation = recommend(finals.comparison, metric=evaluate.task.metric)
    verdict = _verdict(campaign, choice, finals, general, recommendation)
    to_decision = spent.now.wall
    seeds = _train_seeds(campaign, choice, again, say)
    record |= _compared(campaign, mode, choice, finals, forgetting)
    record |= {
        "status": "budget" if ended_by_budget else "completed",
        "winner_vs_default": finals.comparison.winner_vs_default.to_record()
        if finals.comparison.winner_vs_default
        else None,
        "recommended": recommendation.recommended,
        "reasons": [recommendation.reason, choice.reason, finals.comparison.reason],
        "verdict": verdict,
        "set": settings_of(campaign, choice.winner),
        "seeds": seeds,
        "test_reads": finals.test_reads,
    }
    return record | _times(spent, startup_seconds, to_decision)


def _head(
    campaign: Campaign, mode: Mode | None, results: Sequence[TrialResult], *, deduplicated: int, started_at: str
) -> dict[str, Any]:
    job = campaign.loaded.job
    described = mode.describe() if mode else {}
    states = Counter(result.state for result in results)
    return {
        "schema": "ftray/sweep/1",
        "sweep_id": campaign.sweep_id,
        "name": job.name,
        "path": str(campaign.directory.root),
        "url": campaign.loaded.place.spell(campaign.directory.root) if campaign.loaded.place.url else None,
        "reused": False,
        "status": "failed",
        "mode": campaign.mode,
        "mode_reason": campaign.mode_reason,
        "objective": {
            "metric": job.evaluate.task.metric,
            "split": "validation",
            "higher_is_better": campaign.higher_is_better,
        },
        "searcher": campaign.searcher,
        "searcher_reason": campaign.searcher_reason,
        "scheduler": campaign.scheduler,
        "scheduler_reason": campaign.scheduler_reason,
        "seed": job.seed,
        "slots": mode.slots if mode else None,
        "workers": mode.workers if mode else 0,
        "counts": {
            "requested": campaign.num_trials,
            **{state: states[state] for state in STATES},
            "deduplicated": deduplicated,
        },
        "trials": len(results),
        "notes": [*campaign.notes, *described.pop("notes", [])],
        "compute": described,
        "versions": {"ftray": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "started_at": started_at,
        "ended_at": now(),
    }


def _without_winner(campaign: Campaign, spent: Spent, startup_seconds: float) -> dict[str, Any]:
    return {
        "status": "failed",
        "base": {"validation": known_base_value(campaign), "test": None},
        "default": None,
        "winner": None,
        "finalists": [],
        "winner_vs_default": None,
        "recommended": "base",
        "reasons": ["No trial has a value: none came to its first evaluation. The ledger says how each ended."],
        "verdict": {"decision": "none", "reasons": []},
        "set": [],
        "seeds": [],
        "test_reads": 0,
        **_times(spent, startup_seconds, None),
    }


def _times(spent: Spent, startup_seconds: float, to_decision: float | None) -> dict[str, Any]:
    amount = spent.now
    return {
        "seconds": {"startup": startup_seconds, "wall": amount.wall, "to_decision": to_decision},
        "accelerator_hours": amount.trainers / 3600,
    }


def _compared(
    campaign: Campaign, mode: Mode, choice: Choice, finals: Finals, forgetting: Mapping[str, float]
) -> dict[str, Any]:
    """Return base, default, winner and finalists with their numbers on both splits."""
    comparison = finals.comparison
    assert choice.winner is not None, "there is a winner to describe"

    def described(result: TrialResult) -> dict[str, Any]:
        candidate = comparison.candidates[result.trial_id]
        against = candidate.against_default
        return {
            "trial_id": result.trial_id,
            "config": result.config,
            "validation": _validation(campaign, result),
            "test": candidate.value.to_record() if campaign.split == "test" else None,
            "difference_from_default": against.estimate.to_record() if against else None,
            "forgetting": forgetting.get(result.trial_id),
            "adapter": _adapter(result),
        }

    return {
        "base": {
            "validation": base_value(campaign, mode) if campaign.split == "test" else comparison.base.to_record(),
            "test": comparison.base.to_record() if campaign.split == "test" else None,
        },
        "default": described(choice.default) if choice.default else None,
        "winner": described(choice.winner),
        "finalists": [described(result) for result in choice.finalists],
    }


def _validation(campaign: Campaign, result: TrialResult) -> dict[str, Any] | None:
    """Return a trial's best value on the validation rows with its interval, where it is known or is a share."""
    if result.best is None:
        return None
    value, rows = result.best.validation_accuracy, len(campaign.validation.rows)
    known: dict[str, Any] | None = result.extra.get("validation")
    if known is not None:
        return known
    if campaign.validation.metric.metric in ("exact_match", "choice", "json_valid"):
        return dict(wilson(round(value * rows), rows).to_record())
    return {"value": value, "low": None, "high": None}


def base_value(campaign: Campaign, mode: Mode) -> dict[str, Any]:
    """Return what the base is worth on the validation rows: as the first trainer wrote it, or asked now, once."""
    known = known_base_value(campaign)
    if known is not None:
        return known
    task = campaign.validation
    rows = mode.answer({}, ["validation"], with_base=True)[BASE][task.name]
    value = estimate(task.metric, rows).to_record()
    root = campaign.directory.root
    write_json(root / "base.json", {"schema": "ftray/base/1", "validation": value, "n": len(rows)})
    campaign.loaded.place.mirror(root).publish("base.json")
    return dict(value)


def known_base_value(campaign: Campaign) -> dict[str, Any] | None:
    """Return what the base is worth on the validation rows, where it has been asked."""
    path = campaign.directory.root / "base.json"
    campaign.loaded.place.mirror(path.parent).fetch(lambda name: name == path.name)
    return dict(read_json(path)["validation"]) if path.exists() else None


def _adapter(result: TrialResult) -> dict[str, str] | None:
    if result.adapter is None:
        return None
    return {"path": result.adapter, "digest": digest_folder(Path(result.adapter))}


def _verdict(
    campaign: Campaign,
    choice: Choice,
    finals: Finals,
    general: Mapping[str, Answers],
    recommendation: Recommendation,
) -> dict[str, Any]:
    """Compare what is recommended with the base in full, as a run's end does: evaluation.json, predictions.jsonl."""
    chosen = choice.default if recommendation.recommended == "default" else choice.winner
    if chosen is None or chosen.adapter is None or recommendation.recommended == "base":
        return {"decision": "do_not_ship", "reasons": [recommendation.reason]}
    tasks = [task for task in campaign.final.tasks if task.lm_eval is None]
    record = write_evaluation(
        RunDirectory(campaign.directory.root),
        FinalTasks(tasks=tasks, split=campaign.final.split, training_answers=campaign.final.training_answers),
        _answers_of(BASE, tasks[0].name, finals.answers, general),
        _answers_of(chosen.trial_id, tasks[0].name, finals.answers, general),
        config=campaign.loaded.job.evaluate,
        run_id=None,
        model=campaign.loaded.job.model,
        tuned_step=chosen.best.step if chosen.best else None,
        tuned_digest=digest_folder(Path(chosen.adapter)),
    )
    return dict(record["verdict"])


def _answers_of(
    name: str, task: str, held_out: Mapping[str, list[RowPrediction]], general: Mapping[str, Answers]
) -> Answers:
    return {task: held_out[name], **general.get(name, {})}


def _train_seeds(campaign: Campaign, choice: Choice, again: Again, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train the winner with other seeds, where the job asks for it; return each seed's value."""
    winner = choice.winner
    assert winner is not None, "there is a winner to train again"
    if campaign.settings.seeds == 1:
        return []
    say(f"Training the winner with {campaign.settings.seeds - 1} other seeds")
    others = again(winner.config, [winner.seed + index for index in range(1, campaign.settings.seeds)])
    return [
        {
            "seed": result.seed,
            "trial_id": result.trial_id,
            "validation": result.best.validation_accuracy if result.best else None,
            "test": None,
        }
        for result in (winner, *others)
    ]


def settings_of(campaign: Campaign, result: TrialResult) -> list[str]:
    """Return what makes `ftray train` train this trial: key.path=value for every setting that is not the job's."""
    job, other = campaign.loaded.job, campaign.configurations.spec(result.config, seed=result.seed).job
    settings = []
    for section in ("method", "train"):
        mine, theirs = (getattr(one, section).model_dump(mode="json") for one in (job, other))
        settings += [f"{section}.{key}={json.dumps(theirs[key])}" for key in theirs if theirs[key] != mine[key]]
    return settings


def interrupted_record(campaign: Campaign, spent: Spent, *, started_at: str, reason: str) -> dict[str, Any]:
    """Return sweep.json of a campaign that was stopped, by hand or by what it lost."""
    results = [result for result in Ledger(campaign.directory.ledger).results() if result.role == "search"]
    record = _head(campaign, None, results, deduplicated=0, started_at=started_at)
    return {
        **record,
        **_without_winner(campaign, spent, 0.0),
        "status": "interrupted",
        "reasons": [reason, "The same command goes on with the trials that have not ended."],
        "forgetting": {},
        "forgetting_unit": None,
        "pareto": [],
        "importance": {},
        "judged_digest": None,
        "ends_digest": None,
    }
