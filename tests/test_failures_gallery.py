"""The gallery of failures: a job for every kind, each a valid job; real runs are diagnosed as what they are."""

from __future__ import annotations

import importlib
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from ftray.job import load_job
from ftray.report.finding import Kind

FOLDER = Path(__file__).resolve().parent.parent / "jobs" / "failures"


@pytest.fixture(scope="module")
def gallery() -> Any:
    """Return the script as a module; it imports its neighbour by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("gallery")
    finally:
        sys.path.remove(str(FOLDER))


def test_every_kind_has_a_job(gallery: ModuleType, tmp_path: Path) -> None:
    cases = gallery.cases(tmp_path)
    assert {case.kind for case in cases} == {*get_args(Kind), "healthy"}
    assert len({case.name or case.kind for case in cases}) == len(cases)


@pytest.mark.parametrize("data", ["snips", "clinc"])
def test_every_job_is_valid_and_differs_from_the_healthy_one(
    gallery: ModuleType, data: str, shared: Path, tmp_path: Path
) -> None:
    corpus = gallery.read_corpus(data, shared=shared, seed=0)
    healthy: Any = None
    for case in gallery.cases(shared):
        spoilt = case.spoil(corpus, random.Random(0))
        file = gallery.write_job(case, spoilt, data=data, folder=tmp_path / (case.name or case.kind), shared=shared)
        resolved = load_job(file).job.model_dump(mode="json", exclude={"name", "storage", "data"})
        if case.kind == "healthy":
            healthy = resolved
        else:
            assert resolved != healthy or spoilt != corpus or case.kind == "untrained_end_token"
            assert case.changes or spoilt != corpus


@pytest.mark.parametrize("data", ["snips", "clinc"])
def test_the_parts_of_a_corpus_are_balanced_and_share_no_text(gallery: ModuleType, data: str, shared: Path) -> None:
    corpus = gallery.read_corpus(data, shared=shared, seed=3)
    assert corpus == gallery.read_corpus(data, shared=shared, seed=3)
    assert corpus != gallery.read_corpus(data, shared=shared, seed=4)
    texts = [row.text.lower() for part in (corpus.train, corpus.validation, corpus.test) for row in part]
    assert len(set(texts)) == len(texts)
    for part in (corpus.train, corpus.validation, corpus.test):
        counts = [sum(row.label == label for row in part) for label in corpus.labels]
        assert len(set(counts)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["healthy", "loss_spike", "untrained_end_token"])
def test_a_real_run_is_diagnosed_as_what_it_is(gallery: ModuleType, kind: str, shared: Path, tmp_path: Path) -> None:
    (case,) = [case for case in gallery.cases(shared) if case.kind == kind]
    outcome = gallery.run_case(case, data="snips", seed=0, work=tmp_path, shared=shared)
    assert outcome["right"], outcome["findings"]
