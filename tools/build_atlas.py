"""Make the emoji atlas anew from pinned npm packages.

    python tools/build_atlas.py            # writes mentor_base/data/emoji_atlas/{sprites.bin,index.json.gz}
    python tools/build_atlas.py --check    # builds in memory and compares with the committed files, byte for byte

Needs npm, network access to a package registry, and ``pip install '.[atlas]'`` (resvg-py). The packages are fetched by
``npm pack``, and refused when their SHA-512 differs from the pinned one. Everything after that is a pure function of
the packages, so the same versions of resvg-py and Pillow (both are written into the index) give the same bytes.

Each sprite is 64x64 RGBA, stored as the smaller of a lossless WebP and a PNG of 128 colours. Flags, symbols, skin
tones, gendered variants, clock faces, banknotes and a few unsuitable subjects are left out (DROPPED_NAMES,
DROPPED_SUBGROUPS), as are pairs whose drawing shows another thing than the name says (WRONG_DRAWINGS).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

# ---------------------------------------------------------------- families and splits

COLOUR_WORDS = "light blue|red|pink|orange|yellow|green|blue|purple|brown|black|grey|white"
OTHER_LEADING_WORDS = "person|man|woman|people|men|women|old|older|oncoming|open|closed|small|broken"
POSSESSIVES = "man's|woman's"
# Drawings that differ by a turn, a mirror or a detail, and whose names do not say so by the rule of family_of.
SAME_FAMILY: tuple[tuple[str, str], ...] = (
    (r".*\bmoon( face)?", "moon"),
    (r"globe .*", "globe"),
    (r".*\bfist", "fist"),
    (r".*\b(right|left)wards .*hand|palm (up|down) hand", "sideways hand"),
    (r".*index pointing.*", "pointing hand"),
    (r"thumbs (up|down)", "thumb"),
    (r"magnifying glass.*", "magnifying glass"),
    (r"head shaking.*", "shaking head"),
    (r"shaking face", "shaking head"),
    (r"hourglass.*", "hourglass"),
    (r".*(place|sports|military) medal", "medal"),
    (r".*traffic light", "traffic light"),
    (r"(clinking )?beer mugs?", "beer mug"),
    (r".*\blocked( with .*)?", "lock"),
    (r"unlocked", "lock"),
    (r".*\bchick", "chick"),
    (r"airplane.*", "airplane"),
    (r"sunrise.*|sunset", "sunrise"),
    (r"cityscape.*", "cityscape"),
    (r"optical disk|dvd", "disk"),
    (r"(snow-capped )?mountain", "mountain"),
    (r".*\b(speech|thought|anger) (bubble|balloon)", "speech bubble"),
    (r"(fountain )?pen", "pen"),
    (r".*\bheart", "heart"),
    (r"(two|revolving) hearts", "heart"),
    (r"sun behind.*", "sun behind cloud"),
    (r"(incoming )?envelope.*", "envelope"),
    (r"(in|out)box tray", "tray"),
    (r"(round )?pushpin", "pushpin"),
    (r"(linked )?paperclips?", "paperclip"),
    (r"card (index|file).*|(open )?file folder|file cabinet", "files"),
    (r"charts? (in|de)creasing.*|bar chart", "chart"),
    (r"page (with curl|facing up)", "page"),
    (r"(low )?battery", "battery"),
    (r"(hammer|pick)( and .*)?", "hammer"),
    (r"(spiral )?notepad|notebook.*", "notebook"),
    (r".*\bmonkey", "monkey"),
    (r".*\bcamel", "camel"),
    (r"(service|guide) dog", "dog"),
    (r"(rolled-up )?newspaper", "newspaper"),
    (r"mountain biking|biking", "biking"),
    (r"(long )?drum", "drum"),
    (r"(old )?key", "key"),
)


def family_of(name: str) -> str:
    """The key that near-duplicates share: the name without colour, person, "face", "with ..." and plural s."""
    family = name
    for pattern, known in SAME_FAMILY:
        if re.fullmatch(pattern, family):
            return known
    family = re.sub(r"\s+(with|without)\s.*$", "", family)
    family = re.sub(rf"^({COLOUR_WORDS}|{OTHER_LEADING_WORDS}|{POSSESSIVES})\s+(?=.)", "", family)
    family = re.sub(r"\s+face$", "", family)
    for pattern, known in SAME_FAMILY:
        if re.fullmatch(pattern, family):
            return known
    return family[:-1] if family.endswith("s") and not family.endswith("ss") else family


def split_of(family: str) -> str:
    """unseen_subjects for a tenth of the families, val for a twentieth, train for the rest."""
    place = _hash("subj:" + family) % 1000
    return "unseen_subjects" if place < 100 else "val" if place < 150 else "train"


HELD_OUT_SHARE = 350  # of a thousand train subjects lose one drawing: about 6 % of all train sprites
# Styles that share their drawings are held out together.
DRAWING_OF_STYLE = {"fluent-3d": "fluent", "fluent-flat": "fluent", "fluent-mono": "fluent"}


def held_out_styles(subject: str, styles: Iterable[str]) -> list[str]:
    """The styles of a train subject that only the split unseen_pairs shows: one drawing at most, two are left."""
    styles = list(styles)
    drawings = sorted({DRAWING_OF_STYLE.get(style, style) for style in styles})
    if len(drawings) < 3 or _hash("pair:" + subject) % 1000 >= HELD_OUT_SHARE:
        return []
    chosen = drawings[_hash("drawing:" + subject) % len(drawings)]
    return [style for style in styles if DRAWING_OF_STYLE.get(style, style) == chosen]


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def clean_name(name: str) -> str:
    """A name as prompts use it: lower case, straight apostrophes, no punctuation."""
    name = name.lower().replace("’", "'").replace("“", "").replace("”", "")
    return " ".join(re.sub(r"[:,!?.()]", " ", name).split())


def clean_keywords(name: str, keywords: Iterable[str], limit: int = 4) -> list[str]:
    """The first few plain words among the tags that the name does not already hold."""
    known = set(re.split(r"[\s-]", name))
    words = [word.lower() for word in keywords if re.fullmatch(r"[A-Za-z]{3,12}", word)]
    return [word for word in dict.fromkeys(words) if word not in known and word + "s" not in known][:limit]


GROUPS: Mapping[str, str] = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
}
STYLE_NAMES: Mapping[str, str] = {
    "noto": "shaded",
    "blob": "rounded cartoon",
    "twemoji": "simple",
    "fluent-3d": "3d",
    "fluent-flat": "flat",
    "fluent-mono": "line art",
    "emojione": "classic",
    "fxemoji": "muted",
    "streamline": "ink outline",
}
