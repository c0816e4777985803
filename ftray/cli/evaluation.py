"""`ftray evaluate`: a run on its own rows or on new ones, or any PEFT adapter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftray.cli.options import Completion, Format, Gate, Json, Prompt, Quiet, Storage, gated
from ftray.cli.outcome import Outcome
from ftray.cli.process import interruptible, quieten_libraries
from ftray.errors import InputError

if TYPE_CHECKING:
    from ftray.data.config import Source
    from ftray.evaluate.config import EvaluateConfig
    from ftray.reevaluation import Questions
    from ftray.storage.place import Place
    from ftray.subject import Subject

Target = Annotated[
    str,
    typer.Argument(
        metavar="RUN|ADAPTER",
        help="A run folder, a run's name or id in the storage, or a PEFT adapter folder.",
        show_default=False,
    ),
]
DataFile = Annotated[
    str | None, typer.Option("--data", metavar="FILE", help="New rows; without it, the run's own test rows.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Take so many rows of --data.")]
MetricName = Annotated[str | None, typer.Option("--metric", help="For --data: another metric than the run's.")]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="For --data: longest answer, in tokens.")]
Template = Annotated[
    str | None, typer.Option("--template", help="Chat template for --data: tokenizer, alpaca, chatml or a Jinja file.")
]
BaseModel = Annotated[str | None, typer.Option("--model", help="An adapter's base, where it is elsewhere now.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where evaluation.json goes for --data.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewData:
    """What the options say about new rows."""

    file: str
    prompt: str | None
    completion: str | None
    format: str | None
    limit: int | None
    metric: str | None
    max_new_tokens: int | None
    template: str | None


def evaluate(
    target: Target,
    data: DataFile = None,
    prompt: Prompt = None,
    completion: Completion = None,
    format: Format = None,
    limit: Limit = None,
    metric: MetricName = None,
    max_new_tokens: MaxNewTokens = None,
    template: Template = None,
    model: BaseModel = None,
    output: Output = None,
    gate: Gate = False,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> Outcome:
    """Compare a tuned model with its base: on its run's own test rows again, or on new data.

    Own rows: RUN/evaluation.json is written again. New rows: the run's templates and metric count where none is given.
    """
    quieten_libraries()
    new = NewData(
        file=data or "",
        prompt=prompt,
        completion=completion,
        format=format,
        limit=limit,
        metric=metric,
        max_new_tokens=max_new_tokens,
        template=template,
    )
    _require_data(new, output)
    from ftray.display import open_display
    from ftray.runs import storage_folder, storage_place

    runs = storage_place(storage)
    with interruptible(), open_display(quiet=quiet) as display:
        display.say("Reading the model and the rows")
        from ftray.reevaluation import evaluate_again

        folder = storage_folder(storage)
        subject = _subject(target, runs, folder, model, has_data=data is not None)
        questions = _questions(subject, new)
        place = output or _place(subject, new, folder)
        rows = sum(len(task.rows) for task in questions.final.tasks)
        display.say(f"Base and tuned model answer {rows} rows")
        if questions.dropped:
            display.say(f"{questions.dropped} rows do not fit the model and are left out")
        record = evaluate_again(subject, questions, place)
        if runs.holds(place):
            runs.mirror(place).publish("evaluation.json", "predictions.jsonl")

    def show(console: Any) -> None:
        from ftray.summary import show_evaluation

        show_evaluation(record, console, title=subject.name, place=place)

    return Outcome(document=record, show=show, exit_code=gated(record["verdict"]["decision"], gate=gate))


def _require_data(new: NewData, output: Path | None) -> None:
    """Refuse options that would have no effect."""
    if new.file:
        return
    names = ("prompt", "completion", "format", "limit", "metric", "max_new_tokens", "template")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(new, name) is not None]
    given += ["--output"] if output else []
    if given:
        raise InputError(
            f"{', '.join(given)}: only for new data",
            kind="usage",
            given=given,
            allowed="--data FILE with them",
            hint="Add --data FILE; a run's own rows are read and graded as its job says.",
        )


def _subject(target: str, runs: Place, storage: Path, model: str | None, *, has_data: bool) -> Subject:
    from ftray.runs import find_run
    from ftray.storage.mirror import is_record
    from ftray.subject import subject_of_adapter, subject_of_run

    folder = Path(target).expanduser()
    if not (folder / "adapter_config.json").is_file():
        if model is not None:
            raise InputError(
                "--model names the base of an adapter, and this is a run: its base is in its job",
                kind="usage",
                given=model,
                hint="Leave --model out.",
            )
        run = find_run(target, storage)
        if runs.holds(run.root):
            runs.mirror(run.root).fetch(is_record, as_reader=True)
        return subject_of_run(run)
    if not has_data:
        raise InputError(
            f"{folder} is an adapter without a run: there are no rows to evaluate it on",
            kind="missing_data",
            given=str(folder),
            allowed="an adapter with --data FILE, or a run folder",
            hint=f"ftray evaluate {target} --data FILE",
        )
    return subject_of_adapter(folder, model=model)


def _questions(subject: Subject, new: NewData) -> Questions:
    from ftray.reevaluation import new_questions, own_questions

    if not new.file:
        return own_questions(subject)
    config = _config(subject, new)
    template = new.template or (subject.loaded.job.data.template if subject.loaded else "tokenizer")
    return new_questions(subject, _source(subject, new), config=config, template=template)


def _source(subject: Subject, new: NewData) -> Source:
    """Return the new rows' source, with the templates of the run's rows where none is given."""
    from ftray.data.config import Source, sources_of
    from ftray.jobfile import validate

    given = {"prompt": new.prompt, "completion": new.completion, "format": new.format, "limit": new.limit}
    given = {name: value for name, value in given.items() if value is not None}
    if subject.loaded is not None and not given.keys() & {"prompt", "completion", "format"}:
        rows = subject.loaded.job.data
        like = sources_of(rows.test or rows.train)[0]
        given |= {name: getattr(like, name) for name in ("prompt", "completion", "system") if getattr(like, name)}
    source = validate(Source, {"path": new.file, **given}, file=None, lines={})
    assert isinstance(source, Source)
    return source


def _config(subject: Subject, new: NewData) -> EvaluateConfig:
    """Return the run's evaluation with the metric that the options name."""
    from ftray.evaluate.config import EvaluateConfig, Metric
    from ftray.evaluate.graders import needs_generation
    from ftray.jobfile import validate

    config = subject.loaded.job.evaluate if subject.loaded else EvaluateConfig()
    given = {"metric": new.metric, "max_new_tokens": new.max_new_tokens}
    changed = {name: value for name, value in given.items() if value is not None}
    task = validate(Metric, {**config.task.model_dump(mode="json"), **changed}, file=None, lines={})
    assert isinstance(task, Metric)
    # Another metric than the job's may let the model write nothing: there is no format to keep then.
    return config.model_copy(update={"task": task, "format": config.format if needs_generation(task) else None})


def _place(subject: Subject, new: NewData, storage: Path) -> Path:
    """Return the folder of evaluation.json: the run itself only for its own rows."""
    if not new.file:
        assert subject.run is not None
        return subject.run.root
    slug = re.sub(r"[^a-z0-9]+", "-", Path(new.file).stem.lower()).strip("-") or "data"
    if subject.run is not None:
        return subject.run.root / "evaluations" / slug
    return storage / "evaluations" / f"{subject.folder.resolve().name}-{slug}"
