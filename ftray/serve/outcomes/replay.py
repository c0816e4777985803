"""An experiment's sums from its rows alone: who was first is found again, and nothing of what was summed is read."""

from __future__ import annotations

import json
from typing import Any

from ftray.serve.experiment.spec import Experiment, UnknownResponse
from ftray.serve.experiment.tally import Tally
from ftray.serve.outcomes.database import Connection, Database
from ftray.serve.outcomes.ledger import pair_of
from ftray.serve.outcomes.state import COLUMNS, opened


def replay(database: Database, connection: Connection, name: str) -> tuple[Experiment, Tally]:
    """Return an experiment and its tally, folded anew. Raises UnknownResponse where there is none."""

    def ask(text: str) -> Any:
        return connection.execute(database.spell(text), (name,))

    row = ask(f"SELECT {COLUMNS} FROM ftray_experiments WHERE name = ?").fetchone()
    if row is None:
        raise UnknownResponse(f"there is no experiment {name!r}")
    experiment = opened(row, []).experiment
    tally = Tally(spec=experiment.spec)
    weightings = ask("SELECT version, shares FROM ftray_weightings WHERE experiment = ?").fetchall()
    shares = {version: json.loads(text) for version, text in weightings}
    arms: dict[str, tuple[str, int]] = {}
    exposures = ask("SELECT unit, arm, weighting, at FROM ftray_exposures WHERE experiment = ? ORDER BY seq")
    for unit, arm, weighting, at in exposures:
        arms[unit] = arm, weighting
        tally.expose(arm, shares[weighting], at=at)
    firsts: set[tuple[str, str]] = set()
    outcomes = ask("SELECT unit, metric, value, is_late, at FROM ftray_outcomes WHERE experiment = ? ORDER BY seq")
    for unit, metric, value, is_late, at in outcomes:
        if is_late:
            tally.late += 1
        elif (unit, metric) not in firsts:
            firsts.add((unit, metric))
            arm, weighting = arms[unit]
            tally.outcome(metric, arm, value, shares[weighting], at=at)
            tally.is_due()
    _replay_votes(tally, arms, ask)
    return experiment, tally


def _replay_votes(tally: Tally, arms: dict[str, tuple[str, int]], ask: Any) -> None:
    firsts: set[tuple[str, str]] = set()
    votes = ask(
        "SELECT v.unit, c.unit, r.unit, v.is_tie, v.is_late, v.at FROM ftray_preferences v"
        " JOIN ftray_responses c ON c.response_id = v.chosen JOIN ftray_responses r ON r.response_id = v.rejected"
        " WHERE v.experiment = ? ORDER BY v.seq"
    )
    for rater, chosen_unit, rejected_unit, is_tie, is_late, at in votes:
        chosen, rejected = arms[chosen_unit][0], arms[rejected_unit][0]
        if is_late:
            tally.late += 1
        elif (rater, pair_of(chosen, rejected)) not in firsts:
            firsts.add((rater, pair_of(chosen, rejected)))
            tally.prefer(rater=rater, chosen=chosen, rejected=rejected, is_tie=bool(is_tie), at=at)
