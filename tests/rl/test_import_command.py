"""``mentor import`` and ``mentor export --format``: one command each way, refusals in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mentor_rl.cli import main


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_a_folder_of_ours_comes_back_in_another_dtype_and_length(
    random_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    from mentor_base.checkpoint import load_policy

    out = tmp_path / "half"
    arguments = ["--from", "hf", "--dtype", "bfloat16", "--prefix-rows", "200"]
    code, _, err = command(capsys, "import", random_policy, out, *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--keep-rows: expected 'front' or 'tail', since the source has 160 unconditional rows" in err
    assert not out.exists()
    code, told, _ = command(capsys, "import", random_policy, out, *arguments, "--keep-rows", "tail")
    assert code == 0
    assert "decoder.uncond, rows 0 to 39: N(0, 1 / 32), seed 0" in told
    assert "unconditional rows: 200, the source's 160 at the tail" in told
    assert load_policy(out)[1].context_length == 200
    assert {str(value.dtype) for value in load_file(out / "model.safetensors").values()} == {"torch.bfloat16"}
    assert (out / "import.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["import", "none.pt", "out", "--from", "vq"], "none.pt: expected a weights file or a folder with one"),
        (["import", "none.pt", "out", "--from", "llamagen"], "--vq: expected a path, since a LlamaGen checkpoint"),
        (["import", "x", "out", "--from", "hf", "--option", "a"], "--option: expected KEY=VALUE, found 'a'"),
        (["import", "x", "out", "--from", "vq", "--size", "XL"], "--size: does not apply to --from vq"),
        (["export", "x", "out.pt", "--format", "mentor"], "x: expected a model folder or a finished run"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(capsys, *arguments)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert line in err
    assert not list(tmp_path.iterdir())


def test_a_small_world_is_no_mentor_checkpoint(
    grpo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(capsys, "export", grpo_run, tmp_path / "x.pt", "--format", "mentor")
    assert code == 2
    assert "reference_positions: expected 'prefix', the only value that MENTOR's code knows; found 'grid'" in err
    assert not (tmp_path / "x.pt").exists()
