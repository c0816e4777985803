"""The task's files: balanced, without overlap between what is trained on and what is measured."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from ftray.data.conversations import normalise
from ftray.job import load_job
from ftray.quickstart.corpus import documents
from ftray.quickstart.run import job_text
from ftray.quickstart.task import COMPLETION, PROMPT, TaskFiles, write_task

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TaskFiles:
    return write_task(tmp_path_factory.mktemp("task"), seed=request.param)


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_balanced_over_six_intents(files: TaskFiles) -> None:
    train, test = read(files.train), read(files.test)
    assert (len(train), len(test), len(read(files.probe)), len(read(files.replay))) == (900, 150, 100, 200)
    assert set(Counter(row["intent"] for row in train).values()) == {150}
    assert set(Counter(row["intent"] for row in test).values()) == {25}


def test_no_text_stands_twice_and_none_of_test_or_probe_in_training(files: TaskFiles) -> None:
    train = [normalise(row["text"]) for row in read(files.train)] + [
        normalise(row["prompt"]) for row in read(files.replay)
    ]
    test = [normalise(row["text"]) for row in read(files.test)]
    probe = [normalise(row["prompt"]) for row in read(files.probe)]
    held_out = test + probe
    assert len(set(train)) == len(train)
    assert len(set(held_out)) == len(held_out)
    assert not set(train) & set(held_out)


def test_stories_are_one_a_line_and_distinct(files: TaskFiles) -> None:
    stories = files.stories.read_text(encoding="utf-8").splitlines()
    assert len(set(stories)) == len(stories) == 60
    assert all(story.startswith("One day") for story in stories)


def test_pretraining_never_answers_with_an_intent(files: TaskFiles) -> None:
    intents = {row["intent"] for row in read(files.train)}
    answers = {turn.answer for document in itertools.islice(documents(0), 6000) for turn in document.turns}
    assert not intents & answers


def test_the_templates_name_columns_of_the_rows(files: TaskFiles) -> None:
    row = read(files.train)[0]
    assert PROMPT.format(**row).endswith(row["text"])
    assert COMPLETION.format(**row) == row["intent"]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second = write_task(tmp_path / "a", seed=4), write_task(tmp_path / "b", seed=4)
    for name in ("train", "test", "replay", "probe", "stories"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()


def test_whoever_goes_on_with_the_job_finds_what_the_quickstart_has_made(files: TaskFiles, tmp_path: Path) -> None:
    base = tmp_path / "runs" / "quickstart" / "base"
    base.mkdir(parents=True)
    job = base.parent / "job.yaml"
    job.write_text(job_text(base, files))
    assert load_job(job).storage.resolve() == (tmp_path / "runs").resolve()
