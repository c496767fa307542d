"""Answers of a judge that are kept between runs: raw text by the sha256 of everything that led to it.

A key covers the pixels of every picture, the rendered messages, the template's version, the judge, the sampling and the
schema, so a changed word of a prompt asks anew. It pays in evaluation, on resume and for ablations; the pictures of a
training step are new and never hit. Of a judge whose server somebody else runs only the model's name is known: its
revision and its options are part of the key only as far as the name says them.

SQLite in WAL mode: several processes of one machine may share a file, and a killed one loses at most its last answer.
Not for network file systems.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from dataclasses import asdict
from pathlib import Path

from mentor_rewards.contract import RewardError
from mentor_rewards.judge_request import JudgeRequest, JudgeSampling

BUSY_SECONDS = 30.0
TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID"


class JudgeCache:
    """A file of answers. Safe to use from several threads and processes.

    Raises:
        RewardError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(TABLE)
        except sqlite3.Error as error:
            raise RewardError(f"option 'cache': expected a judge cache or a new file at {path}: {error}") from error

    def get(self, key: str) -> str | None:
        """The stored answer."""
        with self._lock:
            row = self._file.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, text: str) -> None:
        """Store an answer; the first one of a key stays."""
        with self._lock:
            self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, text))

    def __len__(self) -> int:
        with self._lock:
            return int(self._file.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file; harmless when it is closed."""
        with self._lock:
            self._file.close()


def cache_key(request: JudgeRequest, judge: str, sampling: JudgeSampling) -> str:
    """The key of an answer: sha256 of all that it depends on. ``judge``: see JudgeBackend.identity."""
    facts = {
        "messages": request.messages([picture.sha256 for picture in request.pictures]),
        "template": [request.template.name, request.template.version],
        "schema": request.template.schema(),
        "model": judge,
        "sampling": asdict(sampling),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
