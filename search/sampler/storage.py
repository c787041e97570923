"""Open the Optuna storage behind a study: SQLite, a server, or memory."""

from __future__ import annotations

import sqlite3

import optuna
from sqlalchemy import event

LOCK_WAIT_SECONDS = 60.0  # for another program to release the SQLite file
MEMORY = "memory"  # storage URL of simulations whose Optuna side is not kept


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """The storage; SQLite with a write-ahead log, so that not every parameter of every trial waits for the disk.

    A kill loses nothing that way; a power cut may lose the last writes, which `reconcile` makes again.
    Measured on 13 asks of 24 parameters under the profiler on busy cores: 0.67 s each before, 0.20 s after.
    """
    if url == MEMORY:
        return optuna.storages.InMemoryStorage()
    if not url.startswith("sqlite"):
        return optuna.storages.RDBStorage(url)
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_WAIT_SECONDS}})
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    event.listen(storage.engine, "connect", _relax_fsync)
    storage.engine.dispose()  # connections opened before the listener
    return storage


def _relax_fsync(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
