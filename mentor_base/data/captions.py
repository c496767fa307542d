"""The grammar of the emoji world's prompts: articles, plurals, and the templates of each task.

Lower case, short (each word costs compute in every rollout), styles by their descriptive names, and the background by
its colour wherever it is not white.
"""

from __future__ import annotations

from random import Random

from mentor_base.data.shapes import NUMBERS, background_words, place_words

_NO_ARTICLE = frozenset({
    "bacon", "badminton", "baseball", "basketball", "bowling", "bread", "broccoli", "butter", "construction", "corn",
    "fire", "fog", "foggy", "food", "garlic", "ginger", "hair", "ice", "lacrosse", "oden", "poo", "popcorn", "sake",
    "salt", "soap", "softball", "spaghetti", "sushi", "tennis", "thread", "volleyball", "wood", "yarn",
})  # fmt: skip
_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "wolf": "wolves", "leaf": "leaves", "knife": "knives", "scarf": "scarves",
    "foot": "feet", "tooth": "teeth", "child": "children", "man": "men", "woman": "women", "person": "people",
    "elf": "elves", "ox": "oxen",
}  # fmt: skip
_SAME_PLURAL = frozenset({"fish", "deer", "bison", "moose", "sheep", "shrimp", "squid", "blowfish", "jellyfish"})


def an(phrase: str) -> str:
    """The phrase with "a" or "an"; without article where the last word is a plural or cannot be counted."""
    last = phrase.split()[-1]
    head = phrase.split(" with ")[0].split(" of ")[0].split()[-1]
    if last in _NO_ARTICLE or _is_plural(head):
        return phrase
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "eu", "one-", "ufo"))
    return f"{'an' if vowel or phrase.startswith(('hour', 'x-ray')) else 'a'} {phrase}"


def plural(name: str) -> str | None:
    """The plural, or None for names that make no simple one."""
    words = name.split()
    last = words[-1]
    if last in _NO_ARTICLE or _is_plural(last) or {"with", "of", "and", "in", "on", "showing", "without"} & set(words):
        return None
    if last in _SAME_PLURAL:
        ending = last
    elif last in _IRREGULAR:
        ending = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        ending = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        ending = last[:-1] + "ies"
    elif last.endswith(("ato", "ing")):
        return None
    else:
        ending = last + "s"
    return " ".join([*words[:-1], ending])


def _is_plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")) and word not in ("bus", "lens", "canvas")


def emoji_caption(rng: Random, name: str, style: str, background: str, keywords: tuple[str, ...] = ()) -> str:
    """Text-to-image: "a fox in 3d style on a blue background", and its variants."""
    ground = background_words(background)
    roll = rng.random()
    if roll < 0.5:
        return f"{an(name)} in {style} style{ground}"
    if roll < 0.75:
        return f"{style} style {name}{ground}"
    if roll < 0.92 or not keywords:
        return f"{style} drawing of {an(name)}{ground}"
    return f"{style} drawing of {an(name)}, {rng.choice(keywords)}{ground}"


def placed_caption(name: str, style: str, background: str, position: str) -> str:
    """ "a small fox in the top left, 3d style"."""
    return f"a small {name} {place_words(position)}, {style} style{background_words(background)}"


def counted_caption(names: str, style: str, background: str, count: int) -> str:
    """ "three foxes in 3d style"; ``names`` is the plural."""
    return f"{NUMBERS[count]} {names} in {style} style{background_words(background)}"


def reconstruction_text(rng: Random) -> str:
    """The instruction to copy."""
    return rng.choices(("<image> reproduce this image", "<image> the same image", "reproduce <image>"), (3, 1, 1))[0]


def segmentation_text(rng: Random, name: str) -> str:
    """The instruction to cut out."""
    texts = (f"<image> cut out the {name}", f"<image> only the {name}", f"cut out the {name} <image>")
    return rng.choices(texts, (3, 1, 1))[0]


def recovery_text(rng: Random, name: str, style: str, background: str) -> str:
    """The instruction to restore, with the caption of the target."""
    verb = rng.choices(("<image> restore:", "<image> repair:"), (3, 1))[0]
    return f"{verb} {an(name)} in {style} style{background_words(background)}"


def subject_text(rng: Random, name: str, style: str, background: str) -> str:
    """Subject-driven: reference, label, and an instruction that names the style."""
    ground = background_words(background)
    roll = rng.random()
    if roll < 0.6:
        return f"<image> this {name} in {style} style{ground}"
    if roll < 0.8:
        return f"<image> {style} style {name}{ground}"
    return f"this {name} <image> in {style} style{ground}"


def pair_text(rng: Random, names: tuple[str, str], relation: str, background: str) -> str:
    """Two references composed; half the time with their names."""
    named = rng.random() < 0.5
    first, second = (f"<image> {name}" if named else "<image>" for name in names)
    if relation == "side by side":
        return f"{first} and {second} side by side{background_words(background)}"
    return f"{first} {relation} {second}{background_words(background)}"
