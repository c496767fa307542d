"""Names, plugin files and options: what is found, and the one line when it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mentor_rewards.__main__ import main
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.registry import BUILT_IN, build_reward, describe, names

PLUGIN = '''
from pathlib import Path
from typing import Literal
from mentor_rewards import Reward, RewardBatch, RewardOutput, RewardSpec

class Brightness(Reward):
    """Mean of all bytes.

    More about it.
    """
    spec = RewardSpec(name="brightness", version="1", range=(0, 255))

    def __init__(self, gain: float, mode: Literal["mean", "median"] = "mean", table: Path | None = None):
        self.gain, self.mode, self.table = gain, mode, table

    def score(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([self.gain for _ in batch.images])

class NoScore(Reward):
    spec = RewardSpec(name="no_score", version="1")

class NoUnload:
    spec = RewardSpec(name="no_unload", version="1")
    def load(self, device, dtype): ...
    def score(self, batch): ...

class NotAwaited(Reward):
    spec = RewardSpec(name="not_awaited", version="1")
    def ascore(self, batch): ...

class NoSpec(Reward):
    def score(self, batch): ...

class Refuses(Reward):
    spec = RewardSpec(name="refuses", version="1")
    def __init__(self, gain: float = 1.0):
        raise ValueError("gain has\\n  to be odd")
    def score(self, batch): ...

class Half(Reward):
    spec = RewardSpec(name="half", version="1")
    def __init__(self, scale: "Decimal" = None): ...
    def score(self, batch): ...
'''


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "two_files.py").write_text("from broken_in_two import Table\n")
    (tmp_path / "broken_in_two.py").write_text("")
    (tmp_path / "table.txt").write_text("")
    return tmp_path


def test_every_built_in_name_resolves() -> None:
    for name in BUILT_IN:
        assert describe(name).about
        spec = describe(name).spec
        assert spec is not None
        assert spec.name == name


def test_listing_imports_neither_rewards_nor_torch() -> None:
    code = (
        "import sys, mentor_rewards.registry as registry; registry.names(); "
        "print([m for m in ('torch', 'numpy', 'mentor_rewards.style') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(BUILT_IN) <= set(names())


def test_plugin_file_beside_the_recipe(recipe_folder: Path) -> None:
    path_before = list(sys.path)
    options = {"gain": 3, "table": "table.txt"}
    reward = build_reward("bright", RewardEntry(use="plugin.py:Brightness", options=options), recipe_folder)
    assert reward.gain == 3.0
    assert reward.table == recipe_folder / "table.txt"
    again = build_reward(
        "bright", RewardEntry(use=f"{recipe_folder}/plugin.py:Brightness", options=options), recipe_folder
    )
    assert type(again) is type(reward)
    assert sys.path == path_before
    found = describe("plugin.py:Brightness", recipe_folder)
    assert found.about == "Mean of all bytes."
    assert [(o.name, o.default) for o in found.options] == [("gain", None), ("mode", "'mean'"), ("table", "None")]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages: four that are broken in their own ways, two that want one name."""
    points = {
        "raises": "raises = raising_plugin:Raises",
        "exits": "exits = exiting_plugin:Exits",
        "gone": "gone = no_such_plugin:Gone",
        "malformed": "malformed = nothing",
        "twin1": "twin = raising_plugin:One\nstyle = raising_plugin:Style",
        "twin2": "twin = raising_plugin:Two",
    }
    for package, lines in points.items():
        folder = tmp_path / f"{package}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[mentor.rewards]\n{lines}\n")
    (tmp_path / "raising_plugin.py").write_text("raise RuntimeError('broken\\nin two lines')\n")
    (tmp_path / "exiting_plugin.py").write_text("import sys; sys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_broken_plugin_cannot_break_the_list(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["list"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    words = {line.split()[0]: line.split()[1:4] for line in lines}
    assert words["raises"] == ["raising_plugin:Raises", "raises", "1.0"]
    assert words["malformed"] == ["nothing", "malformed", "1.0"]
    assert set(BUILT_IN) < set(words)
    assert any("(name taken by a built-in: use raising_plugin:Style)" in line for line in lines)
    assert not {"raising_plugin", "exiting_plugin"} & set(sys.modules)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raising_plugin fails on import: RuntimeError: broken in two lines"),
        ("exits", "exiting_plugin fails on import: SystemExit: 3"),
        ("gone", "cannot import no_such_plugin: No module named 'no_such_plugin'"),
        ("malformed", "expected package.module:Class, found 'nothing'"),
        ("twin", "two packages have this name: raising_plugin:One .twin1 1.0. and raising_plugin:Two .twin2 1.0.; say"),
    ],
)
def test_a_broken_plugin_is_one_line_when_it_is_named(site: Path, name: str, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        describe(name)
    assert "\n" not in str(caught.value)


def test_show_says_all_that_is_declared(recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["show", f"{recipe_folder}/plugin.py:Brightness"])
    shown = capsys.readouterr().out
    for part in (
        "Brightness: Mean of all bytes.",
        "range     0 to 255, higher is better",
        "licence   unknown",
        "needs     the picture only",
        "option    gain: float, required",
    ):
        assert part in shown


def test_a_command_that_cannot_be_understood_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["score", "style", "--imges", "x"])
    assert done.value.code == 2
    line = "error: python -m mentor_rewards score: unknown option '--imges'; did you mean '--images'?\n"
    assert capsys.readouterr().err == line


def test_dotted_module() -> None:
    assert build_reward("size", RewardEntry(use="mentor_rewards.jpeg_size:JpegSize")).spec.name == "jpeg_size"


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("stile", {}, "unknown reward 'stile'; did you mean 'style'?"),
        ("nowhere.py:X", {}, "expected a plugin file, found none at"),
        ("plugin.py:Brightnes", {}, "no class 'Brightnes' in .*; did you mean 'Brightness'?"),
        ("plugin.py:NoScore", {}, "NoScore is not a Reward, it has no 'score'"),
        ("plugin.py:NoUnload", {}, "NoUnload is not a Reward, it has no 'unload'"),
        ("plugin.py:NotAwaited", {}, "'ascore' is a plain function"),
        ("plugin.py:NoSpec", {}, "NoSpec has no member 'spec'"),
        ("broken.py:X", {}, "fails on import: ModuleNotFoundError: No module named 'nothing_of_this_name'$"),
        ("two_files.py:X", {}, "No module named 'broken_in_two'; a plugin file is imported alone"),
        ("no_such_package.module:X", {}, "cannot import no_such_package.module"),
        ("plugin.py:Brightness", {}, "missing option 'gain'; options: gain, mode, table"),
        ("plugin.py:Brightness", {"gian": 1}, "unknown option 'gian'; did you mean 'gain'?"),
        ("plugin.py:Brightness", {"gain": "much"}, "option 'gain': Input should be a valid number.*found 'much'"),
        ("plugin.py:Brightness", {"gain": 1, "mode": "max"}, "option 'mode': Input should be 'mean' or 'median'"),
        (
            "plugin.py:Brightness",
            {"gain": 1, "table": "tabel.txt"},
            "option 'table': no such file or folder: .*tabel.txt",
        ),
        ("jpeg_size", {"quality": 200}, "option 'quality': Input should be less than or equal to 95, found 200"),
        ("plugin.py:Refuses", {"gain": 2}, "Refuses cannot be built: ValueError: gain has to be odd$"),
        ("plugin.py:Half", {}, r"cannot read the annotations of Half.__init__, .*: NameError: name 'Decimal' is not"),
    ],
)
def test_errors_are_one_helpful_line(recipe_folder: Path, use: str, options: dict, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        build_reward("mine", RewardEntry(use=use, options=options), recipe_folder)
    assert "\n" not in str(caught.value)
