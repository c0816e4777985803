"""`ftray keys`, as a command line of its own: what it prints, what the file holds, how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from ftray.cli.group import CommandLine
from ftray.cli.keys import keys
from ftray.serve.api.keys import Keyring

app = typer.Typer(cls=CommandLine, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(keys, name="keys")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Run the command; return exit code and document, or text without --json."""
    with pytest.raises(SystemExit) as end:
        app(["keys", *words])
    out = capsys.readouterr().out
    return int(end.value.code or 0), json.loads(out) if "--json" in words else out


def test_a_key_s_life(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ("--file", str(tmp_path / "keys.json"))
    code, added = run(capsys, "add", "ann", "--scope", "feedback", "--scope", "infer", *file, "--json")
    assert code == 0
    assert added["scopes"] == ["infer", "feedback"]
    caller = Keyring(tmp_path / "keys.json").identify(f"Bearer {added['key']}")
    assert caller is not None
    assert caller.name == "ann"
    code, listed = run(capsys, "list", *file, "--json")
    assert [one["name"] for one in listed["keys"]] == ["ann"]
    assert added["key"] not in json.dumps(listed)
    code, text = run(capsys, "list", *file)
    assert "infer, feedback" in text
    assert run(capsys, "remove", "ann", *file, "--json")[0] == 0
    assert run(capsys, "list", *file, "--json")[1]["keys"] == []


def test_without_options_the_file_lies_in_the_storage_and_the_scope_is_infer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTRAY_STORAGE", str(tmp_path / "runs"))
    code, text = run(capsys, "add", "ann")
    assert code == 0
    first = text.splitlines()[0].strip()
    caller = Keyring(tmp_path / "runs" / "keys.json").identify(f"Bearer {first}")
    assert caller is not None
    assert caller.scopes == {"infer"}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("add", "ann", "--scope", "root"), "bad_value"),
        (("add", "Ann!"), "bad_name"),
        (("remove", "bob"), "keys_file"),
        (("list",), "keys_file"),
        (("frob",), "usage"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_2(
    words: tuple[str, ...], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = () if words == ("frob",) else ("--file", str(tmp_path / "keys.json"))
    code, document = run(capsys, *words, *file, "--json")
    assert code == 2
    assert document["kind"] == kind
