"""A job on two nodes, of which one is lost while it trains; and what two nodes refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from submit_world import LiveRay, kill_all, make_job, running_node, running_ray, tree, until

from ftray.artifacts import read_json, read_lines
from ftray.finetune import finetune
from ftray.job import load_job
from ftray.quickstart.pretrain import tiny_base
from ftray.submit.versions import own_versions
from ftray.tracking import current_lines

pytestmark = [pytest.mark.ray]
PATIENCE_SECONDS = 120
TOLERANCE = 1e-4
"""Of adapter weights, which are about 0.1: Adam amplifies rounding where a gradient is nearly nothing."""
HOLDING = """
import os, time
from pathlib import Path

def held(prediction, expected):
    # A run that has a checkpoint goes on when the test lets it.
    storage = Path(os.environ["HELD_IN"])
    deadline = time.monotonic() + 120
    while (storage / "held").exists() and any(storage.glob("*/checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline, "nobody lets it go on"
        time.sleep(0.05)
    return float(prediction == expected)
"""


@dataclass
class TwoNodes:
    """A head and a second node, of one CPU each: two workers stand on both."""

    ray: LiveRay
    nodes: ExitStack
    second: int = 0
    """Process of the second node."""

    def join(self) -> None:
        before = self.count()
        words = [f"--address={self.ray.gcs}", "--num-cpus=1"]
        self.second = self.nodes.enter_context(running_node(self.ray, words)).pid
        until(lambda: self.count() == before + 1, "another node", PATIENCE_SECONDS)

    def lose(self) -> None:
        """Kill the second node and all that runs there."""
        before = self.count()
        kill_all(tree(self.second))
        until(lambda: self.count() == before - 1, "a lost node", PATIENCE_SECONDS)

    def count(self) -> int:
        return len(self.ray.cluster().nodes())


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    with running_ray(cpus=1) as ray, ExitStack() as nodes:
        cluster = TwoNodes(ray, nodes)
        cluster.join()
        yield cluster


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-nodes")
    tiny_base(folder / "base")
    file = make_job(
        folder / "job", folder / "base",
        train={"max_steps": 6, "log_every": 1},
        evaluate={"task": {"max_new_tokens": 4, "metric": "holding:held"}},
        compute={"workers": 2},
    )  # fmt: skip
    (file.parent / "holding.py").write_text(HOLDING)
    return file


def losses(run: Path) -> dict[tuple[int, str], float]:
    """Return every loss of a run by step and name."""
    lines = current_lines(run / "metrics.jsonl")
    names = ("train/loss", "val/loss")
    return {(line["step"], name): line[name] for line in lines for name in names if name in line}


@pytest.fixture
def undisturbed(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train the job in this process; return the run's folder."""
    monkeypatch.setenv("HELD_IN", str(tmp_path))
    loaded = load_job(job, sets=["compute.workers=0"], storage=str(tmp_path / "undisturbed"))
    return Path(finetune(loaded, display=lambda line: None, on_plan=lambda prepared: None)["path"])


@pytest.mark.slow
def test_a_node_that_is_lost_while_it_trains_changes_nothing(
    two_nodes: TwoNodes, job: Path, tmp_path: Path, undisturbed: Path
) -> None:
    storage = tmp_path / "disturbed"
    storage.mkdir()
    (storage / "held").touch()
    words = ("submit", str(job), "--storage", str(storage), "--env", f"HELD_IN={storage}", "--json")
    first = two_nodes.ray.ftray(*words)
    assert first.exit_code == 0, first.stderr
    name, run = first.document["submission_id"], Path(first.document["path"])
    until(lambda: list(run.glob("checkpoints/*/manifest.json")), "a checkpoint", PATIENCE_SECONDS)
    two_nodes.lose()
    (storage / "held").unlink()
    two_nodes.join()
    said = two_nodes.ray.ftray("logs", name, "--follow").stdout
    assert two_nodes.ray.cluster().submission(name).state == "succeeded", said

    starts = [line for line in read_lines(run / "metrics.jsonl") if "workers" in line]
    assert [(line["attempt"], line["event"], line["workers"]) for line in starts] == [
        (1, "started", 2),
        (2, "resumed at step 2", 2),
    ]
    # One process adds up what two workers do in another order. jobs/two_nodes compares two workers with two, exactly.
    assert list(losses(run)) == list(losses(undisturbed))
    assert list(losses(run).values()) == pytest.approx(list(losses(undisturbed).values()), rel=1e-5)
    found, expected = (load_file(one / "adapter" / "adapter_model.safetensors") for one in (run, undisturbed))
    assert found.keys() == expected.keys()
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < TOLERANCE
    result = read_json(run / "result.json")
    assert (result["status"], result["attempts"], result["workers_seen"]) == ("completed", 2, 2)
    again = two_nodes.ray.ftray(*words)
    assert (again.document["state"], again.document["submission_id"]) == ("finished", name)


@pytest.mark.parametrize(
    ("words", "environment", "kind"),
    [
        (("--set", "data.train.path=/nowhere/rows.jsonl"), {}, "unreachable"),
        (("--set", "compute.workers=0", "--storage", "runs"), {}, "relative_storage"),
        ((), {"RAY_AUTH_TOKEN": "another"}, "bad_token"),
    ],
    ids=["data", "storage", "token"],
)
def test_what_cannot_run_is_refused_and_nothing_is_queued(
    two_nodes: TwoNodes, job: Path, tmp_path: Path, words: tuple[str, ...], environment: dict[str, str], kind: str
) -> None:
    before = len(two_nodes.ray.cluster().submissions())
    answer = two_nodes.ray.ftray("submit", str(job), "--storage", str(tmp_path), "--json", *words, **environment)
    assert (answer.exit_code, answer.document["kind"]) == (2, kind)
    assert len(two_nodes.ray.cluster().submissions()) == before


@pytest.mark.parametrize("other", [{"ray": "2.55.0"}, {"python": "3.9.1"}], ids=["ray", "python"])
def test_another_version_is_refused_and_nothing_is_queued(
    two_nodes: TwoNodes, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str]
) -> None:
    before = len(two_nodes.ray.cluster().submissions())
    monkeypatch.setattr("ftray.submit.submit.own_versions", lambda: replace(own_versions(), **other))
    answer = two_nodes.ray.ftray("submit", str(job), "--storage", str(tmp_path), "--json")
    assert (answer.exit_code, answer.document["kind"]) == (2, "version_mismatch")
    assert next(iter(other.values())) in answer.document["message"]
    assert len(two_nodes.ray.cluster().submissions()) == before
