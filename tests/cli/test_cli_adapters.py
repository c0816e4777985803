"""`ftray adapters ...` as people and scripts run it, on the adapter of a real run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry_world import record_of, write_adapter, write_files

from ftray.artifacts import digest_file
from ftray.registry.registry import open_registry

Command = Callable[..., Any]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters `boxes`, the older one shipped, and `other`, which is not to be shipped."""
    monkeypatch.delenv("FTRAY_REGISTRY", raising=False)
    monkeypatch.setenv("FTRAY_STORAGE", str(tmp_path / "runs"))
    registry = open_registry(tmp_path / "runs")
    fingerprint = {"max_abs_difference_from_base": 1.5}
    task = {"metric": "exact_match", "base": {"value": 0.25}, "tuned": {"value": 0.75}}
    metrics = {"split": "test", "tasks": [task]}
    for text, name, verdict in (
        ("1", "boxes", "ship"),
        ("2", "boxes", "inconclusive"),
        ("3", "other", "do_not_ship"),
    ):
        record = record_of(name, verdict=verdict, metrics=metrics, fingerprint=fingerprint)
        registry.put(write_files(tmp_path / text, text), record)
    return tmp_path / "runs"


def digests(storage: Path, name: str = "boxes") -> list[str]:
    return [record["digest"] for record in open_registry(storage).list(name)]


def test_the_list_has_verdict_metric_and_aliases(storage: Path, ftray: Command) -> None:
    shipped = digests(storage)[-1]
    assert ftray("adapters", "promote", "champion", f"boxes@{shipped[:12]}").exit_code == 0
    document = ftray("adapters", "list", "--json").document
    assert document["registry"] == str(storage / "registry")
    assert [(one["name"], one["verdict"], one["aliases"]) for one in document["adapters"]] == [
        ("other", "do_not_ship", []),
        ("boxes", "inconclusive", []),
        ("boxes", "ship", ["champion"]),
    ]
    assert document["adapters"][0]["metric"] == {"name": "exact_match", "split": "test", "base": 0.25, "tuned": 0.75}
    assert document["aliases"]["champion"]["digest"] == shipped
    table = ftray("adapters", "list", "boxes").stdout
    assert f"boxes@{shipped[:12]}" in table
    assert "25.0% > 75.0%" in table
    assert "other" not in table


def test_an_empty_registry_is_an_answer(tmp_path: Path, ftray: Command) -> None:
    answer = ftray("adapters", "list", "--storage", str(tmp_path / "nothing"))
    assert answer.exit_code == 0
    assert "No adapters" in answer.stdout
    assert not (tmp_path / "nothing").exists()


def test_promote_and_rollback_move_an_alias(storage: Path, ftray: Command) -> None:
    newest, shipped = digests(storage)
    refused = ftray("adapters", "promote", "champion", "boxes", "--json")
    assert (refused.exit_code, refused.document["kind"]) == (2, "not_shippable")
    first = ftray("adapters", "promote", "champion", f"boxes@{shipped}", "--reason", "better", "--json").document
    assert (first["generation"], first["digest"], first["reason"]) == (1, shipped, "better")
    forced = ftray("adapters", "promote", "champion", "boxes", "--force", "a demo", "--generation", "1", "--json")
    assert (forced.document["digest"], forced.document["reason"], forced.document["forced"]) == (newest, "a demo", True)
    assert forced.document["previous"] == {"name": "boxes", "digest": shipped}
    back = ftray("adapters", "rollback", "champion")
    assert f"champion is boxes@{shipped[:12]} (generation 3" in back.stdout
    assert ftray("adapters", "rollback", "champion", "--quiet").stdout == ""


def test_a_lost_swap_exits_1(storage: Path, ftray: Command) -> None:
    shipped = digests(storage)[-1]
    lost = ftray("adapters", "promote", "champion", f"boxes@{shipped}", "--generation", "7", "--json")
    assert (lost.exit_code, lost.document["exit_code"], lost.document["kind"]) == (1, 1, "lost_swap")
    assert lost.document["allowed"] == {"generation": 0}


def test_two_commands_that_race_have_one_winner(storage: Path) -> None:
    newest, shipped = digests(storage)
    commands = [
        [
            sys.executable, "-m", "ftray", "adapters", "promote", "champion", f"boxes@{digest}", "--force", "a race",
            "--generation", "0", "--storage", str(storage), "--json",
        ]
        for digest in (newest, shipped)
    ]  # fmt: skip
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for command in commands]
    documents = [json.loads(racer.communicate(timeout=120)[0]) for racer in racers]
    assert sorted(racer.returncode for racer in racers) == [0, 1]
    (won,) = [document for document in documents if "generation" in document]
    assert open_registry(storage).aliases()["champion"]["digest"] == won["digest"]
    assert [document["kind"] for document in documents if "kind" in document] == ["lost_swap"]


def test_delete_wants_to_know_which(storage: Path, ftray: Command) -> None:
    newest, shipped = digests(storage)
    ftray("adapters", "promote", "champion", f"boxes@{shipped}")
    for words, kind in (
        (("boxes",), "ambiguous_name"),
        (("champion",), "usage"),
        ((f"boxes@{shipped[:12]}",), "in_use"),
        (("boxse",), "unknown_adapter"),
    ):
        answer = ftray("adapters", "delete", *words, "--json")
        assert (answer.exit_code, answer.document["kind"]) == (2, kind), words
    assert ftray("adapters", "delete", f"boxes@{newest[:12]}", "--json").document["digest"] == newest
    assert ftray("adapters", "delete", "champion", "--alias", "--json").document["deleted"] == "alias"
    assert ftray("adapters", "delete", "boxes").exit_code == 0
    assert digests(storage) == []


def test_a_typing_error_names_its_nearest(storage: Path, ftray: Command) -> None:
    answer = ftray("adapters", "show", "boxse", "--json")
    assert (answer.exit_code, answer.document["hint"]) == (2, "Did you mean boxes?")
    answer = ftray("adapters", "list", "othre", "--json")
    assert (answer.exit_code, answer.document["hint"]) == (2, "Did you mean other?")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("adapters", "lst"), "ftray adapters --help"),
        (("adapters", "show"), "ftray adapters show --help lists its arguments and options."),
        (("adapters", "list", "--unknown"), "ftray adapters list --help lists its arguments and options."),
        (("adapter",), "ftray --help"),
    ],
)
def test_usage_errors_name_the_command_that_helps(words: tuple[str, ...], hint: str, ftray: Command) -> None:
    answer = ftray(*words, "--json")
    assert (answer.exit_code, answer.document["kind"], answer.document["hint"]) == (2, "usage", hint)


def test_alone_it_prints_its_help(ftray: Command) -> None:
    answer = ftray("adapters")
    assert answer.exit_code == 0
    for command in ("list", "show", "promote", "rollback", "export", "import", "delete"):
        assert command in answer.stdout


def test_the_registry_may_lie_elsewhere(storage: Path, ftray: Command, tmp_path: Path) -> None:
    url = f"once://{tmp_path / 'objects'}"
    opened = open_registry(storage, url)
    digest = opened.put(write_files(tmp_path / "4", "4"), record_of("remote")).digest
    assert ftray("adapters", "promote", "live", "remote", "--registry", url).exit_code == 0
    document = ftray("adapters", "list", "--registry", url, "--json").document
    assert (document["registry"], document["adapters"][0]["aliases"]) == (url, ["live"])
    out = tmp_path / "out"
    assert ftray("adapters", "export", "live", str(out), "--registry", url, "--json").document["digest"] == digest
    assert (out / "adapter_model.safetensors").read_text(encoding="utf-8") == "4"


def test_a_run_is_shown_exported_and_imported_again(
    trained: Any, ftray: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FTRAY_REGISTRY", raising=False)
    place = ("--storage", trained.storage)
    result = trained.answer.document
    shown = ftray("adapters", "show", "boxes", "--verify", "--json", *place).document
    assert (shown["digest"], shown["run_id"]) == (result["registered"]["digest"], result["run_id"])
    assert Path(shown["folder"], "adapter_model.safetensors").is_file()
    screen = ftray("adapters", "show", "boxes", *place).stdout
    assert f"run {result['run_id'][:12]}" in screen
    out = ftray("adapters", "export", "boxes", str(tmp_path / "out"), "--json", *place).document
    assert out["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    again = ftray(
        "adapters", "import", out["folder"], "--name", "copy", "--storage", str(tmp_path / "runs"), "--json",
        "--sha256", digest_file(Path(out["folder"], "adapter_model.safetensors")),
    )  # fmt: skip
    assert (again.exit_code, again.document["digest"], again.document["verdict"]) == (0, shown["digest"], "none")
    assert again.document["fingerprint"]["max_abs_difference_from_base"] > 0


def test_what_import_refuses_is_bad_input(base: Path, ftray: Command, tmp_path: Path) -> None:
    place = ("--storage", str(tmp_path / "runs"), "--json")
    folder = write_adapter(base, tmp_path / "lora", seed=1)
    large = ftray("adapters", "import", str(folder), "--name", "found", "--max-rank", "2", *place)
    assert (large.exit_code, large.document["kind"]) == (2, "too_large")
    (folder / "extra.bin").write_bytes(b"")
    unsafe = ftray("adapters", "import", str(folder), "--name", "found", *place)
    assert (unsafe.exit_code, unsafe.document["kind"]) == (2, "unsafe_adapter")
    assert ftray("adapters", "list", *place).document["adapters"] == []
