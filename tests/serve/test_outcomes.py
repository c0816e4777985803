"""The store on SQLite and on a real PostgreSQL server: nothing acknowledged is lost, nothing counts twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from outcome_world import answer, digests, guardrails, opened, run_traffic, show, spec
from postgres_server import MISSING, PostgresServer, find_binaries, postgres_server

from ftray.serve.experiment.spec import Contradiction, OutOfRange, UnknownResponse, propensities
from ftray.serve.outcomes.store import Store

RATES = {"base": 0.5, "tuned": 0.7, "other": 0.4}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(MISSING)
    with postgres_server(binaries) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    return "sqlite" if request.param == "sqlite" else request.getfixturevalue("server").new_database()


@pytest.fixture
def store(url: str, tmp_path: Path) -> Iterator[Store]:
    with opened(url, tmp_path) as one:
        yield one


def test_the_same_experiment_again_is_the_same_one(store: Store) -> None:
    first = store.create(spec(), digests(spec()))
    assert store.create(spec(), digests(spec())) == first == store.experiment("greeting")
    with pytest.raises(Contradiction, match="another one"):
        store.create(spec(alpha=0.1), digests(spec()))
    with pytest.raises(Contradiction, match="other adapters"):
        store.create(spec(), {"base": None, "tuned": "c" * 64})
    second = store.create(spec("farewell"), digests(spec()))
    assert store.experiments() == [first, second]
    assert first.salt != second.salt
    for ask in (store.experiment, store.report, store.history, store.recompute):
        with pytest.raises(UnknownResponse):
            ask("nothing")


def test_new_weights_move_no_unit_that_was_exposed(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    before = {f"user-{number}": show(store, experiment, f"user-{number}") for number in range(60)}
    assert all(exposure.is_new and exposure.propensity == 0.5 for exposure in before.values())
    changed = store.reweigh("greeting", {"tuned": 9.0, "base": 1.0})
    assert changed.weights == store.experiment("greeting").weights == {"base": 1.0, "tuned": 9.0}
    for unit, exposure in before.items():
        after = show(store, changed, unit, f"later-{unit}")
        assert (after.arm, after.propensity, after.is_new) == (exposure.arm, 0.5, False)
    new = [show(store, changed, f"new-{number}") for number in range(60)]
    assert {exposure.propensity for exposure in new} <= {0.9, 0.1}
    assert sum(exposure.arm == "tuned" for exposure in new) > 40


def test_a_replica_that_has_not_heard_of_new_weights_is_believed(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    store.reweigh("greeting", {"base": 3.0, "tuned": 1.0})
    assert show(store, experiment, "late").propensity == 0.5
    assert store.report("greeting")["sample_ratio"]["expected"] == {"base": 0.5, "tuned": 0.5}
    with pytest.raises(OutOfRange, match="never had the share"):
        store.expose("greeting", unit="wrong", arm="base", propensity=0.6, response_id="wrong")
    with pytest.raises(OutOfRange, match="never had the share"):
        store.expose("greeting", unit="wrong", arm="nobody", propensity=0.5, response_id="wrong")


def test_two_first_requests_of_a_unit_at_once_get_one_arm(store: Store) -> None:
    store.create(spec(), digests(spec()))
    for unit in range(20):
        barrier = threading.Barrier(4)

        def ask(number: int, unit: int = unit, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            arm = ("base", "tuned")[number % 2]
            one = store.expose("greeting", unit=str(unit), arm=arm, propensity=0.5, response_id=f"{unit}-{number}")
            return f"{one.arm} {one.is_new}"

        with ThreadPoolExecutor(4) as pool:
            said = list(pool.map(ask, range(4)))
        assert len({one.split()[0] for one in said}) == 1
        assert sum(one.endswith("True") for one in said) == 1
    assert sum(arm["units"] for arm in store.report("greeting")["arms"]) == 20


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"base": 1.0}, "each arm"),
        ({"base": 1.0, "tuned": 1.0, "more": 1.0}, "each arm"),
        ({"base": 99.0, "tuned": 1.0}, "minimum_propensity"),
        ({"base": 1.0, "tuned": 0.0}, "above 0"),
        ({"base": 1.0, "tuned": float("nan")}, "above 0"),
        ({"base": float("inf"), "tuned": 1.0}, "above 0"),
    ],
)
def test_weights_that_are_none_are_refused(store: Store, weights: dict[str, float], says: str) -> None:
    experiment = store.create(spec(), digests(spec()))
    with pytest.raises(OutOfRange, match=says):
        store.reweigh("greeting", weights)
    assert store.experiment("greeting") == experiment


def test_feedback_is_of_a_response_or_a_unit_and_counts_once(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    show(store, experiment, "ann")

    def say(key: str, value: float, **whose: str) -> str:
        given = {"response_id": None, "experiment": None, "unit": None, **whose}
        return store.feedback(key=key, metric="outcome", value=value, **given)  # type: ignore[arg-type]

    assert say("k1", 1, response_id="response-ann") == "recorded"
    assert say("k1", 1.0, response_id="response-ann") == "duplicate"
    assert say("k1", 1.0, experiment="greeting", unit="ann") == "duplicate"
    with pytest.raises(Contradiction):
        say("k1", 0.0, response_id="response-ann")
    assert say("k2", 0.0, experiment="greeting", unit="ann") == "recorded"
    arms = {arm["name"]: arm for arm in store.report("greeting")["arms"]}
    assert sum(arm["outcomes"] for arm in arms.values()) == 1
    assert (
        arms[store.expose("greeting", unit="ann", arm="base", propensity=0.5, response_id="x").arm]["estimate"] == 1.0
    )
    for whose in (
        {"response_id": "nobody's"},
        {"experiment": "greeting", "unit": "bob"},
        {"experiment": "nothing", "unit": "ann"},
        {"response_id": "response-ann", "experiment": "nothing"},
        {"response_id": "response-ann", "unit": "bob"},
    ):
        with pytest.raises(UnknownResponse):
            say("k3", 1.0, **whose)
    with pytest.raises(OutOfRange):
        say("k3", 1.0)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_an_outcome_is_from_0_to_1(store: Store, value: float) -> None:
    show(store, store.create(spec(), digests(spec())), "ann")
    with pytest.raises(OutOfRange):
        answer(store, "k", value, unit="ann")
    assert answer(store, "k", 0.5, unit="ann") == "recorded"


def test_only_what_an_experiment_measures_is_taken(store: Store) -> None:
    show(store, store.create(spec(guardrails=guardrails()), digests(spec())), "ann")
    for metric, says in (("outcom", "no metric"), ("latency_seconds", "measured by the endpoint")):
        with pytest.raises(OutOfRange, match=says):
            answer(store, "k", 0.5, unit="ann", metric=metric)
    assert answer(store, "k", -1e9, unit="ann", metric="politeness") == "recorded"
    with pytest.raises(OutOfRange, match="are measured"):
        store.measure("response-ann", {"outcome": 1.0})
    with pytest.raises(UnknownResponse):
        store.measure("nobody's", {"latency_seconds": 1.0})


def test_a_units_first_answer_is_measured(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    arm = show(store, experiment, "ann", "first").arm
    show(store, experiment, "ann", "second")
    store.measure("first", {"latency_seconds": 1.5, "completion_tokens": 7})
    for response_id in ("first", "second"):
        store.measure(response_id, {"latency_seconds": 9.0, "completion_tokens": 70})
    measured = store.report("greeting")["measured"]
    assert measured["latency_seconds"][arm] == {"n": 1, "mean": 1.5}
    assert measured["completion_tokens"][arm] == {"n": 1, "mean": 7.0}


def test_preferences_are_between_arms_and_a_raters_first_counts(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    of_arm: dict[str, list[str]] = {"base": [], "tuned": []}
    for number in range(20):
        of_arm[show(store, experiment, str(number), f"r{number}").arm].append(f"r{number}")
    base, tuned = (of_arm[arm] for arm in ("base", "tuned"))

    def prefer(key: str, chosen: str, rejected: str, *, rater: str = "eve", is_tie: bool = False) -> str:
        return store.prefer(key=key, experiment="greeting", unit=rater, chosen=chosen, rejected=rejected, is_tie=is_tie)

    assert store.report("greeting")["preferences"] is None
    assert prefer("p1", tuned[0], base[0]) == "recorded"
    assert prefer("p1", tuned[0], base[0]) == "duplicate"
    assert prefer("p2", base[0], tuned[0]) == "recorded"
    assert prefer("p3", base[1], tuned[0], rater="ann", is_tie=True) == "recorded"
    found = store.report("greeting")["preferences"]
    assert (found["n"], found["wins"]) == (2, {"base": 0.5, "tuned": 1.5})
    with pytest.raises(Contradiction):
        prefer("p1", base[0], tuned[0])
    with pytest.raises(OutOfRange, match="same arm"):
        prefer("p4", base[0], base[1])
    with pytest.raises(UnknownResponse):
        prefer("p4", base[0], "nobody's")
    store.create(spec("farewell"), digests(spec()))
    with pytest.raises(UnknownResponse):
        store.prefer(key="p5", experiment="farewell", unit="eve", chosen=tuned[0], rejected=base[0], is_tie=False)


def test_after_the_end_nobody_is_exposed_and_nothing_changes(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    run_traffic(store, experiment, range(30), rates=RATES)
    arm = show(store, experiment, "last", "before").arm
    ended = store.stop("greeting", reason="by hand")
    assert (ended.status, ended.reason) == ("stopped", "by hand")
    assert store.stop("greeting", reason="again", status="promoted") == ended
    before = store.report("greeting")
    with pytest.raises(Contradiction, match="ended"):
        show(store, experiment, "new")
    with pytest.raises(Contradiction, match="ended"):
        store.reweigh("greeting", {"base": 2.0, "tuned": 1.0})
    assert show(store, experiment, "last", "after").arm == arm
    assert answer(store, "late", 1.0, unit="last") == "recorded"
    assert answer(store, "late", 1.0, unit="last") == "duplicate"
    store.measure("after", {"latency_seconds": 1.0})
    after = store.report("greeting")
    assert after == {**before, "late": 1}
    assert store.recompute("greeting") == after


@pytest.mark.parametrize("arms", [("base", "tuned"), ("base", "tuned", "other")])
def test_running_sums_are_what_the_rows_give(url: str, tmp_path: Path, arms: tuple[str, ...]) -> None:
    asked = spec(arms=arms, guardrails=guardrails(), minimum_propensity=0.1)
    with opened(url, tmp_path) as store:
        experiment = store.create(asked, digests(asked))
        run_traffic(store, experiment, range(60), rates=RATES)
        changed = store.reweigh("greeting", dict(zip(arms, (1.0, 2.0, 0.5), strict=False)))
        with ThreadPoolExecutor(4) as pool:
            parts = [range(100 + 30 * part, 130 + 30 * part) for part in range(4)]
            list(pool.map(lambda part: run_traffic(store, changed, part, rates=RATES, seed=part.start), parts))
        report = store.report("greeting")
        assert report == store.recompute("greeting")
        assert [arm["units"] for arm in report["arms"]] != [0] * len(arms)
        assert report["preferences"]["n"] > 5
    with opened(url, tmp_path) as again:
        assert again.report("greeting") == report
        run_traffic(again, changed, range(300, 320), rates=RATES, seed=9)
        again.stop("greeting", reason="enough")
        assert again.report("greeting") == again.recompute("greeting") != report


def test_two_stores_may_write_into_one_database_at_once(url: str, tmp_path: Path) -> None:
    with opened(url, tmp_path) as first, opened(url, tmp_path) as second:
        experiment = first.create(spec(), digests(spec()))
        parts = [(first, range(40)), (second, range(100, 140)), (second, range(200, 220)), (first, range(300, 320))]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda part: run_traffic(part[0], experiment, part[1], rates=RATES, seed=1), parts))
        assert first.report("greeting") == second.report("greeting") == first.recompute("greeting")
        assert sum(arm["units"] for arm in first.report("greeting")["arms"]) == 120


def test_a_refused_call_leaves_its_neighbours_alone(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    for number in range(40):
        show(store, experiment, str(number))

    def say(number: int) -> str:
        try:
            return answer(store, f"k{number}", (0.5, 2.0)[number % 2], unit=str(number if number % 4 else "nobody"))
        except (OutOfRange, UnknownResponse) as refusal:
            return type(refusal).__name__

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(say, range(40)))
    expected = ["UnknownResponse", "OutOfRange", "recorded", "OutOfRange"] * 10
    assert said == expected
    assert store.report("greeting") == store.recompute("greeting")
    assert store.report("greeting")["looks"] == 10


def test_a_call_with_a_bug_is_undone_and_its_neighbours_are_not(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    show(store, experiment, "ann")
    with pytest.raises(AssertionError):
        store.create(spec("broken"), {"base": None})
    with pytest.raises(UnknownResponse):
        store.experiment("broken")

    def half(ledger: object) -> None:
        ledger.feedback(  # type: ignore[attr-defined]
            key="k", metric="outcome", value=1.0, response_id="response-ann", experiment=None, unit=None, at="2026"
        )
        raise ZeroDivisionError

    works: list[Callable[[], object]] = [
        lambda: store._writer.call(half),
        lambda: show(store, experiment, "bob"),
        lambda: show(store, experiment, "cat"),
    ]
    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(work) for work in works]
    with pytest.raises(ZeroDivisionError):
        done[0].result()
    assert sum(arm["units"] for arm in store.report("greeting")["arms"]) == 3
    assert store.report("greeting")["looks"] == 0
    assert store.report("greeting") == store.recompute("greeting")


def test_a_history_is_kept_at_growing_distances(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    for number in range(150):
        show(store, experiment, str(number))
        answer(store, str(number), float(number % 2), unit=str(number))
    history = store.history("greeting")
    counts = [point["outcomes"] for point in history]
    assert counts[:34] == list(range(1, 35))
    assert counts == sorted(set(counts))
    assert 145 <= counts[-1] <= 150
    assert len(counts) < 90
    last = history[-1]["arms"][1]
    assert last["difference_low"] < last["difference"] < last["difference_high"]


def test_prompts_and_answers_are_kept_until_their_time_is_over(store: Store) -> None:
    store.keep("r1", arm="tuned", prompt="Who is it?", answer="Ann", until=100.0)
    store.keep("r1", arm="shade", prompt="Who is it?", answer="Bob\0 \ud800", until=300.0)
    store.keep("r1", arm="tuned", prompt="Who is it?", answer="Ann again", until=200.0)
    assert [one["answer"] for one in store.answers("r1")] == ["Bob� ?", "Ann again"]
    assert store.purge(199.0) == 0
    assert store.purge(200.0) == 1
    assert [one["arm"] for one in store.answers("r1")] == ["shade"]


@pytest.mark.parametrize("unit", ["'; DROP TABLE ftray_exposures; --", "Zoë 🙂", "%s ? %", "x" * 5000])
def test_units_are_any_text(store: Store, unit: str) -> None:
    experiment = store.create(spec(), digests(spec()))
    assert show(store, experiment, unit).is_new
    assert not show(store, experiment, unit).is_new
    assert answer(store, unit, 1.0, unit=unit) == "recorded"
    assert answer(store, unit, 1.0, unit=unit) == "duplicate"


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800"])
def test_what_no_database_can_hold_is_refused(store: Store, text: str) -> None:
    experiment = store.create(spec(), digests(spec()))
    show(store, experiment, "ann")
    with pytest.raises(OutOfRange):
        store.expose("greeting", unit=text, arm="base", propensity=0.5, response_id="r")
    with pytest.raises(OutOfRange):
        answer(store, text, 1.0, unit="ann")
    with pytest.raises(UnknownResponse):
        answer(store, "k", 1.0, unit=text)
    with pytest.raises(UnknownResponse):
        store.measure(text, {"latency_seconds": 1.0})


def test_a_response_has_one_owner(store: Store) -> None:
    experiment = store.create(spec(), digests(spec()))
    show(store, experiment, "ann", "shared")
    with pytest.raises(Contradiction, match="another unit"):
        show(store, experiment, "bob", "shared")
    assert not show(store, experiment, "ann", "shared").is_new


def test_the_sums_do_not_grow_with_the_units(store: Store) -> None:
    asked = spec(guardrails=guardrails())
    experiment = store.create(asked, digests(asked))
    sizes = []
    for part in (range(100), range(100, 300)):
        run_traffic(store, experiment, part, rates=RATES)
        sizes.append(len(json.dumps(store._opened("greeting").tally.to_record())))
    assert sizes[1] < 1.1 * sizes[0]


def test_a_closed_store_takes_nothing(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.create(spec(), digests(spec()))


def test_a_lost_connection_is_made_again(server: PostgresServer, tmp_path: Path) -> None:
    with opened(server.new_database(), tmp_path) as store:
        experiment = store.create(spec(), digests(spec()))
        show(store, experiment, "ann")
        store.report("greeting")
        server.stop()
        server.start()
        assert not show(store, experiment, "ann").is_new
        server.stop()
        server.start()
        assert store.report("greeting") == store.recompute("greeting")
        assert propensities(store.experiment("greeting").weights) == {"base": 0.5, "tuned": 0.5}
