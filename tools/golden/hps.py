"""Expected scores and pixels of HPSv2 at a tiny size, by the upstream package: the numbers of SCORES and PIXELS below.

Upstream's own CLIP and preprocessing run, with a small configuration and the weights of toys.py;
tests/rewards/test_hpsv2.py reads inputs and numbers from here. To make the numbers again, in an environment of its own:

    pip install --no-deps hpsv2x==1.2.0 timm ftfy wcwidth clint args && pip install torch torchvision transformers
    python tools/golden/hps.py

(hpsv2x is hpsv2 1.2.0 with the vocabulary file that hpsv2's wheel lacks.) Made with torch 2.13.0 (CPU),
torchvision 0.29.2, Pillow 13.0. The file is not called hpsv2.py, because it would hide the package from itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toys import PROMPTS, SIZES, VOCABULARY, declare_torchvision_operators, picture, probes, state, token_ids

SIDE, LENGTH = 32, 12
WIDTHS = {"embed_dim": 24}
VISION = {"layers": 2, "width": 128, "head_width": 64, "patch_size": 8, "image_size": SIDE}
TEXT = {"layers": 2, "width": 128, "heads": 2, "context_length": LENGTH, "vocab_size": len(VOCABULARY)}

# What main() printed: SCORES one per prompt and picture, PIXELS (at 224) one row per size, with and without antialias.
SCORES = [
    -0.010432295501232147,
    -0.21013709902763367,
    0.20751261711120605,
    0.3697347640991211,
    0.1818731278181076,
]
PIXELS = [
    [-1.792704, 0.154906, 2.12945, 1.881455, 2.041915, -0.112371, 0.035137],
    [-1.792263, 0.153889, 1.221593, 1.871942, 2.02986, -0.051277, 0.031651],
    [-1.792263, 0.158114, -1.48022, 1.87453, -1.752097, -0.49559, 0.026446],
    [-1.792263, -1.752097, -1.48022, -1.792263, -1.752097, -1.210226, 0.042932],
]
PIXELS_WITHOUT_ANTIALIAS = [
    [-1.792314, 0.155388, 2.13015, 1.880849, 2.040932, -0.112782, 0.037978],
    [-1.792263, 0.153889, 1.221593, 1.871942, 2.02986, -0.051277, 0.031651],
    [-1.792263, 0.158642, -1.48022, 1.874992, -1.752097, -0.495579, 0.027496],
    [-1.792263, -1.752097, -1.48022, -1.792263, -1.752097, -1.211337, 0.041007],
]


def shapes(
    vision: Mapping[str, int] = VISION, text: Mapping[str, int] = TEXT, embedding: int = WIDTHS["embed_dim"]
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint; main() compares them with upstream's."""
    width, narrow = vision["width"], text["width"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    out: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (text["context_length"], narrow),
        "token_embedding.weight": (text["vocab_size"], narrow),
        "text_projection": (narrow, embedding),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (patches + 1, width),
        "visual.proj": (width, embedding),
        "visual.conv1.weight": (width, 3, vision["patch_size"], vision["patch_size"]),
    }
    norms = {"visual.ln_pre": width, "visual.ln_post": width, "ln_final": narrow}
    for prefix, size, layers in (
        ("visual.transformer", width, vision["layers"]),
        ("transformer", narrow, text["layers"]),
    ):
        for n in range(layers):
            block = f"{prefix}.resblocks.{n}"
            norms |= {f"{block}.ln_1": size, f"{block}.ln_2": size}
            out |= {f"{block}.attn.in_proj_weight": (3 * size, size), f"{block}.attn.in_proj_bias": (3 * size,)}
            for name, leaving, entering in (
                ("attn.out_proj", size, size),
                ("mlp.c_fc", 4 * size, size),
                ("mlp.c_proj", size, 4 * size),
            ):
                out |= {f"{block}.{name}.weight": (leaving, entering), f"{block}.{name}.bias": (leaving,)}
    for name, size in norms.items():
        out |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return out


def main() -> None:
    """Print the numbers."""
    operators = declare_torchvision_operators()
    import torch
    from hpsv2.src.open_clip import transform
    from hpsv2.src.open_clip.model import CLIP

    model: Any = CLIP(vision_cfg=VISION, text_cfg=TEXT, output_dict=True, **WIDTHS).eval()
    assert shapes() == {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(state(shapes()))
    prepare = transform.image_transform(SIDE, is_train=False, resize_longest_max=True)
    scores = []
    for prompt, size in zip(PROMPTS, SIZES, strict=True):
        with torch.no_grad():
            found = model(prepare(picture(size))[None], torch.tensor([token_ids(prompt, LENGTH)]))
        scores.append(float((found["image_features"] @ found["text_features"].T)[0, 0]))
    print("SCORES =", scores)
    prepare = transform.image_transform(224, is_train=False, resize_longest_max=True)
    wholes = [size for size in SIZES if size != (224, 101)]  # upstream does not pad this one
    print("PIXELS =", [[round(x, 6) for x in probes(prepare(picture(size)))] for size in wholes])
    resize = transform.F.resize
    transform.F.resize = lambda image, size, how: resize(image, size, how, antialias=False)
    print("PIXELS_WITHOUT_ANTIALIAS =", [[round(x, 6) for x in probes(prepare(picture(size)))] for size in wholes])
    del operators


if __name__ == "__main__":
    main()
