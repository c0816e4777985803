"""Searchers of Ray Tune over a space: a planned list, optuna, or any other by name, each kept from asking twice.

Whatever suggests, `Distinct` gives the points to try first, refuses a configuration whose trial there is already, and
ends after so many different ones. A campaign that goes on tells the searcher what its finished trials came to.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from ray import tune
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher

from ftray.campaign import Config
from ftray.errors import InputError, nearest
from ftray.space import Dimension, Range
from ftray.sweep.space import Sample, Space, grid
from ftray.sweep.trial import OBJECTIVE

Mode = Literal["max", "min"]
Key = Callable[[Config], str]
ATTEMPTS = 100
"""How often a searcher is asked again after a configuration that is known."""
OWN = ("grid", "random")
TUNE_NAMES = tuple(sorted(set(SEARCH_ALG_IMPORT) - {"random", "variant_generator"}))


def make_searcher(
    name: str,
    space: Space,
    *,
    points: Sequence[Config],
    trials: int,
    seed: int,
    mode: Mode,
    key_of: Key,
    known: Sequence[tuple[Config, float]] = (),
) -> Distinct:
    """Return a searcher that suggests `trials` different configurations, those `known` included.

    `points` come first, in order: the default, and configurations that were interrupted. `known` are those that
    finished earlier, with their best value: they are not suggested again. `key_of` is the same for configurations that
    train the same weights. For `grid`, `trials` is how many the grid and the points come to.

    Raises InputError, path sweep.searcher: `unknown_searcher`, `missing_package`, `unsuitable_searcher`.
    """
    finished = {key_of(config) for config, _ in known}
    points = [point for point in points if key_of(point) not in finished]
    held = [config for config, _ in known if config in space]
    # A point outside the space is one that the searcher cannot be told of; the order of the points is kept.
    asks_first = all(point in space for point in points)
    inner: Searcher
    if name in OWN:
        asks_first = False
        first = finished | {key_of(point) for point in points}
        listed = [point for point in grid(space) if key_of(point) not in first] if name == "grid" else []
        inner = Planned(iter(listed) if name == "grid" else Sample(space, seed=seed), mode=mode)
    else:
        start = [*held, *points] if asks_first else held
        inner, takes_points = _tune_searcher(name, space, start=start, seed=seed, mode=mode)
        asks_first, held = asks_first and takes_points, held if takes_points else []
    return Distinct(
        inner,
        space=space,
        points=points,
        asks_first=asks_first,
        trials=trials,
        seed=seed,
        mode=mode,
        key_of=key_of,
        known=known,
        num_told=len(held) if name not in OWN else 0,
    )


def require_searcher(name: str, space: Space, *, seed: int, mode: Mode) -> None:
    """Refuse a searcher that there is not, or that cannot search this space: as `make_searcher` does, and earlier."""
    if name not in OWN:
        _tune_searcher(name, space, start=[], seed=seed, mode=mode)


class Planned(Searcher):
    """Suggest configurations in a given order, whatever comes of them."""

    def __init__(self, configs: Iterator[Config], *, mode: Mode) -> None:
        super().__init__(metric=OBJECTIVE, mode=mode)
        self._configs = configs

    def suggest(self, trial_id: str) -> Any:
        return next(self._configs, Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing from it."""


class Distinct(Searcher):
    """Suggest what another searcher does, but each trial once, and end after so many.

    `deduplicated` counts the suggestions refused; `exhausted` says that nothing new came before there were enough.
    """

    def __init__(
        self,
        inner: Searcher,
        *,
        space: Space,
        points: Sequence[Config],
        asks_first: bool,
        trials: int,
        seed: int,
        mode: Mode,
        key_of: Key,
        known: Sequence[tuple[Config, float]],
        num_told: int,
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode=mode)
        self.inner = inner
        self.trials = trials
        self.deduplicated = 0
        self.exhausted = False
        self._space, self._seed, self._key_of = space, seed, key_of
        self._points, self._asks_first = list(points), asks_first
        self._values: dict[str, float | None] = {key_of(config): value for config, value in known}
        self._known = set(self._values)
        self._keys: dict[str, str] = {}  # Tune's trial id -> key
        self._inner_ids: dict[str, str] = {}  # Tune's trial id -> the one that the inner searcher knows
        for number in range(num_told):
            self._ask(f"known-{number}")

    def suggest(self, trial_id: str) -> Any:
        if len(self._values) >= self.trials:
            return Searcher.FINISHED
        while self._points:
            point = self._points.pop(0)
            key = self._key_of(point)
            if key in self._values:
                continue
            inner_id = f"{trial_id}-point"
            if self._asks_first and self._ask(inner_id, wanted=key) is not None:
                self._inner_ids[trial_id] = inner_id
            return self._give(trial_id, point, key)
        for attempt in range(ATTEMPTS):
            suggestion = self._ask(f"{trial_id}-{attempt}")
            if suggestion is None or isinstance(suggestion, str):
                self.exhausted = suggestion == Searcher.FINISHED
                return suggestion
            key = self._key_of(suggestion)
            if key not in self._values:
                self._inner_ids[trial_id] = f"{trial_id}-{attempt}"
                return self._give(trial_id, suggestion, key)
            self.deduplicated += key not in self._known
        return self._leftover(trial_id)

    def _ask(self, inner_id: str, *, wanted: str | None = None) -> Any:
        """Ask the inner searcher, and answer at once where the answer is known, or it is not the configuration wanted.

        With `wanted`: return the suggestion if it is that one and new, else None.
        """
        suggestion = self.inner.suggest(inner_id)
        if not isinstance(suggestion, dict):
            return None if wanted is not None else suggestion
        key = self._key_of(suggestion)
        if key in self._values or (wanted is not None and key != wanted):
            self._tell(inner_id, self._values.get(key))
            return None if wanted is not None else suggestion
        return suggestion

    def _give(self, trial_id: str, config: Config, key: str) -> Config:
        self._values[key] = None
        self._keys[trial_id] = key
        return config

    def _leftover(self, trial_id: str) -> Any:
        """Return a configuration that the searcher does not come to by itself, or FINISHED where there is none."""
        rest = grid(self._space) if not self._space.has_ranges else Sample(self._space, seed=self._seed)
        for config in itertools.islice(rest, None if not self._space.has_ranges else ATTEMPTS):
            if (key := self._key_of(config)) not in self._values:
                return self._give(trial_id, config, key)
        self.exhausted = True
        return Searcher.FINISHED

    def _tell(self, inner_id: str, value: float | None) -> None:
        if value is None or not math.isfinite(value):
            self.inner.on_trial_complete(inner_id, error=True)
        else:
            self.inner.on_trial_complete(inner_id, result={OBJECTIVE: value, "training_iteration": 1})

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._inner_ids and math.isfinite(result.get(OBJECTIVE, math.nan)):
            self.inner.on_trial_result(self._inner_ids[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        key = self._keys.pop(trial_id, None)
        value = (result or {}).get(OBJECTIVE)
        if key is not None and value is not None and math.isfinite(value):
            self._values[key] = float(value)
        inner_id = self._inner_ids.pop(trial_id, None)
        if inner_id is not None:
            self._tell(inner_id, None if error else value)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept Tune's word on the objective where it is what this searches by."""
        return metric in (None, OBJECTIVE) and mode in (None, self.mode)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: a campaign goes on from its ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing: a campaign goes on from its ledger."""


def _tune_searcher(name: str, space: Space, *, start: Sequence[Config], seed: int, mode: Mode) -> tuple[Searcher, bool]:
    """Return a searcher that knows the space, and whether it begins with `start`."""
    made = _class_of(name)
    offered: dict[str, Any] = {
        "metric": OBJECTIVE,
        "mode": mode,
        "points_to_evaluate": list(start) or None,
        "seed": seed,
        "random_state_seed": seed,
        "random_state": seed,
    }
    taken = inspect.signature(made.__init__).parameters
    try:
        searcher: Searcher = made(**{key: value for key, value in offered.items() if key in taken})
        searcher.set_search_properties(OBJECTIVE, mode, {key: _domain(one) for key, one in space.dimensions.items()})
    except (AssertionError, ImportError) as error:
        # Tune's searchers assert that their package is there.
        raise _refused(
            f"the searcher {name} needs a package that is not installed: {' '.join(str(error).split())}",
            kind="missing_package",
            given=name,
            allowed=[*OWN, "optuna"],
            hint="Install it, or take another searcher: optuna comes with ftray.",
        ) from error
    except (TypeError, ValueError) as error:
        raise _refused(
            f"the searcher {name} cannot search this space: {' '.join(str(error).split())}",
            kind="unsuitable_searcher",
            given={"searcher": name, "space": sorted(space.dimensions)},
            allowed=[*OWN, "optuna"],
            hint="Take another searcher, or change the space to one that it can search.",
        ) from error
    return searcher, "points_to_evaluate" in taken


def _class_of(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not attribute and name in TUNE_NAMES:
        imported: Callable[[], Any] = SEARCH_ALG_IMPORT[name]
        found = imported()
        if name == "optuna":
            import optuna

            # It greets each new study in the middle of the leaderboard.
            optuna.logging.set_verbosity(optuna.logging.WARNING)
    elif attribute:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError as error:
            raise _refused(
                f"the module of the searcher {name} cannot be imported: {error}",
                kind="unknown_searcher",
                given=name,
                allowed="module:Class, importable from here",
                hint="Set PYTHONPATH to the folder of the module.",
            ) from error
    else:
        found = None
    if not (isinstance(found, type) and issubclass(found, Searcher)):
        close = nearest(name, [*OWN, *TUNE_NAMES])
        raise _refused(
            f"{name} is no searcher of Ray Tune",
            kind="unknown_searcher",
            given=name,
            allowed=[*OWN, *TUNE_NAMES, "module:Class"],
            hint=f"Did you mean {close}?" if close else "A class must be a ray.tune.search.Searcher.",
        )
    return found


def _domain(dimension: Dimension) -> Any:
    if not isinstance(dimension, Range):
        return tune.choice(dimension)
    low, high = dimension.bounds
    if dimension.kind == "int":
        return tune.randint(int(low), int(high) + 1)
    return tune.uniform(low, high) if dimension.kind == "uniform" else tune.loguniform(low, high)


def _refused(message: str, *, kind: str, given: Any, allowed: Any, hint: str) -> InputError:
    return InputError(message, kind=kind, given=given, allowed=allowed, hint=hint, path="sweep.searcher")
