"""The tables of the store. Rows of exposures, outcomes and preferences are never changed: reports can be recomputed."""

from __future__ import annotations

from ftray.errors import InputError
from ftray.serve.outcomes.database import Connection, Database

VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS ftray_store (version INTEGER NOT NULL);

CREATE TABLE IF NOT EXISTS ftray_experiments (
  seq {serial}, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, digests TEXT NOT NULL, weights TEXT NOT NULL,
  status TEXT NOT NULL, reason TEXT NOT NULL, salt TEXT NOT NULL, created_at TEXT NOT NULL, ended_at TEXT,
  revision INTEGER NOT NULL, tally TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS ftray_weightings (
  experiment TEXT NOT NULL, version INTEGER NOT NULL, shares TEXT NOT NULL, at TEXT NOT NULL,
  PRIMARY KEY (experiment, version)
);

CREATE TABLE IF NOT EXISTS ftray_exposures (
  seq {serial}, experiment TEXT NOT NULL, unit TEXT NOT NULL, arm TEXT NOT NULL, propensity DOUBLE PRECISION NOT NULL,
  weighting INTEGER NOT NULL, at TEXT NOT NULL, UNIQUE (experiment, unit)
);

CREATE TABLE IF NOT EXISTS ftray_responses (
  response_id TEXT PRIMARY KEY, experiment TEXT NOT NULL, unit TEXT NOT NULL, at TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS ftray_outcomes (
  seq {serial}, experiment TEXT NOT NULL, unit TEXT NOT NULL, metric TEXT NOT NULL, value DOUBLE PRECISION NOT NULL,
  response_id TEXT, key TEXT, counts INTEGER NOT NULL, is_late INTEGER NOT NULL, at TEXT NOT NULL,
  UNIQUE (experiment, key)
);
CREATE UNIQUE INDEX IF NOT EXISTS ftray_outcomes_first ON ftray_outcomes (experiment, unit, metric) WHERE counts = 1;

CREATE TABLE IF NOT EXISTS ftray_preferences (
  seq {serial}, experiment TEXT NOT NULL, unit TEXT NOT NULL, chosen TEXT NOT NULL, rejected TEXT NOT NULL,
  pair TEXT NOT NULL, is_tie INTEGER NOT NULL, key TEXT NOT NULL, counts INTEGER NOT NULL, is_late INTEGER NOT NULL,
  at TEXT NOT NULL, UNIQUE (experiment, key)
);
CREATE UNIQUE INDEX IF NOT EXISTS ftray_preferences_first ON ftray_preferences (experiment, unit, pair)
  WHERE counts = 1;

CREATE TABLE IF NOT EXISTS ftray_history (
  experiment TEXT NOT NULL, outcomes INTEGER NOT NULL, point TEXT NOT NULL, PRIMARY KEY (experiment, outcomes)
);

CREATE TABLE IF NOT EXISTS ftray_answers (
  response_id TEXT NOT NULL, arm TEXT NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL,
  until DOUBLE PRECISION NOT NULL, PRIMARY KEY (response_id, arm)
);
CREATE INDEX IF NOT EXISTS ftray_answers_until ON ftray_answers (until);
"""
"""Weightings are all shares that an experiment has had; an exposure names the one its unit was drawn with. The tally is
the running sums; whoever changes an experiment or its tally raises the revision."""


def prepare_tables(database: Database, connection: Connection) -> None:
    """Make the tables where there are none. Raises InputError for those of a newer ftray."""
    database.begin_writing(connection)
    try:
        for statement in TABLES.format(serial=database.serial).split(";"):
            if statement.strip():
                connection.execute(statement)
        found = connection.execute("SELECT version FROM ftray_store").fetchone()
        if found is None:
            connection.execute(f"INSERT INTO ftray_store VALUES ({VERSION})")
        elif found[0] > VERSION:
            raise InputError(
                f"{database.place} was written by a newer ftray: its tables have version {found[0]}, "
                f"and this one reads version {VERSION}",
                kind="incompatible",
                given=found[0],
                allowed=VERSION,
                hint="Use the ftray that wrote it, or another store (serve.store).",
                path="serve.store",
            )
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
