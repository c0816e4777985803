"""After the last step: choose the checkpoint, score it beside the untouched base, and write what the run leaves.

Test data is read here and nowhere before. Everything is collective until the files, which rank 0 writes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, canonical_json_line, digest_files, write_json, write_text
from ftray.data.collate import Layout, collate
from ftray.data.tokenization import Tokenization, TokenizedExample
from ftray.errors import RunError
from ftray.evaluate.compare import compare, predictions_lines
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.mode import evaluating
from ftray.evaluate.outputs import FORMAT_TASK, format_predictions, format_task, inspect_outputs
from ftray.evaluate.predict import Answers, predict_both
from ftray.evaluate.record import evaluation_record
from ftray.evaluate.tasks import Task
from ftray.job import Job
from ftray.model.base import identify, load_model
from ftray.model.forward import label_logits
from ftray.model.lora import base_only
from ftray.model_card import model_card
from ftray.registry.fingerprint import choose_probe, fingerprint
from ftray.registry.probing import dtype_of, prefixes
from ftray.registry.record import trained_record
from ftray.registry.store import RECORD_FILE
from ftray.selection import Candidate, Selection, select
from ftray.train.checkpoint import Checkpoint, find_checkpoints, is_adapter, load_weights
from ftray.train.engine import Engine
from ftray.train.loop import Validation, score, shared_base
from ftray.train.state import Training

PROBE_EXAMPLES = 4
"""Examples whose logits must differ between base and tuned model; one of their prefixes becomes the fingerprint's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalTasks:
    """What base and tuned are compared on: the task's rows and the general probes."""

    tasks: list[Task]
    split: str  # test | validation
    training_answers: Sequence[str] = ()
    """What the task's answers are compared with to find copies; empty where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeWith:
    """What the registry is told of a run's data."""

    tokenization: Tokenization
    data_digests: Mapping[str, str]


def conclude(
    job: Job,
    run: RunDirectory,
    training: Training,
    engine: Engine,
    validation: Validation,
    final: FinalTasks,
    *,
    run_id: str,
    made_with: MadeWith,
) -> dict[str, Any]:
    """Choose, compare, export (collective). Returns the parts of result.json that come of it."""
    if training.progress.step == 0:
        raise RunError("no step was trained", kind="nothing_learned", hint="Check train.epochs and train.max_steps.")
    selection, chosen = choose(training, engine, validation, run.checkpoints, run_id=run_id)
    difference, mark = require_difference(engine, training.examples, validation.layout, model=job.model)
    base, tuned = evaluate_both(engine, final, validation, model=job.model)
    outcome: dict[str, Any] = {}
    if engine.group.rank == 0:
        record = selection.to_record(metric=job.evaluate.task.metric)
        write_json(run.selection, record)
        staged = stage(chosen, run, tokenizer=validation.tokenizer, full=job.method.kind == "full")
        digest = digest_folder(staged)
        evaluation = write_evaluation(
            run,
            final,
            base,
            tuned,
            config=job.evaluate,
            run_id=run_id,
            model=job.model,
            tuned_step=selection.step,
            tuned_digest=digest,
        )
        method = job.method.model_dump()
        card = model_card(
            name=job.name, model=job.model, method=method, evaluation=evaluation, origin=f"run {run_id[:12]}"
        )
        known = trained_record(
            job,
            staged,
            made_by={"run_id": run_id},
            tokenization=made_with.tokenization,
            data_digests=made_with.data_digests,
            evaluation=evaluation,
            fingerprint=mark,
            card=card,
        )
        publish(staged, run, card=card, record=known)
        outcome = summarise(run, evaluation, selection=record, digest=digest)
        outcome["max_abs_difference_from_base"] = difference
    gathered: dict[str, Any] = engine.group.gather(outcome)[0]
    return gathered


def choose(
    training: Training, engine: Engine, validation: Validation, folder: Path, *, run_id: str
) -> tuple[Selection, Checkpoint]:
    """Select a checkpoint by held-out value among those that exist, and put its weights into the engine.

    Checkpoints without a value under the job's metric (its `evaluate` has changed since) are scored again.
    """
    points = {point.step: point for point in training.progress.evaluations}
    candidates, existing = [], {}
    found = find_checkpoints(folder, run_id=run_id)
    # Rank 0 looks, so that all ranks choose among the same ones; a damaged checkpoint must not be exported.
    whole = [one.step for one in found if one.is_whole()] if engine.group.rank == 0 else []
    whole = engine.group.gather(whole)[0]
    for checkpoint in (one for one in found if one.step in whole):
        existing[checkpoint.step] = checkpoint
        point = points.get(checkpoint.step)
        if point is not None and point.value is not None:
            candidates.append(Candidate(step=point.step, value=point.value, loss=point.validation_loss))
            continue
        load_weights(checkpoint, engine)
        scored = score(engine, validation)
        candidates.append(Candidate(step=checkpoint.step, value=scored.value, loss=scored.loss))
    selection = select(candidates, higher_is_better=training.higher_is_better)
    chosen = existing[selection.step]
    load_weights(chosen, engine)
    return selection, chosen


def evaluate_both(engine: Engine, final: FinalTasks, validation: Validation, *, model: str) -> tuple[Answers, Answers]:
    """Return what the base and the tuned model (the engine's present weights) answer to every task (collective)."""
    as_base = answering_as_base(engine, model)
    return predict_both(final.tasks, validation.asked(engine), shared_base(engine), as_base=as_base)


@contextmanager
def answering_as_base(engine: Engine, model: str) -> Iterator[None]:
    """Put the untouched base in the engine's place inside this block (collective)."""
    if is_adapter(engine.model):
        with base_only(engine.model):
            yield
        return
    tuned = {state.name: state.weight.detach().to("cpu", copy=True) for state in engine.states()}
    engine.load_weights({name: parameter.detach() for name, parameter in load_model(model).named_parameters()})
    try:
        yield
    finally:
        engine.load_weights(tuned)


def require_difference(
    engine: Engine, examples: Sequence[TokenizedExample], layout: Layout, *, model: str
) -> tuple[float, dict[str, Any]]:
    """Return the largest difference between tuned and base logits on some training rows, and the fingerprint there.

    Collective. Raises RunError `nothing_learned` when the difference is exactly 0: the adapter would be served as if it
    were there.
    """
    asked = list(examples[:PROBE_EXAMPLES])
    batch = collate(asked, layout).to(engine.device)
    with evaluating(engine.model):
        tuned = label_logits(engine.model, batch).float()
        with answering_as_base(engine, model):
            base = label_logits(engine.model, batch).float()
    difference = float((tuned - base).abs().max())
    if difference > 0.0:
        probes = prefixes(asked)
        row = choose_probe(tuned, base, probes)
        return difference, fingerprint(tuned[row], base[row], probes[row], dtype=dtype_of(engine.model))
    raise RunError(
        "the tuned model answers exactly as its base: nothing was learned, or the adapter is not applied",
        kind="nothing_learned",
        given={"max_abs_logit_difference": 0.0},
        allowed="a difference above 0",
        hint="Check train.learning_rate and method.target_modules; the run's metrics.jsonl shows the gradient norms.",
    )


def stage(checkpoint: Checkpoint, run: RunDirectory, *, tokenizer: Any, full: bool) -> Path:
    """Copy the checkpoint's model files, without the optimizer, to a folder beside RUN/adapter; return it."""
    staged = run.root / ".adapter.tmp"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    for name in checkpoint.manifest["files"]:
        if not name.startswith("optimizer-") and name != "state.json":
            shutil.copy2(checkpoint.folder / name, staged / name)
    if full:
        tokenizer.save_pretrained(str(staged))
    return staged


def publish(staged: Path, run: RunDirectory, *, card: str, record: dict[str, Any]) -> None:
    """Make the staged folder RUN/adapter, whole: judged first, with its card and what the registry will say in it."""
    write_text(staged / "README.md", card)
    write_json(staged / RECORD_FILE, record)
    shutil.rmtree(run.adapter, ignore_errors=True)
    os.replace(staged, run.adapter)


def digest_folder(folder: Path) -> str:
    """Return the digest of a model folder, its card and record left out."""
    return digest_files(
        path for path in folder.iterdir() if path.is_file() and path.name not in {"record.json", "README.md"}
    )


def write_evaluation(
    run: RunDirectory,
    final: FinalTasks,
    base: Answers,
    tuned: Answers,
    *,
    config: EvaluateConfig,
    run_id: str | None,
    model: str,
    tuned_step: int | None,
    tuned_digest: str,
) -> dict[str, Any]:
    """Write evaluation.json and predictions.jsonl; return the former."""
    asked, tasks = final.tasks[0], list(final.tasks)
    outputs = inspect_outputs(asked, base[asked.name], tuned[asked.name], final.training_answers)
    if (in_format := format_task(asked)) is not None:
        # The same answers, graded by their form.
        base, tuned = ({**one, FORMAT_TASK: format_predictions(one[asked.name])} for one in (base, tuned))
        tasks.insert(1, in_format)
    comparisons = [compare(task, base[task.name], tuned[task.name]) for task in tasks]
    identity = identify(model)
    record = evaluation_record(
        comparisons,
        outputs,
        config=config,
        split="test" if final.split == "test" else "validation",
        run_id=run_id,
        base_name=identity.name,
        base_digest=identity.digest,
        tuned_step=tuned_step,
        tuned_digest=tuned_digest,
    )
    lines = [line for task in tasks for line in predictions_lines(task, base[task.name], tuned[task.name])]
    write_text(run.predictions, "".join(canonical_json_line(line) for line in lines))
    write_json(run.evaluation, record)
    return record


def summarise(
    run: RunDirectory, evaluation: dict[str, Any], *, selection: dict[str, Any], digest: str
) -> dict[str, Any]:
    """Return result.json's view of an evaluation."""
    task = evaluation["tasks"][0]
    forgetting = evaluation["forgetting"]
    compared = {key: task[key] for key in ("metric", "n", "base", "tuned")}
    return {
        "verdict": evaluation["verdict"]["decision"],
        "verdict_reasons": evaluation["verdict"]["reasons"],
        "selected": {key: selection[key] for key in ("step", "metric", "value", "last_value")},
        "test": compared if evaluation["split"] == "test" else None,
        "validation": compared if evaluation["split"] == "validation" else None,
        "tasks": evaluation["tasks"],
        "forgetting": {key: forgetting[key] for key in ("score", "low", "high", "n")} if forgetting else None,
        "adapter": {"path": str(run.adapter), "digest": digest},
    }
