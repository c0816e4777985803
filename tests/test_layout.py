"""The rooms: who may import whom, where Ray and DeepSpeed may be, and that every shipped job file is a job."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftray.job import load_job

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "ftray"
FILES = sorted(PACKAGE.rglob("*.py"))
JOBS = sorted((REPOSITORY / "jobs").glob("*/job*.yaml"))

# From the bottom up; a room imports only rooms of the lines before its own, and those of its own line.
ROOMS = [
    {"errors"},
    {"config", "artifacts", "group", "jobfile", "presets", "space", "campaign", "endpoint"},
    {"storage"},
    {"runs", "summary", "sweep_summary", "follow"},
    {"tracking", "data"},
    {"audit"},
    {"model", "prepare"},
    {"evaluate", "selection"},
    {"observe"},
    {"train"},
    {"job", "report", "ranges", "speed"},
    {"estimate", "model_card", "attempt", "sampling", "doctor"},
    {"registry"},
    {"finish"},
    {"work", "subject"},
    {"preflight", "run_records", "finetune", "reevaluation", "initialise", "audit_model"},
    {"sweep"},
    {"serve"},
    {"submit"},
    {"check", "decide", "display", "quickstart"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
RAY_FILES = {
    "observe/ray_measures.py",
    "serve/app.py",
    "serve/handles.py",
    "serve/run.py",
    "submit/client.py",
    "submit/contact.py",
    "submit/sealed.py",
    "submit/versions.py",
    "sweep/callback.py",
    "sweep/client.py",
    "sweep/per_trial.py",
    "sweep/reaper.py",
    "sweep/run.py",
    "sweep/schedulers.py",
    "sweep/search.py",
    "sweep/shared.py",
    "sweep/stoppers.py",
    "sweep/tuning.py",
    "train/cluster.py",
    "train/groups.py",
    "train/launch.py",
    "work.py",
}
DEEPSPEED_FILES = {"train/deepspeed.py"}
BANNED_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "core"}


def imports(path: Path) -> Iterator[str]:
    """Yield the modules a file imports, inside functions too, also through importlib with a constant name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            # `from ftray import errors` is an import of ftray.errors.
            yield from (f"ftray.{alias.name}" for alias in node.names) if node.module == "ftray" else (node.module,)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def importers(package: str) -> set[str]:
    return {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if any(module == package or module.startswith(f"{package}.") for module in imports(path))
    }


def test_every_room_has_its_place() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_downwards(path: Path) -> None:
    room = room_of(path)
    for module in imports(path):
        parts = module.split(".")
        if parts[0] != "ftray" or len(parts) == 1 or parts[1] not in LEVEL:
            continue
        assert LEVEL[parts[1]] <= LEVEL[room], f"{path} imports {module}, which stands above it"


def test_ray_is_imported_where_workers_are_started_and_nowhere_else() -> None:
    assert importers("ray") == RAY_FILES


def test_work_imports_ray_only_to_find_its_device() -> None:
    assert {module for module in imports(PACKAGE / "work.py") if module.split(".")[0] == "ray"} == {"ray.train.torch"}


def test_deepspeed_is_imported_in_one_file() -> None:
    assert importers("deepspeed") == DEEPSPEED_FILES


def test_the_loop_reaches_neither_ray_nor_deepspeed() -> None:
    seen, todo = set(), ["ftray.train.loop"]
    while todo:
        module = todo.pop()
        path = PACKAGE.parent / (module.replace(".", "/") + ".py")
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        todo += [name for name in imports(path) if name.startswith("ftray.")]
        assert not {name.split(".")[0] for name in imports(path)} & {"ray", "deepspeed"}, module
    assert "ftray.train.engine" in seen


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    names = {part.removesuffix(".py") for path in FILES for part in path.relative_to(PACKAGE).parts}
    assert not names & BANNED_NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_module_says_what_it_does(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "no docstring"
    assert docstring.splitlines()[0].strip()


def test_there_are_shipped_jobs() -> None:
    assert {path.parent.name for path in JOBS} >= {"snips_intent", "clinc_banking", "snips_replay"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.parent.name)
def test_every_shipped_job_file_is_a_job(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_SHARED", "/somewhere")
    monkeypatch.delenv("FTRAY_STORAGE", raising=False)
    loaded = load_job(path)
    assert loaded.job.model.startswith("/somewhere/")
    assert loaded.job.train.learning_rate is not None
