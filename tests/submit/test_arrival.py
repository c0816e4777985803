from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ftray.cli import app
from ftray.errors import InputError
from ftray.job import load_job
from ftray.submit.arrival import arrive, require_identity
from ftray.submit.parcel import Reach, pack
from ftray.submit.staging import JOB_FILE, stage


def test_a_job_file_that_did_not_travel_stays_where_it_is(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTRAY_SECRETS", raising=False)
    assert arrive(job) == job


def test_another_content_is_refused_by_both_ids() -> None:
    require_identity("a" * 64, "a" * 64)
    with pytest.raises(InputError) as caught:
        require_identity("a" * 64, "b" * 64)
    assert caught.value.kind == "other_content"
    assert "aaaaaaaaaaaa, not bbbbbbbbbbbb" in caught.value.message


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_the_command_trains_nothing_else_than_what_was_submitted(command: str, job: Path, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    stage(pack(load_job(job, storage=str(storage)), Reach(storage=storage)), tmp_path / "staged")
    words = [command, str(tmp_path / "staged" / JOB_FILE), "--storage", str(storage), "--expect-run-id", "0" * 64]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "is not what was submitted" in result.stderr
    assert [path.name for path in storage.iterdir()] == ["shipped"]
