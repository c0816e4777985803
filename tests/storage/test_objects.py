from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from registry_world import OnceFileSystem  # registers once://
from store_world import Store, on_machine

from ftray.errors import InputError, RunError
from ftray.storage.objects import Objects
from ftray.storage.place import Place, open_place

assert OnceFileSystem.protocol == "once"


@pytest.fixture(params=["s3", "memory", "once"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, store: Store) -> Objects:
    """Return an empty place in each kind of store."""
    urls = {
        "s3": store.new_url(),
        "memory": f"memory://{tmp_path.name}/runs",
        "once": f"once://{tmp_path / 'objects'}",
    }
    return Objects(urls[request.param])


def test_objects_are_written_listed_read_and_deleted(objects: Objects, tmp_path: Path) -> None:
    assert objects.find() == {}
    assert objects.read("a/b.txt") is None
    assert objects.size("a/b.txt") is None
    objects.write("a/b.txt", b"one two")
    (tmp_path / "file").write_bytes(b"three")
    objects.put(tmp_path / "file", "a/c.txt")
    assert set(objects.find()) == {"a/b.txt", "a/c.txt"}
    assert set(objects.find("a")) == {"a/b.txt", "a/c.txt"}
    assert objects.read("a/b.txt", start=4) == b"two"
    assert objects.size("a/c.txt") == 5
    assert objects.get("a/c.txt", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"three"
    assert not objects.get("a/d.txt", tmp_path / "nothing")
    objects.remove("a/b.txt")
    objects.remove("a/b.txt")
    assert set(objects.find()) == {"a/c.txt"}
    assert [path.name for path in tmp_path.glob("*.part")] == []


def test_a_listing_shows_that_an_object_has_changed(objects: Objects) -> None:
    objects.write("told.json", b"4")
    first = objects.find()["told.json"]
    time.sleep(0.01)
    objects.write("told.json", b"8")
    assert objects.find()["told.json"] != first


def test_of_two_that_create_an_object_one_does(objects: Objects) -> None:
    assert objects.create("lease", b"mine")
    assert not objects.create("lease", b"yours")
    # A repeated request meets its own first attempt.
    assert objects.create("lease", b"mine")
    assert objects.read("lease") == b"mine"


def test_a_store_that_can_be_used_is_left_as_it_was(objects: Objects) -> None:
    objects.require(setting="--storage")
    assert objects.find() == {}


@pytest.mark.parametrize("writes", [True, False])
def test_a_bucket_that_is_not_there_is_bad_input(store: Store, writes: bool) -> None:
    with pytest.raises(InputError, match="bucket does not exist") as refused:
        Place("s3://nobodys-bucket/runs").require(writes=writes)
    assert (refused.value.kind, refused.value.path) == ("bad_store", "storage")
    assert "AWS_ENDPOINT_URL" in refused.value.hint


def test_a_store_that_looks_before_it_creates_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    with pytest.raises(InputError, match="could both win") as refused:
        Objects(f"local://{tmp_path / 'objects'}").require(setting="--storage")
    assert refused.value.kind == "bad_store"


@pytest.mark.slow
def test_an_endpoint_where_nobody_answers_is_bad_input_within_seconds(tmp_path: Path) -> None:
    import fsspec

    began = time.monotonic()
    with on_machine(tmp_path, AWS_ENDPOINT_URL="http://127.0.0.1:9"):
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(InputError, match="s3://bucket/runs") as refused:
            Objects("s3://bucket/runs").require(setting="--storage")
    fsspec.filesystem("s3").clear_instance_cache()
    assert refused.value.kind == "bad_store"
    assert time.monotonic() - began < 15


HIDE_S3FS = "import sys; sys.modules['s3fs'] = None; "
RUNS = "import sys; from ftray.cli import main; sys.argv = ['ftray', 'runs', '--storage', '{url}', '--json']; main()"


@pytest.mark.parametrize(
    ("before", "without", "kind", "says"),
    [
        (HIDE_S3FS, [], "missing_package", 'pip install "ftray[s3]"'),
        ("", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"], "bad_store", "AWS_ACCESS_KEY_ID"),
    ],
    ids=["without the package", "without keys"],
)
def test_what_is_missing_on_this_machine_is_one_screen(
    before: str, without: list[str], kind: str, says: str, store: Store, tmp_path: Path
) -> None:
    environment = {name: text for name, text in os.environ.items() if name not in without}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(
        [sys.executable, "-c", before + RUNS.format(url=store.new_url())],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["kind"] == kind
    assert says in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_what_a_store_says_is_one_line(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the storage s3://nobodys-bucket/runs does not answer") as failed:
        Objects("s3://nobodys-bucket/runs").write("a", b"1")
    assert failed.value.kind == "communication"
    assert "\n" not in failed.value.message
    assert "secret-of-the-tests" not in str(failed.value.to_record())


@pytest.mark.parametrize("given", ["s3://key:secret@bucket/runs", "s3://", "s3:///", "s3://bucket/runs?versionId=1"])
def test_a_url_that_is_no_place_is_bad_input(given: str) -> None:
    with pytest.raises(InputError) as refused:
        open_place(given)
    assert (refused.value.kind, refused.value.path) == ("bad_value", "storage")
    assert "secret" not in str(refused.value.to_record())


def test_a_place_is_a_folder_or_a_working_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_place("runs", base=tmp_path).folder == tmp_path / "runs"
    assert open_place(f"file://{tmp_path}/runs").folder == tmp_path / "runs"
    monkeypatch.setenv("FTRAY_CACHE", str(tmp_path / "mine"))
    place = open_place("s3://bucket/runs/")
    assert place.spelling == "s3://bucket/runs"
    run = place.folder / "boxes-123"
    assert run.is_relative_to(tmp_path / "mine" / "storage")
    assert place.spell(run) == "s3://bucket/runs/boxes-123"
    assert place.registry_url == "s3://bucket/runs/registry"
    # A record of another machine names its own working copy.
    monkeypatch.setenv("FTRAY_CACHE", str(tmp_path / "theirs"))
    assert place.here(run) == place.folder / "boxes-123" != run
    with pytest.raises(ValueError, match="no working copy"):
        place.here(tmp_path / "elsewhere")
