"""Real trainings in this process: they learn, stop, and go on bit for bit from where they were killed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ftray.artifacts import RunDirectory
from ftray.data.collate import collate
from ftray.errors import RunError
from ftray.job import LoadedJob, run_directory, run_id_of
from ftray.model.base import load_tokenizer
from ftray.model.forward import layout_for
from ftray.preflight import check
from ftray.prepare import Datasets
from ftray.train.checkpoint import CheckpointWriter, find_checkpoints
from ftray.train.engine import Engine
from ftray.train.loop import Clock, Validation, best_step, score, task_losses, train
from ftray.train.plan import Plan
from ftray.train.state import Training
from ftray.work import build_engine, build_model, build_tasks, describe, resume


class KilledError(Exception):
    """Stands for the end of the process."""


@dataclass
class Trial:
    """One process's training of a job, as `work` puts it together."""

    training: Training
    engine: Engine
    validation: Validation
    run: RunDirectory
    run_id: str
    lines: list[dict[str, Any]] = field(default_factory=list)

    def train(self, *, on_line: Callable[[dict[str, Any]], None] = lambda line: None) -> Clock:
        """Go on from the newest checkpoint until the end, or until `on_line` raises."""

        def report(line: dict[str, Any]) -> None:
            self.lines.append(line)
            on_line(line)

        resume(self.training, self.engine, self.run, run_id=self.run_id, report=report)
        writer = CheckpointWriter(self.run.checkpoints, run_id=self.run_id, keep=self.training.plan.keep_checkpoints)
        return train(self.training, self.engine, self.validation, writer, report)

    def steps(self) -> list[int]:
        return [one.step for one in find_checkpoints(self.run.checkpoints, run_id=self.run_id)]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]


@dataclass(frozen=True)
class Prepared:
    """A job, checked, that can be tried several times."""

    loaded: LoadedJob
    run_id: str
    datasets: Datasets
    plan: Plan
    tokenizer: Any

    def trial(self, folder: Path) -> Trial:
        run = RunDirectory(folder)
        run.create()
        engine = build_engine(build_model(self.loaded.job, self.plan), self.plan)
        task, _ = build_tasks(self.loaded.job, self.datasets)
        validation = Validation(
            task=task,
            tokenizer=self.tokenizer,
            stop_token_ids=self.datasets.tokenization.stop_token_ids,
            layout=layout_for(engine.model),
        )
        return Trial(Training(self.plan, self.datasets.train), engine, validation, run, self.run_id)


@pytest.fixture(scope="module")
def prepare(world: Any) -> Callable[..., Prepared]:
    def make(**sections: Any) -> Prepared:
        loaded = world.load(**sections)
        run_id = run_id_of(loaded)
        checked = check(loaded, run_id=run_id, run=run_directory(loaded, run_id))
        return Prepared(loaded, run_id, checked.datasets, checked.plan, load_tokenizer(loaded.job.model))

    return make


@pytest.fixture(scope="module")
def learned(prepare: Callable[..., Prepared], tmp_path_factory: pytest.TempPathFactory) -> tuple[Trial, Clock]:
    trial = prepare().trial(tmp_path_factory.mktemp("learned"))
    return trial, trial.train()


# Learning


def test_a_small_model_learns_the_task(learned: tuple[Trial, Clock]) -> None:
    trial, _ = learned
    first, *_, last = trial.of_kind("step")
    assert first["train/loss"] > 3
    assert last["train/loss"] < 0.5
    evaluations = trial.of_kind("evaluation")
    assert evaluations[-1]["val/accuracy"] > 0.9
    # A fully trained model has no base at hand; its final comparison loads it.
    assert all("val/base_accuracy" not in line for line in evaluations)
    assert evaluations[-1]["val/loss"] < evaluations[0]["val/loss"]


def test_what_a_run_reports(learned: tuple[Trial, Clock]) -> None:
    trial, clock = learned
    assert [line["step"] for line in trial.of_kind("step")] == list(range(1, 31))
    assert [line["step"] for line in trial.of_kind("evaluation")] == trial.steps() == [10, 20, 30]
    assert [line["event"] for line in trial.of_kind("event")] == ["started"]
    for line in trial.of_kind("step"):
        numbers = [line[f"train/{name}"] for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second")]
        assert all(math.isfinite(number) and number > 0 for number in numbers[:1] + numbers[2:])
        assert numbers[1] >= 0
    assert trial.of_kind("step")[-1]["train/learning_rate"] == 0.0
    assert trial.lines[-1]["epoch"] == pytest.approx(30 / trial.training.plan.steps_per_epoch)
    assert clock.tokens == trial.training.progress.tokens > 0
    assert min(clock.train, clock.evaluate, clock.checkpoint) > 0


def test_what_a_run_describes(learned: tuple[Trial, Clock]) -> None:
    trial, clock = learned
    record = describe(trial.training, trial.engine, clock)
    assert (record["status"], record["steps"], record["stopped_reason"]) == ("completed", 30, None)
    assert record["tokens"] > record["label_tokens"] > 0
    assert record["optimizer_bytes_per_rank"] == [trial.engine.optimizer_bytes()]
    assert record["peak_memory_bytes"] > 2**20
    json.dumps(record)


def test_every_checkpoint_is_evaluated(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    trial = prepare(train={"max_steps": 7, "evaluate_every": 4, "checkpoint_every": 3}).trial(tmp_path)
    trial.train()
    assert [line["step"] for line in trial.of_kind("evaluation")] == [3, 4, 6, 7]
    assert trial.steps() == [3, 6, 7]


def test_lines_are_logged_as_often_as_asked(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    trial = prepare(train={"max_steps": 8, "log_every": 3, "evaluate_every": 8, "checkpoint_every": 8}).trial(tmp_path)
    trial.train()
    assert [line["step"] for line in trial.of_kind("step")] == [1, 3, 6, 8]


def test_the_lines_list_the_losses_of_all_steps(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    trial = prepare(train={"max_steps": 8, "log_every": 3, "evaluate_every": 8, "checkpoint_every": 8}).trial(tmp_path)
    trial.train()
    lines = trial.of_kind("step")
    assert [len(line["train/losses"]) for line in lines] == [1, 2, 3, 2]
    assert [len(line["train/grad_norms"]) for line in lines] == [1, 2, 3, 2]
    for line in lines:
        assert line["train/losses"][-1] == pytest.approx(line["train/loss"], rel=1e-5)
    assert trial.of_kind("evaluation")[0]["train/loss_average"] == trial.training.progress.train_loss


def test_a_spike_of_the_loss_names_the_row_that_made_it(
    prepare: Callable[..., Prepared], world: Any, tmp_path: Path
) -> None:
    broken = world.folder / "broken.jsonl"
    broken.write_text(json.dumps({"question": "What colour?", "colour": "q7#xv%zk!w@8jq{x]" * 2}) + "\n")
    template = {"prompt": "{question}", "completion": "{colour}"}
    sources = [{"path": str(world.folder / "rows.jsonl"), **template}, {"path": str(broken), **template}]
    validation = {"path": str(world.folder / "rows.jsonl"), "limit": 8, **template}
    trial = prepare(
        data={"train": sources, "validation": validation},
        train={"max_steps": 60, "evaluate_every": 60, "checkpoint_every": 60},
    ).trial(tmp_path)
    trial.train()
    spikes = [line for line in trial.of_kind("event") if line["event"] == "loss_spike"]
    assert spikes
    for spike in spikes:
        worst, second, *_ = spike["rows"]
        assert (worst["dataset"], worst["row"]) == ("train", 0)
        assert worst["loss"] > 2 * second["loss"]
        assert spike["train/loss"] > 1.5 * spike["train/loss_average"]
        assert len(spike["rows"]) == 8


def test_the_best_and_the_last_checkpoint_survive(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    # So large a rate undoes what was learned at the start.
    recipe = {"learning_rate": 0.05, "max_steps": 24, "evaluate_every": 4, "checkpoint_every": 4, "keep_checkpoints": 1,
              "schedule": "constant", "warmup": 20}  # fmt: skip
    trial = prepare(train=recipe).trial(tmp_path)
    trial.train()
    values = {line["step"]: line["val/accuracy"] for line in trial.of_kind("evaluation")}
    best = best_step(trial.training)
    assert best is not None
    assert values[best] == max(values.values())
    assert trial.steps() == sorted({best, 24})


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"sequence_packing": True}},
        {"train": {"max_steps": 4, "micro_batch_size": 3}},
        {"train": {"max_steps": 4, "activation_checkpointing": True}},
    ],
    ids=["packing", "micro_batch_size", "activation_checkpointing"],
)
def test_settings_for_memory_do_not_change_losses(
    prepare: Callable[..., Prepared], learned: tuple[Trial, Clock], tmp_path: Path, sections: dict[str, Any]
) -> None:
    short = {"max_steps": 4, "evaluate_every": 4, "checkpoint_every": 4, "schedule": "constant"}

    def losses(folder: str, **changes: Any) -> list[float]:
        merged = {**changes, "train": {**short, **changes.get("train", {})}}
        trial = prepare(**merged).trial(tmp_path / folder)
        trial.train()
        return [line["train/loss"] for line in trial.of_kind("step")]

    assert losses("changed", **sections) == pytest.approx(losses("plain"), rel=1e-5)


def test_activation_checkpointing_reaches_the_adapter(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    def lines(folder: str, *, checkpointing: bool) -> list[tuple[float, float]]:
        recipe = {"max_steps": 3, "activation_checkpointing": checkpointing}
        trial = prepare(method={"kind": "lora", "rank": 4}, train=recipe).trial(tmp_path / folder)
        trial.train()
        return [(line["train/loss"], line["train/grad_norm"]) for line in trial.of_kind("step")]

    recomputed, kept = lines("on", checkpointing=True), lines("off", checkpointing=False)
    assert [loss for loss, _ in recomputed] == pytest.approx([loss for loss, _ in kept], rel=1e-6)
    assert [norm for _, norm in recomputed] == pytest.approx([norm for _, norm in kept], rel=1e-4)


# Stopping


def test_memorising_what_does_not_hold_elsewhere_is_stopped(
    prepare: Callable[..., Prepared], world: Any, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (world.folder / "rows.jsonl").read_text().splitlines()]
    colours = ["green", "yellow", "red", "blue"]
    for name, shift in (("odd", 1), ("even", 2)):
        text = "".join(
            json.dumps({"question": row["question"], "colour": colours[(index + shift * (index // 4)) % 4]}) + "\n"
            for index, row in enumerate(rows)
            if index % 2 == shift - 1
        )
        (world.folder / f"{name}.jsonl").write_text(text)
    template = {"prompt": "{question}", "completion": "{colour}"}
    data = {
        name: {"path": str(world.folder / f"{file}.jsonl"), **template}
        for name, file in (("train", "odd"), ("validation", "even"))
    }
    recipe = {"learning_rate": 3e-3, "max_steps": 400, "early_stopping": {"patience": 2}, "schedule": "constant"}
    trial = prepare(data=data, train=recipe).trial(tmp_path)
    clock = trial.train()
    record = describe(trial.training, trial.engine, clock)
    assert record["status"] == "early_stopped"
    assert record["steps"] == trial.steps()[-1] < 400
    assert trial.of_kind("event")[-1]["event"] == record["stopped_reason"]
    assert best_step(trial.training) in trial.steps()


def test_a_learning_rate_far_too_high_is_stopped(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    recipe = {"learning_rate": 1.0, "max_steps": 300, "early_stopping": {"patience": 2}, "schedule": "constant",
              "log_every": 37}  # fmt: skip
    trial = prepare(train=recipe).trial(tmp_path)
    clock = trial.train()
    record = describe(trial.training, trial.engine, clock)
    assert record["status"] == "early_stopped"
    assert record["steps"] < 300
    assert "alidation loss" in record["stopped_reason"]
    listed = [loss for line in trial.of_kind("step") for loss in line["train/losses"]]
    assert record["steps"] % 37
    assert listed[-37:] == trial.training.progress.recent_losses
    assert len(listed) == record["steps"] == trial.of_kind("step")[-1]["step"]


def test_a_run_that_stopped_early_is_over_when_it_is_resumed(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    job = prepare(train={"learning_rate": 1.0, "max_steps": 300, "early_stopping": {"patience": 1}})
    first = job.trial(tmp_path)
    first.train()
    second = job.trial(tmp_path)
    second.train()
    assert second.of_kind("step") == []
    assert second.training.progress == first.training.progress


# Killed and resumed

LORA = {"method": {"kind": "lora", "rank": 4, "dropout": 0.1}, "train": {"learning_rate": 1e-2}}


@pytest.fixture(scope="module")
def undisturbed(prepare: Callable[..., Prepared], tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Trial]:
    job = prepare(**LORA)
    trial = job.trial(tmp_path_factory.mktemp("undisturbed"))
    trial.train()
    return job, trial


def test_the_base_is_asked_once_in_the_first_evaluations_batches(undisturbed: tuple[Prepared, Trial]) -> None:
    job, trial = undisturbed
    first, *others = trial.of_kind("evaluation")
    untrained = job.trial(trial.run.root.parent / "untrained")
    expected = score(untrained.engine, untrained.validation)
    assert first["val/base_accuracy"] == expected.value == trial.training.progress.base_value
    assert all("val/base_accuracy" not in line for line in others)


@pytest.mark.parametrize(
    ("kind", "step", "resumes_at"),
    [("step", 4, None), ("step", 10, None), ("evaluation", 20, 10), ("step", 21, 20), ("step", 29, 20)],
)
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(
    tiny: ModuleType, undisturbed: tuple[Prepared, Trial], tmp_path: Path, kind: str, step: int, resumes_at: int | None
) -> None:
    job, whole = undisturbed

    def kill(line: dict[str, Any]) -> None:
        if (line["kind"], line["step"]) == (kind, step):
            raise KilledError

    first, second = job.trial(tmp_path), job.trial(tmp_path)
    with pytest.raises(KilledError):
        first.train(on_line=kill)
    half = first.run.checkpoints / "step-00000025"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half a checkpoint")
    torch.manual_seed(12345)  # another process starts with other random numbers
    second.train()
    assert second.lines[0]["event"] == (f"resumed at step {resumes_at}" if resumes_at else "started")
    assert tiny.is_equal(tiny.state(second.engine), tiny.state(whole.engine))
    assert second.training.progress == whole.training.progress
    expected = {line["step"]: line["train/loss"] for line in whole.of_kind("step")}
    assert all(expected[line["step"]] == line["train/loss"] for line in second.of_kind("step"))


def test_a_damaged_checkpoint_is_reported_and_passed_over(
    tiny: ModuleType, undisturbed: tuple[Prepared, Trial], tmp_path: Path
) -> None:
    job, whole = undisturbed

    def kill(line: dict[str, Any]) -> None:
        if line["step"] == 25:
            raise KilledError

    first, second = job.trial(tmp_path), job.trial(tmp_path)
    with pytest.raises(KilledError):
        first.train(on_line=kill)
    (first.run.checkpoints / "step-00000020" / "adapter_model.safetensors").write_bytes(b"damaged")
    second.train()
    damaged, resumed = second.of_kind("event")[:2]
    assert "step-00000020 is damaged" in damaged["event"]
    assert resumed["event"] == "resumed at step 10"
    assert tiny.is_equal(tiny.state(second.engine), tiny.state(whole.engine))


# Health


def test_a_loss_that_is_no_number_ends_the_run_before_it_does_harm(
    tiny: ModuleType, prepare: Callable[..., Prepared], tmp_path: Path
) -> None:
    trial = prepare(**LORA).trial(tmp_path)
    before: dict[str, torch.Tensor] = {}

    def break_the_base(line: dict[str, Any]) -> None:
        if line["step"] == 3:
            with torch.no_grad():
                trial.engine.model.get_input_embeddings().weight[:] = torch.nan  # type: ignore[operator]
            before.update(tiny.state(trial.engine))

    with pytest.raises(RunError, match="loss of step 4 is not a finite number") as caught:
        trial.train(on_line=break_the_base)
    assert caught.value.kind == "nonfinite"
    assert len(caught.value.given) == 8
    assert tiny.is_equal(tiny.state(trial.engine), before)
    assert trial.training.progress.step == 3


def test_a_model_without_gradients_is_an_error(prepare: Callable[..., Prepared], tmp_path: Path) -> None:
    trial = prepare(**LORA).trial(tmp_path)
    for name, parameter in trial.engine.model.named_parameters():
        if "lora_A" in name:
            torch.nn.init.zeros_(parameter)  # with B at zero, too, no gradient gets through
    with pytest.raises(RunError, match="nothing is training") as caught:
        trial.train()
    assert caught.value.kind == "nothing_learned"
    assert trial.training.progress.step == 3


def test_the_losses_of_replay_rows_are_told_from_the_tasks(tiny: ModuleType) -> None:
    rows = [dataclasses.replace(row, dataset="replay" if row.row % 2 else "train") for row in tiny.examples(5)]
    batch = collate(rows, "padded")
    losses = torch.arange(len(batch.targets), dtype=torch.float32)
    of_task = sum(
        float(losses[batch.example_index == index].sum()) for index, row in enumerate(rows) if row.dataset == "train"
    )
    assert task_losses(batch, losses) == pytest.approx(of_task)
