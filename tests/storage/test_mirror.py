from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from store_world import names, on_machine

from ftray.artifacts import try_lock, write_json
from ftray.errors import RunError
from ftray.storage.lease import Lease
from ftray.storage.mirror import Mirror, is_record, of_training
from ftray.storage.objects import Objects
from ftray.storage.place import Place
from ftray.storage.publisher import Publisher, Shelf


def mirror_of(url: str) -> Mirror:
    place = Place(url)
    mirror = place.mirror(place.folder / "run")
    mirror.folder.mkdir(parents=True, exist_ok=True)
    return mirror


def write_checkpoint(run: Path, step: int, content: str = "weights") -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").write_text(content)
    files = {"model": {"bytes": len(content), "sha256": content}}
    write_json(folder / "manifest.json", {"step": step, "files": files})
    return folder


def drop(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "model").unlink()
    folder.rmdir()


def test_what_one_machine_publishes_another_fetches(url: str, tmp_path: Path) -> None:
    here = mirror_of(url)
    (here.folder / "adapter").mkdir()
    (here.folder / "adapter" / "weights").write_text("w")
    (here.folder / "result.json").write_text("{}")
    (here.folder / ".driver.lock").write_text("mine")
    here.publish("result.json", "adapter", "nothing")
    with on_machine(tmp_path / "there"):
        there = mirror_of(url)
        (there.folder / "result.json").write_text('{"stale": true}')
        (there.folder / "never-published.json").write_text("{}")
        there.fetch()
        assert {path.name for path in there.folder.rglob("*") if not path.name.startswith(".")} == {
            "adapter", "weights", "result.json",
        }  # fmt: skip
        assert (there.folder / "result.json").read_text() == "{}"


def test_only_what_has_changed_is_fetched_again(url: str, tmp_path: Path) -> None:
    here = mirror_of(url)
    (here.folder / "told.json").write_text('{"step": 4}')
    (here.folder / "other.json").write_text("{}")
    here.publish("told.json", "other.json")
    with on_machine(tmp_path / "there"):
        there = mirror_of(url)
        there.fetch()
        before = (there.folder / "other.json").stat().st_ino
        (here.folder / "told.json").write_text('{"step": 8}')
        here.publish("told.json")
        there.fetch()
        assert (there.folder / "told.json").read_text() == '{"step": 8}'
        assert (there.folder / "other.json").stat().st_ino == before


def test_records_come_without_weights_and_say_which_checkpoints_there_are(url: str, tmp_path: Path) -> None:
    here = mirror_of(url)
    write_checkpoint(here.folder, 4)
    (here.folder / "metrics.jsonl").write_text("{}\n")
    with here.publishing(of_training):
        pass
    with on_machine(tmp_path / "there"):
        there = mirror_of(url)
        there.fetch(is_record)
        folder = there.folder / "checkpoints" / "step-00000004"
        assert [path.name for path in folder.iterdir()] == ["manifest.json"]
        there.fetch(of_training)
        assert (folder / "model").read_text() == "weights"
        there.fetch(is_record)
        assert (folder / "model").is_file(), "what is here already stays"


def test_a_checkpoint_without_its_manifest_is_none(url: str, tmp_path: Path) -> None:
    objects = Objects(url)
    objects.write("run/checkpoints/step-00000004/model", b"half")
    with on_machine(tmp_path / "there"):
        there = mirror_of(url)
        write_checkpoint(there.folder, 8)
        there.fetch()
        assert list(there.folder.glob("checkpoints/step-*")) == []


def test_a_checkpoint_that_was_written_anew_is_fetched_anew(url: str, tmp_path: Path) -> None:
    here = mirror_of(url)
    write_checkpoint(here.folder, 4, "old weights")
    with on_machine(tmp_path / "there"):
        there = mirror_of(url)
    with here.publishing(of_training) as publisher:
        publisher.flush()
        there.fetch()
        write_checkpoint(here.folder, 4, "new weights")
    there.fetch()
    assert (there.folder / "checkpoints/step-00000004/model").read_text() == "new weights"


class Noting:
    """Objects that note what is done to them, in order."""

    def __init__(self, inner: Objects) -> None:
        self.inner = inner
        self.done: list[str] = []

    def put(self, file: Path, name: str) -> None:
        self.inner.put(file, name)
        self.done.append(f"put {name}")

    def write(self, name: str, content: bytes) -> None:
        self.inner.write(name, content)
        self.done.append(f"put {name}")

    def remove(self, name: str) -> None:
        self.inner.remove(name)
        self.done.append(f"remove {name}")


def test_a_manifest_comes_last_and_goes_first(url: str, tmp_path: Path) -> None:
    noting: Any = Noting(Objects(url))
    shelf = Shelf(objects=noting, folder=tmp_path, prefix="run/", wanted=of_training)
    folder = write_checkpoint(tmp_path, 4)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "result.json").write_text("somebody else's")
    shelf.push()
    start = "run/checkpoints/step-00000004"
    assert noting.done == [f"put {start}/model", "put run/metrics.jsonl", f"put {start}/manifest.json"]
    noting.done.clear()
    shelf.push()
    assert noting.done == []
    drop(folder)
    write_checkpoint(tmp_path, 8)
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    shelf.push()
    assert noting.done[:2] == [f"remove {start}/manifest.json", f"remove {start}/model"]
    assert names(url) == {
        "run/metrics.jsonl", "run/checkpoints/step-00000008/model", "run/checkpoints/step-00000008/manifest.json",
    }  # fmt: skip


class Stopping(Noting):
    """Objects of a store that goes out of order once, before a manifest."""

    def write(self, name: str, content: bytes) -> None:
        if not self.done or self.done[-1] != "refused":
            self.done.append("refused")
            raise RunError("503 Slow Down", kind="communication")
        super().write(name, content)


def test_files_of_a_checkpoint_that_was_pruned_before_its_manifest_came_are_deleted(url: str, tmp_path: Path) -> None:
    stopping: Any = Stopping(Objects(url))
    shelf = Shelf(objects=stopping, folder=tmp_path, prefix="run/", wanted=of_training)
    folder = write_checkpoint(tmp_path, 4)
    with pytest.raises(RunError):
        shelf.push()
    assert names(url) == {"run/checkpoints/step-00000004/model"}
    drop(folder)
    shelf.push()
    assert names(url) == set()


def test_a_file_is_there_while_it_is_written(url: str, tmp_path: Path) -> None:
    here = mirror_of(url)
    with here.publishing(of_training):
        for count in range(1, 3):
            with (here.folder / "metrics.jsonl").open("a") as file:
                file.write("{}\n")
            deadline = time.monotonic() + 20
            while here.read("metrics.jsonl") != b"{}\n" * count:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        (here.folder / "selection.json").write_text("{}")
    assert names(url) == {"run/metrics.jsonl", "run/selection.json"}
    inode = (here.folder / "metrics.jsonl").stat().st_ino
    here.fetch()
    assert (here.folder / "metrics.jsonl").stat().st_ino == inode, "what was published from here is not fetched"


def test_what_is_published_when_a_training_fails_is_what_there_was(url: str) -> None:
    here = mirror_of(url)

    def train() -> None:
        with here.publishing(of_training):
            (here.folder / "metrics.jsonl").write_text("{}\n")
            raise RunError("nan", kind="nonfinite")

    with pytest.raises(RunError, match="nan"):
        train()
    assert names(url) == {"run/metrics.jsonl"}


class Refusing(Noting):
    """Objects of a store that is out of order."""

    def put(self, file: Path, name: str) -> None:
        raise RunError("503 Slow Down", kind="communication")


def refusing(url: str, folder: Path, *, patience: float) -> Publisher:
    objects: Any = Refusing(Objects(url))
    publisher = Publisher(every=0.05, patience=patience)
    publisher.add(Shelf(objects=objects, folder=folder, prefix="run/", wanted=of_training))
    return publisher


def test_a_store_that_refuses_for_too_long_ends_the_training(url: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    publisher = refusing(url, tmp_path, patience=0.3)
    told: list[dict[str, Any]] = []
    report = publisher.watching(told.append)
    report({"step": 1})
    time.sleep(1.0)
    with pytest.raises(RunError, match="holds no checkpoint yet: what came after it is lost") as failed:
        report({"step": 2})
    assert (failed.value.kind, told) == ("communication", [{"step": 1}])
    assert "same command" in failed.value.hint
    with pytest.raises(RunError):
        publisher.close()


def test_a_store_that_refuses_for_a_moment_is_asked_again(url: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    publisher = refusing(url, tmp_path, patience=60)
    time.sleep(0.3)
    publisher.require()
    publisher.shelves[0].objects = Objects(url)
    publisher.close()
    assert names(url) == {"run/metrics.jsonl"}


def test_whoever_has_lost_its_lease_publishes_no_more(url: str, tmp_path: Path) -> None:
    objects = Objects(url)
    mine = Lease(objects, "run/driver-lease", what="the run", machine="one", seconds=0.6, every=3600)
    mine.acquire()
    publisher = Publisher(lease=mine, every=0.05)
    publisher.add(Shelf(objects=objects, folder=tmp_path, prefix="run/", wanted=of_training))
    (tmp_path / "metrics.jsonl").write_text("mine\n")
    publisher.flush()
    other = Lease(objects, "run/driver-lease", what="the run", machine="one", seconds=60)
    other.acquire()
    time.sleep(1.0)
    (tmp_path / "metrics.jsonl").write_text("mine\nmine\n")
    with pytest.raises(RunError, match="taken over"):
        publisher.close()
    assert objects.read("run/metrics.jsonl") == b"mine\n"
    other.release()


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    with (folder / name).open("a") as file:
        assert try_lock(file)
        yield


@pytest.mark.parametrize("name", [".driver.lock", "trials/a/.worker.lock"])
def test_a_reader_leaves_a_folder_alone_that_is_being_written(url: str, tmp_path: Path, name: str) -> None:
    here = mirror_of(url)
    here.publish()
    Objects(url).write("run/metrics.jsonl", b"of the store\n")
    (here.folder / "trials/a").mkdir(parents=True)
    (here.folder / "metrics.jsonl").write_text("newer\n")
    with locked(here.folder, name):
        here.fetch(as_reader=True)
        assert (here.folder / "metrics.jsonl").read_text() == "newer\n"
    here.fetch(as_reader=True)
    assert (here.folder / "metrics.jsonl").read_text() == "of the store\n"


def test_a_folder_is_its_own_store(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    mirror = place.mirror(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/note").write_text("text")
    mirror.fetch()
    mirror.publish("note")
    with mirror.holding("driver") as lease, mirror.publishing(of_training) as publisher:
        assert lease is None
        publisher.flush()
    assert (mirror.is_remote, mirror.read("note", start=2), mirror.size("note")) == (False, b"xt", 4)
    assert (place.url, place.registry_url, place.here(tmp_path / "run")) == (None, None, tmp_path / "run")
    mirror.remove("note")
    assert mirror.read("note") is None


def test_checkpoints_that_come_and_go_do_not_stop_the_publisher(tmp_path: Path) -> None:
    objects = Objects(f"memory://{tmp_path.name}/runs")
    publisher = Publisher(every=0.001)
    publisher.add(Shelf(objects=objects, folder=tmp_path, prefix="run/", wanted=of_training))
    deadline, step = time.monotonic() + 1.5, 0
    while time.monotonic() < deadline:
        step += 1
        write_checkpoint(tmp_path, step, "w" * step)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write("{}\n")
        if step > 2:
            drop(tmp_path / "checkpoints" / f"step-{step - 2:08d}")
    publisher.close()
    kept = {f"run/checkpoints/step-{one:08d}/{name}" for one in (step - 1, step) for name in ("model", "manifest.json")}
    assert set(objects.find()) == {"run/metrics.jsonl", *kept}
    assert objects.read("run/metrics.jsonl") == b"{}\n" * step
