"""A pytest plugin (``-p mentor_rewards.testing_plugin``): every rule of the contract as a test of its own.

    @pytest.mark.reward_contract
    def test_sharpness():
        return Sharpness(step=2)        # built anew as often as a rule needs it; fixtures work as in any test

gives ``test_sharpness[spec]``, ``test_sharpness[memory]``, ...; a rule from which the spec declares an exception is
skipped, and named with the reason at the end. ``reward_contract(batch=my_batch, tolerance=1e-3)`` hands over pictures
that the reward can score, or a function that returns them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from mentor_rewards.testing import Rule

MARKER = "reward_contract"
_RULE = "_mentor_reward_rule"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    about = "the test returns a reward; it runs once for every rule of the contract of mentor_rewards"
    config.addinivalue_line("markers", f"{MARKER}(batch=None, tolerance=1e-4): {about}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per rule, named after it."""
    if metafunc.definition.get_closest_marker(MARKER) is None:
        return
    from mentor_rewards.testing import RULES

    metafunc.fixturenames.append(_RULE)
    metafunc.parametrize(_RULE, RULES, ids=[rule.name for rule in RULES])


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Try the rule on what the test function returns."""
    marker = pyfuncitem.get_closest_marker(MARKER)
    if marker is None:
        return None
    from mentor_rewards.testing import Case, sample_batch, try_rule

    def options(batch: Any = None, tolerance: float = 1e-4) -> tuple[Any, float]:
        return (batch() if callable(batch) else batch), tolerance

    batch, tolerance = options(*marker.args, **marker.kwargs)
    case = Case(_factory(pyfuncitem), sample_batch() if batch is None else batch, tolerance)
    try:
        result = try_rule(cast("Rule", pyfuncitem.callspec.params[_RULE]), case)
    finally:
        case.close()
    if result.outcome == "exempt":
        pytest.skip(result.note)
    if result.outcome != "holds":
        pytest.fail(result.explanation(), pytrace=False)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the rules that were not tried: among other tests a skip would pass for a rule that holds."""
    skipped = terminalreporter.stats.get("skipped", [])
    exempt = [report for report in skipped if MARKER in report.keywords and isinstance(report.longrepr, tuple)]
    if exempt:
        terminalreporter.section("reward contract: rules that were not tried")
    for report in exempt:
        terminalreporter.line(f"{report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}")


def _factory(item: pytest.Function) -> Callable[[], Any]:
    """The test function with its fixtures: a call builds one reward."""
    wanted = item._fixtureinfo.argnames
    values = {name: item.funcargs[name] for name in wanted}
    return lambda: item.obj(**values)
