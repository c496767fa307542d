"""What a judge found, one JSON line per picture, so that an interrupted judge goes on.

    RUN/scores/<row>/<judge>.<rank>.jsonl    {"item": "cat_07", "seed": 0, "picture": "9f3c...", "facts": {"cp": [3]}}

A line holds for the bytes of its picture and for its judge alone: a picture that was drawn again, or another checkpoint
of the judge, is scored anew. Each process appends to a file of its own and reads all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from mentor_rl.evaluate.benchmark import Facts, PictureKey, Unscored


class ScoreStore:
    """The facts of one row by one judge.

    Args:
        folder: of the row.
        judge: identity of the judge.
        rank: of this process.
    """

    def __init__(self, folder: Path, judge: str, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self._judge = hashlib.sha256(judge.encode()).hexdigest()[:12]
        self._facts: dict[tuple[PictureKey, str], Facts] = {}
        self._reasons: dict[tuple[PictureKey, str], str] = {}

    def read(self) -> None:
        """All lines of all processes; one that a kill cut short is left out."""
        for file in sorted(self.folder.glob(f"{self._judge}.*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    key = ((row["item"], row["seed"]), row["picture"])
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue
                if "facts" in row:
                    self._facts[key] = row["facts"]
                elif "reason" in row:
                    self._reasons[key] = row["reason"]

    def get(self, key: PictureKey, picture: str) -> Facts | None:
        """The facts of a picture with this fingerprint."""
        return self._facts.get((key, picture))

    def reason(self, key: PictureKey, picture: str) -> str:
        """Why there are none."""
        return self._reasons.get((key, picture), "not scored yet")

    def add(self, rows: list[tuple[PictureKey, str, Facts | Unscored]]) -> None:
        """Append what one call of the judge found: (key, fingerprint of the picture, outcome)."""
        lines = []
        for (item, seed), picture, outcome in rows:
            found = {"reason": outcome.reason} if isinstance(outcome, Unscored) else {"facts": dict(outcome)}
            lines.append(json.dumps({"item": item, "seed": seed, "picture": picture, **found}, ensure_ascii=False))
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{self._judge}.{self.rank}.jsonl"
        with file.open("a+b") as opened:
            if opened.tell() and not _ends_a_line(file):
                opened.write(b"\n")
            opened.write("".join(f"{line}\n" for line in lines).encode())
            opened.flush()
            os.fsync(opened.fileno())


def picture_fingerprint(path: Path) -> str:
    """Sixteen digits that change with the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read(1) == b"\n"
