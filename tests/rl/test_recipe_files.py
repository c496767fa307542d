"""Recipes: strict, with errors that name file, line and key; inputs found by the rule in recipe.py."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from mentor_rewards.contract import RewardError
from mentor_rewards.weights import find_folder

from mentor_base.batch_split import split_batch
from mentor_base.errors import UserError
from mentor_rl.commands.recipes import recipe_files
from mentor_rl.evaluate.recipes import DreamBenchRecipe, EvaluateRecipe
from mentor_rl.grpo_setup import pictures_per_process
from mentor_rl.recipe import GrpoRecipe, SftRecipe
from mentor_rl.recipe_files import input_paths, load_recipe, resolved
from mentor_rl.recipe_names import check_names

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(recipe_files(ROOT / "recipes"))
BY_USERS = "data/"  # rows and imported weights; a recipe's comment says how they are made

GRPO = """\
kind: grpo
run: runs/tiny
policy: start
prompts:
  data: {shapes: 0.5}
  weights: {subject: 1}
algorithm:
  group_size: 4
  beta: 0.02
optimisation: {lr: 1e-4, steps: 10}
rewards:
  jpeg_size: {role: monitor}
  style:
    options: {checkpoint: judges/style}
  mine: {use: "plug.py:Mine"}
checkpoints: {every: 5}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in recipes/ of the current folder, with its inputs beside it."""
    folder = tmp_path / "recipes"
    (folder / "start").mkdir(parents=True)
    (folder / "judges" / "style").mkdir(parents=True)
    (folder / "plug.py").write_text("", encoding="utf-8")
    (folder / "x.yaml").write_text(GRPO, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return Path("recipes/x.yaml")


def _error(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_every_recipe_of_the_project_is_seen() -> None:
    by_folder = {path.parent.name for path in SHIPPED}
    full_size = {"projector", "base", "subject", "multi_image", "in_context", "editing", "segmentation", "t2i"}
    assert by_folder >= full_size | {"reconstruction", "emoji"}
    assert "launch" not in by_folder
    for folder in by_folder:
        assert len(list((ROOT / "recipes" / folder).glob("*.yaml"))) == sum(
            path.parent.name == folder for path in SHIPPED
        )


@cache
def _made_by_recipes() -> frozenset[str]:
    return frozenset(load_recipe(each, need_inputs=False).run for each in SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_loads_and_every_name_in_it_resolves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = load_recipe(path, need_inputs=False)
    missing = [value for _, value in input_paths(loaded) if not Path(re.sub(r":\w+$", "", value)).exists()]
    unmade = {value for value in missing if not value.startswith(BY_USERS)} - _made_by_recipes()
    assert not unmade, "an input is shipped, made by users in data/, or the run of another shipped recipe"
    check_names(loaded, str(path), construct_rewards=not missing)
    assert loaded.about, "a recipe says in one line what it is for"
    assert yaml.safe_load(yaml.safe_dump(resolved(loaded))) == resolved(loaded)


FULL_SIZE = [path for path in SHIPPED if path.parent.name not in ("emoji", "ablations")]


@pytest.mark.parametrize("path", FULL_SIZE, ids=lambda path: path.stem)
def test_a_full_size_recipe_without_its_inputs_says_what_is_missing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_recipe(path, need_inputs=False)
    lines = _error(path).splitlines()
    assert len(lines) == len(list(input_paths(loaded)))
    assert all("expected an existing path, found neither" in line for line in lines)
    if isinstance(loaded, EvaluateRecipe):
        assert any(re.search("; (data|real|prompts) is ", line) for line in lines), "what the data are"
        return
    assert isinstance(loaded, SftRecipe | GrpoRecipe)
    assert loaded.optimisation.precision == "bf16"
    for processes in (1, 8):
        if isinstance(loaded, SftRecipe):
            split_batch(loaded.optimisation, processes)
        else:
            assert pictures_per_process(loaded, processes) * processes == 96
    start = loaded.init if isinstance(loaded, SftRecipe) else loaded.policy
    if str(start).startswith("runs/"):
        assert "; make it with `mentor train " in lines[0]


def test_a_resolved_recipe_is_a_recipe_again(recipe: Path) -> None:
    first = resolved(load_recipe(recipe))
    Path("again.yaml").write_text(yaml.safe_dump(first, sort_keys=False), encoding="utf-8")
    assert resolved(load_recipe(Path("again.yaml"))) == first


def test_values_and_overrides(recipe: Path) -> None:
    loaded = load_recipe(
        recipe, ["algorithm.group_size=2", "rewards.style.weight=2", "algorithm.guidance.scale=1.5", "about='a: b'"]
    )
    assert isinstance(loaded, GrpoRecipe)
    assert loaded.optimisation.lr == 1e-4
    assert loaded.algorithm.group_size == 2
    assert loaded.algorithm.guidance.scale == 1.5
    assert loaded.rewards["style"].weight == 2
    assert loaded.rewards["style"].options == {"checkpoint": "recipes/judges/style"}


def test_inputs_are_found_beside_the_recipe_and_then_here(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert isinstance(loaded, GrpoRecipe)
    assert loaded.policy == "recipes/start"
    assert loaded.rewards["mine"].use == "recipes/plug.py:Mine"
    Path("recipes/start").rename("start")
    assert load_recipe(recipe).policy == "start"  # type: ignore[union-attr]


def test_an_override_is_looked_up_here_first(recipe: Path) -> None:
    Path("start").mkdir()
    assert load_recipe(recipe).policy == "recipes/start"  # type: ignore[union-attr]
    assert load_recipe(recipe, ["policy=start"]).policy == "start"  # type: ignore[union-attr]


def test_a_missing_input_names_both_places_and_the_recipe_that_makes_it(recipe: Path) -> None:
    Path("recipes/first.yaml").write_text("kind: sft\nrun: runs/first\n", encoding="utf-8")
    line = _error(recipe, "policy=runs/first")
    assert line == (
        "command line: policy: expected an existing path, found neither runs/first nor recipes/runs/first; "
        "make it with `mentor train recipes/first.yaml`"
    )
    assert load_recipe(recipe, ["policy=runs/first"], need_inputs=False).policy == "runs/first"  # type: ignore[union-attr]


def test_a_reward_s_checkpoint_may_be_a_hub_id(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["rewards.style.options.checkpoint=owner/name"])
    assert isinstance(loaded, GrpoRecipe)
    assert loaded.rewards["style"].options == {"checkpoint": "owner/name"}
    line = _error(recipe, "rewards.style.options.checkpoint=judges/stile")  # beside others: a slip in a path
    assert line.endswith("expected an existing path, found neither judges/stile nor recipes/judges/stile")


def test_a_run_without_a_model_is_no_input(recipe: Path) -> None:
    Path("recipes/start/recipe.yaml").touch()
    assert _error(recipe) == (
        "recipes/x.yaml:3: policy: expected a finished run, found recipes/start without a model; "
        "train it to the end first"
    )
    Path("recipes/start/config.json").touch()  # an export carries its recipe too
    load_recipe(recipe)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("group_size", "group_sze", "recipes/x.yaml:8: algorithm.group_sze: unknown key; did you mean 'group_size'?"),
        ("{role:", "{rule:", "recipes/x.yaml:12: rewards.jpeg_size.rule: unknown key; did you mean 'role'?"),
        ("0.02", "-1", "recipes/x.yaml:9: algorithm.beta: expected greater than or equal to 0, found -1"),
        ("shapes: 0.5", "shape: 0.5", "recipes/x.yaml:5: prompts.data.shape: unknown key; did you mean 'shapes'?"),
        ("kind: grpo", "kind: gpro", "recipes/x.yaml:1: kind: unknown kind 'gpro'; did you mean 'grpo'?"),
        ("  beta", "  group_size: 3\n  beta", "algorithm.group_size: key given twice, first on line 8"),
        ("policy: start\n", "", "recipes/x.yaml: policy: this key has to be given"),
        ("{every: 5}", "{every: [}", "recipes/x.yaml:16: not YAML"),
        ("{every: 5}", "5", "recipes/x.yaml:16: checkpoints: expected a"),
        (
            "{role:",
            "{tasks: [subjct], role:",
            "rewards.jpeg_size.tasks: unknown task 'subjct'; did you mean 'subject'?",
        ),
        ("mine:", "reward:", "rewards.reward: expected a name without '/' other than 'reward', which is the weighted"),
        ("mine:", "my/own:", "rewards.my/own: expected a name without '/'"),
        ("{role:", "{tasks: [t2i], role:", "expected a task of prompts.weights (subject), found t2i"),
        ("subject: 1", "subjct: 1", "unknown name 'subjct'; did you mean 'subject'?"),
        ("lr: 1e-4", "lr: fast", "recipes/x.yaml:10: optimisation.lr: expected a value of type number"),
    ],
)
def test_a_fault_is_one_line(recipe: Path, old: str, new: str, line: str) -> None:
    _edit(recipe, old, new)
    found = _error(recipe)
    assert line in found
    assert len(found.splitlines()) == 1


def test_every_fault_gets_its_line(recipe: Path) -> None:
    _edit(recipe, "group_size", "group_sze")
    assert len(_error(recipe, "algorithm.epsilon=0", "rewards.style.wait=1").splitlines()) == 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("algorithm.group_sze=4", "command line: algorithm.group_sze: unknown key; did you mean 'group_size'?"),
        ("algorithm.group_size", "command line: expected key.sub=value, found 'algorithm.group_size'"),
        ("policy.x=1", "command line: policy.x: policy is a value, not a section"),
        ("algorithm.loss=grop", "command line: algorithm.loss: unknown name 'grop'; did you mean 'grpo'?"),
        ("seed=[", "command line: seed: not a YAML value: '['"),
        ("seed=-1", "command line: seed: expected greater than or equal to 0, found -1"),
        ("optimisation.lr=.inf", "command line: optimisation.lr: expected a finite number, found inf"),
        (
            "algorithm.guidance.scale=.nan",
            "command line: algorithm.guidance.scale: expected a finite number, found nan",
        ),
        (
            "algorithm.guidance.scale=[1,.nan]",
            "command line: algorithm.guidance.scale.1: expected a finite number, found nan",
        ),
        ("rewards.style.weight=.nan", "command line: rewards.style.weight: expected a finite number, found nan"),
        ("optimisation.betas=[0.9,1]", "command line: optimisation.betas.1: expected less than 1, found 1"),
        (
            "algorithm.guidance.scale=[1,2,3]",
            "command line: algorithm.guidance.scale: expected a value of type number, found [1, 2, 3], or expected at",
        ),
        (
            "algorithm.mask_truncated_completions=true",
            "command line: algorithm.mask_truncated_completions: trl's setting is ruled out for pictures: pictures ",
        ),
        (
            "algorithm.top_k=50",
            "command line: algorithm.top_k: trl's setting is ruled out for pictures: a token outside",
        ),
    ],
)
def test_a_faulty_override_is_one_line(recipe: Path, override: str, line: str) -> None:
    found = _error(recipe, override)
    assert found.startswith(line)
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "recipes/x.yaml: expected a recipe, found an empty file"),
        (b"- a\n", "recipes/x.yaml:1: expected 'key: value' lines, found a list"),
        (b"\xff\xfe\x00", "recipes/x.yaml: expected a text file in UTF-8"),
        (b"run: x\n", "recipes/x.yaml: kind: this key has to be given"),
        (b"kind: grpo\na: &x {b: *x}\n", "recipes/x.yaml:2: not YAML: aliases"),
        (b"kind: !!python/object/apply:os.system [ls]\n", "recipes/x.yaml:1: not YAML"),
    ],
)
def test_a_file_that_is_no_recipe(recipe: Path, content: bytes, line: str) -> None:
    recipe.write_bytes(content)
    assert line in _error(recipe)


def test_weights_lie_beside_the_recipe_or_here_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bench/towers/clip", "towers/clip", "here/dino", "bench/set", "bench/pictures"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = Path("bench/x.yaml")
    path.write_text(
        "{kind: evaluate, benchmark: dreambench, run: r, data: set, images: {fox: pictures}, "
        "towers: {clip: towers/clip, dino: here/dino, dino_s16: nobody/has-this}}",
        encoding="utf-8",
    )
    loaded = load_recipe(path)
    assert isinstance(loaded, DreamBenchRecipe)
    clip, dino, hub = loaded.towers.clip, loaded.towers.dino, loaded.towers.dino_s16
    assert list(map(str, (clip, dino, hub))) == ["bench/towers/clip", "here/dino", "nobody/has-this"]
    assert resolved(loaded)["towers"]["clip"] == "bench/towers/clip"  # what the run folder keeps
    assert loaded.towers.dinov2 == "facebook/dinov2-small"
    with pytest.raises(RewardError, match=r"nobody/has-this: no such path here, not in the hub's cache .*`hf download"):
        find_folder(str(hub), ())
    line = _error(path, "towers.clip=./towers/clop")
    assert "no such file or folder: bench/towers/clop or towers/clop; nor is it a hub id" in line


def test_a_recipe_that_is_not_there(recipe: Path) -> None:
    assert _error(Path("recipes/y.yaml")) == "recipes/y.yaml: no such recipe; did you mean 'recipes/x.yaml'?"
    assert _error(Path("recipes")) == "recipes: cannot read this recipe: Is a directory"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["prompts.data.styles=[notto]"], "x: prompts.data.styles: unknown style 'notto'; did you mean 'noto'?"),
        (["rewards={stile: {}}"], "x: rewards.stile: unknown reward 'stile'; did you mean 'style'?"),
        (["rewards={jpeg_size: {options: {qality: 5}}}"], "unknown option 'qality'; did you mean 'quality'?"),
    ],
)
def test_unknown_names(recipe: Path, overrides: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        check_names(load_recipe(recipe, overrides), "x")
    assert line in str(caught.value)


def test_an_unknown_size(tmp_path: Path) -> None:
    (tmp_path / "vq").mkdir()
    path = tmp_path / "sft.yaml"
    path.write_text(
        """\
kind: sft
run: r
tokenizer: vq
model: {size: tinny}
stage: {name: alignment, mixture: {weights: {t2i: 1}}, train: {}}
optimisation: {lr: 1, steps: 1, batch: 1}
validation: {every: 1}
checkpoints: {every: 1}
""",
        encoding="utf-8",
    )
    loaded = load_recipe(path)
    assert isinstance(loaded, SftRecipe)
    with pytest.raises(UserError, match="unknown size 'tinny'; did you mean 'tiny'"):
        check_names(loaded, str(path))


SFT = """\
kind: sft
run: runs/x
init: start
stage: {name: instruction, mixture: {data: {source: jsonl, train: a.jsonl}, weights: {t2i: 1}}, train: {}}
optimisation: {lr: 1e-4, epochs: 2, batch: 8}
validation: {every: 1}
checkpoints: {every: 1}
"""


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimisation.steps=3", "optimisation: give either steps or epochs, not both"),
        ("stage.mixture.data={source: emoji}", "optimisation.epochs: the emoji world is drawn without end"),
        ("stage.name=projector", "stage: the projector stage needs captioner"),
        ("stage.captioner=start", "stage: the projector stage needs captioner (a T5 checkpoint), the other stages"),
    ],
)
def test_faults_of_a_stage(recipe: Path, override: str, line: str) -> None:
    recipe.write_text(SFT, encoding="utf-8")
    (recipe.parent / "a.jsonl").touch()
    load_recipe(recipe)
    assert line in _error(recipe, override)


def test_a_projector_stage_trains_the_connector_on_captions(recipe: Path) -> None:
    recipe.write_text(SFT, encoding="utf-8")
    (recipe.parent / "a.jsonl").touch()
    as_projector = ["stage.name=projector", "stage.captioner=start", "stage.train={decoder: false}"]
    load_recipe(recipe, as_projector)
    for fault in ("stage.train.text_encoder=true", "stage.train.lora={}", "stage.mixture.weights={subject: 1}"):
        assert "learns from t2i rows alone and trains the connector alone" in _error(recipe, *as_projector, fault)


def test_data_files_are_one_a_list_or_a_glob(recipe: Path) -> None:
    _edit(recipe, "{shapes: 0.5}", "{source: jsonl, train: [a.jsonl, 'parts/*.jsonl']}")
    assert _error(recipe).splitlines() == [
        "recipes/x.yaml:5: prompts.data.train.0: expected an existing path, found neither recipes/a.jsonl nor a.jsonl",
        "recipes/x.yaml:5: prompts.data.train.1: expected an existing path, "
        "found neither recipes/parts/*.jsonl nor parts/*.jsonl",
    ]
    (recipe.parent / "a.jsonl").touch()
    Path("parts").mkdir()
    Path("parts/1.jsonl").touch()
    prompts = resolved(load_recipe(recipe))["prompts"]
    assert prompts["data"]["train"] == ["recipes/a.jsonl", "parts/*.jsonl"]
    line = _error(recipe, "prompts.data.train.0=b.jsonl")
    assert line == "command line: prompts.data.train.0: prompts.data.train is a value, not a section"
    assert "unknown name 'shard'; did you mean 'shards'?" in _error(recipe, "prompts.data.source=shard")
