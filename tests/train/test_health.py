"""A run that is not really training ends with a sentence, before it does harm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch

from ftray.data.collate import Layout, collate
from ftray.errors import RunError
from ftray.group import Alone
from ftray.train.health import nonfinite_examples, require_finite_loss, require_finite_norm, require_group

BAD_TOKEN = 5


class Peers:
    """A group as one rank of it sees it: what the others would say is given."""

    def __init__(self, rank: int, ranks: Sequence[int]) -> None:
        self.rank, self.size, self.ranks = rank, len(ranks), list(ranks)

    def gather(self, value: Any) -> list[Any]:
        return self.ranks

    def any(self, flag: bool) -> bool:
        return flag

    def total(self, values: Sequence[float]) -> list[float]:
        return list(values)


@pytest.fixture
def broken(tiny: ModuleType) -> Any:
    """Return an engine whose model has one token with an infinite embedding."""
    engine = tiny.engine()
    with torch.no_grad():
        engine.model.get_input_embeddings().weight[BAD_TOKEN] = torch.inf
    return engine


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_loss_that_is_no_number_names_its_examples_and_touches_no_weight(
    tiny: ModuleType, broken: Any, layout: Layout
) -> None:
    rows = [
        tiny.example([BAD_TOKEN, 7, 8], row=40),
        tiny.example([9, 10, 11, 12, 13, 14], row=41),
        tiny.example([9, 10], row=42),
        tiny.example([9, 10, 11, 12, BAD_TOKEN, 13], row=43),
    ]
    batches = [collate(rows[:3], layout), collate(rows[3:], layout)]
    before = tiny.state(broken)
    losses = broken.accumulate(batches, normaliser=9)
    loss = sum(float(part.sum()) for part in losses)
    assert nonfinite_examples(batches, losses) == [("train", 40), ("train", 43)]
    with pytest.raises(RunError, match="step 13 is not a finite number") as caught:
        require_finite_loss(loss, step=12, batches=batches, losses=losses, group=Alone())
    assert caught.value.kind == "nonfinite"
    assert caught.value.given == [["train", 40], ["train", 43]]
    assert "train row 40, train row 43" in caught.value.message
    assert tiny.is_equal(tiny.state(broken), before)


def test_a_finite_loss_passes(tiny: ModuleType) -> None:
    require_finite_loss(1.5, step=0, batches=[], losses=[], group=Alone())


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_exploded_is_an_error(norm: float) -> None:
    for precision in ("fp32", "bf16"):
        with pytest.raises(RunError, match="step 3") as caught:
            require_finite_norm(norm, step=2, precision=precision)
        assert caught.value.kind == "nonfinite"
    require_finite_norm(norm, step=2, precision="fp16")
    require_finite_norm(1e9, step=2, precision="fp32")


def test_workers_that_see_each_other_pass() -> None:
    require_group(Alone(), least=1, most=1, told=1)
    require_group(Peers(1, [0, 1, 2]), least=2, most=4, told=3)


@pytest.mark.parametrize(
    ("group", "told"),
    [
        (Alone(), 2),  # this one thinks it is alone
        (Peers(0, [0, 0]), 2),  # both think they are the first
        (Peers(0, [0, 1]), 3),
        (Peers(0, [0, 1, 2]), 2),
        (Peers(0, [0, 1, 2, 3, 4]), 5),  # more than the plan has
    ],
    ids=["alone", "twins", "too_few", "too_many", "unplanned"],
)
def test_workers_that_do_not_see_each_other_are_an_error(group: Any, told: int) -> None:
    with pytest.raises(RunError, match="do not see each other") as caught:
        require_group(group, least=1, most=4, told=told)
    assert caught.value.kind == "communication"
    assert caught.value.given["started"] == told
