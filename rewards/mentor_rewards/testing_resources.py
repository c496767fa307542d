"""The rules on what a reward takes: memory, connections, autograd graphs, and its loading and unloading."""

from __future__ import annotations

from mentor_rewards.contract import AnyReward
from mentor_rewards.testing_case import Blocked, Case, Loaded, NotApplicable, difference
from mentor_rewards.testing_guards import (
    RSS_SLACK,
    array_bytes,
    blocked_network,
    recorded_graphs,
    resident_bytes,
    traced_arrays,
    trim_memory,
)

ARRAY_SLACK = 256 * 2**10  # bytes of tables that a reward may keep after unload


def memory(case: Case) -> str | None:
    """``unload`` frees what ``load`` took."""
    case.close()
    start = resident_bytes()
    with traced_arrays():
        before = array_bytes()
        held, peak = _used(case)
        kept = array_bytes() - before
    if kept > ARRAY_SLACK:
        return f"{_mib(kept)} of arrays and tensors are still alive after unload (allowed: {_mib(ARRAY_SLACK)})"
    del held
    if peak - start < RSS_SLACK:
        return None  # nothing large was loaded
    trim_memory()
    start = resident_bytes()  # anew: what the first load imported stays
    _held, peak = _used(case)
    trim_memory()
    left, taken = resident_bytes() - start, peak - start
    if left > max(RSS_SLACK, taken / 2):
        return (
            f"{_mib(left)} of the {_mib(taken)} that load took are not given back (allowed: {_mib(RSS_SLACK)} or half)"
        )
    return None


def _used(case: Case) -> tuple[AnyReward, int]:
    """A reward after load, one score and unload; and the memory of the process before unload."""
    loaded = Loaded(case)
    try:
        loaded.answer(case.batch)
    except Exception as error:
        raise Blocked("'length' has to hold first") from error
    peak = resident_bytes()
    loaded.close()
    return loaded.reward, peak


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def network(case: Case) -> str | None:
    """No connection is opened, unless the spec declares it."""
    if case.spec.network:
        raise NotApplicable("the spec declares network=True")
    case.close()
    with blocked_network() as attempts:
        try:
            _used(case)
        except Exception:
            if not attempts:
                raise
    if not attempts:
        return None
    return (
        f"tried to {attempts[0]}, and RewardSpec.network is False; declare it, or have the weights on disk "
        "(HF_HUB_OFFLINE=1)"
    )


def gradients(case: Case) -> str | None:
    """Scoring records no autograd graph."""
    reward = case.loaded
    reward.answer(case.batch)
    with recorded_graphs() as kept:
        reward.answer(case.batch)
    if not kept:
        return None
    return f"autograd kept {len(kept)} tensors ({_mib(sum(kept))}); score under torch.inference_mode() or no_grad()"


def lifecycle(case: Case) -> str | None:
    """``unload`` without ``load``, twice, and ``load`` again."""
    plain = case.plain
    case.close()
    case.factory().unload()  # without load: nothing to do
    loaded = Loaded(case)
    loaded.reward.unload()
    loaded.reward.unload()
    loaded.reward.load(case.device, case.dtype)
    again = loaded.scores(case.batch)
    loaded.close()
    return difference(plain, again, case.tolerance, "after unload and load")
