"""What may be done within one transaction of the store: events in, running sums along with them.

Every call first looks, and refuses; then it writes. So a refused call leaves no trace, and the others of its group
stand. All of them may be sent again: what is there already is not written twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ftray.artifacts import canonical_json
from ftray.serve.experiment.report import history_point
from ftray.serve.experiment.spec import (
    MEASURED,
    Contradiction,
    Experiment,
    ExperimentSpec,
    Exposure,
    OutOfRange,
    Recorded,
    Status,
    UnknownResponse,
    propensities,
    require_propensities,
)  # fmt: skip
from ftray.serve.experiment.tally import Tally, measured_metrics
from ftray.serve.outcomes.database import Connection, Database, Row
from ftray.serve.outcomes.state import COLUMNS, Open, opened, weighting_of

Cache = dict[str, Open]


class Ledger:
    """The store within a transaction; `finish` writes the sums before it is committed."""

    def __init__(self, database: Database, connection: Connection, cache: Cache) -> None:
        self._database = database
        self._connection = connection
        self._cache = cache
        self._seen: set[str] = set()
        """Experiments that were found in this transaction: nobody else can change them before it ends."""

    def create(self, spec: ExperimentSpec, digests: Mapping[str, str | None], *, salt: str, at: str) -> Experiment:
        names = {arm.name for arm in (*spec.arms, *spec.shadow)}
        assert set(digests) == names, f"digests are of {sorted(digests)}, arms are {sorted(names)}"
        found = self._find(spec.name)
        if found is not None:
            if found.experiment.spec != spec:
                raise Contradiction(f"there is an experiment {spec.name!r} that is another one")
            if found.experiment.digests != dict(digests):
                raise Contradiction(
                    f"there is an experiment {spec.name!r} whose arms stand for other adapters: a model it names has "
                    "moved since; give this one another name"
                )
            return found.experiment
        weights = {arm.name: arm.weight for arm in spec.arms}
        experiment = Experiment(
            spec=spec, digests=dict(digests), weights=weights, status="running", reason="", salt=salt, created_at=at
        )
        self._do(
            "INSERT INTO ftray_experiments (name, spec, digests, weights, status, reason, salt, created_at,"
            " revision, tally) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            spec.name, spec.model_dump_json(), json.dumps(digests), json.dumps(weights), "running", "", salt, at, 0, "",
        )  # fmt: skip
        one = Open(experiment=experiment, revision=0, tally=Tally(spec=spec), shares=[])
        self._cache[spec.name] = one
        self._seen.add(spec.name)
        self._weigh(one, weights, at)
        return experiment

    def reweigh(self, name: str, weights: Mapping[str, float], *, at: str) -> Experiment:
        one = self._open(name)
        given = {arm: float(weight) for arm, weight in weights.items()}
        names = [arm.name for arm in one.experiment.spec.arms]
        if set(given) != set(names):
            raise OutOfRange(f"weights must be given for each arm ({', '.join(names)}) and for no other")
        if not all(math.isfinite(weight) and weight > 0 for weight in given.values()):
            raise OutOfRange("every weight must be a number above 0")
        try:
            require_propensities(given, one.experiment.spec.minimum_propensity)
        except ValueError as error:
            raise OutOfRange(str(error)) from None
        if not one.is_running:
            raise Contradiction(f"the experiment {name!r} has ended ({one.experiment.status})")
        ordered = {arm: given[arm] for arm in names}
        self._change(one, weights=ordered)
        if propensities(ordered) != one.shares[-1]:
            self._weigh(one, ordered, at)
        return one.experiment

    def stop(self, name: str, *, reason: str, status: Status, at: str) -> Experiment:
        assert status != "running"
        one = self._open(name)
        if one.is_running:
            self._change(one, status=status, reason=reason)
            self._do("UPDATE ftray_experiments SET ended_at = ? WHERE name = ?", at, name)
        return one.experiment

    def expose(self, name: str, *, unit: str, arm: str, propensity: float, response_id: str, at: str) -> Exposure:
        one = self._open(name)
        require_text(unit, "unit")
        require_text(response_id, "response_id")
        owner = self._owner(response_id)
        if owner is not None and owner != (name, unit):
            raise Contradiction(f"the response {response_id!r} belongs to another unit")
        known = self._first("SELECT arm, propensity FROM ftray_exposures WHERE experiment = ? AND unit = ?", name, unit)
        if known is None:
            if not one.is_running:
                raise Contradiction(f"the experiment {name!r} has ended ({one.experiment.status})")
            version = weighting_of(one.shares, arm, propensity)
            self._do(
                "INSERT INTO ftray_exposures (experiment, unit, arm, propensity, weighting, at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                name, unit, arm, propensity, version, at,
            )  # fmt: skip
            one.tally.expose(arm, one.shares[version], at=at)
            one.is_changed = True
        if owner is None:
            self._do("INSERT INTO ftray_responses VALUES (?, ?, ?, ?)", response_id, name, unit, at)
        given_arm, given_propensity = known or (arm, propensity)
        return Exposure(experiment=name, unit=unit, arm=given_arm, propensity=given_propensity, is_new=known is None)

    def feedback(
        self,
        *,
        key: str,
        metric: str,
        value: float,
        response_id: str | None,
        experiment: str | None,
        unit: str | None,
        at: str,
    ) -> Recorded:
        require_text(key, "idempotency_key")
        name, unit = self._whose(response_id, experiment, unit)
        one = self._open(name)
        arm, weighting = self._exposure(name, unit)
        self._require_value(one, metric, value)
        known = self._first(
            "SELECT unit, metric, value FROM ftray_outcomes WHERE experiment = ? AND key = ?", name, key
        )
        if known is not None:
            if tuple(known) != (unit, metric, value):
                raise Contradiction(
                    f"the idempotency key {key!r} was used for {known[1]} = {known[2]:g} of another call"
                )
            return "duplicate"
        counts = one.is_running and not self._has_outcome(name, unit, metric)
        self._note_outcome(one, unit, metric, value, response_id=response_id, key=key, counts=counts, at=at)
        if counts:
            self._fold(one, metric, arm, value, weighting, at)
        elif not one.is_running:
            one.tally.late += 1
            one.is_changed = True
        return "recorded"

    def measure(self, response_id: str, values: Mapping[str, float], *, at: str) -> None:
        unknown = sorted(set(values) - set(MEASURED))
        if unknown or not all(math.isfinite(value) for value in values.values()):
            raise OutOfRange(f"{', '.join(MEASURED)} are measured, and are finite; given: {dict(values)}")
        name, unit = self._whose(response_id, None, None)
        one = self._open(name)
        if not one.is_running:
            return
        arm, weighting = self._exposure(name, unit)
        for metric, value in values.items():
            if not self._has_outcome(name, unit, metric):
                self._note_outcome(one, unit, metric, value, response_id=response_id, key=None, counts=True, at=at)
                self._fold(one, metric, arm, value, weighting, at)

    def prefer(
        self, *, key: str, experiment: str, unit: str, chosen: str, rejected: str, is_tie: bool, at: str
    ) -> Recorded:
        require_text(key, "idempotency_key")
        require_text(unit, "unit")
        one = self._open(experiment)
        arms = []
        for response_id in (chosen, rejected):
            owner = self._owner(response_id)
            if owner is None or owner[0] != experiment:
                raise UnknownResponse(f"the experiment {experiment!r} has no response {response_id!r}")
            arms.append(self._exposure(*owner)[0])
        if arms[0] == arms[1]:
            raise OutOfRange("both responses are of the same arm: a choice between them says nothing")
        known = self._first(
            "SELECT unit, chosen, rejected, is_tie FROM ftray_preferences WHERE experiment = ? AND key = ?",
            experiment, key,
        )  # fmt: skip
        if known is not None:
            if tuple(known) != (unit, chosen, rejected, int(is_tie)):
                raise Contradiction(f"the idempotency key {key!r} was used for another choice")
            return "duplicate"
        pair = pair_of(*arms)
        is_first = not self._first(
            "SELECT 1 FROM ftray_preferences WHERE experiment = ? AND unit = ? AND pair = ? AND counts = 1",
            experiment, unit, pair,
        )  # fmt: skip
        counts = one.is_running and is_first
        self._do(
            "INSERT INTO ftray_preferences (experiment, unit, chosen, rejected, pair, is_tie, key, counts, is_late, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            experiment, unit, chosen, rejected, pair, int(is_tie), key, int(counts), int(not one.is_running), at,
        )  # fmt: skip
        if counts:
            one.tally.prefer(rater=unit, chosen=arms[0], rejected=arms[1], is_tie=is_tie, at=at)
            one.is_changed = True
        elif not one.is_running:
            one.tally.late += 1
            one.is_changed = True
        return "recorded"

    def keep(self, response_id: str, *, arm: str, prompt: str, answer: str, until: float) -> None:
        require_text(response_id, "response_id")
        self._do(
            "INSERT INTO ftray_answers VALUES (?, ?, ?, ?, ?) ON CONFLICT (response_id, arm) DO UPDATE SET"
            " prompt = excluded.prompt, answer = excluded.answer, until = excluded.until",
            response_id, arm, storable(prompt), storable(answer), until,
        )  # fmt: skip

    def purge(self, now: float) -> int:
        deleted: int = self._do("DELETE FROM ftray_answers WHERE until <= ?", now).rowcount
        return deleted

    def finish(self) -> None:
        """Write the sums that have changed, and the points of the history."""
        for name in self._seen:
            one = self._cache[name]
            if not one.is_changed:
                continue
            one.revision += 1
            self._do(
                "UPDATE ftray_experiments SET revision = ?, tally = ? WHERE name = ?",
                one.revision, json.dumps(one.tally.to_record()), name,
            )  # fmt: skip
            for point in one.points:
                self._do("INSERT INTO ftray_history VALUES (?, ?, ?)", name, point["outcomes"], json.dumps(point))
            one.points, one.is_changed = [], False

    def _find(self, name: str) -> Open | None:
        """Return an experiment as it is now; what this process has of it is used while the revision is the same."""
        if name in self._seen:
            return self._cache[name]
        known = self._cache.get(name)
        if known is not None:
            row = self._first("SELECT revision FROM ftray_experiments WHERE name = ?", name)
            if row is not None and row[0] == known.revision:
                self._seen.add(name)
                return known
        row = self._first(f"SELECT {COLUMNS} FROM ftray_experiments WHERE name = ?", name)
        if row is None:
            return None
        weightings = self._do("SELECT shares FROM ftray_weightings WHERE experiment = ? ORDER BY version", name)
        self._cache[name] = opened(row, [json.loads(one[0]) for one in weightings])
        self._seen.add(name)
        return self._cache[name]

    def _open(self, name: str) -> Open:
        found = self._find(name)
        if found is None:
            raise UnknownResponse(f"there is no experiment {name!r}")
        return found

    def _change(
        self,
        one: Open,
        *,
        weights: dict[str, float] | None = None,
        status: Status | None = None,
        reason: str | None = None,
    ) -> None:
        old = one.experiment
        one.experiment = Experiment(
            spec=old.spec,
            digests=old.digests,
            weights=weights or old.weights,
            status=status or old.status,
            reason=old.reason if reason is None else reason,
            salt=old.salt,
            created_at=old.created_at,
        )
        new = one.experiment
        self._do(
            "UPDATE ftray_experiments SET weights = ?, status = ?, reason = ? WHERE name = ?",
            json.dumps(new.weights), new.status, new.reason, new.spec.name,
        )  # fmt: skip
        one.is_changed = True

    def _weigh(self, one: Open, weights: dict[str, float], at: str) -> None:
        shares = propensities(weights)
        self._do(
            "INSERT INTO ftray_weightings VALUES (?, ?, ?, ?)",
            one.experiment.spec.name, len(one.shares), canonical_json(shares), at,
        )  # fmt: skip
        one.shares.append(shares)
        one.is_changed = True

    def _fold(self, one: Open, metric: str, arm: str, value: float, weighting: int, at: str) -> None:
        one.tally.outcome(metric, arm, value, one.shares[weighting], at=at)
        if one.tally.is_due():
            one.points.append(history_point(one.experiment, one.tally))
        one.is_changed = True

    def _note_outcome(
        self, one: Open, unit: str, metric: str, value: float, *, response_id: str | None, key: str | None,
        counts: bool, at: str,
    ) -> None:  # fmt: skip
        self._do(
            "INSERT INTO ftray_outcomes (experiment, unit, metric, value, response_id, key, counts, is_late, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            one.experiment.spec.name, unit, metric, value, response_id, key, int(counts), int(not one.is_running), at,
        )  # fmt: skip

    def _has_outcome(self, name: str, unit: str, metric: str) -> bool:
        return bool(
            self._first(
                "SELECT 1 FROM ftray_outcomes WHERE experiment = ? AND unit = ? AND metric = ? AND counts = 1",
                name, unit, metric,
            )
        )  # fmt: skip

    def _whose(self, response_id: str | None, experiment: str | None, unit: str | None) -> tuple[str, str]:
        """Return experiment and unit that an outcome is of."""
        if response_id is None:
            if experiment is None or unit is None:
                raise OutOfRange("an outcome is of a response_id, or of an experiment and a unit")
            return experiment, unit
        owner = self._owner(response_id)
        if owner is None or experiment not in (None, owner[0]) or unit not in (None, owner[1]):
            raise UnknownResponse(f"no experiment has the response {response_id!r}")
        return owner

    def _owner(self, response_id: str) -> tuple[str, str] | None:
        if not is_text(response_id):
            return None
        row = self._first("SELECT experiment, unit FROM ftray_responses WHERE response_id = ?", response_id)
        return None if row is None else (row[0], row[1])

    def _exposure(self, name: str, unit: str) -> tuple[str, int]:
        """Return a unit's arm and the version of the weights that it was drawn with."""
        row = is_text(unit) and self._first(
            "SELECT arm, weighting FROM ftray_exposures WHERE experiment = ? AND unit = ?", name, unit
        )
        if not row:
            raise UnknownResponse(f"the experiment {name!r} has not shown anything to the unit {unit!r}")
        return row[0], row[1]

    def _require_value(self, one: Open, metric: str, value: float) -> None:
        spec = one.experiment.spec
        taken = sorted(measured_metrics(spec) - set(MEASURED))
        if metric not in taken:
            why = "is measured by the endpoint" if metric in MEASURED else "is no metric of this experiment"
            raise OutOfRange(f"{metric!r} {why}; it takes {', '.join(taken)}")
        if not math.isfinite(value):
            raise OutOfRange(f"{metric} must be a finite number")
        if metric == spec.metric and not 0.0 <= value <= 1.0:
            raise OutOfRange(f"{metric} must be from 0 to 1, or true or false; given: {value:g}")

    def _do(self, text: str, *values: Any) -> Any:
        return self._connection.execute(self._database.spell(text), values)

    def _first(self, text: str, *values: Any) -> Row | None:
        row: Row | None = self._do(text, *values).fetchone()
        return row


def pair_of(first: str, second: str) -> str:
    """Return the name of a pair of arms, whichever comes first."""
    return ",".join(sorted((first, second)))


def is_text(text: str) -> bool:
    """Return whether both databases can hold a text."""
    return "\0" not in text and storable(text) == text


def storable(text: str) -> str:
    """Return a text with what a database cannot hold (NUL, half a character) as replacement characters."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")


def require_text(text: str, what: str) -> None:
    """Raise OutOfRange for a text that a database cannot hold."""
    if not text or not is_text(text):
        raise OutOfRange(f"{what} must be a text without NUL and half characters")
