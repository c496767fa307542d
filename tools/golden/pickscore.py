"""Expected PickScores at a tiny size, by the lines of PickScore's README: the numbers of SCORES below.

tests/rewards/test_pickscore.py reads inputs and numbers from here. To make the numbers again:

    pip install torch transformers pillow
    python tools/golden/pickscore.py

Made with torch 2.13.0 (CPU) and transformers 5.23.0. The README's ``get_*_features`` returned tensors then; from
transformers 5 on they return an output whose ``pooler_output`` is that tensor. Its processor was the one on PIL.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from toys import PROMPTS, SIZES, VOCABULARY, picture, state, write_tokenizer

SIDE, LENGTH = 32, 12

# What main() printed: one per prompt and picture.
SCORES = [0.5803289413452148, 8.22701358795166, -20.8177433013916, -0.3742453455924988, 10.02776050567627]


def write_checkpoint(folder: Path) -> None:
    """A CLIPModel with the weights of toys.py, its tokenizer and its preprocessing."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    end = len(VOCABULARY) - 1
    text: dict[str, Any] = {**sizes, "vocab_size": len(VOCABULARY), "max_position_embeddings": LENGTH}
    text |= {"hidden_act": "gelu", "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": 0}
    vision: dict[str, Any] = {**sizes, "image_size": SIDE, "patch_size": 8, "hidden_act": "gelu"}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    values = state({name: tuple(value.shape) for name, value in model.state_dict().items()})
    values["logit_scale"] = values["logit_scale"] + 4.6052
    model.load_state_dict(values)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)


def main() -> None:
    """Print SCORES."""
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    with tempfile.TemporaryDirectory() as name:
        write_checkpoint(Path(name))
        model = CLIPModel.from_pretrained(name).eval()
        tokenizer, prepare = AutoTokenizer.from_pretrained(name), CLIPImageProcessorPil.from_pretrained(name)
    scores = []
    with torch.no_grad():
        for prompt, size in zip(PROMPTS, SIZES, strict=True):
            inputs = tokenizer(prompt, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
            texts = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
            pixels = prepare(images=picture(size), return_tensors="pt")["pixel_values"]
            images = model.get_image_features(pixels).pooler_output
            images, texts = (x / torch.norm(x, dim=-1, keepdim=True) for x in (images, texts))
            scores.append(float(model.logit_scale.exp() * (texts @ images.T)[0, 0]))
    print("SCORES =", scores)


if __name__ == "__main__":
    main()
