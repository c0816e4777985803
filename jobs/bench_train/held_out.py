"""What both sides share: the rows they train on, and the grading of what they trained, by ftray's own evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftray.data.readers import read_source
from ftray.evaluate.metrics import aggregate
from ftray.evaluate.predict import Asked, predict_task
from ftray.job import LoadedJob, load_job
from ftray.model.forward import layout_for
from ftray.subject import load_tuned, subject_of_adapter
from ftray.work import build_tasks, prepare_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Training rows on disk."""

    file: Path
    total_steps: int


def write_rows(loaded: LoadedJob, file: Path) -> Rows:
    """Write the rows this job trains on: as messages, and as the tokens and labels that ftray makes of them."""
    source = loaded.job.data.train
    assert not isinstance(source, list), "the benchmark has one training source"
    datasets = prepare_data(loaded)
    messages = {example.row: example.messages for example in read_source(source, name="train", base=loaded.base)}
    lines = []
    for example in datasets.train:
        *prompt, completion = [{"role": turn.role, "content": turn.content} for turn in messages[example.row]]
        tokens = {"tokens": example.tokens.tolist(), "is_label": example.is_label.tolist()}
        lines.append(json.dumps({"row": example.row, "prompt": prompt, "completion": [completion], **tokens}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    train = loaded.job.train
    return Rows(file=file, total_steps=math.ceil(math.ceil(len(lines) / train.batch_size) * train.epochs))


def grade_adapter(job_file: Path, adapter: Path) -> dict[str, Any]:
    """Return the exact match of an adapter from either side on the job's held-out rows."""
    job = load_job(job_file)
    datasets = prepare_data(job)
    _, final = build_tasks(job.job, datasets)
    model = load_tuned(subject_of_adapter(adapter, model=job.job.model))
    task = final.tasks[0]
    asked = Asked(
        model=model,
        tokenizer=datasets.tokenization.tokenizer,
        stop_token_ids=datasets.tokenization.stop_token_ids,
        layout=layout_for(model.get_base_model()),
    )
    answers = predict_task(task, asked)
    return {"accuracy": aggregate(task.metric, answers), "graded_rows": len(answers)}
