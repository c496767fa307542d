"""The judge's cache: no second request, keys that see every difference, several processes, a kill in the middle."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from judge_server_stub import ANSWER_FAULTS, JudgeStub, in_turn, scores
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.judge_cache import JudgeCache, cache_key
from mentor_rewards.judge_client import JudgeClient
from mentor_rewards.judge_prompts import SUBJECT, TEXT_TO_IMAGE
from mentor_rewards.judge_request import JudgeRequest, JudgeSampling, Picture
from mentor_rewards.judge_server import ServeOptions
from mentor_rewards.testing import sample_batch
from PIL import Image

WRITER = """
import sys
from pathlib import Path
from mentor_rewards.judge_cache import JudgeCache
cache = JudgeCache(Path(sys.argv[1]))
for n in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]} {n}", f"answer {n}")
    print(n, flush=True)
"""


def judged(stub: JudgeStub, file: Path, **options: Any) -> tuple[list[float | None], list[int]]:
    entry = RewardEntry(use="qwen_vl_t2i", options={"url": stub.url, "cache": str(file), **options})
    with Composite({"judge": entry}, failure_rate=1.0) as composite:
        found = composite.score(sample_batch(count=4))
    return found.raw["judge"], found.details["judge"]["asked"]


def test_a_hit_asks_nobody(tmp_path: Path) -> None:
    with JudgeStub(in_turn(scores())) as stub:
        assert judged(stub, tmp_path / "answers.db") == ([3.0] * 4, [1] * 4)
        assert judged(stub, tmp_path / "answers.db") == ([3.0] * 4, [0] * 4)
        assert len(stub.bodies) == 4
        assert judged(stub, tmp_path / "answers.db", seed=1)[1] == [1] * 4
        assert judged(stub, tmp_path / "answers.db", model="another")[1] == [1] * 4


def test_only_answers_that_hold_are_kept(tmp_path: Path) -> None:
    with JudgeStub(in_turn(ANSWER_FAULTS["missing key"])) as stub:
        assert judged(stub, tmp_path / "answers.db")[0] == [None] * 4
        stub.script = in_turn(scores())
        assert judged(stub, tmp_path / "answers.db") == ([3.0] * 4, [1] * 4)


def test_an_answer_that_holds_no_longer_is_asked_for_anew(tmp_path: Path) -> None:
    with JudgeStub(in_turn(scores())) as stub:
        judged(stub, tmp_path / "answers.db")
        with sqlite3.connect(tmp_path / "answers.db") as file:
            file.execute("UPDATE answers SET text = 'of another version'")
        file.close()
        assert judged(stub, tmp_path / "answers.db") == ([3.0] * 4, [1] * 4)


def test_what_is_known_of_a_judge_is_part_of_its_name() -> None:
    plain = ServeOptions(port=8001, log=Path("elsewhere.log"), start_timeout=1.0)
    changes = {"model": "weights"}, {"max_pixels": 10_000}, {"min_pixels": 10}, {"arguments": ("--quantization", "fp8")}
    known = [plain.answers_by, *(plain.model_copy(update=change).answers_by for change in changes)]
    judges = {JudgeClient("http://127.0.0.1:1/v1", "judge", served=served).identity for served in known}
    assert len(judges) == 5
    assert plain.answers_by == ServeOptions().answers_by == ""
    assert JudgeClient("http://127.0.0.1:1/v1", "judge").identity == "judge"


def test_every_difference_makes_another_key() -> None:
    red, blue = (Picture(Image.new("RGB", (4, 4), colour)) for colour in ("red", "blue"))
    wide = Picture(Image.new("RGB", (8, 2), "red"))
    sampling = JudgeSampling(0.0, 512, 0)
    requests = [
        JudgeRequest(TEXT_TO_IMAGE, "a cat", red),
        JudgeRequest(TEXT_TO_IMAGE, "a dog", red),
        JudgeRequest(TEXT_TO_IMAGE, "a cat", blue),
        JudgeRequest(TEXT_TO_IMAGE, "a cat", wide),
        JudgeRequest(SUBJECT, "a cat", red),
        JudgeRequest(SUBJECT, "a cat", red, (blue,)),
        JudgeRequest(SUBJECT, "a cat", blue, (red,)),
    ]
    keys = [cache_key(request, "judge", sampling) for request in requests]
    keys += [cache_key(requests[0], "other", sampling), cache_key(requests[0], "judge", JudgeSampling(0.5, 512, 0))]
    assert len(set(keys)) == len(keys)
    again = JudgeRequest(TEXT_TO_IMAGE, "a cat", Picture(Image.new("RGB", (4, 4), "red")))
    assert cache_key(again, "judge", sampling) == keys[0]


def test_processes_share_a_file_and_a_kill_loses_nothing_written(tmp_path: Path) -> None:
    file = tmp_path / "answers.db"
    command = [sys.executable, "-c", WRITER, str(file)]
    writers = [subprocess.Popen([*command, name, "50"], stdout=subprocess.PIPE) for name in ("one", "two")]
    doomed = subprocess.Popen([*command, "doomed", "1000000"], stdout=subprocess.PIPE)
    assert doomed.stdout is not None
    for _ in range(20):
        doomed.stdout.readline()
    os.kill(doomed.pid, signal.SIGKILL)
    for process in (doomed, *writers):
        process.communicate()
    assert [process.returncode for process in writers] == [0, 0]
    cache = JudgeCache(file)
    assert len(cache) >= 120
    assert cache.get("doomed 19") == cache.get("two 19") == "answer 19"
    cache.put("two 19", "another")
    assert cache.get("two 19") == "answer 19"
    cache.close()
    cache.close()


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is no database, and long enough to be one\n" * 50)
    with pytest.raises(RewardError, match=r"option 'cache': expected a judge cache or a new file at .*notes.txt"):
        JudgeCache(tmp_path / "notes.txt")
