"""No folder in common: each host has a working copy of its own, and the runs are in an object store on the laptop.

The store is an emulator of S3 (moto). A node is lost while a run trains on both; another joins, with an empty copy.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from death import compare, require_resumed
from nodes import BIN, Cluster, until
from record import Record
from submitted import Job, attempts, headline

BUCKET = "ftray"
KEYS = {"AWS_ACCESS_KEY_ID": "two-nodes", "AWS_SECRET_ACCESS_KEY": "two-nodes", "AWS_DEFAULT_REGION": "us-east-1"}
MAKE_BUCKET = f"import s3fs; s3fs.S3FileSystem().mkdir({BUCKET!r})"
NEWEST = (
    "import re, s3fs; "
    f"found = s3fs.S3FileSystem().glob('{BUCKET}/runs/*/checkpoints/*/manifest.json'); "
    "print(max((int(re.search(r'step-(\\d+)/', one).group(1)) for one in found), default=0))"
)
"""Prints the step of the newest checkpoint that is whole in the store."""
ENOUGH_STEPS = 30
ATTEMPT = ("--attempt", "stored")
"""The job is the one that others train with a folder; this run of it is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """An object store that laptop and hosts reach, and what the laptop's shell has for it."""

    url: str
    environment: dict[str, str]


@contextlib.contextmanager
def open_store(cluster: Cluster, folder: Path, record: Record) -> Iterator[Store]:
    """Run an emulator of S3 on the laptop."""
    port = cluster.network.free_port(9000)
    endpoint = f"http://{cluster.network.laptop_address}:{port}"
    words = [str(BIN / "moto_server"), "--host", cluster.network.laptop_address, "--port", str(port)]
    server = subprocess.Popen(
        cluster.network.on_laptop(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    environment = {**KEYS, "AWS_ENDPOINT_URL": endpoint, "FTRAY_CACHE": str(folder / "laptop-cache")}
    try:
        until(
            lambda: cluster.run(sys.executable, "-c", MAKE_BUCKET, **environment).exit_code == 0,
            "a bucket", seconds=60,
        )  # fmt: skip
        record.note("an emulator of S3 on the laptop", f"moto_server --port {port}", f"bucket {BUCKET}")
        yield Store(url=f"s3://{BUCKET}/runs", environment=environment)
    finally:
        server.terminate()
        server.wait(20)


def show_store(
    job: Job, undisturbed: Path, store: Store, cluster: Cluster, record: Record, *, lost: str, joins: str
) -> None:
    """Submit the job with a URL as its storage, lose a node, and compare with the run that had a folder."""
    given = ("--secret", "AWS_ACCESS_KEY_ID", "--secret", "AWS_SECRET_ACCESS_KEY")
    given += ("--env", "AWS_ENDPOINT_URL", "--env", "AWS_DEFAULT_REGION")
    shell = store.environment
    first = cluster.ftray(*job.words, *ATTEMPT, *given, "--json", **shell)
    record.step("submit it with the store", first, f"{first.document['submission_id']} {first.document['state']}")
    name = first.document["submission_id"]

    def newest() -> int:
        return int(cluster.run(sys.executable, "-c", NEWEST, **shell).stdout or 0)

    until(lambda: newest() >= ENOUGH_STEPS, f"a checkpoint of step {ENOUGH_STEPS} or later in the store")
    stands = cluster.ftray("status", name, "--json", **shell).document
    record.require(stands["state"] == "running" and stands["step"] >= ENOUGH_STEPS, "status reads the store", stands)
    at_step = newest()
    killed, killed_at = cluster.lose(lost), time.time()
    record.note(
        f"kill node {lost}", "SIGKILL to every process of the host", f"{killed} processes, after step {at_step}"
    )
    host = cluster.join(joins)
    record.note("another node joins", cluster.command(joins), f"{joins} at {host.address} is in the cluster")
    ended = cluster.ftray("logs", name, "--follow", "--json", **shell)
    end = json.loads(ended.stdout.splitlines()[-1])
    record.step("follow it to its end", ended, f"{end['state']}, exit code {end['exit_code']}")
    record.require((end["state"], end["exit_code"]) == ("succeeded", 0), "the run ends well", end)

    fetched = cluster.ftray("report", first.document["run_id"], "--storage", store.url, "--json", **shell)
    record.step("its report, on the laptop", fetched, "fetched")
    folder = Path(fetched.document["run"])
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    record.figures["result"] = headline(job, result)
    record.require(not (undisturbed.parent / folder.name).exists(), "nothing of it is in the shared folder")
    require_resumed(folder, at_step, killed_at, record, workers=2)
    compare(undisturbed, folder, record, is_exact=True)

    again = cluster.ftray(*job.words, *ATTEMPT, *given, "--json", **shell)
    record.step("submit it again", again, f"{again.document['state']}: {again.document['reason']}")
    record.require(again.document["state"] == "finished", "a finished one is reported")
    record.require(attempts(cluster, first.document["run_id"]) == 1, "the cluster has one submission of it")
