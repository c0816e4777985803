"""Trials that share a base are the trainings that each would be alone, whatever happens to their neighbours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sweep_world import Campaign, close_all, finish, losses, open_campaign, write_world

from ftray.artifacts import RunDirectory
from ftray.finetune import finetune
from ftray.model.lora import WEIGHTS_FILE
from ftray.sweep.prefixes import shared_steps
from ftray.sweep.slot_state import export_adapter, save_state
from ftray.sweep.trial import TrialSpec
from ftray.sweep.trial_run import TrialRun
from ftray.tracking import current_lines
from ftray.train.checkpoint import newest_whole

CONFIGURATIONS = (
    ("method.rank=4", "method.alpha=8"),
    ("method.rank=8", "train.learning_rate=5e-3"),
    ("method.rank=2", "train.batch_size=6", "train.weight_decay=0.1"),
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return open_campaign(write_world(tmp_path_factory.mktemp("sweep")))


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    close_all()


def folder(place: Path, name: str) -> RunDirectory:
    return RunDirectory(place / name)


def test_trials_are_the_runs_of_their_configurations(campaign: Campaign, tmp_path: Path) -> None:
    base = campaign.base(slots=2)
    specs = [campaign.spec(*sets) for sets in CONFIGURATIONS]
    runs = [base.join(spec, folder(tmp_path, spec.trial_id)) for spec in specs]
    finish(base, runs)
    for sets, run in zip(CONFIGURATIONS, runs, strict=True):
        alone = campaign.load(*sets, f"storage={tmp_path}")
        result = finetune(alone, display=lambda line: None, on_plan=lambda prepared: None)
        other = RunDirectory(Path(result["path"]))
        assert np.allclose(losses(run.folder), losses(other), rtol=0, atol=1e-4)
        assert run.progress.step == result["steps"]
        assert run.best.step == result["selected"]["step"]
        assert run.best.value == result["selected"]["value"]


def poison(campaign: Campaign, spec: TrialSpec) -> TrialSpec:
    """Return the trial with a learning rate that no number survives."""
    plan = replace(spec.plan, schedule=replace(spec.plan.schedule, peak=1e30), max_grad_norm=0.0)
    return replace(spec, trial_id="poisoned0000", plan=plan)


def test_a_trial_whose_numbers_end_leaves_its_neighbours_bit_for_bit_as_they_are(
    campaign: Campaign, tmp_path: Path
) -> None:
    spec = campaign.spec(*CONFIGURATIONS[0])
    alone, beside = campaign.base(slots=2), campaign.base(slots=2)
    quiet = alone.join(spec, folder(tmp_path, "alone"))
    finish(alone, [quiet])
    bad = beside.join(poison(campaign, spec), folder(tmp_path, "bad"))
    good = beside.join(spec, folder(tmp_path, "good"))
    finish(beside, [bad, good])
    assert bad.failure
    assert bad.results[-1]["nonfinite"] == bad.failure
    assert not bad.results[-1]["failure"]
    assert not good.failure
    assert losses(good.folder) == pytest.approx(losses(quiet.folder), abs=1e-6)
    assert good.best == quiet.best


def test_a_trial_with_a_bad_row_fails_alone(campaign: Campaign, tmp_path: Path) -> None:
    base = campaign.base(slots=2)
    spec = campaign.spec(*CONFIGURATIONS[0])
    good = base.join(spec, folder(tmp_path, "good"))
    bad = base.join(replace(spec, trial_id="badrow000000"), folder(tmp_path, "bad"))
    broken = replace(bad.training.examples[0], tokens=np.full_like(bad.training.examples[0].tokens, 10**6))
    bad.training.examples = [broken, *bad.training.examples[1:]]
    bad.training._sampler.examples = bad.training.examples
    finish(base, [good, bad])
    assert "cannot be computed" in bad.failure
    assert bad.results[-1]["failure"] == bad.failure
    assert good.training.finished
    assert not good.failure


def test_memory_that_runs_out_lowers_what_is_computed_together(campaign: Campaign, tmp_path: Path) -> None:
    roomy, tight = campaign.base(slots=3), campaign.base(slots=3)
    specs = [campaign.spec(*sets) for sets in CONFIGURATIONS]
    expected = [roomy.join(spec, folder(tmp_path / "roomy", spec.trial_id)) for spec in specs]
    finish(roomy, expected)
    most = 3

    def forward(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and kwargs["input_ids"].shape[1] > most * 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    tight.bank.model.register_forward_pre_hook(forward, with_kwargs=True)
    runs = [tight.join(spec, folder(tmp_path / "tight", spec.trial_id)) for spec in specs]
    finish(tight, runs)
    assert tight.limit == 1
    assert any("out of memory with 3 trials" in note for note in tight.notes)
    assert any("examples of one trial" in note for note in tight.notes)
    for run, other in zip(runs, expected, strict=True):
        assert not run.failure
        assert np.allclose(losses(run.folder), losses(other.folder), rtol=0, atol=1e-4)


def test_a_trial_that_fits_nowhere_fails_and_says_so(campaign: Campaign, tmp_path: Path) -> None:
    base = campaign.base(slots=1)

    def forward(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    base.bank.model.register_forward_pre_hook(forward, with_kwargs=True)
    run = base.join(campaign.spec(), folder(tmp_path, "one"))
    finish(base, [run])
    assert "out of memory with a single example" in run.failure


def test_trials_join_leave_and_go_on_elsewhere(campaign: Campaign, tmp_path: Path) -> None:
    spec, other = campaign.spec(*CONFIGURATIONS[0]), campaign.spec(*CONFIGURATIONS[1])
    base = campaign.base(slots=2)
    quiet = base.join(spec, folder(tmp_path, "quiet"))
    finish(base, [quiet])
    first = campaign.base(slots=1)
    run = first.join(spec, folder(tmp_path, "moved"))
    while len(run.results) < 3:
        run.acknowledged = len(run.results)
        first.work()
    # It computes a step beyond its checkpoint, which is lost.
    run.acknowledged = len(run.results)
    first.work()
    first.leave(spec.trial_id)
    second = campaign.base(slots=2)
    neighbour = second.join(other, folder(tmp_path, "neighbour"))
    again = second.join(spec, folder(tmp_path, "moved"))
    assert len(again.results) == 3
    assert again.acknowledged == 0
    assert again.progress.step == again.results[-1]["step"]
    finish(second, [again, neighbour])
    assert [result["step"] for result in again.results] == [result["step"] for result in quiet.results]
    assert again.results[-1]["validation_loss"] == pytest.approx(quiet.results[-1]["validation_loss"], abs=1e-5)
    kept = [line["train/loss"] for line in current_lines(again.folder.metrics) if line["kind"] == "step"]
    assert np.allclose(kept, losses(quiet.folder), rtol=0, atol=1e-5)
    adapter = export_adapter(again.folder, again.best.step)
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_trial_waits_until_its_client_has_heard(campaign: Campaign, tmp_path: Path) -> None:
    base = campaign.base(slots=1)
    run = base.join(campaign.spec(), folder(tmp_path, "one"))
    for _ in range(100):
        base.work()
    assert len(run.results) == 1
    assert run.is_blocked
    assert not base.work()
    run.acknowledged = 1
    assert base.work()
    assert len(run.results) == 2


CONSTANT = ("train.schedule=constant", "train.warmup=2")


def test_shorter_trials_are_the_beginning_of_the_longer_one(campaign: Campaign, tmp_path: Path) -> None:
    base = campaign.base(slots=2)
    long, short = (campaign.spec(*CONSTANT, f"train.epochs={epochs}") for epochs in (3, 2))
    leader = base.join(long, folder(tmp_path, "long"))
    shared = shared_steps(long, short)
    assert shared == short.plan.total_steps
    follower = base.join(short, folder(tmp_path, "short"), shared={long.trial_id: shared})
    alone = campaign.base(slots=1)
    own = alone.join(short, folder(tmp_path, "own"))
    finish(alone, [own])
    finish(base, [leader, follower])
    assert follower.slot is None
    assert follower.results[-1]["finished"]
    assert follower.results[-1]["prefix_of"] == long.trial_id
    assert leader.progress.step == long.plan.total_steps
    assert losses(follower.folder) == losses(own.folder)
    assert follower.best == own.best
    ours, theirs = (load_file(export_adapter(run.folder, run.best.step) / WEIGHTS_FILE) for run in (follower, own))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("late", [False, True])
def test_trials_part_where_their_learning_rates_do(campaign: Campaign, tmp_path: Path, late: bool) -> None:
    wsd = ("train.schedule=wsd", "train.warmup=2")
    long, short = (campaign.spec(*wsd, f"train.epochs={epochs}") for epochs in (3, 2))
    shared = shared_steps(long, short)
    assert 0 < shared < short.plan.total_steps
    base = campaign.base(slots=2)
    leader = base.join(long, folder(tmp_path, "long"))
    while late and len(leader.results) < 2:
        leader.acknowledged = len(leader.results)
        base.work()
    follower = base.join(short, folder(tmp_path, "short"), shared={long.trial_id: shared})
    assert follower.following is leader
    assert len(follower.results) == (2 if late else 0)
    finish(base, [leader, follower])
    assert follower.following is None
    alone = campaign.base(slots=1)
    own = alone.join(short, folder(tmp_path, "own"))
    finish(alone, [own])
    assert follower.progress.step == short.plan.total_steps
    assert follower.results[-1]["validation_loss"] == pytest.approx(own.results[-1]["validation_loss"], abs=1e-5)
    assert [one["step"] for one in follower.results] == [one["step"] for one in own.results]
    assert follower.best.step == own.best.step
    assert np.allclose(losses(follower.folder), losses(own.folder), rtol=0, atol=1e-5)


def test_who_follows_goes_on_alone_when_its_leader_is_stopped(campaign: Campaign, tmp_path: Path) -> None:
    long, short = (campaign.spec(*CONSTANT, f"train.epochs={epochs}") for epochs in (3, 2))
    base = campaign.base(slots=1)
    leader = base.join(long, folder(tmp_path, "long"))
    follower = base.join(short, folder(tmp_path, "short"), shared={long.trial_id: shared_steps(long, short)})
    while len(leader.results) < 2:
        for run in (leader, follower):
            run.acknowledged = len(run.results)
        base.work()
    base.leave(long.trial_id)
    finish(base, [follower])
    assert follower.training.finished
    assert follower.results[-1]["prefix_of"] is None
    alone = campaign.base(slots=1)
    own = alone.join(short, folder(tmp_path, "own"))
    finish(alone, [own])
    assert follower.results[-1]["validation_loss"] == pytest.approx(own.results[-1]["validation_loss"], abs=1e-5)


def test_longer_trials_go_on_together_where_the_shortest_ends(campaign: Campaign, tmp_path: Path) -> None:
    short, middle, long = (campaign.spec(*CONSTANT, f"train.epochs={epochs}") for epochs in (1, 2, 3))
    base = campaign.base(slots=3)
    first = base.join(short, folder(tmp_path, "short"))
    runs = [first]
    for spec, name in ((middle, "middle"), (long, "long")):
        common = {run.trial_id: shared_steps(run.spec, spec) for run in runs}
        runs.append(base.join(spec, folder(tmp_path, name), shared=common))
    finish(base, runs)
    assert [run.results[-1]["prefix_of"] for run in runs] == [long.trial_id, long.trial_id, None]
    assert runs[1].following is runs[2]
    assert runs[1].slot is None
    alone = campaign.base(slots=3)
    own = [alone.join(spec, folder(tmp_path / "own", spec.trial_id)) for spec in (short, middle, long)]
    finish(alone, own)
    for run, other in zip(runs, own, strict=True):
        assert losses(run.folder) == pytest.approx(losses(other.folder), abs=1e-5)
        assert run.best.step == other.best.step


def test_label_smoothing_is_each_trials_own(campaign: Campaign, tmp_path: Path) -> None:
    specs = [campaign.spec("train.max_steps=4"), campaign.spec("train.max_steps=4", "train.label_smoothing=0.2")]
    base = campaign.base(slots=2)
    runs = [base.join(spec, folder(tmp_path, spec.trial_id)) for spec in specs]
    finish(base, runs)
    for spec, run in zip(specs, runs, strict=True):
        alone = campaign.base(slots=1)
        own = alone.join(spec, folder(tmp_path / "alone", spec.trial_id))
        finish(alone, [own])
        assert np.allclose(losses(run.folder), losses(own.folder), rtol=0, atol=1e-5)
    assert losses(runs[1].folder)[0] > losses(runs[0].folder)[0]


def test_dropout_is_the_same_beside_others_and_alone(campaign: Campaign, tmp_path: Path) -> None:
    sets = ("method.dropout=0.2", "train.micro_batch_size=3", "train.max_steps=6")
    base = campaign.base(slots=2)
    specs = [campaign.spec(*sets), campaign.spec(*sets, "method.rank=8")]
    runs = [base.join(spec, folder(tmp_path, spec.trial_id)) for spec in specs]
    finish(base, runs)
    alone = campaign.load(*sets, f"storage={tmp_path}")
    result = finetune(alone, display=lambda line: None, on_plan=lambda prepared: None)
    without = campaign.spec("train.micro_batch_size=3", "train.max_steps=6")
    plain = base.join(without, folder(tmp_path, "without"))
    finish(base, [plain])
    assert np.allclose(losses(runs[0].folder), losses(RunDirectory(Path(result["path"]))), rtol=0, atol=1e-4)
    assert not np.allclose(losses(runs[0].folder), losses(plain.folder), rtol=0, atol=1e-4)


def test_what_a_client_loads_is_thin() -> None:
    code = "import sys, ftray.sweep.client, ftray.sweep.actor; print([*{'torch', 'peft', 'datasets'} & {*sys.modules}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_who_follows_late_has_the_best_checkpoint_from_before(campaign: Campaign, tmp_path: Path) -> None:
    long, short = (campaign.spec(*CONSTANT, f"train.epochs={epochs}") for epochs in (3, 2))
    base = campaign.base(slots=1)
    leader = base.join(long, folder(tmp_path, "long"))
    while len(leader.results) < 3:
        leader.acknowledged = len(leader.results)
        base.work()
    # The best is one that is not the newest.
    first, *others = leader.progress.evaluations
    leader.progress.evaluations = [first, *(replace(one, value=-1.0) for one in others)]
    leader.results = [{**one, "best_step": first.step} for one in leader.results]
    earlier = replace(leader.progress, step=first.step)
    save_state(base.engine, 1, earlier, leader.folder.checkpoints, trial_id=long.trial_id, base="")
    follower = base.join(short, folder(tmp_path, "short"), shared={long.trial_id: shared_steps(long, short)})
    assert follower.following is leader
    assert follower.best.step == first.step < follower.progress.step
    export_adapter(follower.folder, follower.best.step)
    # Its leader leaves before it has told anything: nothing is lost.
    newest, _ = newest_whole(follower.folder.checkpoints, run_id=short.trial_id)
    assert newest is not None
    assert newest.step == follower.progress.step


def test_a_client_hears_of_an_evaluation_when_its_checkpoint_is_there(campaign: Campaign, tmp_path: Path) -> None:
    base = campaign.base(slots=1)
    run = base.join(campaign.spec(), folder(tmp_path, "one"))
    heard: list[int] = []
    save = base._save

    def noted(one: TrialRun, slot: int) -> None:
        heard.append(len(one.results))
        save(one, slot)

    base._save = noted
    finish(base, [run])
    assert heard == list(range(len(run.results)))
    again = campaign.base(slots=1).join(campaign.spec(), folder(tmp_path, "one"))
    assert again.results[-1]["prefix_of"] is None
    assert again.is_over
