"""Folders of pictures: <item id>_<seed>.png, one for each item and seed. What is missing, too much or unreadable."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mentor_base.errors import UserError
from mentor_rl.evaluate.benchmark import Item, PictureKey
from mentor_rl.pictures import SUFFIXES, open_picture

SHOWN = 5  # names in a list of faults
DRAWN = ".png"
SIGNATURE = "policy.json"  # in a folder that a policy draws into: whose pictures they are
ENDINGS = tuple(each for suffix in SUFFIXES for each in (suffix, suffix.upper()))


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of one row.

    Attributes:
        folder: where they lie; a policy's is made while drawing.
        keys: (item id, seed) of all that belong there.
    """

    folder: Path
    keys: tuple[PictureKey, ...]

    @classmethod
    def of(cls, folder: str | Path, items: Sequence[Item], seeds: Sequence[int]) -> PictureFolder:
        """For these items and seeds.

        Raises:
            UserError: two items have one id.
        """
        seen: set[str] = set()
        for item in items:
            if item.id in seen:
                raise UserError(f"item '{item.id}': expected each id once, found it twice")
            seen.add(item.id)
        return cls(Path(folder), tuple((item.id, seed) for item in items for seed in seeds))

    def path(self, item: str, seed: int) -> Path:
        """The file of a picture: one that is there, else the name it is to be drawn to."""
        stem = self.folder / f"{item}_{seed}"
        names = (stem.with_name(f"{stem.name}{suffix}") for suffix in ENDINGS)
        return next((file for file in names if file.exists()), stem.with_name(f"{stem.name}{DRAWN}"))

    def open(self, item: str, seed: int) -> Image.Image:
        """The picture, RGB."""
        return open_picture(self.path(item, seed))

    def missing(self) -> list[PictureKey]:
        """Keys without a file."""
        there = {file.stem for file in self._files()}
        return [key for key in self.keys if f"{key[0]}_{key[1]}" not in there]

    def check(self, known: Container[str] = ()) -> FolderFaults:
        """Look at every file; reads all pictures. ``known``: further file stems that are no fault."""
        wanted = {f"{item}_{seed}": (item, seed) for item, seed in self.keys}
        files, missing = self._files(), self.missing()
        absent = {f"{item}_{seed}" for item, seed in missing}
        others = self._others()
        strangers = [file for file in files if file.stem not in wanted and file.stem not in known]
        strangers += [file for file in others if file.stem not in absent]
        broken: dict[PictureKey, str] = {}
        second = {file.name for file in files if file.stem in wanted and file != self.path(*wanted[file.stem])}
        for file in files:
            if file.stem in wanted and file.name not in second:
                try:
                    open_picture(file)
                except UserError as error:
                    broken[wanted[file.stem]] = str(error)
        return FolderFaults(
            folder=self.folder,
            missing=tuple(missing),
            extra=tuple(sorted(file.name for file in strangers)),
            unread=tuple(sorted(file.name for file in others if file.stem in absent)),
            second=tuple(sorted(second)),
            broken=broken,
        )

    def _files(self) -> list[Path]:
        return [file for file in self._visible() if file.suffix in ENDINGS]

    def _others(self) -> list[Path]:
        """Files that are no pictures by their endings."""
        return [file for file in self._visible() if file.suffix not in ENDINGS and file.is_file()]

    def _visible(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        names = (file for file in self.folder.iterdir() if not file.name.startswith("."))
        return sorted(file for file in names if file.name != SIGNATURE)


@dataclass(frozen=True)
class FolderFaults:
    """What is wrong with a folder of pictures.

    Attributes:
        missing: keys without a picture that can be read by its ending.
        unread: files of such keys with another ending, e.g. .gif or .Png.
        extra: all other files that nobody asked for.
        second: files beside another one of the same item and seed.
        broken: why a picture cannot be decoded.
    """

    folder: Path
    missing: tuple[PictureKey, ...]
    unread: tuple[str, ...]
    extra: tuple[str, ...]
    second: tuple[str, ...]
    broken: dict[PictureKey, str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unread or self.extra or self.second or self.broken)

    def lines(self) -> list[str]:
        """For people: each kind of fault with its number and the first few names."""
        missing = [f"{item}_{seed}{DRAWN}" for item, seed in self.missing]
        broken = [reason.removeprefix(f"{self.folder}/") for reason in self.broken.values()]
        kinds = (
            ("missing", missing),
            ("of another format (expected .png, .jpg or .webp)", self.unread),
            ("not asked for", self.extra),
            ("there under two endings", self.second),
            ("unreadable", broken),
        )
        return [f"{self.folder}: {len(names)} {kind}: {listed(names)}" for kind, names in kinds if names]


def listed(names: Sequence[str]) -> str:
    """The first few of them."""
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
