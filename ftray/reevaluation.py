"""Score a finished run, or any PEFT adapter, beside its base again: on the run's own rows or on new data.

One process, no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ftray.artifacts import RunDirectory, read_json, require_writable, write_json
from ftray.audit.overlap import OVERLAP_LIMIT
from ftray.data.collate import Layout
from ftray.data.config import DataConfig, Source, sources_of
from ftray.data.conversations import Example
from ftray.data.readers import read_source, source_digest
from ftray.data.templates import load_template
from ftray.data.tokenization import Tokenization, fitting
from ftray.data.windows import cut_texts
from ftray.errors import InputError
from ftray.evaluate.config import EvaluateConfig
from ftray.evaluate.expected_format import expected_format
from ftray.evaluate.predict import Answers, Asked, predict_both, predict_tasks
from ftray.evaluate.tasks import build_task
from ftray.finish import FinalTasks, write_evaluation
from ftray.model.bank_peft import adapter_in_bank
from ftray.model.base import load_model, load_tokenizer, longest_example, own_device
from ftray.model.forward import layout_for
from ftray.model.lora import base_only
from ftray.prepare import answers_of
from ftray.subject import Subject, load_tuned


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Rows to answer, as tokens of the base's tokenizer."""

    final: FinalTasks
    tokenization: Tokenization
    config: EvaluateConfig
    source: Source | None = None
    """Where new rows come from; None for the run's own."""
    seen_in_training: int | None = None
    """New rows whose prompt the run was trained on; None where that is not known."""
    dropped: int = 0


def own_questions(subject: Subject) -> Questions:
    """Return the rows that the run's verdict rests on. Raises InputError when its data has changed since."""
    from ftray.work import build_tasks, prepare_data

    assert subject.loaded is not None
    assert subject.run is not None
    # What was rehearsed is not asked here: sampled texts that are gone need not be sampled again.
    datasets = prepare_data(subject.loaded, audits=False, may_stand_in=True)
    recorded = read_json(subject.run.job)["data_digests"]
    changed = sorted(name for name, digest in datasets.digests.items() if recorded.get(name) != digest)
    if changed:
        raise InputError(
            f"the data of the run has changed since: {', '.join(changed)}",
            kind="changed_data",
            given={name: datasets.digests[name] for name in changed},
            allowed={name: recorded.get(name) for name in changed},
            hint="Restore the files, or give the new ones as new data: --data FILE.",
        )
    _, final = build_tasks(subject.loaded.job, datasets)
    return Questions(final=final, tokenization=datasets.tokenization, config=subject.loaded.job.evaluate)


def new_questions(subject: Subject, source: Source, *, config: EvaluateConfig, template: str) -> Questions:
    """Return new rows as a test: they chose nothing. The job's probes are not asked again."""
    tokenizer = load_tokenizer(subject.model)
    data = subject.loaded.job.data if subject.loaded else None
    length = longest_example(subject.model, tokenizer)
    if data is not None and data.max_length is not None:
        length = min(length, data.max_length)
    examples = cut_texts(read_source(source, name="data", base=Path.cwd()), tokenizer, max_length=length)
    asks = any(example.text is None for example in examples)
    base = subject.loaded.base if subject.loaded else Path.cwd()
    tokenization = Tokenization(
        tokenizer,
        template=load_template(template, tokenizer, base=base) if asks else None,
        loss_on=data.loss_on if data else "all_turns",
        max_length=length,
    )
    kept, dropped = fitting(examples, tokenization, max_dropped=data.max_dropped if data else 0.0, name="data")
    trained = _trained_rows(data, base)
    answers = answers_of(trained or [])
    format = expected_format(config, answers)
    task = build_task(kept, name="task", role="task", metric=config.task, tokenization=tokenization, format=format)
    prompts = {row.normalised_prompt for row in trained or []}
    seen = None if trained is None else sum(example.normalised_prompt in prompts for example in kept)
    return Questions(
        final=FinalTasks(tasks=[task], split="test", training_answers=answers),
        tokenization=tokenization,
        config=config,
        source=source,
        seen_in_training=seen,
        dropped=len(dropped),
    )


def _trained_rows(data: DataConfig | None, base: Path) -> list[Example] | None:
    """Return the run's training rows, or None where they are not known or not there any more."""
    if data is None:
        return None
    sources = sources_of(data.train)
    if any(Path(source.path).is_absolute() and not Path(source.path).exists() for source in sources):
        return None
    return [row for source in sources for row in read_source(source, name="train", base=base)]


def evaluate_again(subject: Subject, questions: Questions, output: Path) -> dict[str, Any]:
    """Let base and tuned answer; write evaluation.json and predictions.jsonl to `output`; return the former."""
    require_writable(output, hint="Choose another place with --output DIR.")
    place = RunDirectory(output)
    device = own_device()
    if subject.is_adapter:
        model = load_tuned(subject).to(device)
        asked = _asked(model, questions, layout_for(model.get_base_model()))
        base, tuned = predict_both(questions.final.tasks, asked, adapter_in_bank(model), as_base=base_only(model))
    else:
        tuned = _answer_whole(str(subject.folder), questions, device)
        base = _answer_whole(subject.model, questions, device)
    record = write_evaluation(
        place,
        questions.final,
        base,
        tuned,
        config=questions.config,
        run_id=subject.run_id,
        model=subject.model,
        tuned_step=subject.step,
        tuned_digest=subject.digest,
    )
    if questions.source is not None:
        record = _with_origin(record, questions, questions.source)
        write_json(place.evaluation, record)
    return record


def _with_origin(record: dict[str, Any], questions: Questions, source: Source) -> dict[str, Any]:
    """Say where new rows come from; rows that training has seen prove nothing, so they cannot ship a model."""
    seen, rows = questions.seen_in_training, len(questions.final.tasks[0].rows)
    verdict = record["verdict"]
    if seen is not None and seen > OVERLAP_LIMIT * rows and verdict["decision"] == "ship":
        why = f"{seen} of these {rows} rows ask what the run was trained on: being right there proves nothing."
        verdict = {"decision": "inconclusive", "reasons": [why, *verdict["reasons"]]}
    return {
        **record,
        "verdict": verdict,
        "data": {"path": source.path, "digest": source_digest(source, Path.cwd())},
        "seen_in_training": seen,
        "dropped": questions.dropped,
    }


def _answer_whole(folder: str, questions: Questions, device: torch.device) -> Answers:
    model: Any = load_model(folder)
    asked = _asked(model.to(device), questions, layout_for(model))
    return predict_tasks(questions.final.tasks, asked)


def _asked(model: Any, questions: Questions, layout: Layout) -> Asked:
    tokenization = questions.tokenization
    return Asked(
        model=model, tokenizer=tokenization.tokenizer, stop_token_ids=tokenization.stop_token_ids, layout=layout
    )
