from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from store_world import Store, on_machine

from ftray.errors import InputError, RunError
from ftray.storage.lease import Lease, LeaseLost, is_leased, machine_id
from ftray.storage.objects import Objects
from ftray.storage.place import Place


def lease(objects: Objects, machine: str, *, seconds: float = 2.0, every: float = 0.3) -> Lease:
    return Lease(objects, "run/driver-lease", what="the run", machine=machine, seconds=seconds, every=every)


@pytest.fixture
def objects(url: str) -> Objects:
    return Objects(url)


def test_a_lease_that_is_renewed_is_not_given_to_another(objects: Objects) -> None:
    mine = lease(objects, "one")
    mine.acquire()
    began = time.monotonic()
    with pytest.raises(InputError, match="already being worked on") as refused:
        lease(objects, "two").acquire()
    assert time.monotonic() - began < 2.0
    assert refused.value.kind == "run_locked"
    mine.verify()
    mine.release()
    began = time.monotonic()
    other = lease(objects, "two")
    other.acquire()
    assert time.monotonic() - began < 1.0
    other.release()


def silent(objects: Objects, machine: str, *, seconds: float) -> Lease:
    """Return a lease whose holder has stopped: it renews nothing for an hour."""
    stopped = lease(objects, machine, seconds=seconds, every=3600)
    stopped.acquire()
    return stopped


def test_a_lease_that_is_silent_for_too_long_goes_to_another(objects: Objects) -> None:
    stopped = silent(objects, "one", seconds=1.0)
    began = time.monotonic()
    other = lease(objects, "two")
    other.acquire()
    assert time.monotonic() - began >= 1.0
    time.sleep(0.1)
    with pytest.raises(LeaseLost, match="taken over") as lost:
        stopped.verify()
    assert lost.value.kind == "node"
    other.verify()
    # What has been lost changes nothing for its new holder.
    stopped.release()
    with pytest.raises(InputError):
        lease(objects, "three").acquire()
    other.release()


def test_what_this_machine_has_left_is_taken_back_at_once(objects: Objects) -> None:
    silent(objects, "one", seconds=60.0)
    began = time.monotonic()
    again = lease(objects, "one")
    again.acquire()
    assert time.monotonic() - began < 1.0
    again.release()


def test_of_two_that_wait_for_a_silent_lease_one_gets_it(objects: Objects) -> None:
    silent(objects, "one", seconds=1.0)
    got: list[str] = []

    def contend(machine: str) -> None:
        mine = lease(objects, machine)
        try:
            mine.acquire()
        except InputError:
            return
        got.append(machine)
        time.sleep(2.0)
        mine.release()

    contenders = [threading.Thread(target=contend, args=(name,)) for name in ("two", "three", "four")]
    for contender in contenders:
        contender.start()
    for contender in contenders:
        contender.join()
    assert len(got) == 1


def test_a_lease_that_nobody_took_meanwhile_is_kept(objects: Objects) -> None:
    stopped = silent(objects, "one", seconds=0.4)
    time.sleep(0.3)
    stopped.verify()
    stopped.release()


def test_the_machine_is_that_of_the_cache(tmp_path: Path) -> None:
    assert machine_id(tmp_path / "a") == machine_id(tmp_path / "a") != machine_id(tmp_path / "b")


def test_a_run_is_held_against_other_machines_and_seen_to_be(store: Store, url: str, tmp_path: Path) -> None:
    place = Place(url)
    with place.mirror(place.folder / "run").holding("driver"), on_machine(tmp_path / "elsewhere"):
        there = place.mirror(place.folder / "run")
        there.fetch()
        assert is_leased(there.folder / "driver-lease")
    with on_machine(tmp_path / "elsewhere"):
        there.fetch()
        assert not is_leased(there.folder / "driver-lease")


def test_a_lease_needs_its_store(tmp_path: Path, store: Store) -> None:
    with pytest.raises(RunError, match="nobodys-bucket"):
        lease(Objects("s3://nobodys-bucket/x"), "one").acquire()
