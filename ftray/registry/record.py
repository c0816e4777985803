"""What the registry keeps beside an adapter's files: where it comes from, how it was judged, how it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftray.artifacts import read_json
from ftray.data.templates import ChatTemplate
from ftray.data.tokenization import Tokenization
from ftray.job import Job
from ftray.model.base import identify
from ftray.model.lora import CONFIG_FILE


def trained_record(
    job: Job,
    folder: Path,
    *,
    made_by: Mapping[str, Any],
    tokenization: Tokenization,
    data_digests: Mapping[str, str],
    evaluation: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    card: str,
) -> dict[str, Any]:
    """Return the record of what a job has trained, the parts left out that registering adds.

    `made_by`: {"run_id"}, or {"run_id": None, "sweep_id", "trial_id"}. `folder`: the adapter's or model's files.
    `tokenization`: what it was trained with: who asks it must render and stop as it did.
    """
    is_adapter = job.method.kind != "full"
    base = identify(job.model)
    return {
        "name": job.name,
        "kind": "adapter" if is_adapter else "model",
        "base": {"name": base.name, "digest": base.digest, "model": job.model},
        **(adapter_shape(folder) if is_adapter else {"rank": None, "alpha": None, "target_modules": []}),
        **made_by,
        "data_digests": dict(data_digests),
        "metrics": metrics_of(evaluation),
        "verdict": evaluation["verdict"]["decision"],
        "verdict_reasons": evaluation["verdict"]["reasons"],
        "template": template_record(tokenization.template),
        "stop_token_ids": list(tokenization.stop_token_ids),
        "fingerprint": dict(fingerprint),
        # Where it is served is another matter, and may name a password.
        "job": job.model_dump(mode="json", exclude={"serve"}),
        "card": card,
    }


def adapter_shape(folder: Path) -> dict[str, Any]:
    """Return rank, alpha and target modules as a PEFT folder's configuration says; of whole names the last part."""
    config = read_json(folder / CONFIG_FILE)
    targets = config.get("target_modules") or []
    named = [targets] if isinstance(targets, str) else [target.rsplit(".", 1)[-1] for target in targets]
    return {
        "rank": int(config["r"]),
        "alpha": float(config["lora_alpha"]),
        "target_modules": sorted(set(named)),
    }


def template_record(template: ChatTemplate | None) -> dict[str, Any] | None:
    """Return how conversations are rendered; None for what was trained on plain texts.

    The source is left out where it is the tokenizer's own, which the base has.
    """
    if template is None:
        return None
    is_own = template.name == "tokenizer"
    return {
        "name": template.name if is_own else Path(template.name).name,
        "source": None if is_own else template.source,
    }


def metrics_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation comes to, without its rows."""
    kept = ("name", "role", "metric", "higher_is_better", "n", "base", "tuned", "p_value")
    return {
        "split": evaluation["split"],
        "tasks": [{key: task.get(key) for key in kept} for task in evaluation["tasks"]],
        "forgetting": evaluation["forgetting"],
    }
