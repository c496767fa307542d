"""The sections of a recipe that mentor_base's trainers read. Free of torch, so that ``mentor --help`` stays fast.

Every model is strict: an unknown key, a value outside its range, NaN or infinity is an error that names the key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Task = Literal["t2i", "reconstruction", "segmentation", "recovery", "subject", "multi_image", "in_context", "editing"]
Split = Literal["train", "val", "unseen_subjects", "unseen_pairs"]
Tracker = Literal["wandb", "tensorboard", "trackio"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class InputMark:
    """Marks a field that names a file or folder to read; a recipe's reader looks it up and refuses what is missing."""


InputPath = Annotated[str, InputMark()]


class Section(BaseModel):
    """A strict part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class AdamW(Section):
    """AdamW with warm-up and cosine, both counted in optimizer steps."""

    lr: Positive
    steps: int = Field(gt=0, description="optimizer steps of the whole run")
    warmup: Probability = Field(0.05, description="share of the steps with rising learning rate")
    final_lr: Probability = Field(0.03, description="learning rate at the end, as a share of lr")
    weight_decay: float = Field(0.05, ge=0.0, description="on matrices only")
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, ge=0.0)
    precision: Literal["float32", "bf16"] = "float32"
    gradient_checkpointing: bool = Field(
        False, description="keep the inputs of blocks only and compute the rest again in the backward pass"
    )
    threads: int | None = Field(None, gt=0, description="torch CPU threads; default: torch's own choice")


class Optimisation(AdamW):
    """AdamW over batches of examples."""

    batch: int = Field(gt=0, description="examples per optimizer step, over all processes")
    micro_batch: int | None = Field(
        None, gt=0, description="examples per forward pass and process; default: a process' share of batch"
    )


class StageOptimisation(Optimisation):
    """The same, its length given by steps or by epochs.

    An epoch is as many draws as the mixture's tasks have training rows together; see mentor_base/epochs.py.
    """

    steps: int = Field(0, ge=0, description="optimizer steps of the whole run; 0: given by epochs")
    epochs: Positive | None = Field(None, description="for rows on disk: steps = ceil(epochs x rows / batch)")

    @model_validator(mode="after")
    def _one_length(self) -> StageOptimisation:
        if (self.steps == 0) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both")
        return self


class Sampling(Section):
    """How tokens are drawn, and the distribution whose log-probs training uses.

    Guidance: logits = u + s (c - u). The filters top_k and top_p are refused in GRPO, where a filtered token would
    have log-prob -inf.
    """

    temperature: Positive = 1.0
    guidance_scale: float = Field(1.0, ge=0.0)
    top_k: int = Field(0, ge=0, description="0: off")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int = 0

    @property
    def guided(self) -> bool:
        """Whether the unconditional half has to be computed."""
        return self.guidance_scale != 1.0

    @property
    def filtered(self) -> bool:
        """Whether top-k or top-p cut the distribution."""
        return self.top_k > 0 or self.top_p < 1.0


class EmojiData(Section):
    """The embedded emoji world, drawn on the fly; see mentor_base/data/emoji.py."""

    source: Literal["emoji"] = "emoji"
    shapes: Probability = Field(0.3, description="share of t2i examples that are coloured shapes instead of emoji")
    disguise: Probability = Field(
        0.0, description="share of training subjects (subject, recovery) that are changed and not named"
    )
    agreement: Probability = Field(
        0.0, description="least overlap of silhouettes between a training reference and its target (subject)"
    )
    styles: tuple[str, ...] | None = Field(None, min_length=1, description="styles used; default: all")


InputFiles = InputPath | Annotated[tuple[InputPath, ...], Field(min_length=1)]


class RowData(Section):
    """What rows on disk have in common; see mentor_base/data/sources.py."""

    train: InputFiles = Field(description="a file, a glob, or a list of them")
    val: InputFiles | None = None
    broken_rate: Probability = Field(0.01, description="share of rows with broken pictures that stops the run")


class JsonlData(RowData):
    """One row per line, picture paths relative to the file; see mentor_base/data/jsonl.py."""

    source: Literal["jsonl"] = "jsonl"


class ShardData(RowData):
    """Tar archives as webdataset has them; see mentor_base/data/shards.py."""

    source: Literal["shards"] = "shards"
    index: str | None = Field(None, description="folder for the shards' indexes; default: beside each shard")


class ParquetData(RowData):
    """Tables whose columns are a row's keys; see mentor_base/data/parquet.py."""

    source: Literal["parquet"] = "parquet"
    cache: str | None = Field(None, description="folder for the memory-mapped copies; default: that of `datasets`")


class PromptData(RowData):
    """What to ask, without answers; see mentor_base/data/jsonl.py."""

    source: Literal["prompts"] = "prompts"


def _source(data: Any) -> Any:
    return data.get("source", "emoji") if isinstance(data, dict) else getattr(data, "source", None)


_Answered = (
    Annotated[EmojiData, Tag("emoji")]
    | Annotated[JsonlData, Tag("jsonl")]
    | Annotated[ShardData, Tag("shards")]
    | Annotated[ParquetData, Tag("parquet")]
)
Data = Annotated[_Answered, Discriminator(_source)]
AnyPrompts = Annotated[_Answered | Annotated[PromptData, Tag("prompts")], Discriminator(_source)]


class Mixture(Section):
    """Which tasks a stage draws, and how often (weights are normalised)."""

    data: Data = EmojiData()
    weights: dict[Task, Positive]
    condition_drop: Probability = Field(0.1, description="share of samples whose prefix is the unconditional table")
    image_only: Probability = Field(0.0, description="share of reconstruction and recovery whose text is dropped")


class Validation(Section):
    """Held-out loss per task, and sample grids, while training."""

    every: int = Field(gt=0, description="optimizer steps between two validations")
    examples: int = Field(64, gt=0, description="per task")
    split: Split = "val"
    grid: int = Field(8, ge=0, description="pictures per task in the sample grid; 0: none")
    sampling: Sampling = Sampling(temperature=1.0, guidance_scale=1.5)


class Checkpoints(Section):
    """Resumable states kept in the run folder."""

    every: int = Field(gt=0, description="optimizer steps between two states")
    keep: int = Field(2, gt=0, description="with 1 there is none to go back to when the newest is damaged")


class TokenizerModel(Section):
    """Sizes of the VQ tokenizer; see mentor_base/vq.py for what each one means."""

    image_size: int = 64
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = 2
    latent_channels: int = 256
    codebook_size: int = 16384
    codebook_width: int = 8
    decoder_channels: int | None = Field(None, ge=1, description="channels of the decoder; default: channels")
    decoder_blocks: int | None = Field(None, ge=1, description="per decoder level; default: residual_blocks + 1")
    stem_patch: int = Field(1, ge=1, description="pixel-unshuffle before the first convolution; 1 is VQ-16")
    normalisation: Literal["group", "none"] = "group"
    attention: bool = Field(True, description="self-attention at the lowest resolution, as VQ-16 has")


class TokenizerLosses(Section):
    """Weights of the tokenizer's training losses."""

    l1: float = Field(1.0, ge=0)
    l2: float = Field(4.0, ge=0)
    gradient: float = Field(1.0, ge=0, description="L1 between picture gradients at two scales")
    commitment: float = Field(0.25, ge=0)


class PolicyModel(Section):
    """A MENTOR policy to build from scratch: a size of mentor_base.config.SIZES, and MentorConfig fields to change."""

    size: str = "tiny"
    options: dict[str, int | float | bool | str] = {}


class Lora(Section):
    """Low-rank adapters instead of the weights themselves (arXiv 2106.09685); needs the extra `peft`."""

    rank: int = Field(16, gt=0)
    alpha: Positive = Field(32.0, description="an adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="on the adapters' inputs; 0 in GRPO")
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="linear layers by the last part of their name, e.g. qkv; default: all"
    )


class TrainedParts(Section):
    """The freeze plan of a stage. The VQ tokenizer is always frozen.

    Stage 1 of the paper trains connector and decoder; stage 2 everything but the vision tower (section 3.2).
    With ``lora`` the parts that are true get adapters, and all weights stay as they are.
    """

    vision: bool = False
    text_encoder: bool = False
    connector: bool = True
    decoder: bool = True
    lora: Lora | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that train, by name."""
        return tuple(name for name in ("vision", "text_encoder", "connector", "decoder") if getattr(self, name))


CONNECTOR_ALONE = TrainedParts(decoder=False)


class Stage(Section):
    """One supervised stage.

    "projector" reads t2i rows the other way round: the picture is given, and the frozen T5 decoder of ``captioner``
    writes the caption (mentor_base/captioning.py). The other stages draw the target.
    """

    name: Literal["projector", "alignment", "instruction"]
    mixture: Mixture
    train: TrainedParts
    captioner: InputPath | None = Field(None, description="whole T5 checkpoint; the projector stage alone")
    workers: int = Field(0, ge=0, description="processes per GPU that read rows ahead of the training; 0: none")

    @model_validator(mode="after")
    def _trains_something(self) -> Stage:
        if not self.train.parts:
            raise ValueError("a stage has to train at least one part")
        return self

    @model_validator(mode="after")
    def _captions(self) -> Stage:
        if (self.name == "projector") != (self.captioner is not None):
            raise ValueError("the projector stage needs captioner (a T5 checkpoint), the other stages take none")
        if self.name == "projector" and (set(self.mixture.weights) != {"t2i"} or self.train != CONNECTOR_ALONE):
            raise ValueError(
                "the projector stage learns from t2i rows alone and trains the connector alone, without lora"
            )
        return self
