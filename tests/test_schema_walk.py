"""No accepted setting is ignored: every leaf of the job's schema has two values that make something different happen.

What counts is what a run does or records (tokens, plan, adapter, grades, verdict, folders), never the job file's echo.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
from leaf_case import Case, Effect, prepared
from serve_cases import SERVE_CASES
from sweep_cases import SWEEP_CASES

from ftray.artifacts import digest_of
from ftray.config import Config
from ftray.data.conversations import examples_digest
from ftray.errors import InputError
from ftray.evaluate.compare import compare
from ftray.evaluate.config import AnyProbe
from ftray.evaluate.forgetting import measure_forgetting
from ftray.evaluate.predict import Asked, RowPrediction, grade_row, predict_task
from ftray.evaluate.tasks import Task
from ftray.job import Job, LoadedJob, identity, load_job, run_directory, run_id_of
from ftray.model.base import load_model, load_tokenizer
from ftray.model.forward import layout_for
from ftray.quickstart.pretrain import tiny_base
from ftray.sampling import sample_base, sampling_of
from ftray.tracking import open_mirrors
from ftray.train.deepspeed import deepspeed_config
from ftray.work import build_model, build_tasks, prepare_data

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

INTENTS = ("music", "weather", "light")
JINJA = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content + '>' }}{% endif %}{% endfor %}"
)
# What a job does: each returns something that can be compared.


def train_tokens(loaded: LoadedJob, folder: Path) -> Any:
    datasets = prepare_data(loaded)
    return sorted((example.tokens.tolist(), example.is_label.tolist()) for example in datasets.train)


def replay_texts(loaded: LoadedJob, folder: Path) -> Any:
    tokenizer = load_tokenizer(loaded.job.model)
    sampling = sampling_of(loaded, tokenizer)
    assert sampling is not None
    sample_base(sampling, tokenizer, on_progress=lambda done, total: None)
    return sampling.texts.file.read_text()


def validation_rows(loaded: LoadedJob, folder: Path) -> Any:
    return examples_digest(prepare_data(loaded).validation)


def test_rows(loaded: LoadedJob, folder: Path) -> Any:
    return examples_digest(prepare_data(loaded).test or [])


test_rows.__test__ = False  # type: ignore[attr-defined]


def probe_rows(loaded: LoadedJob, folder: Path) -> Any:
    return {name: examples_digest(rows) for name, rows in prepare_data(loaded).probes.items()}


def plan(loaded: LoadedJob, folder: Path) -> Any:
    return prepared(loaded).plan.to_record()


def zero_config(loaded: LoadedJob, folder: Path) -> Any:
    return deepspeed_config(prepared(loaded).plan)


def model_identity(loaded: LoadedJob, folder: Path) -> Any:
    return identity(loaded)["model"]


def run_folder(loaded: LoadedJob, folder: Path) -> Any:
    return str(run_directory(loaded, run_id_of(loaded)).root)


def audit_record(loaded: LoadedJob, folder: Path) -> Any:
    return prepare_data(loaded).audit.to_record()


def trained_model(loaded: LoadedJob, folder: Path) -> Any:
    """Return what is trained, and what the model answers in training mode once the adapter's B is not zero."""
    model = build_model(loaded.job, prepared(loaded).plan)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
        model.train()
        logits = model(input_ids=torch.arange(3, 9)[None], attention_mask=torch.ones(1, 6, dtype=torch.int64)).logits
    shapes = {name: list(one.shape) for name, one in model.named_parameters() if one.requires_grad}
    return {"shapes": shapes, "logits": round(float(logits.double().abs().sum()), 4)}


def tasks_of(loaded: LoadedJob) -> list[Task]:
    datasets = prepare_data(loaded)
    return build_tasks(loaded.job, datasets)[1].tasks


def wrong_by_a_word(task: Task) -> list[float]:
    """Return the grades of answers that differ from the expected ones by case and by a word."""
    said = [f"{row.expected.upper()}{' x' if index % 2 else ''}" for index, row in enumerate(task.rows)]
    return [grade_row(task, row, answer).score for answer, row in zip(said, task.rows, strict=True)]


def declared(loaded: LoadedJob, folder: Path) -> Any:
    """Return what the verdict asks of the answers' form, and which expected answers have it."""
    (task, *_) = tasks_of(loaded)
    if task.format is None or not task.format.declared:
        return None
    return [task.format.format.kind, [task.format.format.is_valid(row.expected) for row in task.rows]]


def task_grades(loaded: LoadedJob, folder: Path) -> Any:
    return wrong_by_a_word(tasks_of(loaded)[0])


def probe_grades(loaded: LoadedJob, folder: Path) -> Any:
    return wrong_by_a_word(tasks_of(loaded)[1])


def task_choices(loaded: LoadedJob, folder: Path) -> Any:
    return tasks_of(loaded)[0].choices


def probe_choices(loaded: LoadedJob, folder: Path) -> Any:
    return tasks_of(loaded)[1].choices


def probe_names(loaded: LoadedJob, folder: Path) -> Any:
    return [task.name for task in tasks_of(loaded)]


def answers(loaded: LoadedJob, number: int) -> list[str]:
    datasets = prepare_data(loaded)
    tokenizer = datasets.tokenization.tokenizer
    model = load_model(loaded.job.model)
    stop = datasets.tokenization.stop_token_ids
    task = build_tasks(loaded.job, datasets)[1].tasks[number]
    asked = Asked(model=model, tokenizer=tokenizer, stop_token_ids=stop, layout=layout_for(model))
    rows = predict_task(task, asked)
    return [row.prediction for row in rows]


def asked_by_lm_eval(loaded: LoadedJob, folder: Path) -> Any:
    pytest.importorskip("lm_eval")
    return [row.prompt for row in tasks_of(loaded)[1].rows]


def task_answers(loaded: LoadedJob, folder: Path) -> Any:
    return answers(loaded, 0)


def probe_answers(loaded: LoadedJob, folder: Path) -> Any:
    return answers(loaded, 1)


def forgetting(loaded: LoadedJob, folder: Path) -> Any:
    """Return what is made of a model that answers one probe row in four worse than its base."""
    (probe,) = tasks_of(loaded)[1:]
    by_likelihood = probe.metric.metric == "bits_per_byte"

    def predictions(*, tuned: bool) -> list[RowPrediction]:
        worse = [tuned and index % 4 == 0 for index in range(len(probe.rows))]
        return [
            RowPrediction(
                task=probe.name, row=row.row, prompt=row.prompt, expected=row.expected, prediction="",
                score=float(not bad), correct=None if by_likelihood else not bad,
                nll=(2.0 if bad else 1.0) * row.num_bytes if by_likelihood else None,
                num_labels=row.num_bytes, num_bytes=row.num_bytes,
            )
            for row, bad in zip(probe.rows, worse, strict=True)
        ]  # fmt: skip

    comparison = compare(probe, predictions(tuned=False), predictions(tuned=True))
    found = measure_forgetting([comparison], loaded.job.evaluate)
    assert found is not None
    return found.passed


def dashboards(loaded: LoadedJob, folder: Path) -> Any:
    place = folder / digest_of(loaded.job.tracking)[:8]
    place.mkdir()
    for mirror in open_mirrors(loaded.job.tracking, folder=place, name="job", run_id="0" * 64, params={}):
        mirror.log(1, {"train/loss": 1.0})
        mirror.close()
    return [path.name for path in place.iterdir()]


def source_cases(place: str, effect: Effect, given: tuple[str, ...]) -> dict[str, Case]:
    """Return the cases of a source's own settings."""
    columns = (*given, f'{place}.completion="{{intent}}"', f'{place}.prompt="{{text}}"')
    return {
        f"{place}.path": Case(values=("train.jsonl", "other.jsonl"), effect=effect, given=given),
        f"{place}.format": Case(values=("auto", "prompt_completion"), effect=effect, given=given),
        f"{place}.prompt": Case(values=("Q {text}", "A {text}"), effect=effect, given=columns),
        f"{place}.completion": Case(values=("{intent}", "{intent}!"), effect=effect, given=columns),
        f"{place}.system": Case(values=(None, "Be kind."), effect=effect, given=given),
        f"{place}.where": Case(values=(None, {"intent": ["music", "light"]}), effect=effect, given=given),
        f"{place}.limit": Case(values=(10, 12), effect=effect, given=given),
        f"{place}.weight": Case(values=(1.0, 2.0), effect=effect, given=given),
        f"{place}.decontaminate": Case(values=(False, True), effect=effect, given=(*given, "data.max_dropped=1.0")),
    }


def replay_cases() -> dict[str, Case]:
    """Return the cases of replay: the settings of a source that it has, and its own."""
    given = ('data.replay={"path": "general.jsonl", "fraction": 0.25}',)
    sampled = ('data.replay={"sample_base": 6, "fraction": 0.25}',)
    cases = source_cases("data.replay", train_tokens, given)
    del cases["data.replay.weight"], cases["data.replay.decontaminate"]
    return {
        **cases,
        "data.replay.path": Case(values=("general.jsonl", "more.jsonl"), effect=train_tokens, given=given),
        "data.replay.fraction": Case(values=(0.25, 0.5), effect=train_tokens, given=given),
        "data.replay.sample_base": Case(values=(6, 7), effect=replay_texts, given=sampled),
    }


LIKELIHOOD = ('evaluate.general.0.metric="bits_per_byte"',)
CHOICE = ["music", "weather", "light", "shopping"]
PROBE = "evaluate.general.*"
SHORT, LOUD = [{"kind": "characters", "max": 6}], [{"kind": "uppercase"}]
ZERO_3 = ("compute.workers=2", "compute.deepspeed.stage=3")
LM_EVAL = ('evaluate.general.0={"name": "probe", "lm_eval": "one.yaml"}',)
ACCEPT = ('audit.accept=[{"check": "size", "reason": "a small file, for a test"}]',)
CASES: dict[str, Case] = {
    "name": Case(values=("one", "two"), effect=run_folder),
    "model": Case(values=("model", "other-model"), effect=model_identity),
    "seed": Case(values=(0, 1), effect=validation_rows),
    "storage": Case(values=("./here", "./there"), effect=run_folder),
    "preset": Case(values=("style", "support"), effect=plan),
    **source_cases("data.train", train_tokens, ()),
    "data.validation": Case(values=(0.25, 0.5), effect=validation_rows),
    **source_cases("data.validation", validation_rows, ('data.validation={"path": "train.jsonl"}',)),
    "data.test": Case(values=(None, {"path": "other.jsonl"}), effect=test_rows),
    **source_cases("data.test", test_rows, ()),
    "data.replay": Case(values=(None, {"path": "general.jsonl", "fraction": 0.25}), effect=train_tokens),
    **replay_cases(),
    "data.split.by": Case(values=("group", "time"), effect=validation_rows, given=("data.split.column=when",)),
    "data.split.column": Case(values=("group", "when"), effect=validation_rows, given=("data.split.by=group",)),
    "data.template": Case(values=("tokenizer", "t.jinja"), effect=train_tokens),
    "data.loss_on": Case(
        values=("all_turns", "last_turn"), effect=train_tokens, given=("data.train.path=turns.jsonl",)
    ),
    "data.max_length": Case(values=(None, 24), effect=train_tokens, given=("data.max_dropped=1.0",)),
    "data.on_overlong": Case(
        values=("drop", "error"), effect=train_tokens, given=("data.max_dropped=1.0", "data.max_length=24")
    ),
    "data.max_dropped": Case(values=(1.0, 0.01), effect=train_tokens, given=("data.max_length=24",)),
    "data.sequence_packing": Case(values=(False, True), effect=plan),
    "method.kind": Case(values=("lora", "full"), effect=trained_model),
    "method.rank": Case(values=(4, 8), effect=trained_model),
    "method.alpha": Case(values=(16, 32), effect=trained_model),
    "method.dropout": Case(values=(0.0, 0.5), effect=trained_model),
    "method.target_modules": Case(values=("all-linear", ["q_proj"]), effect=trained_model),
    "method.rslora": Case(values=(False, True), effect=trained_model),
    "train.learning_rate": Case(values=(1e-4, 2e-4), effect=plan),
    "train.epochs": Case(values=(1.0, 2.0), effect=plan),
    "train.max_steps": Case(values=(None, 3), effect=plan),
    "train.batch_size": Case(values=(4, 8), effect=plan),
    "train.micro_batch_size": Case(values=("auto", 2), effect=plan),
    "train.schedule": Case(values=("cosine", "wsd"), effect=plan),
    "train.min_learning_rate": Case(values=(0.0, 1e-5), effect=plan),
    "train.warmup": Case(values=(0.03, 2), effect=plan),
    "train.weight_decay": Case(values=(0.0, 0.1), effect=plan),
    "train.max_grad_norm": Case(values=(1.0, 0.5), effect=plan),
    "train.label_smoothing": Case(values=(0.0, 0.1), effect=plan),
    "train.precision": Case(values=("fp32", "bf16"), effect=plan),
    "train.activation_checkpointing": Case(values=(False, True), effect=plan),
    "train.log_every": Case(values=(10, 1), effect=plan),
    "train.evaluate_every": Case(values=("auto", 3), effect=plan),
    "train.checkpoint_every": Case(values=("auto", 3), effect=plan),
    "train.keep_checkpoints": Case(values=(3, 1), effect=plan),
    "train.early_stopping": Case(values=({}, None), effect=plan),
    "train.early_stopping.patience": Case(values=(3, 1), effect=plan),
    "train.early_stopping.margin": Case(values=(0.02, 0.1), effect=plan),
    "train.early_stopping.after": Case(values=("warmup", "start"), effect=plan),
    "evaluate.task.metric": Case(values=("exact_match", "token_f1"), effect=task_grades),
    "evaluate.task.normalise": Case(values=("casefold", "none"), effect=task_grades),
    "evaluate.task.choices": Case(values=(None, CHOICE), effect=task_choices, given=("evaluate.task.metric=choice",)),
    "evaluate.task.max_new_tokens": Case(values=(1, 8), effect=task_answers),
    **source_cases(PROBE, probe_rows, ()),
    f"{PROBE}.path": Case(values=("other.jsonl", "general.jsonl"), effect=probe_rows),
    f"{PROBE}.metric": Case(values=("exact_match", "token_f1"), effect=probe_grades),
    f"{PROBE}.normalise": Case(values=("casefold", "none"), effect=probe_grades),
    f"{PROBE}.choices": Case(
        values=(None, CHOICE), effect=probe_choices, given=('evaluate.general.0.metric="choice"',)
    ),
    f"{PROBE}.max_new_tokens": Case(values=(1, 8), effect=probe_answers),
    f"{PROBE}.lm_eval": Case(values=("one.yaml", "two.yaml"), effect=asked_by_lm_eval, given=LM_EVAL),
    f"{PROBE}.name": Case(values=("one", "two"), effect=probe_names),
    "evaluate.task.instructions": Case(
        values=(SHORT, LOUD), effect=task_grades, given=("evaluate.task.metric=instructions",)
    ),
    f"{PROBE}.instructions": Case(
        values=(SHORT, LOUD), effect=probe_grades, given=('evaluate.general.0.metric="instructions"',)
    ),
    "evaluate.format": Case(values=(None, "labels"), effect=declared),
    "evaluate.format.json": Case(values=(True, None), effect=declared, given=("data.test.path=json.jsonl",)),
    "evaluate.format.labels": Case(values=(CHOICE[:2], CHOICE), effect=declared),
    "evaluate.format.pattern": Case(values=("m.+", ".+"), effect=declared),
    "evaluate.max_forgetting": Case(values=(0.05, 0.5), effect=forgetting),
    "evaluate.max_bits_per_byte_increase": Case(values=(0.1, 2.0), effect=forgetting, given=LIKELIHOOD),
    "audit.accept.*.check": Case(values=("size", "conflicts"), effect=audit_record, given=ACCEPT),
    "audit.accept.*.reason": Case(values=("it is small", "it is a test"), effect=audit_record, given=ACCEPT),
    "compute.workers": Case(values=(0, 2), effect=plan),
    "compute.cpus_per_worker": Case(values=(1.0, 2.0), effect=plan),
    "compute.gpus_per_worker": Case(values=(0.0, 1.0), effect=plan),
    "compute.max_failures": Case(values=(3, 0), effect=plan),
    "compute.deepspeed.stage": Case(values=(1, 2), effect=zero_config, given=("compute.workers=2",)),
    "compute.deepspeed.offload_optimizer": Case(values=("none", "cpu"), effect=zero_config, given=ZERO_3),
    "compute.deepspeed.offload_parameters": Case(values=("none", "cpu"), effect=zero_config, given=ZERO_3),
    "compute.deepspeed.nvme_path": Case(
        values=("/one", "/two"), effect=zero_config, given=(*ZERO_3, "compute.deepspeed.offload_optimizer=nvme")
    ),
    "tracking": Case(values=([], ["tensorboard"]), effect=dashboards),
    **SERVE_CASES,
    **SWEEP_CASES,
}


def leaves(model: type[Config], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every setting; `*` stands for a position in a list of sections."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        parts = list(alternatives(field.annotation))
        sections = [part for part in parts if is_section(part)]
        for section in sections:
            yield from leaves(section, f"{path}.")
        others = [part for part in parts if part not in sections]
        lists = [inner for part in others for inner in sections_listed(part)]
        for section in lists:
            # Of `Source | list[Source]` the single form stands for both.
            if section not in sections:
                yield from leaves(section, f"{path}.*.")
        if len(others) > len(lists):
            yield path


def alternatives(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    else:
        yield annotation


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, Config)


def sections_listed(annotation: Any) -> list[type[Config]]:
    if get_origin(annotation) is not list:
        return []
    (inner,) = typing.get_args(annotation)
    # A list of instructions is one setting; a probe of either kind has settings of its own.
    return [part for part in (alternatives(inner) if inner == AnyProbe else [inner]) if is_section(part)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models, data files and a job."""
    place = tmp_path_factory.mktemp("walk")
    tiny_base(place / "model", seed=0)
    tiny_base(place / "other-model", seed=1)
    for name, count, first in (("train", 48, 0), ("other", 16, 30), ("general", 24, 60), ("more", 24, 70)):
        write_rows(place / f"{name}.jsonl", [row(index) for index in range(first, first + count)])
    write_rows(place / "json.jsonl", [{"prompt": f"{n}?", "completion": json.dumps({"n": n})} for n in range(8)])
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_rows(
        place / "turns.jsonl",
        [{"messages": [*turns, {"role": "user", "content": str(n)}, turns[1]]} for n in range(24)],
    )
    (place / "t.jinja").write_text(JINJA)
    for name, asks in (("one", "{{prompt}}"), ("two", "{{prompt}}?")):
        write_lm_eval_task(place / f"{name}.yaml", asks)
    job = {
        "name": "walk",
        "model": "model",
        "data": {"train": {"path": "train.jsonl"}, "validation": 0.25, "test": {"path": "other.jsonl"}},
        "evaluate": {"general": [{"name": "probe", "path": "other.jsonl", "metric": "exact_match"}]},
        "train": {"batch_size": 4},
        "compute": {"workers": 0},
    }
    (place / "job.yaml").write_text(json.dumps(job))
    return place


def row(index: int) -> dict[str, Any]:
    intent = INTENTS[index % 3]
    asked = f"number {index} of {'many ' * (index % 7)}things"
    return {
        "prompt": asked, "completion": intent, "inputs": f"{asked}?", "targets": intent, "text": asked,
        "intent": intent, "group": index % 5, "when": (index * 7) % 48,
    }  # fmt: skip


def write_lm_eval_task(path: Path, asks: str) -> None:
    task = {
        "task": path.stem, "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": "other.jsonl"}, "cache_dir": str(path.parent / "cache")},
        "doc_to_text": asks, "doc_to_choice": list(INTENTS), "doc_to_target": "{{completion}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    path.write_text(json.dumps(task))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))


def outcome(folder: Path, place: Path, leaf: str, value: Any, case: Case) -> Any:
    """Return what the job does with a value, or the kind of its refusal."""
    sets = [*case.given, f"{leaf}={json.dumps(value)}"]
    try:
        return case.effect(load_job(folder / "job.yaml", sets=[one.replace(".*", ".0") for one in sets]), place)
    except InputError as error:
        return f"refused: {error.kind}"


def test_the_table_has_every_leaf_of_the_schema() -> None:
    # Probes of both kinds have a name, a limit and a metric.
    assert sorted(CASES) == sorted(set(leaves(Job)))


@pytest.mark.parametrize("leaf", CASES)
def test_a_changed_leaf_changes_what_happens(
    leaf: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    case = CASES[leaf]
    first, second = (outcome(folder, tmp_path, leaf, value, case) for value in case.values)
    assert not str(first).startswith("refused"), "the first value is one that works"
    assert first != second
