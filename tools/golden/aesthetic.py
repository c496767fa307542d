"""Expected outputs of the aesthetic head with computed weights, by upstream's layers: the numbers of OUTPUTS below.

tests/rewards/test_aesthetic.py reads inputs and numbers from here. The head is the MLP of improved-aesthetic-predictor
(simple_inference.py): five linear layers with dropout between them. To make the numbers again:

    pip install torch
    python tools/golden/aesthetic.py
"""

from __future__ import annotations

import numpy as np
from toys import state

WIDTHS = (768, 1024, 128, 64, 16, 1)
PLACES = (0, 2, 4, 6, 7)

# What main() printed: one per row of inputs().
OUTPUTS = [0.07761873304843903, 0.06125854700803757, 0.07859490811824799, 0.06889505684375763, 0.13268449902534485]


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the head."""
    out: dict[str, tuple[int, ...]] = {}
    for place, entering, leaving in zip(PLACES, WIDTHS[:-1], WIDTHS[1:], strict=True):
        out |= {f"layers.{place}.weight": (leaving, entering), f"layers.{place}.bias": (leaving,)}
    return out


def inputs() -> np.ndarray:
    """Zero, an even vector, two unit vectors and a wave: float32 [5, 768]."""
    rows = np.zeros((5, 768), np.float32)
    rows[1] = 768**-0.5
    rows[2, 0] = rows[3, 500] = 1
    wave = np.sin(np.arange(768, dtype=np.float64))
    rows[4] = wave / np.linalg.norm(wave)
    return rows


def main() -> None:
    """Print OUTPUTS."""
    import torch
    from torch import nn

    drops = {2: 0.2, 4: 0.2, 6: 0.1}
    modules: list[nn.Module] = []
    for place, entering, leaving in zip(PLACES, WIDTHS[:-1], WIDTHS[1:], strict=True):
        if place in drops:
            modules.append(nn.Dropout(drops[place]))
        modules.append(nn.Linear(entering, leaving))
    head = nn.ModuleDict({"layers": nn.Sequential(*modules)}).eval()
    head.load_state_dict(state(shapes()))
    with torch.no_grad():
        print("OUTPUTS =", head["layers"](torch.from_numpy(inputs()))[:, 0].tolist())


if __name__ == "__main__":
    main()
