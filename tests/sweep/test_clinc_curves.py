"""Which learning rate a set of curves calls the fastest: not one that overfits, not one that ends far from the best."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

CURVES = Path(__file__).resolve().parents[2] / "jobs" / "clinc_lr_sweep" / "curves.py"


def fastest(**trials: list[tuple[float, float | None]]) -> Any:
    """Ask about trials by name, each a list of (validation accuracy, validation loss) after each epoch."""
    spec = importlib.util.spec_from_file_location("clinc_curves", CURVES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked = []
    for name, points in trials.items():
        curve = [
            {"epoch": float(epoch), "validation_accuracy": accuracy, "validation_loss": loss}
            for epoch, (accuracy, loss) in enumerate(points, start=1)
        ]
        asked.append({"learning_rate": name, "curve": curve})
    answer = module.fastest(asked)
    return None if answer is None else (answer["learning_rate"], answer["epoch"])


def test_the_first_to_come_near_the_best_is_the_fastest() -> None:
    assert fastest(slow=[(0.1, 3.0), (0.5, 2.0), (0.9, 1.0)], fast=[(0.5, 2.0), (0.89, 1.0), (0.89, 1.0)]) == (
        "fast",
        2,
    )


def test_one_whose_loss_rises_again_is_not_it() -> None:
    assert fastest(fair=[(0.1, 3.0), (0.5, 2.0), (0.9, 1.0)], over=[(0.9, 1.0), (0.9, 1.2), (0.9, 1.4)]) == ("fair", 3)
    assert fastest(broken=[(0.9, 1.0), (0.9, None)]) is None


def test_one_that_ends_far_from_the_best_is_not_it() -> None:
    assert fastest(far=[(0.5, 1.0), (0.5, 0.9)], near=[(0.1, 3.0), (0.9, 1.0)]) == ("near", 2)
