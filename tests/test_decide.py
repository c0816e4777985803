"""Whether fine-tuning is worth it: the decision, the choice of examples, the command on a real base."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ftray import decide as decide_module
from ftray.check import check_job
from ftray.cli import app
from ftray.data.templates import load_template
from ftray.data.tokenization import Tokenization
from ftray.decide import Asking, Measured, choose_shots, decide, measure, whole_hours, with_shots
from ftray.errors import RunError
from ftray.job import load_job
from ftray.model.base import load_model, load_tokenizer
from ftray.quickstart.pretrain import tiny_base

MEASURED = Measured(
    metric="exact_match",
    rows=100,
    shots=8,
    zero_shot=Asking(value=0.1, low=0.05, high=0.2, prompt_tokens=30, seconds=0.1),
    few_shot=Asking(value=0.5, low=0.4, high=0.6, prompt_tokens=300, seconds=0.25),
    smoke_value=0.8,
    train_rows=1000,
    accelerator_hours=2.0,
)


def test_the_gain_counts_over_the_best_prompt_and_the_hours():
    decision = decide(MEASURED, tau=0.1)
    assert decision.recommend == "fine_tune"
    assert decision.gain == pytest.approx(0.3)
    assert decision.ratio == pytest.approx(0.15)
    assert (decision.prompt_tokens_saved, decision.seconds_saved) == (270, pytest.approx(0.15))


@pytest.mark.parametrize(
    ("changed", "tau", "reason"),
    [
        ({}, 0.2, "not more than tau = 0.2"),
        ({"smoke_value": 0.55}, 0.01, "within noise"),
        ({"smoke_value": 0.45}, 0.01, "brought nothing over prompting"),
        ({"train_rows": 99}, 0.01, "fewer than 100"),
    ],
)
def test_else_the_advice_is_to_prompt(changed: dict[str, Any], tau: float, reason: str) -> None:
    decision = decide(replace(MEASURED, **changed), tau=tau)
    assert decision.recommend == "prompt"
    assert any(reason in one for one in decision.reasons)


def test_examples_show_every_answer_before_any_twice(make_example):
    rows = [make_example(f"question {i}", "abcde"[min(i % 20, 4)], row=i) for i in range(100)]
    shots = choose_shots(rows, apart_from=rows[:4], count=5)
    assert {shot.answer_text for shot in shots} == set("abcde")
    assert not {shot.row for shot in shots} & {0, 1, 2, 3}
    assert shots == choose_shots(rows[::-1], apart_from=rows[:4], count=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decide")
    tiny_base(place / "model", seed=0)
    rows = [{"prompt": f"is {n} odd?", "completion": ["no", "yes"][n % 2]} for n in range(400)]
    (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = {
        "name": "odd",
        "model": "model",
        "data": {"train": {"path": "train.jsonl"}},
        "train": {"max_steps": 5},
        "evaluate": {"task": {"max_new_tokens": 3}},
        "compute": {"workers": 0},
        "storage": "runs",
    }
    (place / "job.yaml").write_text(yaml.safe_dump(job))
    return place


def test_as_many_examples_as_fit_stand_before_the_question(folder, make_example):
    tokenizer = load_tokenizer(str(folder / "model"))
    template = load_template("tokenizer", tokenizer, base=folder)
    rows = [make_example(f"is {i} odd?", "yes", row=i, system="Answer.") for i in range(4)]
    shots = [make_example(f"is {i} odd?", "no", row=i) for i in range(10, 18)]
    short, long = (
        with_shots(rows, shots, Tokenization(tokenizer, template=template, loss_on="last_turn", max_length=length))
        for length in (120, 256)
    )
    assert 0 < short[1] < long[1] <= 8
    (first, *_), used = short
    assert [turn.role for turn in first.messages] == ["system", *["user", "assistant"] * used, "user", "assistant"]
    assert first.messages[-2:] == rows[0].messages[-2:]


def test_the_command_decides_on_a_real_base(folder, monkeypatch):
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    words = ["check", str(folder / "job.yaml"), "--decide", "--tau", "5", "--json"]
    first, again = (json.loads(CliRunner().invoke(app, words).stdout) for _ in range(2))
    decision = first["decision"]
    assert (decision["tau"], decision["metric"]) == (5, "exact_match")
    assert 20 <= decision["rows"] <= 60
    assert decision["few_shot"]["prompt_tokens"] > decision["zero_shot"]["prompt_tokens"]
    assert decision["recommend"] in ("fine_tune", "prompt")
    assert decision["accelerator_hours"] > 0
    # The smoke run is found again, and everything that does not depend on a clock is the same.
    assert again["decision"]["smoke_value"] == decision["smoke_value"]
    assert len(list((folder / "runs").iterdir())) == 1


def test_the_base_is_gone_before_the_smoke_run_begins(folder, monkeypatch):
    loaded_models = []

    def load_and_remember(name: str) -> Any:
        model = load_model(name)
        loaded_models.append(weakref.ref(model))
        return model

    def begin(*args: Any, **more: Any) -> None:
        assert [model() for model in loaded_models] == [None]
        raise RunError("begun", kind="data")

    monkeypatch.setattr(decide_module, "load_model", load_and_remember)
    monkeypatch.setattr(decide_module, "finetune", begin)
    with pytest.raises(RunError, match="begun"):
        measure(load_job(folder / "job.yaml"), {}, display=None, on_plan=None, say=lambda line: None)


def test_the_whole_run_is_evaluated_as_often_as_its_plan_says(folder):
    sets = ["train.max_steps=40", "train.evaluate_every=5", "train.checkpoint_every=20"]
    loaded = load_job(folder / "job.yaml", sets=sets)
    smoke = {"seconds": {"evaluate": 36.0}, "tokens_per_second": 0.0}
    # 8 evaluations against 2.
    assert whole_hours(check_job(loaded), smoke, smoke_evaluations=2) == pytest.approx(36.0 * 4 / 3600)


def test_tau_alone_and_a_metric_without_a_scale_are_refused(folder, monkeypatch):
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    job = str(folder / "job.yaml")
    for words in (["--tau", "1"], ["--decide", "--set", "evaluate.task.metric=nll"]):
        answer = CliRunner().invoke(app, ["check", job, *words])
        assert answer.exit_code == 2, answer.output
