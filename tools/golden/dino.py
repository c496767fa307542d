"""Expected features and pixels of DINO at a tiny size, by timm and torchvision: FEATURES and PIXELS below.

timm's VisionTransformer reads facebookresearch/dino's checkpoints as they are, which is how it publishes them. The
pictures go through the transforms of dino's evaluation (Resize, bicubic; CenterCrop; ImageNet's statistics).
tests/rewards/test_dino.py reads inputs and numbers from here. To make the numbers again:

    pip install torch torchvision timm
    python tools/golden/dino.py

Made with torch 2.13.0 (CPU), torchvision 0.29.2, timm 1.0.31, Pillow 13.0.
"""

from __future__ import annotations

from toys import SIZES, declare_torchvision_operators, picture, probes, state

RESIZE, SIDE, PATCH, WIDTH, LAYERS = 37, 32, 8, 128, 2
KEPT = 6  # channels of the unit feature that are compared

# What main() printed: one row per size, the pixels at 256 and 224.
FEATURES = [
    [0.0451745, 0.1045858, -0.2011597, 0.0014967, 0.0477268, -0.0856015],
    [0.0232452, 0.097822, -0.2148362, 0.0209161, 0.0256775, -0.0939063],
    [0.0148969, 0.1039646, -0.2316901, 0.0102616, 0.0219294, -0.0900442],
    [0.0239036, 0.0942921, -0.2215561, 0.0366415, 0.0303994, -0.1045822],
    [0.0192345, 0.0964839, -0.2072096, 0.0232479, 0.0250793, -0.0845609],
]
PIXELS = [
    [-1.861033, 0.187675, 2.64, 1.923538, 2.113445, -0.143115, 0.032695],
    [-1.861033, 0.187675, 2.64, 1.906413, 2.095938, -0.047352, 0.029878],
    [-1.398664, -1.072829, 2.64, 1.46117, 2.113445, -0.143181, 0.031978],
    [-1.878157, 0.187675, 2.64, 1.889288, 0.747899, 0.169531, 0.028623],
    [-0.799298, 0.310224, 2.552854, 0.896053, 2.095938, 0.017727, 0.016758],
]


def shapes(
    side: int = SIDE, patch: int = PATCH, width: int = WIDTH, layers: int = LAYERS
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the checkpoint."""
    out: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (side // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for n in range(layers):
        for name, leaving, entering in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            out |= {f"blocks.{n}.{name}.weight": (leaving, entering), f"blocks.{n}.{name}.bias": (leaving,)}
        for name in ("norm1", "norm2"):
            out |= {f"blocks.{n}.{name}.weight": (width,), f"blocks.{n}.{name}.bias": (width,)}
    return out


def main() -> None:
    """Print FEATURES and PIXELS."""
    operators = declare_torchvision_operators()
    import torch
    from timm.models.vision_transformer import VisionTransformer
    from torchvision import transforms

    def prepare(resize: int, crop: int) -> transforms.Compose:
        return transforms.Compose(
            [
                transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(crop),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    model = VisionTransformer(
        SIDE, PATCH, num_classes=0, embed_dim=WIDTH, depth=LAYERS, num_heads=WIDTH // 64, global_pool="token"
    ).eval()
    model.load_state_dict(state(shapes()))
    features = []
    with torch.no_grad():
        for size in SIZES:
            whole = model.forward_features(prepare(RESIZE, SIDE)(picture(size))[None])[0, 0]
            features.append([round(x, 7) for x in torch.nn.functional.normalize(whole, dim=0)[:KEPT].tolist()])
    print("FEATURES =", features)
    print("PIXELS =", [[round(x, 6) for x in probes(prepare(256, 224)(picture(size)))] for size in SIZES])
    del operators


if __name__ == "__main__":
    main()
