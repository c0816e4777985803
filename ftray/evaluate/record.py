"""evaluation.json: base and tuned per task, what was forgotten, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftray.evaluate.compare import TaskComparison
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.forgetting import measure_forgetting
from ftray.evaluate.outputs import Outputs
from ftray.evaluate.verdict import Split, decide

SCHEMA = "ftray/evaluation/1"


def evaluation_record(
    comparisons: Sequence[TaskComparison],
    outputs: Outputs,
    *,
    config: EvaluateConfig,
    split: Split,
    run_id: str | None,
    base_name: str,
    base_digest: str,
    tuned_step: int | None,
    tuned_digest: str,
) -> dict[str, Any]:
    """Return the `ftray/evaluation/1` document. Exactly one comparison has the role `task`."""
    (task,) = [comparison for comparison in comparisons if comparison.role == "task"]
    forgetting = measure_forgetting(comparisons, config)
    beside = [comparison for comparison in comparisons if comparison.role in ("format", "instruction")]
    verdict = decide(task, forgetting, split=split, beside=beside)
    return {
        "schema": SCHEMA,
        "run_id": run_id,
        "split": split,
        "selection_biased": split == "validation",
        "base": {"name": base_name, "digest": base_digest},
        "tuned": {"step": tuned_step, "digest": tuned_digest},
        "tasks": [comparison.to_record() for comparison in comparisons],
        "forgetting": forgetting.to_record() if forgetting else None,
        "collapse": task.collapse.to_record() if task.collapse else None,
        **outputs.to_record(),
        "verdict": verdict.to_record(),
    }
