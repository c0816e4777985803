"""`ftray quickstart`: the whole story on a base and a task of its own, offline, asserting what it claims."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ftray.artifacts import write_text
from ftray.errors import RunError
from ftray.finetune import Display, finetune
from ftray.job import load_job
from ftray.preflight import Prepared
from ftray.quickstart.pretrain import make_base
from ftray.quickstart.task import COMPLETION, PROMPT, TaskFiles, write_task

if TYPE_CHECKING:
    from ftray.sweep.run import Display as SweepDisplay

MOST_BASE = 0.20
LEAST_TUNED = 0.80
LEAST_PROBE = 0.80
"""What is claimed: the base cannot do the task, the tuned model can, and the base is good at something else."""
SPACE: dict[str, Any] = {"rank": [4, 16], "learning_rate": [5e-4, 2e-3]}
MOST_TOKENS = 12
"""Of an answer: the labels are short."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The first half of the story."""

    job_file: Path
    test_file: Path
    storage: Path
    started: float
    result: dict[str, Any]


def train_first(storage: Path, *, say: Say, display: Display, on_plan: Callable[[Prepared], None]) -> Told:
    """Make a base and a task, fine-tune, compare.

    Raises RunError when one of the claims does not hold.
    """
    started = time.perf_counter()
    storage = storage.resolve()  # the job file lies elsewhere: relative paths would be read from there
    folder = storage / "quickstart"
    base = folder / "base"
    if not (base / "model.safetensors").exists():
        say("Pretraining a small Llama on generated text (about a minute) ...")
        made = make_base(base, on_progress=lambda step, steps, loss: display_pretraining(say, step, steps, loss))
        say(f"A base of {made.parameters:,} parameters after {made.steps} steps: {base}")
    files = write_task(folder / "data", seed=0)
    job_file = folder / "job.yaml"
    write_text(job_file, job_text(base, files))
    say(f"The job: {job_file}")
    result = finetune(load_job(job_file, storage=str(storage)), display=display, on_plan=on_plan)
    require_claims(result)
    return Told(job_file=job_file, test_file=files.test, storage=storage, started=started, result=result)


def then_sweep(told: Told, *, display: SweepDisplay) -> dict[str, Any]:
    """Search around the job that has just been trained; return sweep.json."""
    from ftray.sweep.run import sweep

    record = sweep(load_job(told.job_file, storage=str(told.storage)), display=display)
    if record["winner"] is None:
        raise RunError(
            f"the quickstart's sweep has no winner: {record['reasons'][0]}",
            kind="unknown",
            hint=f"Look at {record['path']}/trials.jsonl.",
        )
    return record


def then_serve(told: Told, *, say: Say) -> dict[str, Any]:
    """Serve base and adapter, and ask both one of the test rows; return what they were asked and said.

    Raises RunError when both say the same: the adapter would not be there.
    """
    from ftray.serve.app import with_config
    from ftray.serve.client import Endpoint
    from ftray.serve.plan import serving_of_job
    from ftray.serve.run import running

    serving = with_config(serving_of_job(load_job(told.job_file, storage=str(told.storage))), port=_free_port())
    row = json.loads(told.test_file.read_text(encoding="utf-8").splitlines()[0])
    asked = PROMPT.format(**row)
    with running(serving, say=say) as endpoint, Endpoint(endpoint.url) as client:
        body = {"messages": [{"role": "user", "content": asked}], "temperature": 0, "max_tokens": MOST_TOKENS}
        answers = [
            client.post("/v1/chat/completions", {"model": model, **body})["choices"][0]["message"]["content"]
            for model in (serving.base, f"{serving.base}:{told.result['name']}")
        ]
    if answers[0] == answers[1]:
        raise RunError(
            f"base and adapter answer the same behind the endpoint: {answers[0]!r}",
            kind="unknown",
            given=asked,
            hint="This is a bug in ftray or in this installation: `ftray doctor` shows the versions.",
        )
    return {"asked": asked, "expected": COMPLETION.format(**row), "base": answers[0], "tuned": answers[1]}


def document(told: Told, campaign: dict[str, Any], served: dict[str, Any]) -> dict[str, Any]:
    """Return what `--json` prints at the end of the story."""
    result = told.result
    return {
        "seconds": time.perf_counter() - told.started,
        "run": result["path"],
        "sweep": campaign["path"],
        "report": str(Path(result["path"]) / "report.html"),
        "base": result["test"]["base"]["value"],
        "tuned": result["test"]["tuned"]["value"],
        "served": served,
        "result": result,
        "campaign": campaign,
    }


def _free_port() -> int:
    """Return a port that nobody listens at now: the story must not fail for somebody else's server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def display_pretraining(say: Say, step: int, steps: int, loss: float) -> None:
    """Say how pretraining goes, ten times in all."""
    if step % max(1, steps // 10) == 0:
        say(f"  step {step} of {steps}, loss {loss:.2f}")


def job_text(base: Path, files: TaskFiles) -> str:
    """Return the quickstart's job file: what a user would write, with a real model in the place of this one."""
    job = {
        "name": "quickstart",
        "model": str(base),
        # The folder that this one is in: whoever goes on with the job finds what the quickstart has registered.
        "storage": "..",
        "data": {
            # Rehearsing what the base can do beside the task keeps it from being forgotten.
            "train": [
                {"path": str(files.train), "prompt": PROMPT, "completion": COMPLETION},
                {"path": str(files.replay), "format": "prompt_completion"},
            ],
            "validation": 0.1,
            "test": {"path": str(files.test), "prompt": PROMPT, "completion": COMPLETION},
            "sequence_packing": True,
        },
        "method": {"kind": "lora", "rank": 16, "alpha": 32},
        "train": {"learning_rate": 2e-3, "epochs": 2},
        "evaluate": {
            "task": {"metric": "exact_match", "max_new_tokens": MOST_TOKENS},
            "general": [
                {
                    "name": "world-facts",
                    "path": str(files.probe),
                    "format": "prompt_completion",
                    "metric": "exact_match",
                    "max_new_tokens": 12,
                },
                {"name": "stories", "path": str(files.stories), "format": "text", "metric": "bits_per_byte"},
            ],
        },
        "sweep": {"space": SPACE},
        "compute": {"workers": 0},
    }
    return "# Written by `ftray quickstart`.\n" + yaml.safe_dump(job, sort_keys=False, allow_unicode=True)


def require_claims(result: dict[str, Any]) -> None:
    """Raise RunError unless base, tuned and the probe are what the quickstart says they are."""
    if result["status"] not in ("completed", "early_stopped"):
        failure = result["failure"] or {"kind": "unknown", "message": result["status"]}
        raise RunError(f"the quickstart's run failed: {failure['message']}", kind=failure["kind"])
    base, tuned = result["test"]["base"]["value"], result["test"]["tuned"]["value"]
    probes = [task for task in result["tasks"] if task["role"] == "general" and task["metric"] == "exact_match"]
    probe = min((task["base"]["value"] for task in probes if task["n"] > 0), default=0.0)
    claims = {
        f"the base scores at most {MOST_BASE:.0%} on rows it never saw (seen: {base:.1%})": base <= MOST_BASE,
        f"the tuned model scores at least {LEAST_TUNED:.0%} (seen: {tuned:.1%})": tuned >= LEAST_TUNED,
        f"the base is good at the general probe, at least {LEAST_PROBE:.0%} (seen: {probe:.1%})": probe >= LEAST_PROBE,
    }
    broken = [claim for claim, holds in claims.items() if not holds]
    if broken:
        raise RunError(
            f"the quickstart does not show what it claims: {'; '.join(broken)}",
            kind="unknown",
            given={"base": base, "tuned": tuned, "probe": probe},
            hint="This is a bug in ftray or in this installation: `ftray doctor` shows the versions.",
        )
