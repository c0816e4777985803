"""The one writer: calls of any thread, committed in groups by one thread.

Whatever waits while a commit is under way is in the next one, so that a flush to the disk is shared by all who wait for
it. A call returns when its group is committed, and not before.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from ftray.errors import InputError
from ftray.serve.experiment.spec import Contradiction, OutOfRange, UnknownResponse
from ftray.serve.outcomes.database import Connection, Database, lost
from ftray.serve.outcomes.ledger import Cache, Ledger

T = TypeVar("T")
LARGEST_GROUP = 512
REFUSALS = (UnknownResponse, Contradiction, OutOfRange)
"""Raised before anything is written: the others of the group are not touched."""


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be done within a transaction, and who waits for it."""

    work: Callable[[Ledger], Any]
    done: Future[Any]


class Writer:
    """Do work in transactions, one after the other."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._database = database
        self._connection: Connection | None = connection
        self._cache: Cache = {}
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="ftray-outcomes", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[Ledger], T]) -> T:
        """Return what `work` returns once it is committed; raise what it raised, or RunError when it cannot be."""
        done: Future[T] = Future()
        with self._closing:
            if self._is_closed:
                raise RuntimeError("the store is closed")
            self._calls.put(Call(work, done))
        return done.result()

    def close(self) -> None:
        """Write what is waiting, and end."""
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_over = False
        while not is_over:
            group = [self._calls.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < LARGEST_GROUP:
                    group.append(self._calls.get_nowait())
            is_over = None in group
            calls = [call for call in group if call is not None]
            if calls:
                self._commit(calls)
        self._disconnect()

    def _commit(self, calls: list[Call]) -> None:
        """Commit a group. When the connection is lost, once more on another; when it fails, each call by itself."""
        for is_last in (False, True):
            try:
                results = self._transact(calls)
            except Exception as error:
                # Also what should not be: it belongs to its caller, and this thread goes on.
                self._give_up()
                if self._database.is_lost(error) and not is_last:
                    self._disconnect()
                    continue
                if len(calls) > 1:
                    for call in calls:
                        self._commit([call])
                    return
                is_database = self._database.is_error(error)
                calls[0].done.set_exception(self._database.explain(error) if is_database else error)
                return
            for call, (value, refusal) in zip(calls, results, strict=True):
                if refusal is None:
                    call.done.set_result(value)
                else:
                    call.done.set_exception(refusal)
            return

    def _transact(self, calls: list[Call]) -> list[tuple[Any, Exception | None]]:
        if self._connection is None:
            try:
                self._connection = self._database.connect()
            except InputError as error:
                raise lost(error) from error
        self._database.begin_writing(self._connection)
        ledger = Ledger(self._database, self._connection, self._cache)
        results: list[tuple[Any, Exception | None]] = []
        for call in calls:
            try:
                results.append((call.work(ledger), None))
            except REFUSALS as refusal:
                results.append((None, refusal))
        ledger.finish()
        self._connection.execute("COMMIT")
        return results

    def _give_up(self) -> None:
        """Undo what was begun. The sums in memory may be ahead of the database: they are read again."""
        self._cache.clear()
        if self._connection is not None:
            try:
                self._connection.execute("ROLLBACK")
            except Exception as error:
                if not self._database.is_error(error):
                    raise
                self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
