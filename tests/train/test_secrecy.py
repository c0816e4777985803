"""What nobody may see, told from what everybody may."""

from __future__ import annotations

import os
import pickle

import pytest

from ftray.train.secrecy import Secrets, is_secret


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HF_TOKEN", "hf_x", True),
        ("WANDB_API_KEY", "x", True),
        ("MLFLOW_TRACKING_PASSWORD", "x", True),
        ("MLFLOW_TRACKING_URI", "https://ann:secret@mlflow.example/", True),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer x", True),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example/@ann", False),
        ("WANDB_MODE", "offline", False),
        ("HF_HOME", "/models", False),
    ],
)
def test_secrets_are_told_by_their_names_and_addresses(name: str, value: str, expected: bool) -> None:
    assert is_secret(name, value) is expected


def test_secrets_travel_and_show_only_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FTRAY_TEST_TOKEN", raising=False)
    arrived = pickle.loads(pickle.dumps(Secrets({"FTRAY_TEST_TOKEN": "abc"})))
    assert repr(arrived) == "Secrets(FTRAY_TEST_TOKEN)"
    assert "FTRAY_TEST_TOKEN" not in os.environ
    arrived.set()
    assert os.environ["FTRAY_TEST_TOKEN"] == "abc"
    monkeypatch.delenv("FTRAY_TEST_TOKEN")
