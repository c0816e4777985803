"""The store of exposures and outcomes: what a call has returned is committed, and flushed to the disk.

Running sums are changed in the transaction of the event they come from, so a report costs the same after a million
units, and equals what the rows themselves give (`recompute`). Outcomes that come after an experiment's end are stored
and change nothing: the report stays what it was when it was acted on. A unit that was exposed before the end keeps its
arm.

Calls may come from any thread and, on both databases, from several processes.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftray.artifacts import now as utc_now
from ftray.errors import InputError
from ftray.serve.experiment.report import build_report
from ftray.serve.experiment.spec import (
    Experiment,
    ExperimentSpec,
    Exposure,
    Outcomes,
    Recorded,
    Status,
    UnknownResponse,
)  # fmt: skip
from ftray.serve.outcomes.database import Connection, Database, Row, SqliteDatabase, database_of, lost
from ftray.serve.outcomes.replay import replay
from ftray.serve.outcomes.state import COLUMNS, Open, opened
from ftray.serve.outcomes.tables import prepare_tables
from ftray.serve.outcomes.writer import Writer


def open_outcomes(url: str, folder: Path) -> Store:
    """Open the store that `serve.store` names; `sqlite` is FOLDER/outcomes.sqlite.

    Raises InputError for a place that is none, that cannot be reached, that is damaged or of a newer ftray.
    """
    return Store(database_of(url, folder))


class Store(Outcomes):
    """`Outcomes` in a database: one writer, and a connection of its own for whoever reads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        if isinstance(database, SqliteDatabase):
            database.check()
        writing = database.connect()
        try:
            self._check(writing)
        except BaseException:
            writing.close()
            raise
        self._writer = Writer(database, writing)
        self._reading: Connection | None = None
        self._reading_lock = threading.Lock()

    def _check(self, connection: Connection) -> None:
        try:
            prepare_tables(self._database, connection)
        except Exception as error:
            if not self._database.is_error(error):
                raise
            found = self._database.explain(error)
            raise InputError(
                f"{self._database.place} cannot be used as a database of outcomes: {error}",
                kind="bad_record",
                given=self._database.place,
                hint=found.hint,
                path="serve.store",
            ) from error

    def create(self, spec: ExperimentSpec, digests: dict[str, str | None]) -> Experiment:
        salt, at = secrets.token_hex(16), utc_now()
        return self._writer.call(lambda ledger: ledger.create(spec, digests, salt=salt, at=at))

    def reweigh(self, name: str, weights: dict[str, float]) -> Experiment:
        at = utc_now()
        return self._writer.call(lambda ledger: ledger.reweigh(name, weights, at=at))

    def stop(self, name: str, *, reason: str, status: Status = "stopped") -> Experiment:
        at = utc_now()
        return self._writer.call(lambda ledger: ledger.stop(name, reason=reason, status=status, at=at))

    def expose(self, name: str, *, unit: str, arm: str, propensity: float, response_id: str) -> Exposure:
        at = utc_now()
        return self._writer.call(
            lambda ledger: ledger.expose(
                name, unit=unit, arm=arm, propensity=propensity, response_id=response_id, at=at
            )
        )

    def feedback(
        self, *, key: str, metric: str, value: float, response_id: str | None, experiment: str | None, unit: str | None
    ) -> Recorded:
        number, at = float(value), utc_now()
        return self._writer.call(
            lambda ledger: ledger.feedback(
                key=key,
                metric=metric,
                value=number,
                response_id=response_id,
                experiment=experiment,
                unit=unit,
                at=at,
            )
        )

    def prefer(self, *, key: str, experiment: str, unit: str, chosen: str, rejected: str, is_tie: bool) -> Recorded:
        at = utc_now()
        return self._writer.call(
            lambda ledger: ledger.prefer(
                key=key, experiment=experiment, unit=unit, chosen=chosen, rejected=rejected, is_tie=is_tie, at=at
            )
        )

    def measure(self, response_id: str, values: dict[str, float]) -> None:
        at = utc_now()
        self._writer.call(lambda ledger: ledger.measure(response_id, values, at=at))

    def keep(self, response_id: str, *, arm: str, prompt: str, answer: str, until: float) -> None:
        self._writer.call(lambda ledger: ledger.keep(response_id, arm=arm, prompt=prompt, answer=answer, until=until))

    def purge(self, now: float) -> int:
        return self._writer.call(lambda ledger: ledger.purge(now))

    def experiment(self, name: str) -> Experiment:
        return self._opened(name).experiment

    def experiments(self) -> list[Experiment]:
        found = self._read(f"SELECT {COLUMNS} FROM ftray_experiments ORDER BY seq")
        return [opened(row, []).experiment for row in found]

    def report(self, name: str) -> dict[str, Any]:
        one = self._opened(name)
        return build_report(one.experiment, one.tally)

    def history(self, name: str) -> list[dict[str, Any]]:
        self._opened(name)
        found = self._read("SELECT point FROM ftray_history WHERE experiment = ? ORDER BY outcomes", name)
        return [json.loads(row[0]) for row in found]

    def answers(self, response_id: str) -> list[dict[str, Any]]:
        """Return the prompt and the answers that are kept of a response: its arm's, and those of shadows."""
        found = self._read(
            "SELECT arm, prompt, answer, until FROM ftray_answers WHERE response_id = ? ORDER BY arm", response_id
        )
        return [dict(zip(("arm", "prompt", "answer", "until"), row, strict=True)) for row in found]

    def recompute(self, name: str) -> dict[str, Any]:
        """Return the report as the rows of exposures, outcomes and preferences give it, without the running sums."""
        connection = self._database.connect()
        try:
            with self._explained():
                self._database.begin_reading(connection)
                found = replay(self._database, connection, name)
                connection.execute("COMMIT")
        finally:
            connection.close()
        return build_report(*found)

    def close(self) -> None:
        self._writer.close()
        with self._reading_lock:
            self._forget_reading()

    def _opened(self, name: str) -> Open:
        found = self._read(f"SELECT {COLUMNS} FROM ftray_experiments WHERE name = ?", name)
        if not found:
            raise UnknownResponse(f"there is no experiment {name!r}")
        return opened(found[0], [])

    def _read(self, text: str, *values: Any) -> list[Row]:
        def ask(connection: Connection) -> list[Row]:
            return list(connection.execute(self._database.spell(text), values))

        with self._reading_lock, self._explained():
            try:
                return ask(self._reader())
            except Exception as error:
                self._forget_reading()
                if not self._database.is_lost(error):
                    raise
                return ask(self._reader())

    def _reader(self) -> Connection:
        if self._reading is None:
            self._reading = self._database.connect()
        return self._reading

    def _forget_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, InputError):
                raise lost(error) from error
            if self._database.is_error(error):
                raise self._database.explain(error) from error
            raise
