"""States are there whole or not at all; a damaged one is set aside, and the one before it is used."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest

from mentor_base.errors import UserError
from mentor_base.runlog import RunFolder
from mentor_base.states import all_states, fault_of, newest_sound, publish, remove, take_up


def state_at(states: Path, step: int) -> Path:
    written = states / ".partial" / f"checkpoint-{step}"
    (written / "global_step").mkdir(parents=True)
    (written / "model.safetensors").write_bytes(bytes(range(200)))
    (written / "global_step" / "optimizer.pt").write_bytes(b"y" * 50)
    return publish(written, states)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", {"seed": 1})


def test_a_state_appears_whole_and_under_its_own_name_only(tmp_path: Path) -> None:
    written = tmp_path / ".partial" / "checkpoint-7"
    written.mkdir(parents=True)
    (written / "model.safetensors").write_bytes(b"half")
    assert newest_sound(tmp_path) is None
    assert not (tmp_path / ".partial").exists()
    state = state_at(tmp_path, 7)
    assert (newest_sound(tmp_path), fault_of(state)) == (state, None)
    remove(state)
    assert newest_sound(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda state: flip_a_bit(state / "model.safetensors"), r"model.safetensors: expected SHA-256 \w{12}\.\.\., f"),
        (lambda state: (state / "model.safetensors").write_bytes(b"x"), "model.safetensors: expected 200 bytes, f"),
        (lambda state: (state / "global_step/optimizer.pt").unlink(), "expected 50 bytes, found no file"),
        (lambda state: (state / "complete.json").unlink(), "complete.json is missing"),
        (lambda state: (state / "complete.json").write_bytes(b"\xff{"), "complete.json cannot be read"),
    ],
    ids=["bit", "size", "file", "no marker", "bad marker"],
)
def test_a_damaged_state_is_set_aside_for_the_one_before(run: RunFolder, caplog, damage, said: str) -> None:
    for step in (0, 90, 150, 200):
        run.log(step, loss=1.0)
    before, damaged = state_at(run.state, 90), state_at(run.state, 200)  # 200 > 90 as numbers, not as text
    damage(damaged)
    with caplog.at_level(logging.WARNING):
        assert take_up(run) == before
    assert [line["step"] for line in run.metrics()] == [0, 90]
    aside = run.state / "checkpoint-200.damaged"
    assert aside.is_dir()
    assert all_states(run.state) == [before]
    warned, goes_on = (record.getMessage() for record in caplog.records)
    assert warned.startswith(f"{damaged}: a damaged state (")
    assert goes_on.endswith("goes on from step 90")
    assert re.search(said, warned)


def test_nothing_sound_left_is_for_the_user_to_decide(run: RunFolder) -> None:
    run.log(10, loss=1.0)
    for _ in range(2):
        flip_a_bit(state_at(run.state, 10) / "model.safetensors")
        with pytest.raises(UserError, match=r"found damaged ones only .checkpoint-10\.damaged.*delete them to start"):
            take_up(run)
    assert (run.state / "checkpoint-10.damaged-2").is_dir()
    assert [line["step"] for line in run.metrics()] == [10]
    shutil.rmtree(run.state)
    assert take_up(run) is None
    assert list(run.metrics()) == []
