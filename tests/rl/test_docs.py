"""The pages, and the comments of recipes: links lead somewhere, named files are there, commands can be given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from mentor_rl.cli import app
from mentor_rl.recipe_files import load_recipe

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "mentor_base", "mentor_rl", "recipes", "rewards", "tests", "tools")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
TEXTS = [*PAGES, *(ROOT / "recipes").rglob("*.yaml"), ROOT / "Makefile", ROOT / "benchmarks" / "run_all.sh"]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`]+)`")
MENTOR = get_command(app)
ROOTED = "|".join(FOLDERS)
PATH = re.compile(rf"(?<![\w/.-])((?:{ROOTED})/(?:[\w./-]|\{{[\w,]+\}})+)")
FILE = re.compile(r"[\w./{},-]+\.(?:py|yaml|md|sh)")
THEIRS = re.compile(r"my_reward|sharpness|^recipe\.yaml|\b(DIR|RUN|STEP)\b")  # a reader's or a run's


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def prose(file: Path) -> str:
    """A page without its blocks of code; of other files the comments, a paragraph as one text."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return FENCED.sub("", text)
    return "\n".join(line.partition("#")[2].strip() for line in text.splitlines())


@cache
def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in LINK.findall(prose(page)):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert re.match(r"https?:", link) or target.exists(), f"{name_of(page)}: {link}"
            assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


def meant(path: str) -> list[str]:
    """``a/{b,c}.yaml`` as a shell reads it."""
    before, brace, rest = path.partition("{")
    inside, _, after = rest.partition("}")
    return [each for part in inside.split(",") for each in meant(before + part + after)] if brace else [path]


def test_named_files_are_there() -> None:
    """Paths from the root of the project; other files by the end of their path."""
    files = [f"/{name_of(path)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    files += [f"/{path.name}" for path in ROOT.iterdir()]
    for text in TEXTS:
        for found in PATH.findall(text.read_text(encoding="utf-8")):
            for path in meant(found.rstrip(".")):
                assert (ROOT / path).exists(), f"{name_of(text)}: {path}"
        trees = [block for language, block in FENCED.findall(text.read_text(encoding="utf-8")) if not language]
        for span in SPAN.findall(prose(text)) + " ".join(trees).replace(";", " ").split():
            if FILE.fullmatch(span) and not THEIRS.search(span):
                for path in meant(span):
                    assert any(file.endswith(f"/{path}") for file in files), f"{name_of(text)}: {path}"


def commands(text: Path) -> Iterator[list[str]]:
    """The words of each ``mentor`` command in blocks of code, in spans of text and in comments."""
    blocks = [block for _, block in FENCED.findall(text.read_text(encoding="utf-8"))]
    lines = [line for block in blocks or [prose(text)] for line in block.replace("\\\n", " ").splitlines()]
    for line in lines + SPAN.findall(prose(text)):
        found = re.match(r"\s*(?:\$ )?(?:\S.* -m mentor_rl|mentor) (.+)", line, re.DOTALL)
        if found:
            yield list(takewhile(lambda word: word not in ("&&", "..."), shlex.split(found[1], comments=True)))


@pytest.mark.parametrize("text", [text for text in TEXTS if any(commands(text))], ids=name_of)
def test_commands_can_be_given(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are registered, have their options, and the recipes that they name take their overrides."""
    monkeypatch.chdir(ROOT)
    for words in commands(text):
        command, rest = MENTOR, words
        while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        ours = rest[: rest.index("--")] if "--" in rest else rest
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        given = {word.partition("=")[0] for word in ours if re.match(r"--?[a-z]", word)}
        assert given <= known | {"--help"}, words
        recipes = [word for word in ours if re.fullmatch(r"recipes/[\w/]+\.yaml", word)]
        if recipes and words[0] in ("train", "evaluate", "ablate") and "$" not in " ".join(words):
            load_recipe(recipes[0], [word for word in ours if re.match(r"[a-z_.\d]+=", word)], need_inputs=False)


def test_the_first_page_names_both_targets_of_make() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    said = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test"} <= set(said) <= set(targets)
