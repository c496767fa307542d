"""FID and KID as a benchmark of ``mentor evaluate``: pictures for a file of prompts against a folder of real ones.

A picture's facts are its features. The real pictures' features are computed once per call; a file of statistics
(.npz with ``mu`` and ``sigma``, as other tools publish them) takes their place, and then there is no KID.
"""

from __future__ import annotations

import base64
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mentor_base.errors import UserError
from mentor_base.progress import ProgressBar
from mentor_rl.evaluate.benchmark import Facts, Item, Sample, Scored, Tabulated, Unscored
from mentor_rl.evaluate.fid import covariance, gaussian_distance, kernel_distance
from mentor_rl.evaluate.fid_features import Extractor, find_weights, load_extractor
from mentor_rl.evaluate.picture_folder import listed
from mentor_rl.evaluate.prompt_files import read_prompts
from mentor_rl.evaluate.recipes import FidRecipe
from mentor_rl.evaluate.result import Value
from mentor_rl.pictures import SUFFIXES, open_picture, pictures_below, unreadable

Statistics = tuple[np.ndarray, np.ndarray]


class Fid:
    """See benchmark.Benchmark.

    Raises:
        UserError: no prompts, or no real pictures.
    """

    name = "fid"
    floor: Facts | None = None  # a set has no worst picture

    def __init__(self, recipe: FidRecipe) -> None:
        self.recipe, self.real = recipe, Path(recipe.real)
        self._texts = read_prompts(Path(recipe.prompts))
        self._files = _real_files(self.real)
        self._extractor: Extractor | None = None
        self._real_features: np.ndarray | None = None

    def items(self) -> Sequence[Item]:
        """One per prompt."""
        return [Item(f"prompt_{number:05d}", text) for number, text in enumerate(self._texts)]

    def check(self) -> None:
        """The network's weights, and the statistics where they take the place of pictures."""
        find_weights(self.recipe.features, self.recipe.weights)
        if self._files is None:
            _statistics(self.real)

    def load(self, device: str) -> None:
        """The network."""
        weights = find_weights(self.recipe.features, self.recipe.weights)
        self._extractor = load_extractor(self.recipe.features, weights, device)

    def unload(self) -> None:
        """Free the network."""
        self._extractor = None

    @property
    def extractor(self) -> Extractor:
        """The loaded network."""
        if self._extractor is None:
            raise ValueError("score before load")
        return self._extractor

    @property
    def judge(self) -> str:
        """The network, and whether its distance is the FID of publications."""
        standard = "" if self.recipe.features == "inception" else " (not the standard FID)"
        return f"{self.extractor.name}{standard}"

    @property
    def stand_in(self) -> bool:
        """With any network but the published one."""
        return self.recipe.features != "inception"

    @property
    def prompts(self) -> str:
        """Prompts and real pictures."""
        real = "statistics" if self._files is None else f"{len(self._files)} pictures"
        return f"{self.recipe.prompts} ({len(self._texts)} prompts), real: {self.real} ({real})"

    def score(self, samples: Sequence[Sample]) -> list[Facts | Unscored]:
        """The features of each picture, float32 in base64."""
        features_NC = self.extractor([sample.image for sample in samples])
        return [{"features": base64.b64encode(row.astype("<f4").tobytes()).decode()} for row in features_NC]

    def tabulate(self, scored: Scored) -> Tabulated:
        """FID, and KID where there are real pictures; all seeds are one set."""
        made_NC = np.stack([_decoded(fact["features"]) for _, facts in scored.by_item() for fact in facts])
        if len(made_NC) < 2:
            raise UserError(f"{scored.row}: expected at least two pictures, found {len(made_NC)}")
        label = self.extractor.label
        if self._files is None:
            mean_C, covariance_CC = _statistics(self.real)
            if len(mean_C) != made_NC.shape[1]:
                raise UserError(f"{self.real}: expected statistics of {made_NC.shape[1]} features, found {len(mean_C)}")
        else:
            real_MC = self._features_of_real(self._files)
            mean_C, covariance_CC = real_MC.mean(0, dtype=np.float64), covariance(real_MC)
        distance = gaussian_distance(made_NC.mean(0, dtype=np.float64), covariance(made_NC), mean_C, covariance_CC)
        metrics: dict[str, Value] = {label: distance}
        if self._files is not None:
            kid, spread = kernel_distance(made_NC, self._features_of_real(self._files))
            name = label.replace("FID", "KID").replace("FD", "KD")
            metrics |= {f"{name} x 1000": 1000 * kid, "sd over subsets": 1000 * spread}
        fewest, features = min(len(made_NC), len(made_NC if self._files is None else self._files)), made_NC.shape[1]
        few = f"{fewest} pictures for {features} features: their covariance is singular, and {label} means little"
        return Tabulated({"": {**metrics, "pictures": len(made_NC)}}, notes=[few] if fewest <= features else [])

    def notes(self) -> Sequence[str]:
        """What the numbers depend on."""
        notes = ["FID is biased upwards by small sets: compare at equal numbers of pictures only"]
        if self.recipe.features != "inception":
            notes.append(f"features of {self.recipe.features}: not the FID of publications")
        return notes

    def _features_of_real(self, files: Sequence[Path]) -> np.ndarray:
        if self._real_features is None:
            size, parts = self.recipe.score_batch, []
            with ProgressBar("fid: real pictures", len(files)) as bar:
                for start in range(0, len(files), size):
                    images = [open_picture(file) for file in files[start : start + size]]
                    parts.append(self.extractor(images))
                    bar.advance(len(images))
            self._real_features = np.concatenate(parts)
        return self._real_features


def _real_files(real: Path) -> list[Path] | None:
    """The pictures of a folder and what lies below it; None for a file of statistics."""
    if real.is_file() and real.suffix == ".npz":
        return None
    if not real.is_dir():
        raise UserError(f"{real}: expected a folder of real pictures, or an .npz with mu and sigma")
    found = pictures_below(real)
    if len(found) < 2:
        raise UserError(f"{real}: expected at least two pictures ({', '.join(SUFFIXES)}), found {len(found)}")
    if faults := unreadable(found):
        raise UserError(f"{real}: {len(faults)} real pictures cannot be read: {listed(faults)}")
    return found


def _statistics(file: Path) -> Statistics:
    """Mean [C] and covariance [C, C]; nothing in the file is run."""
    try:
        with np.load(file, allow_pickle=False) as held:
            mean_C, covariance_CC = held["mu"].astype(np.float64), held["sigma"].astype(np.float64)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: expected an .npz with the arrays mu and sigma: {error}") from error
    if mean_C.ndim != 1 or covariance_CC.shape != 2 * mean_C.shape:
        raise UserError(f"{file}: expected mu [C] and sigma [C, C], found {mean_C.shape} and {covariance_CC.shape}")
    return mean_C, covariance_CC


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
