"""The judge in this process: a Qwen-VL model of transformers, its answers held to the schema by xgrammar.

Neither torchvision nor transformers' combined processor (which wants a video processor, and that torchvision) is
needed: pictures go through the PIL image processor, and each ``<|image_pad|>`` of the chat template is expanded here to
as many tokens as the picture has merged patches. The result is that of the combined processor, token for token.

One picture at a time, in a worker thread: correct and slow. For training use a server.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mentor_rewards.contract import RewardError, one_line
from mentor_rewards.judge_prompts import MAX_PIXELS, MIN_PIXELS, Question
from mentor_rewards.judge_request import Answer, JudgeRequest, JudgeSampling
from mentor_rewards.pretrained import model_folder, weights_of
from mentor_rewards.weights import TOKENIZER_FILES

IMAGE = 1  # the type of a picture's tokens in mm_token_type_ids; text is 0


def find_local(model: str) -> None:
    """Whether xgrammar is installed, and a judge's files are there or can be fetched.

    Raises:
        RewardError: it is not, they are not.
    """
    _xgrammar()
    weights_of(model_folder(model, TOKENIZER_FILES))


class LocalJudge:
    """A JudgeBackend with weights of its own.

    Args:
        model: folder or hub id of a Qwen2.5-VL or Qwen3-VL checkpoint.
        device, dtype: as in Reward.load.

    Raises:
        RewardError: xgrammar is missing, or the checkpoint is not such a model.
    """

    def __init__(self, model: str, device: str, dtype: str) -> None:
        xgrammar = _xgrammar()
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
            self._pictures = AutoImageProcessor.from_pretrained(model, backend="pil", size=size)
            weights = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise RewardError(f"backend: local cannot load the judge {model}: {one_line(error)}") from error
        self._image_token = int(getattr(weights.config, "image_token_id", -1))
        if self._tokenizer.chat_template is None or self._image_token < 0:
            raise RewardError(
                f"backend: local expected a Qwen-VL chat model, found {weights.config.model_type} at {model}"
            )
        self._weights = weights.to(device).eval().requires_grad_(False)
        self._xgrammar = xgrammar
        vocabulary = xgrammar.TokenizerInfo.from_huggingface(
            self._tokenizer, vocab_size=weights.config.get_text_config().vocab_size
        )
        self._compiler = xgrammar.GrammarCompiler(vocabulary)
        self._grammar = lru_cache(self._compile)
        self._one_at_a_time = threading.Lock()
        self.model = f"{model} {_revision(model, weights.config)}"
        self.identity = f"{self.model} {dtype}"

    async def complete(self, request: JudgeRequest, sampling: JudgeSampling) -> Answer:
        """One answer; see JudgeBackend. A cancelled call ends its generation in the background."""
        return await asyncio.to_thread(self._complete, request, sampling)

    def close(self) -> None:
        """Free the weights."""
        self._weights = None

    @torch.no_grad()
    def _complete(self, request: JudgeRequest, sampling: JudgeSampling) -> Answer:
        from xgrammar.contrib.hf import LogitsProcessor

        with self._one_at_a_time, torch.random.fork_rng():
            torch.manual_seed(sampling.seed)
            inputs = self.inputs(request)
            decoding: dict[str, Any] = {"do_sample": False}
            if sampling.temperature > 0:
                decoding = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
            tokens = self._weights.generate(
                **inputs,
                **decoding,
                max_new_tokens=sampling.max_tokens,
                logits_processor=[LogitsProcessor(self._grammar(request.template))],  # holds a state: one per answer
            )
        new = tokens[0, inputs["input_ids"].shape[1] :]
        ended = bool((new == self._tokenizer.eos_token_id).any())
        return Answer(self._tokenizer.decode(new, skip_special_tokens=True), "stop" if ended else "length")

    def inputs(self, request: JudgeRequest) -> dict[str, torch.Tensor]:
        """What the model is given for a request: tokens [1, S], patches, grids and token types."""
        messages = request.messages(["picture"] * len(request.pictures))
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pixels = self._pictures(images=[picture.image for picture in request.pictures], return_tensors="pt")
        lengths = (pixels["image_grid_thw"].prod(dim=1) // self._pictures.merge_size**2).tolist()
        tokens = self._expanded(self._tokenizer(text, add_special_tokens=False)["input_ids"], lengths)
        input_ids = torch.tensor([tokens])
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "mm_token_type_ids": input_ids.eq(self._image_token).long() * IMAGE,
            "pixel_values": pixels["pixel_values"].to(self._weights.dtype),
            "image_grid_thw": pixels["image_grid_thw"],
        }
        return {name: value.to(self._weights.device) for name, value in inputs.items()}

    def _expanded(self, tokens: list[int], lengths: list[int]) -> list[int]:
        places = [position for position, token in enumerate(tokens) if token == self._image_token]
        if len(places) != len(lengths):
            raise RewardError(f"the judge's chat template: expected {len(lengths)} picture tokens, found {len(places)}")
        for position, length in zip(reversed(places), reversed(lengths), strict=True):
            tokens[position : position + 1] = [tokens[position]] * length
        return tokens

    def _compile(self, template: Question) -> Any:
        """The grammar of a template's answers, without free whitespace: some judges would fill max_tokens with it."""
        return self._compiler.compile_json_schema(template.schema(), any_whitespace=False)


def _xgrammar() -> Any:
    """The package that holds answers to a schema."""
    try:
        import xgrammar
    except ImportError as error:
        raise RewardError(
            f"backend: local needs the extra 'judge-local': pip install 'mentor-rl[judge-local]' ({error})"
        ) from error
    return xgrammar


def _revision(model: str, config: Any) -> str:
    """What tells checkpoints of one name apart: the hub's commit, or the files of a folder by name, size and date."""
    folder = Path(model)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None))
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]
