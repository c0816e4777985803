"""What a submitted job does first on the cluster: its files get a place that all nodes reach, its secrets are set.

Ray unpacks what travelled into a folder of the session, on each node that needs it, and deletes it later. The run's
records name their data and their base, and outlive the session: so the files are kept in the storage, once for equal
content. Where the storage is a store, they are put there, and each node has them in its working copy.
"""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp

from ftray.artifacts import digest_file, read_json, require_writable, write_text
from ftray.errors import InputError, RunError
from ftray.storage.place import Place, open_place
from ftray.storage.publisher import files_below
from ftray.submit.sealed import receive_as_driver

MANIFEST = "parcel.json"
"""Beside the job file that travelled: what came with it."""
FOLDER = "shipped"
"""Folder of the storage that keeps what travelled."""


def arrive(job_file: Path) -> Path:
    """Set the job's secrets; return its job file, where its files are to stay."""
    receive_as_driver()
    manifest = job_file.parent / MANIFEST
    return settle(job_file) if manifest.is_file() else job_file


def settle(job_file: Path) -> Path:
    """Copy what travelled into the storage, unless it is there; return the job file there.

    Raises RunError where a file has changed on its way.
    """
    manifest = read_json(job_file.parent / MANIFEST)
    storage = open_place(manifest["storage"])
    storage.require()
    shelf = storage.folder / FOLDER
    require_writable(shelf, hint="Give the cluster's nodes a folder that all of them may write: --storage DIR.")
    place = shelf / str(manifest["digest"])[:12]
    if not place.is_dir():
        arriving = Path(mkdtemp(prefix=".arriving-", dir=shelf))
        for name, digest in manifest["files"].items():
            _copy(job_file.parent / name, arriving / PurePosixPath(name), digest)
        arriving.chmod(0o755)
        try:
            arriving.rename(place)
        except OSError:
            # Another submission with the same files was quicker.
            shutil.rmtree(arriving)
            if not place.is_dir():
                raise
    # Other evaluations of the same files are other job files beside them.
    kept = place / f"job-{digest_file(job_file)[:12]}.yaml"
    write_text(kept, job_file.read_text(encoding="utf-8"))
    publish(storage, place)
    return kept


def publish(storage: Place, place: Path) -> None:
    """Put what travelled into the store, where the storage is one: the nodes of the workers fetch it from there."""
    if storage.url is None:
        return
    there = storage.objects().find(storage.name(place))
    mirror = storage.mirror(place)
    for name in files_below(place):
        if f"{storage.name(place)}/{name}" not in there:
            mirror.publish(name)


def _copy(source: Path, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    if digest_file(target) != digest:
        raise RunError(
            f"{target.name} is not what was submitted: it changed while it was uploaded",
            kind="data",
            given=str(target.name),
            hint="Submit the job again.",
        )


def require_identity(found: str, expected: str) -> None:
    """Raise InputError `other_content` where what is read on the cluster is not what was submitted."""
    if found != expected:
        raise InputError(
            f"what is read here is not what was submitted: it makes the id {found[:12]}, not {expected[:12]}",
            kind="other_content",
            given=found,
            allowed=expected,
            hint="A file in the storage or under --on-cluster, or the model's revision on the hub, differs from the "
            "one on the machine that submitted. Make them equal, then submit again.",
        )
