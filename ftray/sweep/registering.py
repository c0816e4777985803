"""Put what a campaign recommends into the registry; aliases stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ftray.artifacts import RunDirectory, read_json, write_json
from ftray.campaign import SweepDirectory
from ftray.finish import PROBE_EXAMPLES
from ftray.job import LoadedJob
from ftray.model_card import model_card
from ftray.registry.probing import fingerprint_of_folder, prefixes
from ftray.registry.record import trained_record
from ftray.registry.registry import open_registry
from ftray.sweep.prepare import Campaign


def register(
    loaded: LoadedJob, directory: SweepDirectory, record: dict[str, Any], campaign: Callable[[], Campaign]
) -> dict[str, Any]:
    """Register the winner, or the default where that is what is recommended; return sweep.json with its address.

    Nothing for the base and for smoke runs. `campaign` is asked only where something is to be registered. Raises
    RunError where the registry cannot be written: the campaign stays finished, and the same command registers it.
    """
    chosen = record.get(record["recommended"])
    if loaded.smoke or record["recommended"] == "base" or not chosen or not chosen["adapter"]:
        return {**record, "registered": None}
    registry, known = open_registry(loaded.storage, loaded.place.registry_url), record.get("registered")
    if known is not None and registry.has(known["name"], known["digest"]):
        return record
    folder = Path(chosen["adapter"]["path"])
    registered = registry.put(folder, describe(campaign(), chosen, folder))
    record = {**record, "registered": {"name": registered.name, "digest": registered.digest}}
    write_json(directory.sweep, record)
    loaded.place.mirror(directory.root).publish(directory.sweep.name)
    return record


def describe(campaign: Campaign, chosen: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the registry's record of a trial; it is asked some training prompts for its fingerprint."""
    prepared, root = campaign.prepared, campaign.directory.root
    job = campaign.configurations.spec(chosen["config"]).job
    evaluation = read_json(RunDirectory(root).evaluation)
    origin = f"trial {chosen['trial_id']} of campaign {campaign.sweep_id[:12]}"
    method = job.method.model_dump()
    return trained_record(
        job,
        folder,
        made_by={"run_id": None, "sweep_id": campaign.sweep_id, "trial_id": chosen["trial_id"]},
        tokenization=prepared.datasets.tokenization,
        data_digests=prepared.datasets.digests,
        evaluation=evaluation,
        fingerprint=fingerprint_of_folder(
            folder,
            job.model,
            kind="adapter" if job.method.kind == "lora" else "model",
            probes=prefixes(prepared.datasets.train[:PROBE_EXAMPLES]),
            precision=prepared.plan.precision,
            must_prove=False,
        ),
        card=model_card(name=job.name, model=job.model, method=method, evaluation=evaluation, origin=origin),
    )
