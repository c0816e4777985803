"""The folder that travels with a job: its job file, its files as links, a manifest; and ftray itself as a module."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import ftray
from ftray.artifacts import digest_file, digest_of, write_json
from ftray.submit.arrival import MANIFEST
from ftray.submit.parcel import Parcel

JOB_FILE = "job.yaml"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What Ray uploads."""

    working_dir: Path
    module: Path | None
    """ftray's folder; None where the cluster has its own."""


@contextmanager
def staged(parcel: Parcel, *, ships_ftray: bool) -> Iterator[Staged]:
    """Lay everything out in a temporary folder for as long as it is uploaded."""
    with TemporaryDirectory(prefix="ftray-submit-") as name:
        folder = Path(name)
        stage(parcel, folder / "job")
        module = folder / "ftray" if ships_ftray else None
        if module is not None:
            shutil.copytree(Path(ftray.__file__).parent, module, ignore=LEFT_OUT)
        yield Staged(working_dir=folder / "job", module=module)


def stage(parcel: Parcel, folder: Path) -> None:
    """Write the job file and the manifest, and link the files."""
    folder.mkdir(parents=True)
    # As it was asked for, with what `serve` says left out: it is nothing to training, and may name keys.
    asked = parcel.job.model_dump(mode="json", exclude_unset=True, exclude={"serve"})
    # JSON is YAML in which no text can be taken for a number.
    text = json.dumps(asked, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / JOB_FILE).write_text(text + "\n", encoding="utf-8")
    digests = {}
    for file in parcel.files:
        target = folder / file.target
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.source.resolve())
        digests[str(file.target)] = digest_file(file.source)
    write_json(
        folder / MANIFEST,
        {
            "schema": "ftray/parcel/1",
            "ftray": ftray.__version__,
            "storage": parcel.job.storage,
            "files": digests,
            "digest": digest_of(digests),
        },
    )
