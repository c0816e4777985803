"""The RayService's `serveConfigV2` on this cluster: `serve deploy`, one question to the base and one to the adapter."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from nodes import BIN, REPOSITORY, Cluster, until
from record import Record

MANIFESTS = REPOSITORY / "cluster" / "kuberay"
QUESTION = "Which intent is this? play some jazz by miles davis"
ANSWER = "play music"
START_SECONDS = 240.0


def service_config(job: Path, storage: Path, *, port: int) -> dict[str, Any]:
    """Return the manifest's configuration with the paths, and the port, of this place."""
    manifest = yaml.safe_load((MANIFESTS / "rayservice.yaml").read_text(encoding="utf-8"))
    config: dict[str, Any] = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] = {"job": str(job), "storage": str(storage)}
    return config


def served_job(trained: Path, keys: Path) -> dict[str, Any]:
    """Return the job that was trained, with the `serve` section of the manifests; SQLite takes PostgreSQL's place."""
    # As on a volume that all nodes mount: they know no variable of the laptop's.
    text = trained.read_text(encoding="utf-8").replace("${FTRAY_SHARED}", os.environ["FTRAY_SHARED"])
    job: dict[str, Any] = yaml.safe_load(text)
    (manifest,) = yaml.safe_load_all((MANIFESTS / "job.yaml").read_text(encoding="utf-8"))
    serve = yaml.safe_load(manifest["data"]["job.yaml"])["serve"]
    job["serve"] = {**serve, "keys_file": str(keys), "store": "sqlite"}
    return job


def show_endpoint(trained: Path, folder: Path, storage: Path, cluster: Cluster, record: Record) -> None:
    """Deploy it, ask it without a key, and with one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    keys, job, config = folder / "keys.json", folder / "job.yaml", folder / "serve.yaml"
    made = cluster.ftray("keys", "add", "evaluators", "--scope", "infer", "--file", str(keys), "--json")
    key = made.document["key"]
    record.hide(key, "$KEY")
    job.write_text(yaml.safe_dump(served_job(trained, keys), sort_keys=False), encoding="utf-8")
    config.write_text(
        yaml.safe_dump(service_config(job, storage, port=cluster.serve_port), sort_keys=False), encoding="utf-8"
    )
    deployed = cluster.run(str(BIN / "serve"), "deploy", str(config), "--address", cluster.dashboard)
    record.step("deploy serveConfigV2", deployed, "accepted")
    # Of the newest node: there is a proxy on every one.
    url = f"http://{cluster.hosts[-1].address}:{cluster.serve_port}"

    def get(path: str, *more: str) -> Any:
        return cluster.run("curl", "--silent", "--show-error", "--max-time", "60", *more, f"{url}{path}")

    header = ("--header", f"Authorization: Bearer {key}")
    until(
        lambda: get("/v1/models", "--fail", *header).exit_code == 0, "an endpoint that answers", seconds=START_SECONDS
    )
    refused = get("/v1/models", "--output", "/dev/null", "--write-out", "%{http_code}")
    record.step("ask without a key", refused, f"HTTP {refused.stdout}")
    record.require(refused.stdout == "401", "without a key it refuses", refused.stdout)
    models = get("/v1/models", *header)
    names = [one["id"] for one in models.document["data"]]
    record.step("ask which models there are", models, ", ".join(names))
    base = names[0].partition(":")[0]
    # The base has no chat template; the adapter is asked with the one that it was trained with.
    adapter = f"{base}:{yaml.safe_load(job.read_text())['name']}"
    kind = ("--header", "Content-Type: application/json")
    words = {"max_tokens": 12, "temperature": 0}
    body = json.dumps({"model": base, "prompt": QUESTION, **words})
    question = ("/v1/completions", *header, *kind, "--data", body)
    # The API is there before the engines are: they load base and adapters.
    until(lambda: get(*question, "--fail").exit_code == 0, "engines that answer", seconds=START_SECONDS)
    asked = get(*question)
    record.require("choices" in asked.document, "the base answers", asked.document)
    text = asked.document["choices"][0]["text"].strip()
    record.step("ask the base one question", asked, repr(text))
    record.figures[base] = text
    body = json.dumps({"model": adapter, "messages": [{"role": "user", "content": QUESTION}], **words})
    asked = get("/v1/chat/completions", *header, *kind, "--data", body)
    record.require("choices" in asked.document, "the adapter answers", asked.document)
    text = asked.document["choices"][0]["message"]["content"].strip()
    record.step("ask the adapter one question", asked, repr(text))
    record.figures[adapter] = text
    record.require(text == ANSWER, "the adapter answers as it was taught", text)
    ended = cluster.run(str(BIN / "serve"), "shutdown", "--yes", "--address", cluster.dashboard)
    record.step("shut it down", ended, "gone")
