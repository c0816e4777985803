"""A run that ends is in the registry, once, as it was trained; nothing of it moves an alias."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ftray.artifacts import RunDirectory, digest_file, read_json
from ftray.errors import InputError
from ftray.finetune import finetune
from ftray.job import LoadedJob, load_job
from ftray.model.bank import Bank
from ftray.model.bank_peft import load_slot
from ftray.model.base import identify, load_model
from ftray.quickstart.pretrain import tiny_base
from ftray.registry.fingerprint import prove
from ftray.registry.registry import open_registry


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registering")
    tiny_base(folder / "base")
    colours = ("red", "blue", "green", "grey")
    rows = [{"question": f"What colour is box {i}?", "colour": colours[i % 4]} for i in range(80)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = folder / "job.yaml"
    file.write_text(
        """\
name: boxes
model: base
data:
  train: {path: train.jsonl, prompt: "{question}", completion: "{colour}"}
  template: alpaca
train: {learning_rate: 5.0e-3, max_steps: 6, batch_size: 8, log_every: 3, evaluate_every: 3}
evaluate: {task: {max_new_tokens: 4}}
compute: {workers: 0}
tracking: []
""",
        encoding="utf-8",
    )
    return file


def run(loaded: LoadedJob) -> dict[str, Any]:
    return finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)


def test_a_run_is_registered_with_everything_that_serving_it_needs(job: Path, tmp_path: Path) -> None:
    loaded = load_job(job, storage=str(tmp_path))
    result = run(loaded)
    assert result["registered"] == {"name": "boxes", "digest": result["adapter"]["digest"]}
    assert read_json(Path(result["path"]) / "result.json")["registered"] == result["registered"]
    registry = open_registry(tmp_path)
    found = registry.resolve("boxes")
    record = dict(found.record)
    folder = registry.files("boxes", found.digest)
    base = identify(loaded.job.model)
    assert record["base"] == {"name": base.name, "digest": base.digest, "model": loaded.job.model}
    assert (record["kind"], record["rank"], record["alpha"]) == ("adapter", 16, 32.0)
    assert "q_proj" in record["target_modules"]
    assert (record["run_id"], record["verdict"]) == (result["run_id"], result["verdict"])
    assert record["data_digests"] == result["data_digests"]
    assert record["metrics"]["tasks"][0]["tuned"] == result["tasks"][0]["tuned"]
    assert record["job"]["train"]["learning_rate"] == 5e-3
    assert record["template"]["name"] == "alpaca"
    assert "### Response" in record["template"]["source"]
    assert record["stop_token_ids"]
    assert {name: entry["sha256"] for name, entry in record["files"].items()} == {
        path.name: digest_file(path) for path in folder.iterdir() if path.name != "record.json"
    }
    assert registry.aliases() == {}
    assert (registry.export("boxes", found.digest, tmp_path / "out") / "README.md").read_text(encoding="utf-8") == (
        Path(result["path"]) / "adapter" / "README.md"
    ).read_text(encoding="utf-8")

    model: Any = load_model(loaded.job.model).eval()
    bank = Bank(model, slots=1, rank=16)
    load_slot(bank, 1, folder)
    probe = record["fingerprint"]["probe_tokens"]
    with torch.no_grad(), bank.asking([1, 0], [len(probe)] * 2):
        tuned, untuned = model(input_ids=torch.tensor([probe, probe])).logits[:, -1]
    proof = prove(record["fingerprint"], tuned, untuned)
    assert proof.max_abs_difference_from_fingerprint < 1e-3


def test_a_finished_run_registers_itself_again_where_it_is_not(job: Path, tmp_path: Path) -> None:
    loaded = load_job(job, storage=str(tmp_path))
    first = run(loaded)
    registry = open_registry(tmp_path)
    created = registry.get("boxes", first["registered"]["digest"])["created_at"]
    assert run(loaded)["registered"] == first["registered"]
    assert registry.get("boxes", first["registered"]["digest"])["created_at"] == created
    registry.delete("boxes", first["registered"]["digest"])
    again = run(loaded)
    assert again["reused"]
    assert registry.has("boxes", again["registered"]["digest"])
    assert len(registry.list()) == 1


def test_a_run_of_an_older_version_is_registered_too(job: Path, tmp_path: Path) -> None:
    loaded = load_job(job, storage=str(tmp_path))
    first = run(loaded)
    directory = RunDirectory(Path(first["path"]))
    registry = open_registry(tmp_path)
    before = registry.get("boxes", first["registered"]["digest"])
    shutil.rmtree(tmp_path / "registry")
    (directory.adapter / "record.json").unlink()
    result = {key: value for key, value in read_json(directory.result).items() if key != "registered"}
    directory.result.write_text(json.dumps(result), encoding="utf-8")
    assert run(loaded)["registered"] == first["registered"]
    after = registry.get("boxes", first["registered"]["digest"])
    assert {key for key in before if before[key] != after[key]} <= {"created_at", "fingerprint"}
    kept, anew = before["fingerprint"], after["fingerprint"]
    # Fewer prefixes of the same rows are asked.
    assert 0 < anew["max_abs_difference_from_base"] <= kept["max_abs_difference_from_base"] + 1e-3


def test_a_smoke_run_is_not_registered(job: Path, tmp_path: Path) -> None:
    result = run(load_job(job, storage=str(tmp_path), smoke=True))
    assert result["status"] == "completed"
    assert result.get("registered") is None
    assert open_registry(tmp_path).list() == []


def test_a_full_fine_tune_is_registered_as_a_model_of_its_own(job: Path, tmp_path: Path) -> None:
    loaded = load_job(job, storage=str(tmp_path), sets=["method.kind=full", "train.learning_rate=1e-3"])
    result = run(loaded)
    record = open_registry(tmp_path).resolve("boxes").record
    assert (record["kind"], record["rank"], record["digest"]) == ("model", None, result["adapter"]["digest"])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(record["files"])
    folder = open_registry(tmp_path).files("boxes", record["digest"])
    probe = torch.tensor([record["fingerprint"]["probe_tokens"]])
    with torch.no_grad():
        tuned, base = (load_model(str(one)).eval()(input_ids=probe).logits[0, -1] for one in (folder, loaded.job.model))  # type: ignore[operator]
    prove(record["fingerprint"], tuned, base)
    with pytest.raises(InputError, match="answers as its base"):
        prove(record["fingerprint"], base, base)


def test_a_name_that_an_alias_has_is_refused_before_anything_starts(job: Path, tmp_path: Path) -> None:
    loaded = load_job(job, storage=str(tmp_path))
    digest = run(loaded)["registered"]["digest"]
    open_registry(tmp_path).promote("champion", "boxes", digest, force="for this test")
    other = load_job(job, storage=str(tmp_path), sets=["name=champion"])
    with pytest.raises(InputError) as refused:
        run(other)
    assert refused.value.kind == "ambiguous_name"
    assert list(tmp_path.glob("champion-*")) == []


def test_another_evaluation_of_the_same_run_is_a_second_judgement(job: Path, tmp_path: Path) -> None:
    first = run(load_job(job, storage=str(tmp_path)))
    second = run(load_job(job, storage=str(tmp_path), sets=["evaluate.task.metric=token_f1"]))
    assert second["registered"] == first["registered"]
    (record,) = open_registry(tmp_path).list()
    assert record["metrics"]["tasks"][0]["metric"] == "token_f1"
    assert record["judged_at"] > record["created_at"]
