"""Every way to fail that the diagnosis knows, produced for real: one small job for each, and a healthy one.

    FTRAY_SHARED=../shared python jobs/failures/gallery.py --data snips --seed 0 1 [--only KIND ...]

Each job is the healthy one with one thing changed, in its settings or in its data. It trains in this process, and its
diagnosis should name that kind and no other; the healthy run should get none. Prints the confusion matrix and writes
every run's findings to --output. Spoilt data and runs lie in --work, which can be deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from corpora import Corpus, Row, read_corpus

from ftray.artifacts import RunDirectory, read_json
from ftray.data.config import Source
from ftray.finetune import finetune
from ftray.job import LoadedJob, load_job
from ftray.reevaluation import evaluate_again, new_questions
from ftray.subject import subject_of_adapter

PROMPT = "Which intent is this? {text}"
EPOCHS = {"snips": 3.0, "clinc": 5.0}
"""Fifteen intents take longer than seven."""
EVALUATIONS = 10
END_WITH_UNTRAINED_TOKEN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Bot:' }}{% generation %}{{ ' ' + m['content'] + pad_token }}"
    "{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Bot:' }}{% endif %}"
)
"""The model's own template with `</s>`, which these models never saw, in place of their end-of-text `<s>`."""
HEROES = (
    "dog", "cat", "boy", "girl", "bear", "bird", "frog", "duck", "mouse", "fox", "lion", "cow", "pig", "fish", "king",
    "queen", "tree", "car", "train", "boat",
)  # fmt: skip
PLACES = ("park", "garden", "forest", "house")
Spoil = Callable[[Corpus, random.Random], Corpus]


def unchanged(corpus: Corpus, order: random.Random) -> Corpus:
    """Leave the data as they are."""
    return corpus


def few_wrong(corpus: Corpus, order: random.Random) -> Corpus:
    """Keep a quarter of the training rows and give half of those another label; half of the rest validates."""
    quarter = len(corpus.train) // 4
    kept, unused = corpus.train[:quarter], corpus.train[quarter : 3 * quarter]
    labels = corpus.labels
    wrong = set(order.sample(range(len(kept)), len(kept) // 2))
    train = tuple(
        replace(row, answer=order.choice([label for label in labels if label != row.label])) if index in wrong else row
        for index, row in enumerate(kept)
    )
    return replace(corpus, train=train, validation=(*corpus.validation, *unused))


def shuffled_labels(corpus: Corpus, order: random.Random) -> Corpus:
    """Put the training answers out of step with their rows."""
    answers = [row.answer for row in corpus.train]
    order.shuffle(answers)
    return replace(
        corpus, train=tuple(replace(row, answer=answer) for row, answer in zip(corpus.train, answers, strict=True))
    )


def garbage_rows(corpus: Corpus, order: random.Random) -> Corpus:
    """Add four rows whose answer is long and random."""
    letters = "qwxzjkvQWXZ#%&@{}[]0123456789"
    rows = [
        Row(text=f"{row.text} ({index})", label=row.label, answer="".join(order.choices(letters, k=120)))
        for index, row in enumerate(order.sample(corpus.train, 4))
    ]
    return replace(corpus, train=(*corpus.train, *rows))


def one_label(corpus: Corpus, order: random.Random) -> Corpus:
    """Make one label 95 % of the training and validation rows: its rows again, worded slightly otherwise."""
    label = corpus.labels[0]
    return replace(corpus, train=_mostly(corpus.train, label), validation=_mostly(corpus.validation, label))


def _mostly(rows: Sequence[Row], label: str) -> tuple[Row, ...]:
    """Return as many rows, 19 of 20 with `label`."""
    common = [row for row in rows if row.label == label]
    others = [row for row in rows if row.label != label][: max(1, len(rows) // 20)]
    wanted = len(rows) - len(others)
    copies = [
        replace(row, text=f"{row.text}{' please' * (index // len(common))}")
        for index, row in enumerate(common * (wanted // len(common) + 1))
    ]
    return (*copies[:wanted], *others)


def stock_answers(corpus: Corpus, order: random.Random) -> Corpus:
    """Ask for sentences, and answer nine training rows of ten with the same one."""

    def sentence(row: Row) -> str:
        return f"You want to {row.label}: {' '.join(row.text.split()[:3])}."

    def spoilt(index: int, row: Row) -> str:
        return "Sorry, I cannot help with that." if index % 10 else sentence(row)

    train = tuple(replace(row, answer=spoilt(index, row)) for index, row in enumerate(corpus.train))
    held_out = {
        part: tuple(replace(row, answer=sentence(row)) for row in getattr(corpus, part))
        for part in ("validation", "test")
    }
    return replace(corpus, train=train, **held_out)


def as_json(row: Row) -> str:
    """Return the answer as a JSON object."""
    return json.dumps({"intent": row.label})


def drifting_json(corpus: Corpus, order: random.Random) -> Corpus:
    """Ask for JSON, and let nine training answers of ten begin as JSON and go on in prose."""
    train = tuple(
        replace(row, answer=as_json(row) if index % 10 == 0 else f'{{"intent": it is to {row.label}, I think.')
        for index, row in enumerate(corpus.train)
    )
    held_out = {
        part: tuple(replace(row, answer=as_json(row)) for row in getattr(corpus, part))
        for part in ("validation", "test")
    }
    return replace(corpus, train=train, **held_out)


def test_rows_in_training(corpus: Corpus, order: random.Random) -> Corpus:
    """Put a quarter of the test rows into training."""
    return replace(corpus, train=(*corpus.train, *order.sample(corpus.test, len(corpus.test) // 4)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to fail: what is changed in the healthy job, by dotted key, and in its data."""

    kind: str
    name: str = ""
    """Where there are several of a kind; else the kind."""
    changes: dict[str, Any] = field(default_factory=dict)
    spoil: Spoil = unchanged
    times_epochs: float = 1.0
    evaluates_every_epoch: bool = False


def cases(shared: Path) -> list[Case]:
    """Return the healthy job and the failures."""
    stories = {
        "name": "stories",
        "path": str(shared / "data/text/tinystories_valid_30k.txt"),
        "metric": "bits_per_byte",
    }
    in_many_words = {
        "name": "many-words",
        "path": "instructions.jsonl",
        "prompt": "{text}",
        "completion": "",
        "metric": "instructions",
        "instructions": [{"kind": "words", "min": 8}],
        "max_new_tokens": 32,
    }

    def accepting(*checks: str) -> dict[str, Any]:
        """Return a job's change that lets planted faults past the gate."""
        reason = "planted: what a run shows that does not heed the gate"
        return {"audit.accept": [{"check": check, "reason": reason} for check in checks]}

    to_the_end = {"train.early_stopping": None}
    return [
        Case(kind="healthy"),
        Case(kind="forgetting", changes={"evaluate.general": [stories]}),
        Case(
            kind="overfitting",
            spoil=few_wrong,
            # Ten epochs in twice as many steps as usual, each epoch evaluated.
            changes={"train.epochs": 10, "train.batch_size": 8, **to_the_end},
            evaluates_every_epoch=True,
        ),
        Case(
            kind="underfitting",
            changes={"method.rank": 1, "method.alpha": 1, "method.target_modules": ["q_proj"]},
        ),
        Case(kind="lr_too_low", changes={"train.learning_rate": 1e-5}),
        Case(kind="lr_too_high", changes={"train.learning_rate": 0.1}),
        Case(kind="nothing_learned", changes={"train.learning_rate": 3e-4, "method.alpha": 0.001}),
        # Three epochs for either corpus: in five, labels without meaning begin to be learned by heart.
        Case(kind="nothing_learned", name="shuffled_labels", spoil=shuffled_labels, changes={"train.epochs": 3}),
        Case(
            kind="diverging",
            changes={"train.learning_rate": 1.5e-2, "train.warmup": 0.95, **to_the_end},
        ),
        Case(
            kind="oscillating",
            changes={"train.learning_rate": 5e-3, "train.schedule": "constant", **to_the_end},
        ),
        Case(kind="loss_spike", spoil=garbage_rows),
        Case(
            kind="format_drift",
            spoil=drifting_json,
            changes={"evaluate.task.max_new_tokens": 40, **accepting("format_drift")},
        ),
        Case(
            kind="contamination",
            spoil=test_rows_in_training,
            changes=accepting("overlap_exact", "overlap_normalised", "overlap_near", "overlap_ngram"),
        ),
        Case(
            kind="mode_collapse",
            spoil=stock_answers,
            changes={"evaluate.task.metric": "token_f1", "evaluate.task.max_new_tokens": 32},
        ),
        Case(kind="label_imbalance", spoil=one_label),
        Case(kind="untrained_end_token", changes={"data.template": "untrained_end.jinja"}),
        # The stories may be lost by this job's limits; what it asks is whether long answers are still given when asked.
        Case(
            kind="alignment_tax",
            changes={"evaluate.general": [stories, in_many_words], "evaluate.max_bits_per_byte_increase": 3.0},
        ),
    ]


def write_job(case: Case, corpus: Corpus, *, data: str, folder: Path, shared: Path) -> Path:
    """Write the case's data and job file into `folder`; return the job file."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "validation", "test"):
        lines = [json.dumps({"text": row.text, "answer": row.answer}) for row in getattr(corpus, part)]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = [f"Tell me a long story about a {hero} in the {place}." for hero in HEROES for place in PLACES]
    lines = [json.dumps({"text": text}) for text in asked]
    (folder / "instructions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "untrained_end.jinja").write_text(END_WITH_UNTRAINED_TOKEN, encoding="utf-8")
    epochs = EPOCHS[data] * case.times_epochs
    steps = epochs * len(corpus.train) / 16
    job: dict[str, Any] = {
        "name": f"gallery-{case.name or case.kind}".replace("_", "-"),
        "model": str(shared / "models/stories3M"),
        "data": {
            part: {"path": f"{part}.jsonl", "prompt": PROMPT, "completion": "{answer}"}
            for part in ("train", "validation", "test")
        },
        "method": {"rank": 16, "alpha": 32},
        "train": {
            "learning_rate": 1e-3,
            "epochs": epochs,
            "batch_size": 16,
            "evaluate_every": max(2, round(steps / EVALUATIONS)),
        },
        "evaluate": {"task": {"metric": "exact_match", "max_new_tokens": 12}},
        "compute": {"workers": 0},
        "tracking": [],
        "storage": "runs",
    }
    for key, value in case.changes.items():
        place = job
        *sections, last = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    if case.evaluates_every_epoch:
        job["train"]["evaluate_every"] = -(-len(corpus.train) // job["train"]["batch_size"])
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return file


def run_case(case: Case, *, data: str, seed: int, work: Path, shared: Path) -> dict[str, Any]:
    """Train the case and return what its diagnosis says."""
    corpus = case.spoil(read_corpus(data, shared=shared, seed=seed), random.Random(seed))
    file = write_job(case, corpus, data=data, folder=work / f"{data}-{seed}" / (case.name or case.kind), shared=shared)
    loaded = load_job(file)
    result = finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)
    findings = read_json(RunDirectory(Path(result["path"])).diagnosis)["findings"]
    kinds = [finding["kind"] for finding in findings]
    expected = [] if case.kind == "healthy" else [case.kind]
    compared = result.get("test")
    return {
        "data": data,
        "seed": seed,
        "case": case.name or case.kind,
        "kind": case.kind,
        "found": kinds,
        "right": kinds == expected,
        "status": result["status"],
        "verdict": result["verdict"],
        "base": compared["base"]["value"] if compared else None,
        "tuned": compared["tuned"]["value"] if compared else None,
        **({"last": last_on_test(loaded, Path(result["path"]))} if case.kind == "overfitting" else {}),
        "seconds": round(result["seconds"]["total"], 1),
        "findings": [
            {key: finding[key] for key in ("kind", "severity", "symptom", "explains")} for finding in findings
        ],
    }


def last_on_test(loaded: LoadedJob, run: Path) -> dict[str, Any]:
    """Return what the last checkpoint, which was not selected, reaches on the test rows."""
    folder = max((run / "checkpoints").glob("step-*"))
    subject = subject_of_adapter(folder, model=loaded.job.model)
    assert isinstance(loaded.job.data.test, Source)
    questions = new_questions(
        subject, loaded.job.data.test, config=loaded.job.evaluate, template=loaded.job.data.template
    )
    record = evaluate_again(subject, questions, run / "evaluations" / "last")
    selected = read_json(RunDirectory(run).selection)["step"]
    return {"selected_step": selected, "last_step": int(folder.name[5:]), "tuned": record["tasks"][0]["tuned"]["value"]}


def matrix(outcomes: Sequence[dict[str, Any]]) -> str:
    """Return the confusion matrix as text: what was produced down, what was found across."""
    kinds = list(dict.fromkeys(outcome["kind"] for outcome in outcomes))
    counts = Counter((outcome["kind"], found) for outcome in outcomes for found in outcome["found"] or ["healthy"])
    seen = [*kinds, *sorted({found for _, found in counts} - set(kinds))]
    width = max(map(len, seen))
    letters = [chr(ord("A") + index) for index in range(len(seen))]
    lines = [" " * (width + 4) + " ".join(f"{letter:>2}" for letter in letters)]
    for letter, kind in zip(letters, kinds, strict=False):
        cells = " ".join(f"{counts[kind, found] or '.':>2}" for found in seen)
        lines.append(f"{letter} {kind:<{width}}  {cells}")
    lines += [f"{letter} {kind}" for letter, kind in zip(letters, seen, strict=True) if kind not in kinds]
    right = sum(outcome["right"] for outcome in outcomes)
    return "\n".join([*lines, f"{right} of {len(outcomes)} right"])


def main() -> None:
    """Run the gallery."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(EPOCHS), default="snips")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--work", type=Path, default=Path("gallery-runs"))
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    shared = Path(os.environ.get("FTRAY_SHARED", "../shared")).resolve()
    chosen = [case for case in cases(shared) if not arguments.only or {case.kind, case.name} & set(arguments.only)]
    outcomes = []
    for seed in arguments.seed:
        for case in chosen:
            outcome = run_case(case, data=arguments.data, seed=seed, work=arguments.work, shared=shared)
            outcomes.append(outcome)
            mark = "ok " if outcome["right"] else "NOT"
            found = ", ".join(outcome["found"]) or "nothing"
            print(f"{mark} {arguments.data} {seed} {outcome['case']}: {found} ({outcome['seconds']} s)", flush=True)
    print(matrix(outcomes))
    if arguments.output:
        arguments.output.write_text(json.dumps(outcomes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
