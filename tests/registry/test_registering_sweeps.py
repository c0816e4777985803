"""What a campaign recommends is registered as it was trained, once, and only where it is better than the base."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sweep_world import write_job, write_world

from ftray.artifacts import read_json, write_json
from ftray.finetune import finetune
from ftray.job import load_job
from ftray.registry.registry import open_registry
from ftray.sweep.prepare import Campaign, prepare_campaign, sweep_id_of
from ftray.sweep.registering import register


@dataclass(frozen=True)
class Ended:
    """A campaign as its end finds it: one trial's adapter and the evaluation of what is recommended."""

    campaign: Campaign
    record: dict[str, Any]

    def register(self, **changes: Any) -> dict[str, Any]:
        campaign = self.campaign
        record = {**self.record, **changes}
        return register(campaign.loaded, campaign.directory, record, lambda: campaign)


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ended:
    """A trial is what a run of its settings is, so that a run makes it."""
    monkeypatch.delenv("FTRAY_REGISTRY", raising=False)
    write_world(tmp_path)
    job = write_job(tmp_path, "sweep.yaml", sweep={"space": {"rank": [2, 4]}, "trials": 2})
    loaded = load_job(job)
    campaign = prepare_campaign(loaded, sweep_id=sweep_id_of(loaded), forced=None)
    spec = campaign.configurations.spec({"rank": 2})
    trained = load_job(job, sets=["method.rank=2", "method.alpha=4"], storage=str(tmp_path / "elsewhere"))
    run = finetune(trained, display=lambda line: None, on_plan=lambda prepared: None)
    adapter = campaign.directory.trial(spec.trial_id).adapter
    shutil.copytree(run["adapter"]["path"], adapter, ignore=shutil.ignore_patterns("record.json", "README.md"))
    shutil.copyfile(Path(run["path"]) / "evaluation.json", campaign.directory.root / "evaluation.json")
    chosen = {"trial_id": spec.trial_id, "config": {"rank": 2}, "adapter": {"path": str(adapter), **run["registered"]}}
    record = {"recommended": "winner", "winner": chosen, "default": None, "base": {"validation": None}}
    write_json(campaign.directory.sweep, record)
    return Ended(campaign, record)


def test_the_winner_is_registered_under_the_jobs_name(ended: Ended) -> None:
    registered = ended.register()["registered"]
    assert registered == {"name": "tiny", "digest": ended.record["winner"]["adapter"]["digest"]}
    assert read_json(ended.campaign.directory.sweep)["registered"] == registered
    registry = open_registry(ended.campaign.loaded.storage)
    record = registry.get(**registered)
    assert (record["rank"], record["job"]["method"]["rank"], record["run_id"]) == (2, 2, None)
    assert (record["sweep_id"], record["trial_id"]) == (
        ended.campaign.sweep_id,
        ended.record["winner"]["trial_id"],
    )
    assert record["stop_token_ids"] == list(ended.campaign.prepared.datasets.tokenization.stop_token_ids)
    assert record["fingerprint"]["max_abs_difference_from_base"] > 0
    assert record["trial_id"] in record["card"]
    assert registry.aliases() == {}
    again = ended.register(registered=registered)
    assert again["registered"] == registered
    assert len(registry.list()) == 1


@pytest.mark.parametrize(
    "changes", [{"recommended": "base"}, {"recommended": "default"}, {"winner": {"adapter": None}}], ids=str
)
def test_the_base_and_what_has_no_adapter_are_not_registered(ended: Ended, changes: dict[str, Any]) -> None:
    assert ended.register(**changes)["registered"] is None
    assert open_registry(ended.campaign.loaded.storage).list() == []
