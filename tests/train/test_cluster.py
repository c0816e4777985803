"""Waiting for nodes: what is asked of an autoscaler, how long, and that it is taken back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import pytest

from ftray.errors import InputError
from ftray.train import cluster
from ftray.train.cluster import ask_for_nodes, seconds_to_wait


@dataclass
class Growing:
    """A cluster to which nodes of one CPU come, and a clock of its own."""

    counts: Iterator[int]
    asked: list[dict[str, float]] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    seconds: float = 0.0

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 1.0}] * next(self.counts)

    def placement_group(self, bundles: list[dict[str, float]]) -> int:
        self.asked += bundles
        self.held.add(len(self.asked))
        return len(self.asked)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def growing(monkeypatch: pytest.MonkeyPatch, *counts: int) -> Growing:
    """Return a cluster that has so many nodes at each look; the last for ever."""
    made = Growing(itertools.chain(counts, itertools.repeat(counts[-1])))
    monkeypatch.setattr(cluster, "cluster_nodes", made.nodes)
    monkeypatch.setattr(cluster, "placement_group", made.placement_group)
    monkeypatch.setattr(cluster, "remove_placement_group", made.held.remove)
    monkeypatch.setattr(cluster.time, "sleep", made.sleep)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: made.seconds)
    return made


def test_each_worker_is_asked_for_by_itself(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    there, said = growing(monkeypatch, 0, 1, 1, 2), list[str]()
    ask_for_nodes(tiny.plan(workers=2), 2, seconds=60, say=said.append)
    assert there.asked == [{"CPU": 1.0}] * 2
    assert there.held == set()
    assert there.seconds == 3
    assert said == ["The cluster has nodes for 0 of 2 workers: waiting up to 60 s for its autoscaler's"]


@pytest.mark.parametrize(("count", "seconds"), [(2, 60.0), (3, 60.0), (0, 0.0)])
def test_nobody_is_asked_for_nothing(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, count: int, seconds: float
) -> None:
    there = growing(monkeypatch, count)
    ask_for_nodes(tiny.plan(workers=2), 2, seconds=seconds, say=pytest.fail)
    assert (there.asked, there.seconds) == ([], 0)


def test_the_fewest_are_waited_for_to_the_end(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    there = growing(monkeypatch, 0, 1)
    ask_for_nodes(tiny.plan(workers=2), 2, seconds=900, say=lambda line: None)
    assert there.seconds == 900
    assert there.held == set()


@pytest.mark.parametrize(
    ("counts", "waited"),
    [
        # Enough to begin with: the others may keep it waiting as long as they come.
        ([1], cluster.MORE_SECONDS),
        ([0, 0, 0, 1], 3 + cluster.MORE_SECONDS),
        ([0, 1, *[1] * 50, 2], 52 + cluster.MORE_SECONDS),
        ([0, 1, *[1] * 50, 2, 8], 53),
    ],
)
def test_more_are_waited_for_while_they_come(
    tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, counts: list[int], waited: float
) -> None:
    there = growing(monkeypatch, *counts)
    ask_for_nodes(replace(tiny.plan(workers=1), min_workers=1), 8, seconds=900, say=lambda line: None)
    assert there.seconds == waited


def test_what_is_asked_for_is_taken_back_after_ctrl_c(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    there = growing(monkeypatch, 0)

    def interrupted(seconds: float) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask_for_nodes(tiny.plan(workers=2), 2, seconds=60, say=lambda line: None)
    assert (len(there.asked), there.held) == (2, set())


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_a_wait_is_a_number_of_seconds(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_WAIT_FOR_NODES", given)
    with pytest.raises(InputError, match=f"FTRAY_WAIT_FOR_NODES={given}"):
        seconds_to_wait()


@pytest.mark.parametrize(("given", "seconds"), [("2.5", 2.5), ("", 0), ("0", 0)])
def test_waits(given: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_WAIT_FOR_NODES", given)
    assert seconds_to_wait() == seconds
