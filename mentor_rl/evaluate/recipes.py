"""Recipes of ``kind: evaluate``, told apart by ``benchmark``. Free of torch.

    benchmark: emojibench | dreambench_plus | dreambench | t2i_rewards | geneval | reconstruction | ade20k | fid

EmojiBench brings its own world and judge (emojibench.py). All others are PictureRecipes: pictures that the policies
draw, and folders of pictures that any other model has drawn, scored by one benchmark (benchmark.py is the contract).
"""

from __future__ import annotations

from typing import Annotated, Literal

from mentor_rewards.contract import RewardEntry
from mentor_rewards.weights import WeightsSource
from pydantic import AfterValidator, Field, model_validator

from mentor_base.settings import InputPath, Positive, Sampling, Section, Split
from mentor_rl.recipe_common import Common


def _is_template(text: str) -> str:
    try:
        filled = text.format(prompt="", subject="")
    except (KeyError, IndexError, ValueError):
        filled = ""
    if filled.count("<image>") != 1 or "{prompt}" not in text:
        raise ValueError(f"expected one <image>, {{prompt}} and perhaps {{subject}}, found '{text}'")
    return text


SubjectTemplate = Annotated[str, AfterValidator(_is_template)]


def _is_row_name(name: str) -> str:
    """A row's name is a folder's, too, and ``name · part`` names its parts."""
    if not name.strip() or name != name.strip() or name.startswith(".") or set(name) & set("/\\·|\n\r\t"):
        raise ValueError(f"expected a name without '/', '·' or '|' and no '.' in front, found '{name}'")
    return name


RowName = Annotated[str, AfterValidator(_is_row_name)]
PictureSeeds = tuple[Annotated[int, Field(ge=0)], ...]
CLIP_L14 = "openai/clip-vit-large-patch14"
MASK2FORMER = "facebook/mask2former-swin-small-coco-instance"
BASELINES = ("copy the reference", "random training picture", "target", "target, tokenizer")  # EmojiBench's
TrainingSeeds = Annotated[tuple[InputPath, ...], Field(min_length=1)]


class EvaluateRecipe(Common):
    """A benchmark on one or several checkpoints, or on pictures that are there already."""

    kind: Literal["evaluate"]
    benchmark: str
    device: str | None = Field(None, description="default: the process's own GPU, cpu where there is none")


class EmojiBenchRecipe(EvaluateRecipe):
    """EmojiBench on one or several checkpoints."""

    benchmark: Literal["emojibench"]
    policies: dict[RowName, InputPath | TrainingSeeds] = Field(
        description="name -> checkpoint or run folder, or a list of them: one method trained with several seeds"
    )
    evaluator: InputPath
    splits: tuple[Split, ...] = Field(("unseen_subjects", "unseen_pairs"), min_length=1)
    items: int = Field(96, gt=0, description="per split")
    seeds: PictureSeeds = Field((0, 1, 2), min_length=1, description="pictures per item: one for each seed")
    guidance: tuple[float, ...] = Field(
        (1.0,), min_length=1, description="each policy is reported at its best of these scales"
    )
    temperature: Positive = 1.0
    baselines: bool = True
    batch: int = Field(64, gt=0)

    def rows_of(self, policy: str) -> dict[str, str]:
        """Row -> checkpoint: the policy's own, or a numbered one for each of its training seeds."""
        given = self.policies[policy]
        paths = (given,) if isinstance(given, str) else given
        return {policy: paths[0]} if len(paths) == 1 else {f"{policy} {n}": path for n, path in enumerate(paths, 1)}

    @model_validator(mode="after")
    def _rows_have_names_of_their_own(self) -> EmojiBenchRecipe:
        if not self.policies and not self.baselines:
            raise ValueError("expected policies (checkpoints that draw) or baselines, found neither")
        taken = {*BASELINES} if self.baselines else set()
        for policy in self.policies:
            rows = {policy, *self.rows_of(policy)}
            if both := rows & taken:
                raise ValueError(f"policies.{policy}: expected rows of its own, found '{min(both)}' twice")
            taken |= rows
        return self

    @model_validator(mode="after")
    def _each_is_drawn_once(self) -> EmojiBenchRecipe:
        for name in ("splits", "seeds", "guidance"):
            given = getattr(self, name)
            if len(set(given)) != len(given):
                raise ValueError(f"{name}: expected each once, found {list(given)}")
        return self


class PictureRecipe(EvaluateRecipe):
    """What all benchmarks on pictures share. Sampling defaults to the paper's: guidance 7.5, the full vocabulary."""

    policies: dict[RowName, InputPath] = Field({}, description="name -> checkpoint or run folder")
    images: dict[RowName, InputPath] = Field(
        {}, description="name -> folder of <item id>_<seed>.png, drawn by any model; also .jpg and .webp"
    )
    sampling: Sampling = Sampling(guidance_scale=7.5)
    seeds: PictureSeeds = Field((0,), min_length=1, description="pictures per item: one for each seed")
    batch: int = Field(16, gt=0, description="pictures drawn at a time, per process")
    score_batch: int = Field(16, gt=0, description="pictures scored at a time, per process")
    limit: int | None = Field(None, gt=0, description="the first so many items only; never a published protocol")
    incomplete: Literal["refuse", "score"] = Field(
        "refuse", description="score: with missing pictures or scores too, and a lower bound that counts them as 0"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the policies")

    @model_validator(mode="after")
    def _something_to_score(self) -> PictureRecipe:
        if not self.policies and not self.images:
            raise ValueError("expected policies (checkpoints that draw) or images (folders of pictures), found neither")
        both = self.policies.keys() & self.images.keys()
        if both:
            raise ValueError(f"images.{min(both)}: this name is taken by a policy")
        return self

    @model_validator(mode="after")
    def _seeds_are_listed(self) -> PictureRecipe:
        if self.sampling.seed:
            raise ValueError("sampling.seed: give seeds, one picture of each item is drawn with each")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected each once, found {list(self.seeds)}")
        return self


class Judge(Section):
    """A vision-language judge: an OpenAI-compatible server, or a model in this process; see mentor_rewards.qwen_vl."""

    backend: Literal["server", "local"] = "server"
    url: str | None = Field(None, description="base URL with the version, e.g. http://127.0.0.1:8000/v1")
    model: str = Field(description="as the server calls it; with backend: local a folder or hub id")
    api_key_env: str | None = Field(None, description="environment variable that holds the server's key")
    find_model: Literal["list", "ask"] = Field(
        "list", description="before any work, in the server's list; ask: by a question, where it does not list all"
    )
    passes: int = Field(3, gt=0, description="independent judgements of each picture")
    temperature: float = Field(1.0, ge=0.0, description="the published protocol judges at 1")
    max_tokens: int = Field(512, gt=0)
    concurrency: int = Field(32, gt=0)
    timeout: Positive = Field(60.0, description="seconds for one try")
    retries: int = Field(6, ge=0)
    cache: str | None = Field(None, description="file of answers to keep, shared between runs")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of a local judge")
    stand_in: bool = Field(False, description="mark the judge as a stand-in, whatever its name")

    @model_validator(mode="after")
    def _one_place(self) -> Judge:
        if (self.backend == "server") != (self.url is not None):
            raise ValueError("give url (a running server), or backend: local with model (weights), not both")
        return self


class DreamBenchPlusRecipe(PictureRecipe):
    """DreamBench++: concept preservation and prompt following by a judge; dreambench_plus.py."""

    benchmark: Literal["dreambench_plus"]
    data: InputPath = Field(description="the unpacked data.zip of DreamBench++, with images/ and captions/")
    judge: Judge
    template: SubjectTemplate = Field("<image> {prompt}", description="how a policy is asked; may also name {subject}")


class Towers(Section):
    """Weights of DreamBench's towers: a folder or file, beside the recipe or here, or a hub id; null leaves one out."""

    clip: WeightsSource = "openai/clip-vit-base-patch32"
    dino: WeightsSource = "facebook/dino-vits8"
    dino_s16: WeightsSource | None = "facebook/dino-vits16"
    dinov2: WeightsSource | None = "facebook/dinov2-small"


class DreamBenchRecipe(PictureRecipe):
    """DreamBench: CLIP-I, CLIP-T and DINO on thirty subjects; dreambench.py."""

    benchmark: Literal["dreambench"]
    data: InputPath = Field(description="the dataset/ folder of google/dreambooth")
    seeds: PictureSeeds = Field((0, 1, 2), min_length=1)
    towers: Towers = Towers()
    template: SubjectTemplate = Field("<image> {prompt}", description="how a policy is asked; {subject} is the class")
    all_references: bool = Field(False, description="also the mean over all pictures of a subject")


class T2IRewardsRecipe(PictureRecipe):
    """Text-to-image rewards on a file of prompts; t2i_rewards.py."""

    benchmark: Literal["t2i_rewards"]
    prompts: InputPath | dict[str, InputPath] = Field(
        description="a file, or name -> file: a prompt a line (.txt), a column `prompt` (.csv, .jsonl), a list (.json)"
    )
    rewards: dict[str, RewardEntry] = Field(min_length=1)


class GenEvalRecipe(PictureRecipe):
    """GenEval: objects, counts, colours and places by a detector and CLIP; geneval.py."""

    benchmark: Literal["geneval"]
    data: InputPath = Field(description="evaluation_metadata.jsonl of djghosh13/geneval, or its folder")
    seeds: PictureSeeds = Field((0, 1, 2, 3), min_length=1)
    detector: WeightsSource = Field(MASK2FORMER, description="folder or hub id of a Mask2Former on COCO's classes")
    colours: WeightsSource = Field(CLIP_L14, description="folder or hub id of a CLIP")


class ReconstructionRecipe(PictureRecipe):
    """Image reconstruction: L2 between pictures and the policy's copies; reconstruction.py."""

    benchmark: Literal["reconstruction"]
    data: InputPath = Field(description="a folder of pictures, e.g. COCO's val2017; subfolders count")
    pictures: int = Field(1000, gt=0, description="chosen from the sorted names by seed")
    side: int = Field(512, gt=0, description="pixels at which pictures are given and compared")
    tokenizer: InputPath | None = Field(None, description="VQ tokenizer or policy: adds the ceiling of its codes")


class Ade20kRecipe(PictureRecipe):
    """ADE20K-150: mIoU of cut-outs, label by label; ade20k.py."""

    benchmark: Literal["ade20k"]
    data: InputPath = Field(description="the folder ADEChallengeData2016")
    labels: Literal["present", "all"] = Field(
        "present", description="present: those of the ground truth (protocols A, B); all: 150 a picture (C too)"
    )
    pictures: int | None = Field(
        None, gt=0, description="chosen by seed; default: the whole validation split, with labels: all 100"
    )
    side: int = Field(512, gt=0, description="pixels of the squares that the policy is given")
    tau: int = Field(24, ge=0, le=254, description="of 255: brighter pixels are the object")
    tune_tau: int = Field(0, ge=0, description="choose tau on true cut-outs of so many training pictures instead")
    tokenizer: InputPath | None = Field(None, description="VQ tokenizer or policy: adds the ceiling of its codes")

    @model_validator(mode="after")
    def _tunes_with_a_tokenizer(self) -> Ade20kRecipe:
        if self.tune_tau and self.tokenizer is None:
            raise ValueError("tune_tau needs tokenizer: tau is tuned on cut-outs that went through it")
        return self


class FidRecipe(PictureRecipe):
    """FID and KID between pictures for prompts and real ones; fid.py."""

    benchmark: Literal["fid"]
    prompts: InputPath = Field(description="as in t2i_rewards: .txt, .csv, .jsonl or .json")
    real: InputPath = Field(description="a folder of real pictures, or an .npz with mu and sigma")
    features: Literal["inception", "dinov2", "clip"] = Field(
        "inception", description="inception: the FID of publications; the others have other units"
    )
    weights: WeightsSource | None = Field(
        None, description="inception: the file of its weights; dinov2, clip: folder or hub id, default a small one"
    )


BENCHMARKS: dict[str, type[EvaluateRecipe]] = {
    "emojibench": EmojiBenchRecipe,
    "dreambench_plus": DreamBenchPlusRecipe,
    "dreambench": DreamBenchRecipe,
    "t2i_rewards": T2IRewardsRecipe,
    "geneval": GenEvalRecipe,
    "reconstruction": ReconstructionRecipe,
    "ade20k": Ade20kRecipe,
    "fid": FidRecipe,
}
