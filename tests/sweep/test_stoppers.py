"""A trial is stopped exactly where a run of the same evaluations would be, and each stop has its reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sweep.campaign import configurations

from ftray.artifacts import write_json
from ftray.space import Budget
from ftray.sweep.spent import Amount, Spent
from ftray.sweep.stoppers import EarlyStopper, NonFinite, budget_stopper
from ftray.train.config import EarlyStopping
from ftray.train.state import Training


def result(step: int, *, loss: float = 1.0, accuracy: float = 0.5, **more: Any) -> dict[str, Any]:
    return {
        "trial": "abc", "trial_id": "of tune", "step": step, "warmup_steps": 0, "validation_loss": loss,
        "train_loss": 1.0, "validation_accuracy": accuracy, "nonfinite": "", "finished": False, **more,
    }  # fmt: skip


LOSSES = st.one_of(st.floats(0.1, 3.0), st.sampled_from([math.nan, 1.0, 1.01]))


@settings(deadline=None)
@given(
    losses=st.lists(st.tuples(LOSSES, st.floats(0.1, 3.0), st.sampled_from([0.1, 0.2, 0.3])), min_size=1, max_size=20),
    patience=st.integers(1, 4),
    margin=st.sampled_from([0.0, 0.02, 0.2]),
    after=st.sampled_from(["warmup", "start"]),
    warmup=st.integers(0, 8),
    higher=st.booleans(),
)
def test_it_stops_where_a_run_would(
    losses: list[tuple[float, float, float]], patience: int, margin: float, after: str, warmup: int, higher: bool
) -> None:
    early = EarlyStopping.model_validate({"patience": patience, "margin": margin, "after": after})
    steps = 2 * len(losses)
    train = {"max_steps": steps, "warmup": min(warmup, steps - 1), "early_stopping": early}
    plan = configurations({"rank": [4, 8]}, train=train).default().plan
    training = Training(plan, [], higher_is_better=higher)
    stopper = EarlyStopper(early, higher_is_better=higher)
    for number, (loss, train_loss, value) in enumerate(losses, start=1):
        training.progress.step, training.progress.train_loss = 2 * number, train_loss
        decision = training.evaluated(value=value, validation_loss=loss)
        reported = result(2 * number, loss=loss, accuracy=value, train_loss=train_loss, finished=2 * number == steps)
        reported["warmup_steps"] = plan.schedule.warmup_steps
        assert stopper("of tune", reported) == decision.stop
        # Reported again by a client that was restarted.
        assert stopper("of tune", reported) == decision.stop
        if decision.stop:
            state, reason = stopper.reasons["abc"]
            assert state == ("diverged" if decision.kind == "diverged" else "pruned")
            assert decision.reason[1:] in reason
            return
    assert stopper.reasons == {}


def test_evaluations_from_before_an_interruption_count() -> None:
    worse = [result(step, loss=1.0 + step / 10) for step in range(1, 6)]
    whole, resumed = (EarlyStopper(EarlyStopping(), higher_is_better=True) for _ in range(2))
    assert [whole("a", one) for one in worse] == [False, False, False, True, True]
    resumed.replay({"abc": worse[:3]})
    assert resumed("b", worse[3])
    assert "at step 4" in resumed.reasons["abc"][1]


def test_trials_have_histories_of_their_own() -> None:
    stopper = EarlyStopper(EarlyStopping(patience=1), higher_is_better=True)
    for step in range(1, 4):
        assert not stopper("x", {**result(step, loss=2.0 / step), "trial": "good"})
    stopped = [stopper("y", {**result(step, loss=1.0 * step), "trial": "bad"}) for step in range(1, 4)]
    assert any(stopped)
    assert set(stopper.reasons) == {"bad"}


def test_early_stopping_that_is_off_stops_nothing() -> None:
    stopper = EarlyStopper(None, higher_is_better=True)
    assert not any(stopper("x", result(step, loss=math.nan)) for step in range(1, 9))


def test_what_is_no_number_has_diverged() -> None:
    stopper = NonFinite()
    assert not stopper("x", result(1))
    assert stopper("x", result(2, nonfinite="the loss at step 2 is nan"))
    assert stopper.reasons == {"abc": ("diverged", "the loss at step 2 is nan")}


def test_a_budget_by_the_clock_and_one_by_trainers(tmp_path: Path) -> None:
    now = [100.0]
    write_json(tmp_path / "spent.json", {"wall_seconds": 0.0, "trainer_seconds": 600.0})
    spent = Spent(tmp_path / "spent.json", began=100.0, clock=lambda: now[0])
    spent.start_trainers(4)
    by_clock, by_trainers = (budget_stopper(one, spent) for one in (Budget(hours=1), Budget(accelerator_hours=1)))
    assert by_clock is not None
    assert by_trainers is not None
    for stopper in (by_clock, by_trainers):
        assert not stopper("x", result(1))
        assert not stopper("y", {**result(1, finished=True), "trial": "done"})
    now[0] += 749
    assert not by_clock.stop_all()
    assert not by_trainers.stop_all()
    now[0] += 1
    assert by_trainers.stop_all()
    assert spent.now == Amount(wall=750, trainers=3600)
    assert by_trainers.reason is not None
    assert by_trainers.reasons == {"abc": ("budget", by_trainers.reason)}
    now[0] += 2850
    assert by_clock.stop_all()
    assert "1 hours" in str(by_clock.reason)
