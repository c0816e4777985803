"""Write a commented job file for a data file: what `ftray init` does, and what it says it guessed.

Comments come from the job's own schema, so that they cannot say anything else than the program does.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from ftray.data.columns import parse_template
from ftray.data.config import Source
from ftray.data.conversations import Example
from ftray.data.readers import read_source, source_files, source_format
from ftray.data.rows import Row, read_hub_rows, read_rows
from ftray.errors import InputError
from ftray.job import Job

DEFAULT_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
LOOKED_AT = 1000
"""Rows from which columns are guessed."""
FEW_ANSWERS = 100
LONGEST_LABEL = 40
"""At most so many different answers, at most so many characters long, make a classification."""
OPTIONS = (
    "seed", "storage",
    "data.validation", "data.template", "data.loss_on", "data.max_length", "data.on_overlong", "data.max_dropped",
    "data.sequence_packing",
    "method.rank", "method.alpha", "method.dropout", "method.target_modules", "method.rslora",
    "train.epochs", "train.max_steps", "train.batch_size", "train.schedule", "train.warmup", "train.weight_decay",
    "train.precision", "train.activation_checkpointing", "train.evaluate_every", "train.keep_checkpoints",
    "evaluate.max_forgetting", "evaluate.max_bits_per_byte_increase",
    "compute.cpus_per_worker", "compute.gpus_per_worker", "compute.max_failures",
    "tracking",
)  # fmt: skip
"""Settings that a job file shows, commented out, with their defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What a data file seems to be."""

    source: Source
    metric: dict[str, Any]
    said: list[str]


def write_job(data: Path, *, model: str | None, output: Path, test: Path | None = None) -> list[str]:
    """Write a job file for `data` to `output` and return sentences on what was guessed.

    Raises InputError: what is wrong with the data, or `exists`: a file is never overwritten.
    """
    if output.exists():
        raise _exists(output)
    guess = guess_source(data)
    said = list(guess.said)
    if test is not None:
        rows = read_source(guess.source.model_copy(update={"path": str(test)}), name="test", base=Path.cwd())
        said.append(f"{test}: {len(rows):,} test rows, read like the training rows.")
    else:
        said.append("There are no test rows, so a verdict cannot be better than inconclusive: set data.test.")
    if model is None:
        said.append(f"The model is {DEFAULT_MODEL}, from the Hugging Face hub: set `model` to use another.")
    text = job_text(guess, model=model or DEFAULT_MODEL, test=test, folder=output.resolve().parent)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise _exists(output) from error
    except OSError as error:
        raise InputError(
            f"{output} cannot be written: {error.strerror}",
            kind="storage",
            given=str(output),
            allowed="a file in a folder where this user may write",
            hint="Name another place with --output FILE.",
            file=str(output),
        ) from error
    return [*said, f"Wrote {output}."]


def guess_source(data: Path) -> Guess:
    """Read a data file and return how a job would read it. Raises InputError for rows nothing can be made of."""
    source = Source(path=str(data))
    files = source_files(source, Path.cwd())
    rows = read_rows(files[0]) if files else read_hub_rows(source.path)
    said = []
    if rows:
        try:
            format = source_format(source, rows)
            said.append(f"{data} looks like the format {format}.")
        except InputError as error:
            if error.kind != "unknown_format":
                raise
            source = _columns(source, rows, error)
            said.append(
                f"{data} has no known format: asking {source.prompt!r} and expecting {source.completion!r} is a guess "
                f"from its columns ({', '.join(rows[0].columns)}). Word the question as your users do."
            )
    examples = read_source(source, name="train", base=Path.cwd())
    metric, why = _metric(examples)
    return Guess(source=source, metric=metric, said=[*said, f"{len(examples):,} training rows; {why}"])


def _columns(source: Source, rows: Sequence[Row], error: InputError) -> Source:
    """Return the source with templates over its two most plausible columns: a long one asks, a short one answers."""
    sample = rows[:LOOKED_AT]
    values = {name: [row.columns.get(name) for row in sample] for name in rows[0].columns if _is_plain_name(name)}
    texts = {name: column for name, column in values.items() if all(_is_text(value) for value in column)}
    labels = {name: column for name, column in values.items() if all(_is_label(value) for value in column)}
    if not texts or not labels.keys() - {max(texts, key=lambda name: _mean_length(texts[name]))}:
        raise error
    asks = max(texts, key=lambda name: _mean_length(texts[name]))
    answers = min(
        (name for name in labels if name != asks),
        # Columns with one value for all rows tell nothing; then few different values; then short ones.
        key=lambda name: (len(set(labels[name])) < 2, len(set(labels[name])), _mean_length(labels[name])),
    )
    distinct = len(set(labels[answers]))
    is_label = distinct <= FEW_ANSWERS and distinct * 2 <= len(sample)
    prompt = f"Which {answers} is this? {{{asks}}}" if is_label else f"{{{asks}}}"
    return source.model_copy(update={"prompt": prompt, "completion": f"{{{answers}}}"})


def _is_plain_name(name: str) -> bool:
    """Return whether a template can name the column."""
    try:
        return parse_template(f"{{{name}}}", key="prompt").names == (name,)
    except InputError:
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_label(value: Any) -> bool:
    return _is_text(value) or isinstance(value, int)


def _mean_length(values: Sequence[Any]) -> float:
    return sum(len(str(value)) for value in values) / len(values)


def _metric(examples: Sequence[Example]) -> tuple[dict[str, Any], str]:
    """Return the metric that fits the answers, and a sentence on why."""
    if all(example.text is not None for example in examples):
        return {"metric": "bits_per_byte"}, "plain texts without questions are graded by bits per byte."
    answers = [example.answer_text for example in examples]
    kinds, longest = len(set(answers)), max(map(len, answers))
    if kinds <= FEW_ANSWERS and kinds * 2 <= len(answers) and longest <= LONGEST_LABEL:
        return (
            {"metric": "exact_match", "max_new_tokens": 16},
            f"{kinds} different short answers: a classification, graded by exact match.",
        )
    if longest <= LONGEST_LABEL:
        return {"metric": "exact_match"}, "short answers, graded by exact match."
    return {"metric": "rouge_l"}, "long answers, graded by their overlap with the expected ones (ROUGE-L)."


def job_text(guess: Guess, *, model: str, test: Path | None, folder: Path) -> str:
    """Return the job file: what is set, and the common options with defaults and meaning, commented out."""
    source = guess.source
    train = _flow(source.model_copy(update={"path": _path(source.path, folder)}))
    held_out = "held-out.jsonl" if test is None else _path(str(test), folder)
    tested = f"test: {_flow(source.model_copy(update={'path': held_out}))}"
    test_line = f"  # {tested}" if test is None else f"  {tested}"
    set_here = {
        "name": _scalar(_slug(Path(source.path).stem)),
        "model": _scalar(_path(model, folder) if Path(model).is_dir() else model),
        "method.kind": "lora",
        "train.learning_rate": "1e-4",
        "evaluate.task": "{" + ", ".join(f"{key}: {value}" for key, value in guess.metric.items()) + "}",
        "compute.workers": "1",
    }
    lines = ["# A fine-tuning job. Lines in comments show defaults; `ftray schema` lists every key.", ""]
    for name, section in Job.model_fields.items():
        if name == "data":
            lines += ["", *_comment("data", ""), "data:", *_comment("data.train", "  "), f"  train: {train}"]
            lines += [*_comment("data.test", "  "), test_line, *_section("data", set_here)]
        elif isinstance(section.annotation, type) and issubclass(section.annotation, BaseModel):
            inner = _section(name, set_here)
            lines += ["", *_comment(name, ""), f"{name}:", *inner] if inner else []
        else:
            lines += _option(name, set_here, "")
    return "\n".join(lines) + "\n"


def _section(section: str, set_here: dict[str, str]) -> list[str]:
    shown = [path for path in (*set_here, *OPTIONS) if path.startswith(f"{section}.")]
    return [line for path in shown for line in _option(path, set_here, "  ")]


def _option(path: str, set_here: dict[str, str], indent: str) -> list[str]:
    """Return a setting's meaning and its line, commented out unless it is set here; nothing for one not shown."""
    key = path.rsplit(".", 1)[-1]
    if path in set_here:
        return [*_comment(path, indent), f"{indent}{key}: {set_here[path]}"]
    if path not in OPTIONS:
        return []
    default = json.dumps(schema_field(path).get_default(call_default_factory=True))
    return [*_comment(path, indent), f"{indent}# {key}: {default}"]


def _comment(path: str, indent: str) -> list[str]:
    description = " ".join((schema_field(path).description or "").split())
    return [f"{indent}# {description}"]


def schema_field(path: str) -> Any:
    """Return the schema's field at a dotted path."""
    model: type[BaseModel] = Job
    *sections, last = path.split(".")
    for section in sections:
        inner = model.model_fields[section].annotation
        assert isinstance(inner, type), f"{section} is a section"
        model = inner
    return model.model_fields[last]


def _flow(source: Source) -> str:
    """Return a source as one line of YAML."""
    given = source.model_dump(exclude_defaults=True)
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in given.items()) + "}"


def _scalar(value: Any) -> str:
    """Return a value as one line of YAML; text in quotes, whatever stands in it."""
    style = '"' if isinstance(value, str) else None
    return str(yaml.safe_dump(value, default_style=style, allow_unicode=True, width=math.inf)).strip()


def _path(path: str, folder: Path) -> str:
    """Return a file's path relative to the job file where it lies beside or below it, else absolute."""
    file = Path(path)
    if not file.exists():
        return path
    absolute = file.resolve()
    # A relative path that begins with ~ would be somebody's home.
    if absolute.is_relative_to(folder) and not absolute.relative_to(folder).parts[0].startswith("~"):
        return os.path.join(".", absolute.relative_to(folder))
    return str(absolute)


def _slug(stem: str) -> str:
    slug = re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:64]
    return slug if len(slug) > 1 else f"job-{slug}".strip("-")


def _exists(output: Path) -> InputError:
    return InputError(
        f"{output} is already there, and is left as it is",
        kind="exists",
        given=str(output),
        allowed="a file that is not there yet",
        hint="Name another with --output FILE, or remove it first.",
        file=str(output),
    )
