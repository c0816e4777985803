"""After the last step: choose the checkpoint, score it beside the untouched base, and write what the run leaves.

Test data is read here and nowhere before. Everything is collective until the files, which rank 0 writes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ftray import __version__
from ftray.artifacts import RunDirectory, canonical_json_line, digest_file, write_json, write_text
from ftray.data.collate import Layout, collate
from ftray.data.tokenization import TokenizedExample
from ftray.errors import RunError
from ftray.evaluate.compare import compare, predictions_lines
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.mode import evaluating
from ftray.evaluate.predict import RowPrediction, predict_task
from ftray.evaluate.record import evaluation_record
from ftray.evaluate.tasks import Task
from ftray.model.base import identify, load_model
from ftray.model.forward import label_logits
from ftray.model.lora import base_only
from ftray.selection import Candidate, Selection, select
from ftray.train.checkpoint import Checkpoint, find_checkpoints, is_adapter, load_weights
from ftray.train.engine import Engine
from ftray.train.loop import Validation, score
from ftray.train.state import Training

PROBE_EXAMPLES = 4
"""Examples whose logits must differ between base and tuned model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalTasks:
    """What base and tuned are compared on: the task's rows and the general probes."""

    tasks: list[Task]
    split: str  # test | validation


def choose(training: Training, engine: Engine, validation: Validation, folder: Path, *, run_id: str) -> Selection:
    """Select the checkpoint by held-out value among those that exist, and put its weights into the engine.

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
        value, loss = score(engine, validation)
        candidates.append(Candidate(step=checkpoint.step, value=value, loss=loss))
    selection = select(candidates, higher_is_better=training.higher_is_better)
    load_weights(existing[selection.step], engine)
    return selection


def evaluate_both(
    engine: Engine, final: FinalTasks, validation: Validation, *, model: str
) -> tuple[dict[str, list[RowPrediction]], dict[str, list[RowPrediction]]]:
    """Return what tuned (the engine's present weights) and base answer to every task, by task name (collective)."""

    def answer() -> dict[str, list[RowPrediction]]:
        return {
            task.name: predict_task(
                task,
                engine.model,
                validation.tokenizer,
                stop_token_ids=validation.stop_token_ids,
                group=engine.group,
                layout=validation.layout,
                synchronised=engine.synchronised,
            )
            for task in final.tasks
        }

    tuned = answer()
    with answering_as_base(engine, model):
        base = answer()
    return base, tuned


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


def require_difference(engine: Engine, examples: Sequence[TokenizedExample], layout: Layout, *, model: str) -> float:
    """Return the largest difference between tuned and base logits on some training rows (collective).

    Raises RunError `nothing_learned` when it is exactly 0: the adapter would be served as if it were there.
    """
    batch = collate(list(examples[:PROBE_EXAMPLES]), layout).to(engine.device)
    with evaluating(engine.model):
        tuned = label_logits(engine.model, batch).float()
        with answering_as_base(engine, model):
            base = label_logits(engine.model, batch).float()
    difference = float((tuned - base).abs().max())
    if difference > 0.0:
        return difference
    raise RunError(
        "the tuned model answers exactly as its base: nothing was learned, or the adapter is not applied",
        kind="nothing_learned",
        given={"max_abs_logit_difference": 0.0},
        allowed="a difference above 0",
        hint="Check train.learning_rate and method.target_modules; the run's metrics.jsonl shows the gradient norms.",
    )


def export(checkpoint: Checkpoint, run: RunDirectory, *, tokenizer: Any, card: str, full: bool) -> str:
    """Copy the checkpoint's model files, without the optimizer, to RUN/adapter; return the digest of the files.

    The digest is the registry's: SHA-256 of the sorted lines "<sha256>  <file>".
    """
    temporary = run.root / ".adapter.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for name in checkpoint.manifest["files"]:
        if not name.startswith("optimizer-") and name != "state.json":
            shutil.copy2(checkpoint.folder / name, temporary / name)
    if full:
        tokenizer.save_pretrained(str(temporary))
    digest = digest_folder(temporary)
    write_text(temporary / "README.md", card)
    shutil.rmtree(run.adapter, ignore_errors=True)
    os.replace(temporary, run.adapter)
    return digest


def digest_folder(folder: Path) -> str:
    """Return the SHA-256 of the sorted lines "<sha256>  <file>" of a model folder, its card and record left out."""
    import hashlib

    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    lines = [f"{digest_file(folder / name)}  {name}\n" for name in names if name not in {"record.json", "README.md"}]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def write_evaluation(
    run: RunDirectory,
    final: FinalTasks,
    base: dict[str, list[RowPrediction]],
    tuned: dict[str, list[RowPrediction]],
    *,
    config: EvaluateConfig,
    run_id: str | None,
    model: str,
    tuned_step: int | None,
    tuned_digest: str,
) -> dict[str, Any]:
    """Write evaluation.json and predictions.jsonl; return the former."""
    comparisons = [compare(task, base[task.name], tuned[task.name]) for task in final.tasks]
    identity = identify(model)
    record = evaluation_record(
        comparisons,
        config=config,
        split="test" if final.split == "test" else "validation",
        run_id=run_id,
        base_name=identity.name,
        base_digest=identity.digest,
        tuned_step=tuned_step,
        tuned_digest=tuned_digest,
    )
    lines = [line for task in final.tasks for line in predictions_lines(task, base[task.name], tuned[task.name])]
    write_text(run.predictions, "".join(canonical_json_line(line) for line in lines))
    write_json(run.evaluation, record)
    return record


def model_card(*, name: str, model: str, method: dict[str, Any], evaluation: dict[str, Any], run_id: str) -> str:
    """Return the README of an exported adapter: what it is, how it was judged, how to load it."""
    task = evaluation["tasks"][0]
    verdict = evaluation["verdict"]
    reasons = "\n".join(f"- {reason}" for reason in verdict["reasons"])
    rows = "\n".join(
        f"| {one['name']} | {one['metric']} | {one['n']} | {_number(one['base'])} | {_number(one['tuned'])} |"
        for one in evaluation["tasks"]
    )
    kind = "LoRA adapter" if method["kind"] == "lora" else "fully fine-tuned model"
    load = (
        f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({model!r}), FOLDER)"
        if method["kind"] == "lora"
        else "model = AutoModelForCausalLM.from_pretrained(FOLDER)"
    )
    return f"""---
base_model: {model}
library_name: {"peft" if method["kind"] == "lora" else "transformers"}
---
# {name}

A {kind} of `{model}`, made by ftray {__version__} (run {run_id[:12]}).
Verdict: **{verdict["decision"]}** on the {evaluation["split"]} split ({task["n"]} rows).

{reasons}

| evaluation | metric | rows | base | tuned |
|---|---|---|---|---|
{rows}

```python
{load}
```
"""


def _number(estimate: dict[str, Any]) -> str:
    value = estimate["value"]
    return "-" if value is None else f"{value:.4g}"


def reset_memory_peak() -> None:
    """Start measuring the peak memory of this process anew (GPU only; the host's peak is the process's)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
