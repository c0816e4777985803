"""What is wrong with a submission is said before anything is queued."""

from __future__ import annotations

from nodes import Cluster
from record import Record
from submitted import Job


def show_refused(job: Job, cluster: Cluster, record: Record) -> None:
    """Submit to an address where nobody is, with a wrong token, with data that is nowhere, to a relative storage."""
    before = cluster.ftray("status", "--json").document["submissions"]
    nobody = f"http://{cluster.head.address}:9"
    cases = [
        ("an address where nobody answers", ("--address", nobody), {}, "no_cluster"),
        ("a wrong token", (), {"RAY_AUTH_TOKEN": "another"}, "bad_token"),
        ("data that is not here", ("--set", "data.train.path=/nowhere/rows.jsonl"), {}, "unreachable"),
        ("a storage that the nodes do not share", ("--storage", "./runs"), {}, "relative_storage"),
    ]
    for asked, words, environment, kind in cases:
        answer = cluster.ftray(*job.words, *words, "--json", **environment)
        record.step(asked, answer, answer.document["message"], exit_code=2)
        record.require(answer.document["kind"] == kind, f"{asked} is refused", answer.document)
    after = cluster.ftray("status", "--json").document["submissions"]
    record.require(after == before, "nothing was queued")
