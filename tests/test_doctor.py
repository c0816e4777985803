"""The doctor answers everywhere: what is wrong is a line with its cost, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ftray import doctor
from ftray.doctor import Check, free_memory, run_checks


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {one["name"]: one for one in checks}


def test_every_line_has_a_name_a_status_and_says_something(tmp_path: Path) -> None:
    checks = run_checks(tmp_path / "runs")
    found = by_name(checks)
    assert len(found) == len(checks)
    assert {"python", "packages", "cpus", "memory", "ray", "compiler", "storage", "hub", "deepspeed"} <= set(found)
    assert {"tracking tensorboard", "tracking mlflow", "tracking wandb"} <= set(found)
    assert all(one["status"] in ("ok", "warn", "fail") and one["detail"] for one in checks)
    assert found["python"]["status"] == found["deepspeed"]["status"] == found["storage"]["status"] == "ok"
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_storage_that_cannot_be_written_fails_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = doctor._storage(tmp_path / "file" / "runs")
    assert found["status"] == "fail"
    assert "--storage" in found["detail"]


def test_packages_outside_their_ranges_are_told_with_the_command_that_helps() -> None:
    assert doctor._problem(Requirement("torch>=2.11,<2.14")) is None  # +cpu is a build, not a version
    too_old = doctor._problem(Requirement("torch>=99"))
    assert too_old is not None
    assert 'pip install "torch>=99"' in too_old
    absent = doctor._problem(Requirement("no-such-package-of-ours>=1"))
    assert absent is not None
    assert "not installed" in absent


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert "only local folders" in doctor._hub()["detail"]
    assert "not looked for" in doctor._ray()["detail"]
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert (doctor._ray()["status"], "HOST:PORT" in doctor._ray()["detail"]) == ("warn", True)
    assert doctor._threads()["status"] == "warn"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "not tried here" in doctor._hub()["detail"]


def test_a_machine_without_a_compiler_is_fine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor._compiler()
    assert found["status"] == "ok"
    assert "none is needed" in found["detail"]


def test_a_package_that_does_not_import_is_told_with_its_reason() -> None:
    trial = doctor._start_import("ftray.there_is_no_such_module")
    found = doctor._imported("deepspeed", trial)
    assert found["status"] == "fail"
    assert "there_is_no_such_module" in found["detail"]


def test_it_answers_where_torch_and_the_rest_are_missing(tmp_path: Path) -> None:
    """Run with an import system that knows only what a bare Python and the doctor itself need."""
    script = """
import sys, importlib.util
hidden = {"torch", "ray", "deepspeed", "transformers", "peft", "tensorboardX", "datasets"}
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in hidden else find(name, package)
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
from ftray.doctor import run_checks
print({one["name"]: one["status"] for one in run_checks()})
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'torch': 'fail'" in done.stdout
    assert "'ray': 'fail'" in done.stdout
    assert "'tracking tensorboard': 'fail'" in done.stdout


def test_free_memory_is_a_number_of_bytes_on_linux() -> None:
    free = free_memory()
    if sys.platform == "linux":
        assert free is not None
        assert free > 10**6
