"""Two nodes on one machine, for real: jobs submitted from a third place, a node that is lost, an endpoint on both.

FTRAY_SHARED=../shared python jobs/two_nodes/show.py                    everything; writes results.json
FTRAY_SHARED=../shared python jobs/two_nodes/show.py --only train sweep   these parts; the others' results are kept
python jobs/two_nodes/show.py --render-readme                           this README's tables, and cluster/README.md's

Ends with what does not hold, if anything does not. Everything that it starts is ended, also after Ctrl-C.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from death import compare, show_death, show_undisturbed  # noqa: E402
from endpoint import show_endpoint  # noqa: E402
from hosts import open_network  # noqa: E402
from nodes import Cluster  # noqa: E402
from record import Record  # noqa: E402
from refused import show_refused  # noqa: E402
from store import open_store, show_store  # noqa: E402
from submitted import Job, show_submitted  # noqa: E402
from tables import describe_machine, print_tables, render_readme, render_summary  # noqa: E402

PARTS = ("refused", "train", "sweep", "replaced", "alone", "store", "endpoint")
PACKAGES = ("ray", "torch", "deepspeed")
INTENT, SWEEP = HERE.parent / "snips_intent" / "job.yaml", HERE.parent / "snips_sweep" / "job.yaml"
SMALLER = ("data.train.limit=1200", "data.test.limit=300")
"""Of jobs/snips_intent, so that a run with its start takes one or two minutes."""
FEWER = ("data.train.limit=600", "data.test.limit=200", "sweep.trials=6", "sweep.space.epochs=[1]")
"""Of jobs/snips_sweep, likewise."""


def main() -> None:
    os.environ.setdefault("FTRAY_SHARED", str(HERE.parents[2] / "shared"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked = read_arguments()
    file = asked.output or HERE / "results.json"
    if asked.render_readme:
        results = json.loads(file.read_text(encoding="utf-8"))
        render_readme(results, HERE / "README.md")
        render_summary(results, HERE.parents[1] / "cluster" / "README.md")
        return
    # A show that is told to end takes everything away, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    work = asked.work or Path(tempfile.mkdtemp(prefix="ft-"))
    try:
        show(asked, work.resolve(), file)
    finally:
        if asked.work is None:
            shutil.rmtree(work, ignore_errors=True)


def read_arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="only these parts")
    parser.add_argument("--loopback", action="store_true", help="two Ray nodes on loopback instead of namespaces")
    parser.add_argument(
        "--work", type=Path, help="keep the shared folder here; a run that is there is not trained again"
    )
    parser.add_argument("--output", type=Path, help="default: results.json beside this file")
    parser.add_argument("--render-readme", action="store_true", help="fill both READMEs from earlier results")
    return parser.parse_args()


def show(asked: Namespace, work: Path, file: Path) -> None:
    """Start the hosts and do the parts that were asked for, one after the other."""
    results = read_results(file)
    session, storage = work / "ray", work / "storage"
    storage.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(work / "hosts", ignore_errors=True)
    network = open_network(work / "hosts", session, loopback=asked.loopback)
    print(f"two nodes: {network.kind}", file=sys.stderr, flush=True)
    try:
        cluster = Cluster(network, folder=work, session=session)
        cluster.start()
        for part in asked.only:
            if len(cluster.hosts) == 1:
                cluster.join(cluster.next_name())
            record = Record(part, aliases(work, storage, cluster))
            do_part(part, work, storage, cluster, record)
            results["parts"][part] = {
                "place": network.kind,
                "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
                **record.to_record(),
            }
            # After every part: what was seen is not lost with what fails.
            file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    finally:
        network.close()
        shutil.rmtree(session, ignore_errors=True)
    print_tables(results)


def do_part(part: str, work: Path, storage: Path, cluster: Cluster, record: Record) -> None:
    """Do one part."""
    run = Job(file=INTENT, storage=storage, kind="train", settings=SMALLER)
    elastic = Job(file=INTENT, storage=storage, kind="train", settings=(*SMALLER, "compute.workers=[1, 2]"))
    campaign = Job(file=SWEEP, storage=storage, kind="sweep", settings=FEWER)
    node = cluster.hosts[-1].name
    parts: dict[str, Callable[[], Any]] = {
        "refused": lambda: show_refused(run, cluster, record),
        "train": lambda: show_resumed(run, cluster, record),
        "sweep": lambda: show_submitted(campaign, cluster, record),
        "replaced": lambda: show_death(
            run, show_undisturbed(run, cluster, record), cluster, record, lost=node, joins=cluster.next_name()
        ),
        "alone": lambda: show_death(
            elastic, show_undisturbed(run, cluster, record), cluster, record, lost=node, joins=None
        ),
        "store": lambda: show_stored(run, work, cluster, record, lost=node),
        "endpoint": lambda: show_endpoint(INTENT, work / "endpoint", storage, cluster, record),
    }
    parts[part]()


def show_stored(run: Job, work: Path, cluster: Cluster, record: Record, *, lost: str) -> None:
    """Do the same without a folder in common, and lose a node."""
    undisturbed = show_undisturbed(run, cluster, record)
    for copies in ("caches", "laptop-cache"):
        shutil.rmtree(work / copies, ignore_errors=True)
    with open_store(cluster, work, record) as store:
        stored = replace(run, storage=store.url)
        show_store(stored, undisturbed, store, cluster, record, lost=lost, joins=cluster.next_name())


def show_resumed(run: Job, cluster: Cluster, record: Record) -> None:
    """Submit a run, stop and resume it, and compare it with one that nobody has disturbed."""
    folder = show_submitted(run, cluster, record)
    compare(show_undisturbed(run, cluster, record), folder, record, is_exact=True)


def aliases(work: Path, storage: Path, cluster: Cluster) -> dict[str, str]:
    """Return what is written in the place of this machine's paths and of what a README says once."""
    names = {"$SMALLER": SMALLER, "$FEWER": FEWER}
    sets = {
        " ".join(f"--set '{one}'" if "[" in one else f"--set {one}" for one in of): name for name, of in names.items()
    }
    return {**sets, str(storage): "/storage", str(work): "$WORK", f"{cluster.token}": "..."}


def read_results(file: Path) -> dict[str, Any]:
    """Return the results of earlier calls; what this one shows takes the place of theirs."""
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"parts": {}}
    return {
        "schema": "ftray/two_nodes/1",
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {"SMALLER": SMALLER, "FEWER": FEWER},
        "parts": known["parts"],
    }


if __name__ == "__main__":
    main()
