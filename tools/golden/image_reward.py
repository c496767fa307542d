"""Expected scores of ImageReward at a tiny size, by the upstream package: the numbers of SCORES and PIXELS below.

Weights are a function of tensor name and shape, the picture is drawn: no other file is needed on either side.
tests/rewards/test_image_reward.py reads the inputs and the numbers from here. To make the numbers again, in an
environment of its own (upstream imports functions that transformers 4.53 was the last to have):

    pip install image-reward==1.5 transformers==4.53.0 openai-clip "setuptools<81" torchvision
    python tools/golden/image_reward.py

Made with these versions, torch 2.13.0 (CPU), torchvision 0.28.0, Pillow 12. Beside a CPU build of torch, torchvision's
CUDA build cannot load its operators; ``declare_torchvision_operators`` is enough for its transforms.

Upstream builds ViT-L and a 768-wide head whatever its configuration says. ``_upstream`` puts small ones in their places
(``create_vit``, ``MLP``, and the tokenizer's files); everything else, scoring and preprocessing too, is upstream's own.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from toys import declare_torchvision_operators, noise, picture

VISION, TEXT, PATCH, SIDE, LAYERS, POSITIONS, HEAD_DIM = 128, 192, 16, 224, 2, 40, 64
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NOUNS = ["disc", "square", "fox", "dog", "left", "right", "top"]
OTHERS = ["a", "an", "the", "red", "blue", "green", "on", "of", "with", "very", "and", "#", "##s", "##es", ",", "."]
VOCABULARY = [*MARKS, *NOUNS, *OTHERS]
ENTRIES = len(VOCABULARY) + 2  # [DEC] and [ENC] are added to the tokenizer's own
PROMPTS = (
    "a red disc",
    "the blue foxes, left of a green square.",
    "A Red  DISC [ENC] unknownword",
    " ".join(["a very red disc and the blue dog"] * 6) + " on top",
)
SIZES = ((256, 256), (224, 224), (299, 227), (97, 331))  # one picture per prompt; widths and heights in pixels

# What main() printed.
SCORES = [-0.9646946787834167, -1.4247689247131348, -0.8633394837379456, -1.5439990758895874]
PIXELS = {
    (256, 256): [-1.792263, 0.138882, 2.131677, 1.536179, 1.489581, -0.110935],
    (224, 224): [-1.792263, 0.138882, 1.221593, 1.52158, 1.489581, -0.051277],
    (299, 227): [-1.35431, -0.7916, 1.833055, 1.171218, 1.489581, -0.114271],
    (97, 331): [-1.792263, 0.153889, -0.726556, 1.52158, 0.544091, 0.138899],
}
PROBES = ((0, 0, 0), (1, 111, 57), (2, 223, 223), (0, 30, 200), (1, 190, 8))  # channel, row, column; then the mean


def shapes(
    vision: int = VISION,
    text: int = TEXT,
    layers: tuple[int, int] = (LAYERS, LAYERS),
    positions: int = POSITIONS,
    entries: int = ENTRIES,
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint, in its own layout; ``layers`` of pictures and of text."""
    out = {
        "blip.visual_encoder.cls_token": (1, 1, vision),
        "blip.visual_encoder.pos_embed": (1, (SIDE // PATCH) ** 2 + 1, vision),
        "blip.visual_encoder.patch_embed.proj.weight": (vision, 3, PATCH, PATCH),
        "blip.visual_encoder.patch_embed.proj.bias": (vision,),
        **_norm("blip.visual_encoder.norm", vision),
        "blip.text_encoder.embeddings.position_ids": (1, positions),
        "blip.text_encoder.embeddings.word_embeddings.weight": (entries, text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (positions, text),
        **_norm("blip.text_encoder.embeddings.LayerNorm", text),
        **_linear("blip.vision_proj", vision, 256),
        **_linear("blip.text_proj", text, 256),
    }
    for n in range(layers[0]):
        out |= _vision_block(f"blip.visual_encoder.blocks.{n}", vision)
    for n in range(layers[1]):
        out |= _text_block(f"blip.text_encoder.encoder.layer.{n}", text, vision)
    widths = (text, 1024, 128, 64, 16, 1)
    for place, entering, leaving in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        out |= _linear(f"mlp.layers.{place}", entering, leaving)
    return out


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values in the scale of a trained network; unlike toys.tensor, gains and fan-in follow BLIP's names."""
    if name.endswith("position_ids"):
        return np.arange(shape[1])[None]
    uniform = noise(name, shape)
    if len(shape) == 1:
        return (0.2 * uniform + ("norm" in name.lower() and name.endswith("weight"))).astype(np.float32)
    fan_in = 1 if ("embed" in name and "patch" not in name) or "cls" in name else int(np.prod(shape[1:]))
    return (uniform * np.sqrt(3 / fan_in)).astype(np.float32)


def probed(pixels_3HW: Any) -> list[float]:
    """What PIXELS has of a preprocessed picture."""
    return [round(float(value), 6) for value in (*(pixels_3HW[probe] for probe in PROBES), pixels_3HW.mean())]


def write_tokenizer(folder: Path) -> None:
    """A BERT tokenizer's files with this small vocabulary."""
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    facts = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def _linear(name: str, entering: int, leaving: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (leaving, entering), f"{name}.bias": (leaving,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _vision_block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(f"{name}.norm1", width),
        **_norm(f"{name}.norm2", width),
        **_linear(f"{name}.attn.qkv", width, 3 * width),
        **_linear(f"{name}.attn.proj", width, width),
        **_linear(f"{name}.mlp.fc1", width, 4 * width),
        **_linear(f"{name}.mlp.fc2", 4 * width, width),
    }


def _text_block(name: str, width: int, vision: int) -> dict[str, tuple[int, ...]]:
    block = _linear(f"{name}.intermediate.dense", width, 4 * width) | _linear(f"{name}.output.dense", 4 * width, width)
    block |= _norm(f"{name}.output.LayerNorm", width)
    for attention, seen in (("attention", width), ("crossattention", vision)):
        block |= _linear(f"{name}.{attention}.self.query", width, width)
        block |= _linear(f"{name}.{attention}.self.key", seen, width)
        block |= _linear(f"{name}.{attention}.self.value", seen, width)
        block |= _linear(f"{name}.{attention}.output.dense", width, width)
        block |= _norm(f"{name}.{attention}.output.LayerNorm", width)
    return block


def _upstream() -> Any:
    """Upstream's ImageReward at the tiny size, with the weights of ``tensor``, on the CPU."""
    import torch
    from transformers import BertTokenizer

    # The package's own names hide its modules.
    module, blip, blip_pretrain, vit = (
        importlib.import_module(f"ImageReward.{name}")
        for name in ("ImageReward", "models.BLIP.blip", "models.BLIP.blip_pretrain", "models.BLIP.vit")
    )

    def small_vit(*_: Any) -> tuple[Any, int]:
        heads = VISION // HEAD_DIM
        return vit.VisionTransformer(SIDE, PATCH, embed_dim=VISION, depth=LAYERS, num_heads=heads), VISION

    whole_head = module.MLP
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder)
        config = {"hidden_size": TEXT, "intermediate_size": 4 * TEXT, "num_hidden_layers": LAYERS}
        config |= {"num_attention_heads": TEXT // HEAD_DIM, "max_position_embeddings": POSITIONS, "vocab_size": ENTRIES}
        config |= {"add_cross_attention": True, "layer_norm_eps": 1e-12, "pad_token_id": 0, "hidden_act": "gelu"}
        (folder / "med_config.json").write_text(json.dumps(config))
        tokenizer = BertTokenizer.from_pretrained(folder)
        blip_pretrain.create_vit = small_vit
        blip.BertTokenizer = type("Local", (), {"from_pretrained": staticmethod(lambda _: tokenizer)})
        module.MLP = lambda _: whole_head(TEXT)
        model = module.ImageReward(med_config=str(folder / "med_config.json"), device="cpu")
    model.load_state_dict({name: torch.from_numpy(tensor(name, shape)) for name, shape in shapes().items()})
    return model.eval()


def main() -> None:
    """Print SCORES and PIXELS."""
    operators = declare_torchvision_operators()
    model = _upstream()
    print("SCORES =", [model.score(prompt, picture(size)) for prompt, size in zip(PROMPTS, SIZES, strict=True)])
    print("PIXELS =", {size: probed(model.preprocess(picture(size))) for size in SIZES})
    del operators


if __name__ == "__main__":
    main()
