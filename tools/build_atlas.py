"""Make the emoji atlas anew from pinned npm packages.

    python tools/build_atlas.py            # writes mentor_base/data/emoji_atlas/{sprites.bin,index.json.gz}
    python tools/build_atlas.py --check    # builds in memory and compares with the committed files

Needs npm, network access to a package registry, and ``pip install '.[atlas]'`` (resvg-py). The packages are fetched by
``npm pack``, and refused when their SHA-512 differs from the pinned one. Everything after that is a pure function of
the packages, so the same versions of resvg-py and Pillow (both are written into the index) give the same bytes.

Each sprite is 64x64 RGBA, stored as lossless WebP of all its colours, or of 256 when that is smaller. Left out are
flags, symbols, skin tones, gendered variants, clock faces, banknotes and a few unsuitable subjects (GROUPS,
KEPT_SEQUENCES, DROPPED_NAMES), and pairs whose drawing shows another thing than the name says (WRONG_DRAWINGS).
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMAT = "mentor emoji atlas 1"
SIZE = 64
COLOURS = 256
OUT = Path(__file__).resolve().parent.parent / "mentor_base" / "data" / "emoji_atlas"

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
    (r"(enraged|angry) face.*", "angry"),
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
    (r"(oncoming |trolley|mini)?bus", "bus"),
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

# ---------------------------------------------------------------- packages


@dataclass(frozen=True)
class Package:
    """An npm package: its pinned SHA-512 (as npm writes it), and the licence of what we take from it."""

    version: str
    integrity: str
    licence: str
    credit: str


PACKAGES: Mapping[str, Package] = {
    "@iconify-json/noto": Package(
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Noto Emoji, Google",
    ),
    "@iconify-json/noto-v1": Package(
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Noto Emoji (first version), Google",
    ),
    "@iconify-json/twemoji": Package(
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twemoji, Twitter and contributors",
    ),
    "@lobehub/fluent-emoji-3d": Package(
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        "Fluent Emoji, Microsoft",
    ),
    "@iconify-json/fluent-emoji-flat": Package(
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Fluent Emoji, Microsoft",
    ),
    "@iconify-json/fluent-emoji-high-contrast": Package(
        "1.2.6",
        "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        "MIT",
        "Fluent Emoji, Microsoft",
    ),
    "@iconify-json/emojione": Package(
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "EmojiOne 2 (EmojiTwo), EmojiOne and contributors",
    ),
    "@iconify-json/fxemoji": Package(
        "1.2.2",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "CC-BY-4.0",
        "FxEmojis, Mozilla",
    ),
    "@iconify-json/streamline-emojis": Package(
        "1.2.4",
        "sha512-iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        "CC-BY-4.0",
        "Streamline Emojis, Streamline",
    ),
    "unicode-emoji-json": Package(
        "0.9.0",
        "sha512-HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
        "MIT",
        "names and groups, Mu-An Chiou",
    ),
    "emojilib": Package(
        "4.0.3",
        "sha512-KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
        "MIT",
        "keywords, Mu-An Chiou",
    ),
}


class BuildError(Exception):
    """The packages could not be fetched, or are not what this file expects."""


def fetch(name: str, folder: Path) -> dict[str, bytes]:
    """The files of a pinned package, by path inside it. ``npm pack`` brings it, unless it is in the folder."""
    package = PACKAGES[name]
    archive = folder / f"{name.lstrip('@').replace('/', '-')}-{package.version}.tgz"
    if not archive.exists():
        order = ["npm", "pack", f"{name}@{package.version}", "--pack-destination", str(folder)]
        done = subprocess.run(order, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{' '.join(order[:3])}: {' '.join(done.stderr.split())}")
    data = archive.read_bytes()
    found = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != package.integrity:
        raise BuildError(f"{archive.name}: expected {package.integrity}, found {found}")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        return {
            member.name.removeprefix("package/"): stream.read()
            for member in members
            if (stream := tar.extractfile(member)) is not None
        }


# ---------------------------------------------------------------- subjects

# Sequences of several code points that are subjects of their own; all others are variants of people.
KEPT_SEQUENCES = frozenset({
    "1f636-200d-1f32b", "1f62e-200d-1f4a8", "1f642-200d-2194", "1f642-200d-2195", "1f635-200d-1f4ab",
    "2764-200d-1f525", "2764-200d-1fa79", "1f441-200d-1f5e8", "1f415-200d-1f9ba", "1f408-200d-2b1b",
    "1f43b-200d-2744", "1f426-200d-2b1b", "1f426-200d-1f525", "1f34b-200d-1f7e9", "1f344-200d-1f7eb",
    "26d3-200d-1f4a5",
})  # fmt: skip
DROPPED_NAMES = re.compile(
    r".*o[’']clock|.*-thirty|.* banknote|.*calendar|face blowing a kiss|middle finger|pregnant .*|breast-feeding"
    r"|.* holding hands|kiss|couple with heart|family|love hotel|water pistol|bikini|speaker .*|muted speaker"
    r"|bell with slash|syringe|cigarette"
)
# Unicode's name says less than the drawing does, or reads badly in "a ... in flat style".
BETTER_NAMES: Mapping[str, str] = {
    "locked": "closed padlock",
    "unlocked": "open padlock",
    "locked with pen": "padlock with pen",
    "locked with key": "padlock with key",
    "foggy": "foggy city",
    "person blond hair": "blond person",
    "person beard": "bearded person",
    "zzz": "zzz letters",
    "mate": "mate drink",
    "high voltage": "lightning bolt",
    "construction": "construction barrier",
    "wedding": "wedding chapel",
    "camping": "campsite",
    "ice": "ice cube",
    "cooking": "fried egg in pan",
    "performing arts": "theater masks",
    "piñata": "pinata",
    "dizzy": "dizzy star",
    "american football": "football",
    "tennis": "tennis racket",
    "badminton": "badminton racket",
    "ping pong": "ping pong paddle",
    "bowling": "bowling ball and pins",
    "field hockey": "field hockey stick",
    "ice hockey": "ice hockey stick",
    "lacrosse": "lacrosse stick",
    "cricket game": "cricket bat",
    "pool 8 ball": "eight ball",
    "1st place medal": "gold medal",
    "2nd place medal": "silver medal",
    "3rd place medal": "bronze medal",
    "link": "chain link",
    "articulated lorry": "lorry",
    "hourglass not done": "running hourglass",
    "hourglass done": "hourglass",
    "lady beetle": "ladybug",
    "backhand index pointing left": "hand pointing left",
    "backhand index pointing right": "hand pointing right",
    "backhand index pointing up": "hand pointing up",
    "backhand index pointing down": "hand pointing down",
    "index pointing up": "finger pointing up",
    "index pointing at the viewer": "finger pointing at you",
    "hand with index finger and thumb crossed": "finger heart hand",
    "globe showing europe-africa": "globe with africa",
    "globe showing americas": "globe with america",
    "globe showing asia-australia": "globe with asia",
    "money with wings": "flying money",
    "mobile phone with arrow": "phone with arrow",
    "magnifying glass tilted left": "left magnifying glass",
    "magnifying glass tilted right": "right magnifying glass",
}


def read_subjects(unicode_names: Mapping[str, Any], keywords: Mapping[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Subject id -> what the index says of it, and (not for the index) the names that icon sets may use."""
    subjects: dict[str, dict[str, Any]] = {}
    for emoji, facts in unicode_names.items():
        points = [f"{ord(sign):x}" for sign in emoji if ord(sign) != 0xFE0F]
        key = "-".join(points)
        if facts["group"] not in GROUPS or DROPPED_NAMES.fullmatch(facts["name"]):
            continue
        if len(points) > 1 and key not in KEPT_SEQUENCES:
            continue
        tags = keywords.get(emoji, [])
        plain = clean_name(facts["name"])
        name = BETTER_NAMES.get(plain, plain)
        family = family_of(plain)
        official = unicodedata.name(emoji[0], "") if len(points) == 1 else ""
        subjects[key] = {
            "name": name,
            "group": GROUPS[facts["group"]],
            "keywords": clean_keywords(name, tags),
            "family": family,
            "split": split_of(family),
            "also": [facts["name"], official, tags[0] if tags else ""],
        }
    return subjects


# ---------------------------------------------------------------- drawings

STYLE_PACKAGES: Mapping[str, str] = {
    "noto": "@iconify-json/noto",
    "blob": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "fluent-3d": "@lobehub/fluent-emoji-3d",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "fluent-mono": "@iconify-json/fluent-emoji-high-contrast",
    "emojione": "@iconify-json/emojione",
    "fxemoji": "@iconify-json/fxemoji",
    "streamline": "@iconify-json/streamline-emojis",
}
# (style, Unicode name): icons whose own name no rule of find_icon reaches.
ICON_ALIASES: Mapping[tuple[str, str], str] = {
    ("emojione", "person blond hair"): "blond-haired-person",
    ("emojione", "person with skullcap"): "man-with-chinese-cap",
    ("emojione", "heart exclamation"): "heavy-heart-exclamation",
    ("emojione", "smiling cat with heart-eyes"): "smiling-cat-face-with-heart-eyes",
    ("streamline", "smiling cat with heart-eyes"): "smiling-cat-face-with-heart-eyes",
    ("streamline", "grinning cat"): "grinning-cat-face",
    ("streamline", "kissing cat"): "kissing-cat-face",
    ("fxemoji", "sunglasses"): "darksunglasses",
    ("streamline", "person with skullcap"): "man-with-chinese-cap-1",
    ("streamline", "backpack"): "school-backpack",
    ("streamline", "person in suit levitating"): "man-in-suit-levitating-1",
}
# (style, Unicode name): found by eye on contact sheets; the drawing shows another thing than the name says.
WRONG_DRAWINGS = frozenset({
    ("streamline", "turkey"), ("emojione", "cricket"), ("blob", "cricket"), ("fxemoji", "keyboard"),
    ("fxemoji", "window"), ("fxemoji", "cat"), ("fxemoji", "kiss"), ("fxemoji", "dog"), ("fxemoji", "rabbit"),
    ("fxemoji", "tiger"), ("fxemoji", "pig"), ("fxemoji", "mouse"), ("emojione", "cat"), ("emojione", "tiger"),
    ("emojione", "leopard"), ("streamline", "new moon face"),
})  # fmt: skip


def plain_letters(name: str) -> str:
    """A name without accents, case, spaces and signs, for comparing names of different sets."""
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", name.lower()))


class IconSet:
    """One iconify package: icons by name, and by code points where it has ``chars.json``."""

    def __init__(self, style: str, package: Mapping[str, bytes]) -> None:
        self.style = style
        self.facts = json.loads(package["icons.json"])
        self.by_code: dict[str, str] = json.loads(package["chars.json"])
        self.by_letters: dict[str, str] = {}
        for name in (*self.facts["icons"], *self.facts.get("aliases", {})):
            self.by_letters.setdefault(plain_letters(name), name)

    def find_icon(self, key: str, subject: Mapping[str, Any]) -> str | None:
        """The icon of a subject: by code points, by hand, by one of its names, or by a name with a small change."""
        if key in self.by_code:
            return self.by_code[key]
        known = ICON_ALIASES.get((self.style, clean_name(subject["also"][0])))
        if known is not None:
            return known
        letters = [plain_letters(name) for name in subject["also"] if name]
        # streamline numbers the first of two variants; fxemoji leaves "face" away
        changes = [*letters, *(name + "1" for name in letters), *(re.sub("face$", "", name) for name in letters)]
        return next((self.by_letters[name] for name in changes if name in self.by_letters), None)

    def svg(self, name: str) -> str:
        """A whole SVG document of an icon, mirrored where the set says so."""
        alias = self.facts.get("aliases", {}).get(name, {})
        icon = self.facts["icons"][alias.get("parent", name)]
        left, top, width, height = (
            icon.get(key, self.facts.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        body = icon["body"]
        if set(alias) - {"parent", "hFlip"}:
            raise BuildError(f"{self.style}: icon {name}: expected no transform but hFlip, found {alias}")
        if alias.get("hFlip"):
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{SIZE}" height="{SIZE}">{body}</svg>'
        )


def draw_icons(style: str, package: Mapping[str, bytes], subjects: Mapping[str, Any]) -> dict[str, Image.Image]:
    """Subject id -> sprite, rendered from SVG."""
    import resvg_py

    icons = IconSet(style, package)
    sprites = {}
    for key, subject in subjects.items():
        if (style, clean_name(subject["also"][0])) in WRONG_DRAWINGS:
            continue
        name = icons.find_icon(key, subject)
        if name is not None:
            png = bytes(resvg_py.svg_to_bytes(svg_string=icons.svg(name), width=SIZE, height=SIZE))
            sprites[key] = Image.open(io.BytesIO(png)).convert("RGBA")
    return sprites


def shrink_pictures(package: Mapping[str, bytes], subjects: Mapping[str, Any]) -> dict[str, Image.Image]:
    """Subject id -> sprite, from the larger WebP pictures of fluent-3d."""
    pictures = {
        "-".join(point for point in Path(name).stem.split("-") if point != "fe0f"): data
        for name, data in package.items()
        if name.endswith(".webp")
    }
    sprites = {}
    for key in subjects:
        if key in pictures:
            with Image.open(io.BytesIO(pictures[key])) as picture:
                sprites[key] = picture.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return sprites


def encode(sprite: Image.Image, colours: int = COLOURS) -> bytes:
    """The smaller of two lossless WebP files: of all colours, and of a palette; invisible pixels are black first."""
    pixels = np.array(sprite)
    pixels[pixels[:, :, 3] == 0] = 0
    clean = Image.fromarray(pixels)
    reduced = clean.quantize(colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).convert("RGBA")
    return min(_webp(clean), _webp(reduced), key=len)


def _webp(picture: Image.Image) -> bytes:
    # method 6 is a hundred times slower and saves one per cent
    stream = io.BytesIO()
    picture.save(stream, "WEBP", lossless=True, quality=80, method=4)
    return stream.getvalue()


# ---------------------------------------------------------------- the atlas


def build(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """(sprites.bin, index) from the pinned packages; archives are looked for, and kept, in the folder."""
    names = json.loads(fetch("unicode-emoji-json", folder)["data-by-emoji.json"])
    keywords = json.loads(fetch("emojilib", folder)["dist/emoji-en-US.json"])
    subjects = read_subjects(names, keywords)
    drawn: dict[str, dict[str, Image.Image]] = {}
    for style, package in STYLE_PACKAGES.items():
        contents = fetch(package, folder)
        pictures = "icons.json" not in contents
        drawn[style] = shrink_pictures(contents, subjects) if pictures else draw_icons(style, contents, subjects)
        print(f"{style:12} {len(drawn[style]):5} of {len(subjects)}", file=sys.stderr)
    rows, blob = _pack(drawn)
    return blob, _index(subjects, rows, blob)


def _pack(drawn: Mapping[str, Mapping[str, Image.Image]]) -> tuple[dict[str, dict[str, list[int]]], bytes]:
    rows: dict[str, dict[str, list[int]]] = {}
    parts: list[bytes] = []
    offset = 0
    for style, sprites in drawn.items():
        rows[style] = {}
        for key, sprite in sprites.items():
            data = encode(sprite)
            rows[style][key] = [offset, len(data)]
            parts.append(data)
            offset += len(data)
    return rows, b"".join(parts)


def _index(subjects: dict[str, dict[str, Any]], rows: dict[str, dict[str, list[int]]], blob: bytes) -> dict[str, Any]:
    held_out = [
        [key, style]
        for key, subject in subjects.items()
        if subject["split"] == "train"
        for style in held_out_styles(key, [style for style in rows if key in rows[style]])
    ]
    styles = {
        style: {"name": STYLE_NAMES[style], "package": package, "licence": PACKAGES[package].licence}
        for style, package in STYLE_PACKAGES.items()
    }
    return {
        "format": FORMAT,
        "size": SIZE,
        "bytes": len(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "made_with": {name: metadata.version(name) for name in ("pillow", "resvg-py")},
        "packages": {name: asdict(package) for name, package in PACKAGES.items()},
        "styles": styles,
        "subjects": {key: {k: v for k, v in row.items() if k != "also"} for key, row in subjects.items()},
        "held_out": held_out,
        "sprites": rows,
    }


def index_bytes(index: Mapping[str, Any]) -> bytes:
    """The index as compact JSON, gzip without a time stamp."""
    text = json.dumps(index, separators=(",", ":"), ensure_ascii=False)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def differences(blob: bytes, index: dict[str, Any], committed: Path) -> list[str]:
    """What a rebuild and the committed files disagree about. The index is compared unpacked: gzip's bytes may vary."""
    old_index = json.loads(gzip.decompress((committed / "index.json.gz").read_bytes()))
    new_index = json.loads(json.dumps(index))
    found = [f"index: '{key}' differs" for key in new_index if old_index.get(key) != new_index[key]]
    if (committed / "sprites.bin").read_bytes() != blob:
        found.append("sprites.bin differs")
    if found and old_index["made_with"] != new_index["made_with"]:
        found.append(f"made with {old_index['made_with']}, now {new_index['made_with']}: install those versions")
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the emoji atlas anew from pinned npm packages.")
    parser.add_argument("--check", action="store_true", help="compare a rebuild with the committed files")
    parser.add_argument("--packages", type=Path, help="folder where archives are kept (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of sprites.bin and index.json.gz")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.packages or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        blob, index = build(folder)
    count = sum(len(row) for row in index["sprites"].values())
    print(f"{count} sprites of {len(index['subjects'])} subjects, {len(blob)} bytes, sha256 {index['sha256']}")
    if arguments.check:
        found = differences(blob, index, arguments.out)
        print("\n".join(found) or "the committed atlas is what this tool makes")
        return 1 if found else 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "sprites.bin").write_bytes(blob)
    (arguments.out / "index.json.gz").write_bytes(index_bytes(index))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BuildError, FileNotFoundError) as error:
        sys.exit(f"build_atlas: {error}")
