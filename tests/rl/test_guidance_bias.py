"""The benchmark that shows why sampler and trainer share a distribution: exact with guidance, biased without."""

import runpy
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "guidance_bias.py"))
PAGE = ROOT / "benchmarks" / "GUIDANCE_BIAS.md"


@pytest.mark.parametrize("correlation", BENCHMARK["CORRELATIONS"])
def test_the_guided_estimator_is_exact_and_the_conditional_one_turns_away(correlation: float) -> None:
    means = []
    for scale in BENCHMARK["SCALES"]:
        guided, conditional = BENCHMARK["cosines"](scale, correlation, 20)
        assert min(guided) == pytest.approx(1.0, abs=1e-4)
        means.append(statistics.mean(conditional))
    assert means[0] == pytest.approx(1.0, abs=1e-4)
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.7


def test_the_page_holds_what_its_command_makes() -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for scale, line in zip(BENCHMARK["SCALES"], lines[2:], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[0]) == scale
        for correlation, cell in zip(BENCHMARK["CORRELATIONS"], cells[2:], strict=True):
            _, conditional = BENCHMARK["cosines"](scale, correlation, 20)
            assert float(cell.split()[0]) == pytest.approx(statistics.mean(conditional), abs=0.011)
