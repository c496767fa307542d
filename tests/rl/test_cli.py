"""The command line: what a user can mend is one line on stderr and exit code 2."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted
from mentor_base.runlog import RunFolder
from mentor_rl.cli import main
from mentor_rl.failures import NO_SPACE, exit_code, failure_line

TOKENIZER = """\
kind: tokenizer
run: runs/vq
model: {channels: 8}
optimisation: {lr: 1e-3, steps: 2, batch: 2}
checkpoints: {every: 1}
"""

PLUGIN = """\
from mentor_rewards.contract import Reward, RewardOutput, RewardSpec

class Redness(Reward):
    spec = RewardSpec(name="redness", version="1", range=(0.0, 255.0))

    def score(self, batch):
        return RewardOutput([float(i.convert("RGB").resize((1, 1)).getpixel((0, 0))[0]) for i in batch.images])
"""

Outcome = tuple[int, str, str]


class Shell:
    """Runs commands in this process: exit code, stdout, stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Outcome:
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        return int(done.value.code or 0), out, err

    def refuses(self, *arguments: str | Path) -> str:
        """The one line with which a command refuses its input."""
        code, _, err = self(*arguments)
        assert code == 2
        assert len(err.splitlines()) == 1, err
        return err.strip()


@pytest.fixture
def mentor(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """``mentor``, in an empty current folder with one recipe, x.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(TOKENIZER, encoding="utf-8")
    return Shell(capsys)


def test_help_names_every_command(mentor: Shell) -> None:
    code, out, _ = mentor("--help")
    assert code == 0
    commands = "demo train plan ablate compare evaluate sample import export report rewards recipes data"
    for command in commands.split():
        assert re.search(rf"\b{command}\b", out)


def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(mentor: Shell) -> None:
    code, out, _ = mentor("train", "x.yaml", "optimisation.steps=5", "--dry-run")
    assert code == 0
    shown = yaml.safe_load(out)
    assert shown["optimisation"]["steps"] == 5
    assert shown["optimisation"]["warmup"] == 0.05
    assert not Path("runs").exists()
    assert mentor("recipes", "show", "x.yaml", "optimisation.steps=5")[1] == out


def test_recipes_are_listed(mentor: Shell) -> None:
    Path("launcher.yaml").write_text("compute_environment: LOCAL_MACHINE\n", encoding="utf-8")
    code, out, _ = mentor("recipes", "list", ".")
    assert code == 0
    assert "x.yaml" in out
    assert "launcher" not in out
    assert "run this in a clone" in mentor.refuses("recipes", "list")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "y.yaml"], "y.yaml: no such recipe; did you mean 'x.yaml'?"),
        (["train", "x.yaml", "sede=1"], "command line: sede: unknown key; did you mean 'seed'?"),
        (
            ["train", "x.yaml", "data.styles=[nooto]"],
            "x.yaml: data.styles: unknown style 'nooto'; did you mean 'noto'?",
        ),
        (["evaluate", "x.yaml"], "x.yaml: kind: expected 'evaluate', found 'tokenizer'; use `mentor train x.yaml`"),
        (["sample", "x", "--text", "a fox", "--image", "fox.png"], "fox.png: expected a picture, found no such file"),
        (
            ["sample", "x", "--text", "a fox", "--image", "x.yaml"],
            "x.yaml: expected a picture, found a file of another",
        ),
        (["sample", "x", "--text", ""], "--text: expected a caption, found an empty text"),
        (
            ["sample", "x", "--text", "<image> a fox"],
            "--text: expected one <image> mark per picture, found 1 marks and 0",
        ),
        (["sample", "no/model", "--text", "a fox"], "no/model: expected a model folder or a finished run"),
        (["export", "no/run", "out"], "no/run: expected a run folder, found no such folder"),
        (["rewards", "show", "stile"], "unknown reward 'stile'; did you mean 'style'?"),
        (["rewards", "score", "jpeg_size", "--images", "x.yaml"], "x.yaml: expected a folder of pictures"),
        (["rewards", "new", "jpeg_size"], "new: the name 'jpeg_size' is taken by mentor_rewards.jpeg_size:JpegSize"),
        (["rewards", "check", "plug.py:Redness"], "reward 'plug.py:Redness': expected a plugin file, found none at"),
    ],
)
def test_bad_input_is_one_line(mentor: Shell, arguments: list[str], line: str) -> None:
    assert line in mentor.refuses(*arguments)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("trian x.yaml", "mentor: unknown command 'trian'; did you mean 'train'?"),
        ("--debug trian", "mentor: unknown command 'trian'; did you mean 'train'?"),
        ("rewards lst", "mentor rewards: unknown command 'lst'; did you mean 'list'?"),
        ("demo --stpes 3", "mentor demo: unknown option '--stpes'; did you mean '--steps'?"),
        ("-x", "mentor: unknown option '-x'; known: --debug, --help"),
        ("train", "mentor train: RECIPE: this argument has to be given"),
        ("sample x", "mentor sample: --text: this option has to be given"),
        ("import a b", "mentor import: --from: this option has to be given; known: hf, llamagen, mentor, vq"),
        ("import a b --from llamagn", "mentor import: --from: unknown name 'llamagn'; did you mean 'llamagen'?"),
        ("demo --steps 0", "mentor demo: --steps: expected greater than or equal to 1, found '0'"),
        ("demo --steps few", "mentor demo: --steps: expected a valid integer, unable to parse"),
        ("demo --steps", "command line: option '--steps' requires an argument"),
        ("compare a b c", "mentor compare: got unexpected extra argument(s) (c)"),
        ("sample x --text a --guidance inf", "mentor sample: --guidance: expected a finite number, found 'inf'"),
        ("sample x --text a --temperature inf", "mentor sample: --temperature: expected a finite number, found 'inf'"),
        ("judge serve --start-timeout 0", "mentor judge serve: --start-timeout: expected greater than or equal to 1"),
    ],
)
def test_a_command_that_cannot_be_understood_is_one_line(mentor: Shell, command: str, line: str) -> None:
    assert mentor.refuses(*command.split()).startswith(line)


def test_help_and_interruption_are_as_typer_has_them(mentor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for group in ((), ("rewards",)):
        code, out, err = mentor(*group)
        assert (code, err) == (2, "")
        assert "Commands" in out
        code, asked, err = mentor(*group, "-h")
        assert (code, asked.strip(), err) == (0, out.strip(), "")

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mentor_base.tokenizer_training.train_tokenizer", interrupted)
    assert mentor("train", "x.yaml") == (130, "", "")


def test_the_traceback_comes_only_with_debug(mentor: Shell) -> None:
    with pytest.raises(UserError):
        main(["--debug", "train", "y.yaml"])


def test_training_starts_goes_on_and_is_finished(mentor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, object]] = []

    def train_half(**sections: object) -> None:
        calls.append(sections)
        run = sections["run"]
        assert isinstance(run, RunFolder)
        run.log(len(calls), loss=1.0)
        if len(calls) < 2:
            raise Interrupted(f"{run.path}: stopped at step 1; the same command goes on from there")
        run.final.mkdir()
        (run.final / "config.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr("mentor_base.tokenizer_training.train_tokenizer", train_half)
    code, _, err = mentor("train", "x.yaml")
    assert code == 130
    assert err == "runs/vq: stopped at step 1; the same command goes on from there\n"
    code, out, _ = mentor("train", "x.yaml")
    assert code == 0
    assert out.startswith("runs/vq: going on with this run\nruns/vq: finished after ")
    code, out, _ = mentor("train", "x.yaml")
    assert code == 0
    assert out == "runs/vq: already finished, the model is in runs/vq/final\n"
    assert len(calls) == 2
    sections = {"model", "losses", "data", "optimisation", "checkpoints", "validate_every", "seed", "run"}
    assert set(calls[0]) == sections


SFT = """\
kind: sft
run: runs/new
init: start
stage: {name: instruction, mixture: {weights: {t2i: 1}}, train: {}}
optimisation: {lr: 1e-4, steps: 2, batch: 8, micro_batch: 2}
validation: {every: 1}
checkpoints: {every: 1}
"""

GRPO = """\
kind: grpo
run: runs/new
policy: start
prompts: {weights: {t2i: 1}}
train: {}
algorithm: {group_size: 4, prompts_per_step: 2, rollout: {engine: compile}}
optimisation: {lr: 1e-4, steps: 2}
rewards: {jpeg_size: {}}
checkpoints: {every: 1}
"""


@pytest.mark.parametrize(
    ("recipe", "processes", "line"),
    [
        (SFT, 3, "optimisation.batch: expected a multiple of micro_batch x processes = 2 x 3, found 8"),
        (GRPO, 3, "to be a multiple of micro_batch x processes = 2 x 3, found 8"),
        (GRPO, 4, "algorithm.rollout.engine: 'compile' expected whole groups of 4 on each process, found 2 pictures"),
        (TOKENIZER, 2, "kind: 'tokenizer' expected one process, found 2; start it without torchrun or accelerate"),
    ],
)
def test_processes_that_cannot_share_the_work_leave_no_run_folder(
    mentor: Shell, monkeypatch: pytest.MonkeyPatch, recipe: str, processes: int, line: str
) -> None:
    Path("start").mkdir()
    Path("new.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    refused = mentor.refuses("train", "new.yaml", "run=runs/new")
    assert refused.startswith("new.yaml: ")
    assert line in refused
    assert not Path("runs/new").exists()


def test_a_run_folder_that_holds_something_else(mentor: Shell) -> None:
    held = RunFolder.open("runs/vq", {"kind": "tokenizer", "seed": 0, "optimisation": {"steps": 2}})
    held.log(1, loss=1.0)
    line = mentor.refuses("train", "x.yaml")
    assert line.startswith("runs/vq: holds another run (differs in ")
    Path("runs/notes").mkdir()
    Path("runs/notes/mine.txt").touch()
    line = mentor.refuses("train", "x.yaml", "run=runs/notes")
    assert line.startswith("runs/notes: expected an empty folder or a run, found other files")


def test_a_corrected_recipe_takes_the_folder_of_a_refused_one(mentor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run: RunFolder, losses: Any, **_: object) -> None:
        if losses.l1 < 0.5:
            raise UserError("refused before it began")
        run.log(1, loss=1.0)

    monkeypatch.setattr("mentor_base.tokenizer_training.train_tokenizer", train)
    assert mentor.refuses("train", "x.yaml", "losses.l1=0.25") == "refused before it began"
    code, _, err = mentor("train", "x.yaml", "losses.l1=1.5")
    assert (code, err) == (0, "")
    assert yaml.safe_load(Path("runs/vq/recipe.yaml").read_text())["losses"]["l1"] == 1.5
    assert "holds another run (differs in losses.l1: 1.5 there, 2" in mentor.refuses("train", "x.yaml", "losses.l1=2")


def test_a_run_from_before_a_setting_existed_goes_on(mentor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mentor_base.tokenizer_training.train_tokenizer", lambda **_: None)
    mentor("train", "x.yaml")
    kept = Path("runs/vq/recipe.yaml")
    held = yaml.safe_load(kept.read_text())
    del held["data"]["disguise"]
    kept.write_text(yaml.safe_dump(held))
    code, _, err = mentor("train", "x.yaml")
    assert (code, err) == (0, "")


def test_a_full_disk(mentor: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(run: RunFolder, **_: object) -> None:
        run.metrics_file.symlink_to("/dev/full")
        run.log(1, loss=1.0)

    monkeypatch.setattr("mentor_base.tokenizer_training.train_tokenizer", train)
    assert NO_SPACE in mentor.refuses("train", "x.yaml")


def test_every_writer_says_when_the_disk_is_full(tmp_path: Path) -> None:
    import torch

    full = tmp_path / "full"
    full.symlink_to("/dev/full")  # a link, so that a writer that renames replaces the link and not the device
    with pytest.raises(RuntimeError) as caught:
        torch.save(torch.zeros(1 << 16), full)
    errors = [
        caught.value,
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        OSError(28, "No space left on device", "run/x.png"),
    ]
    for error in errors:
        assert NO_SPACE in str(failure_line(error)), error
    assert str(failure_line(errors[-1])).startswith("run/x.png: ")


def test_a_checkpoint_with_missing_or_surplus_tensors(mentor: Shell, random_policy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(random_policy, broken)
    state = load_file(random_policy / "model.safetensors")
    gone = sorted(state)[0]
    for change, line in (
        ({gone: None}, f"do not fit (1 missing): '{gone}': missing; looks like mentor"),
        ({"strange": state[gone].clone()}, "do not fit (1 unknown): 'strange': unknown; looks like mentor"),
    ):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        save_file(changed, broken / "model.safetensors", metadata={"format": "pt"})
        code, _, err = mentor("sample", broken, "--text", "a fox")
        assert code == 2
        assert line in err.splitlines()[-1]


def test_exceptions_that_are_bugs_stay_bugs() -> None:
    assert failure_line(ValueError("a bug")) is None
    assert failure_line(OSError("no file in it")) is None
    assert failure_line(PermissionError(13, "Permission denied", "x/y")) == "x/y: permission denied"
    assert exit_code(Interrupted("stopped")) == 130


def test_a_plugin_is_checked_and_scores(mentor: Shell) -> None:
    Path("plug.py").write_text(PLUGIN, encoding="utf-8")
    Path("pictures").mkdir()
    Image.new("RGB", (8, 8), (200, 0, 0)).save("pictures/red.png")
    code, out, _ = mentor("rewards", "score", "plug.py:Redness", "--images", "pictures")
    assert (code, out) == (0, "row,file,prompt,Redness,Redness.reason\n0,red.png,,200.0,\n")
    code, out, _ = mentor("rewards", "check", "plug.py:Redness")
    assert code == 0
    assert "holds    order" in out
