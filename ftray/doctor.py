"""Look at this machine: what is there, what is missing, and what that costs. Nothing is started or downloaded.

A fresh machine lacks most of it and still gets an answer: a check that cannot be made says why.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ftray.errors import InputError
from ftray.storage.place import Place, open_place
from ftray.tracking import MODULES
from ftray.train.address import AUTO, is_dashboard, ray_address, require_answer

OLDEST_PYTHON = "3.11"
IMPORT_SECONDS = 60
SMALL_DISK_BYTES = 5 * 10**9
SMALL_MEMORY_BYTES = 2 * 10**9
SHARED_MEMORY_BYTES = 300 * 2**20
"""What embedded Ray takes of /dev/shm."""
SHARED_MEMORY = Path("/dev/shm")
COMPILERS = ("c++", "g++", "clang++")


class Check(TypedDict):
    """One line of the doctor's answer."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str


def run_checks(storage: Path | Place | None = None) -> list[Check]:
    """Return every check, the most basic first; `storage` is where run folders would go."""
    place = storage if isinstance(storage, Place) else open_place(storage or os.environ.get("FTRAY_STORAGE", "./runs"))
    # Importing DeepSpeed takes seconds and writes to stdout: it is tried in a process beside the other checks.
    trial = _start_import("deepspeed")
    checks = [_python(), *_packages(), *_torch(), _threads(), _memory(), _ray(), _compiler()]
    checks += [_storage(place.folder) if place.url is None else _store(place), _hub(), *_trackers()]
    return [*checks, _imported("deepspeed", trial)]


def _check(name: str, status: Literal["ok", "warn", "fail"], detail: str) -> Check:
    return Check(name=name, status=status, detail=detail)


def _python() -> Check:
    version = platform.python_version()
    if Version(version) >= Version(OLDEST_PYTHON):
        return _check("python", "ok", f"{version} on {platform.system()} {platform.machine()}")
    return _check("python", "fail", f"{version} is too old: ftray needs {OLDEST_PYTHON} or newer")


def _packages() -> Iterator[Check]:
    """Compare what is installed with what ftray's own metadata asks for."""
    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("ftray") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield _check(
            "packages", "warn", "ftray itself is not installed here (pip install ftray), so versions are not compared"
        )
        return
    wrong = 0
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    for requirement in needed:
        problem = _problem(requirement)
        if problem:
            wrong += 1
            yield _check(f"package {requirement.name}", "fail", problem)
    if not wrong:
        names = ("torch", "transformers", "peft", "ray", "deepspeed")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        yield _check("packages", "ok", f"all {len(needed)} in their ranges: {versions}")


def _problem(requirement: Requirement) -> str | None:
    spelled = f"{requirement.name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f'not installed, and ftray does not run without it: pip install "{spelled}"'
    # A local label (2.13.0+cpu) is part of no range.
    if _holds(requirement.specifier, version):
        return None
    return f'{version} is outside {requirement.specifier}, where nothing is tested: pip install "{spelled}"'


def _holds(range_: SpecifierSet, version: str) -> bool:
    return range_.contains(Version(version).public, prereleases=True)


def _torch() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        yield _check("torch", "fail", "not installed: nothing can be trained")
        return
    try:
        import torch
    except (ImportError, OSError) as error:
        yield _check("torch", "fail", f"does not import: {_last_line(str(error))}")
        return
    if not torch.cuda.is_available():
        detail = "none that torch can use: training runs on the CPU in fp32, which is right for small models only"
        yield _check("gpu", "warn", detail)
        return
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    yield _check("gpu", "ok", f"{torch.cuda.device_count()}: {names}")
    if torch.cuda.is_bf16_supported():
        yield _check("bf16", "ok", "supported: precision auto uses it")
    else:
        yield _check("bf16", "warn", "not supported: precision auto uses fp32; fp16 is faster where losses stay finite")


def _threads() -> Check:
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None and threads.isdigit() and int(threads) > cpus:
        return _check("cpus", "warn", f"OMP_NUM_THREADS={threads} on {cpus} CPUs: threads wait for each other")
    said = f"OMP_NUM_THREADS={threads}" if threads else "torch takes one thread for each"
    return _check("cpus", "ok", f"{cpus} ({said}); Ray workers get compute.cpus_per_worker threads")


def _memory() -> Check:
    free = free_memory()
    if free is None:
        return _check("memory", "ok", "this system does not say how much is free")
    detail = f"{free / 1e9:.1f} GB free"
    if free < SMALL_MEMORY_BYTES:
        return _check("memory", "warn", f"{detail}: little; each worker takes about 0.6 GB before it holds a weight")
    return _check("memory", "ok", detail)


def free_memory() -> int | None:
    """Return the bytes of host memory a new process could take, where the kernel says so."""
    file = Path("/proc/meminfo")
    if not file.is_file():
        return None
    lines = dict(line.split(":", 1) for line in file.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _ray() -> Check:
    """Say whether workers could start, without starting Ray."""
    if importlib.util.find_spec("ray") is None:
        return _check("ray", "fail", "not installed: only compute.workers: 0 (this process) trains")
    address = ray_address()
    if address is not None:
        return _cluster(address)
    shared = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
    if shared is not None and shared < SHARED_MEMORY_BYTES:
        return _check(
            "ray",
            "warn",
            f"{SHARED_MEMORY} has {shared / 1e6:.0f} MB free of the 300 MB embedded Ray takes: it falls back to /tmp, "
            "which is slower (docker: --shm-size=1g)",
        )
    return _check("ray", "ok", "RAY_ADDRESS is not set: ftray starts its own Ray on this machine when a job needs one")


def _cluster(address: str) -> Check:
    """Say whether a cluster answers where RAY_ADDRESS leads."""
    if address == AUTO:
        return _check("ray", "ok", "RAY_ADDRESS=auto: jobs run on the Ray of this machine (not looked for here)")
    if is_dashboard(address):
        return _check(
            "ray",
            "warn",
            f"RAY_ADDRESS={address} is for ftray submit; train, sweep and serve need HOST:PORT, or none",
        )
    try:
        require_answer(address)
    except InputError as error:
        return _check("ray", "fail", f"{error}. {error.hint}")
    return _check("ray", "ok", f"RAY_ADDRESS={address}: a cluster answers (token and versions not tried here)")


def _compiler() -> Check:
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found:
        return _check("compiler", "ok", f"{found}; not needed: no compiled DeepSpeed extension is used")
    return _check("compiler", "ok", "no C++ compiler, and none is needed: no compiled DeepSpeed extension is used")


def _storage(storage: Path) -> Check:
    """Try to write where runs would go: in the folder itself, or the nearest that is there."""
    storage = storage.expanduser().absolute()
    place = next(folder for folder in (storage, *storage.parents) if folder.exists())
    change = "choose another place with --storage DIR or FTRAY_STORAGE"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".ftray-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return _check("storage", "fail", f"{storage} cannot be written ({error.strerror}): {change}")
    detail = f"{storage} can be written, {free / 1e9:.1f} GB free"
    if free < SMALL_DISK_BYTES:
        return _check("storage", "warn", f"{detail}: a full fine-tune's checkpoint takes 12 bytes a weight; {change}")
    return _check("storage", "ok", detail)


def _store(place: Place) -> Check:
    """Write and delete a small object where runs would go."""
    try:
        place.require()
    except InputError as error:
        return _check("storage", "fail", f"{error.message}. {error.hint}")
    return _check("storage", "ok", f"{place.url} can be written; working copies are in {place.folder}")


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return _check("hub", "ok", "HF_HUB_OFFLINE is set: only local folders and cached models and datasets load")
    return _check(
        "hub", "ok", "HF_HUB_OFFLINE is not set: models and datasets named by id are downloaded (not tried here)"
    )


def _trackers() -> Iterator[Check]:
    for name, module in MODULES.items():
        if importlib.util.find_spec(module) is not None:
            yield _check(f"tracking {name}", "ok", "installed")
        elif name == "tensorboard":
            yield _check(f"tracking {name}", "fail", f"not installed, and jobs use it by default: pip install {module}")
        else:
            yield _check(f"tracking {name}", "ok", f'not installed; optional: pip install "ftray[{name}]"')


def _start_import(module: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu")}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", f"import {module}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _imported(module: str, trial: subprocess.Popen[str]) -> Check:
    try:
        _, said = trial.communicate(timeout=IMPORT_SECONDS)
    except subprocess.TimeoutExpired:
        trial.kill()
        trial.communicate()
        return _check(module, "warn", f"did not import within {IMPORT_SECONDS} s: this machine is very busy")
    if trial.returncode == 0:
        return _check(module, "ok", "imports")
    return _check(module, "fail", f"does not import, so only compute.workers: 0 trains: {_last_line(said)}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
