"""The distribution over codes: guidance, temperature, filters, and log-probabilities in chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mentor_base.guidance import policy_logits, token_logprobs
from mentor_base.settings import Sampling


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 3, 5, 8, generator=generator)
    head = torch.randn(11, 8, generator=generator)
    return cond, uncond, head, torch.randint(0, 11, (3, 5), generator=generator)


def test_mixing_hidden_states_is_mixing_logits() -> None:
    cond, uncond, head, _ = inputs()
    mixed = policy_logits(cond, uncond, head, Sampling(guidance_scale=3.0, temperature=0.7))
    c, u = cond @ head.T, uncond @ head.T
    torch.testing.assert_close(mixed, (u + 3.0 * (c - u)) / 0.7, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(policy_logits(cond, uncond, head, Sampling()), c)
    torch.testing.assert_close(policy_logits(cond, uncond, head, Sampling(guidance_scale=0.0)), u)


def test_guidance_without_its_other_half_is_an_error() -> None:
    cond, _, head, _ = inputs()
    with pytest.raises(ValueError, match="unconditional"):
        policy_logits(cond, None, head, Sampling(guidance_scale=2.0))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_chunks_change_neither_numbers_nor_gradients(scale: float) -> None:
    cond, uncond, head, tokens = inputs()
    sampling = Sampling(guidance_scale=scale, temperature=0.7)

    def numbers(chunk: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        leaves = [x.clone().requires_grad_() for x in (cond, uncond, head)]
        out = token_logprobs(leaves[0], leaves[1], tokens, leaves[2], sampling, chunk)
        weights = torch.arange(15.0).view(3, 5)
        gradients = torch.autograd.grad(
            (out.logp_NL * weights).sum(), leaves, allow_unused=True, materialize_grads=True
        )
        return out.logp_NL, out.entropy_NL, list(gradients)

    whole, chunked = numbers(4096), numbers(4)
    for a, b in zip([*whole[:2], *whole[2]], [*chunked[:2], *chunked[2]], strict=True):
        torch.testing.assert_close(a, b)
    full = policy_logits(cond, uncond, head, sampling).log_softmax(-1)
    torch.testing.assert_close(whole[0], full.gather(-1, tokens[..., None])[..., 0])
    torch.testing.assert_close(whole[1], -(full.exp() * full).sum(-1))
    assert not whole[1].requires_grad


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that an operation gives back."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))])
        return made


def test_no_block_of_all_logits_exists() -> None:
    """128 tokens, 64 codes, 16 rows a chunk: no tensor beyond 16 x 64, forward or backward, and no logits are kept."""
    samples, length, width, codes, chunk = 32, 4, 8, 64, 16
    cond, uncond = (torch.randn(samples, length, width, requires_grad=True) for _ in range(2))
    head = torch.randn(codes, width, requires_grad=True)
    tokens = torch.zeros(samples, length, dtype=torch.long)
    kept: list[int] = []
    with (
        Largest() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x),
    ):
        logp_NL = token_logprobs(cond, uncond, tokens, head, Sampling(guidance_scale=2.0), chunk, "gradient").logp_NL
    assert max(kept) < chunk * codes
    with largest:
        logp_NL.sum().backward()
    assert largest.numel == chunk * codes


@pytest.mark.parametrize("chunk", [4096, 4])
def test_each_sample_may_have_a_scale_of_its_own(chunk: int) -> None:
    cond, uncond, head, tokens = inputs()
    scales_N = torch.tensor([1.0, 2.5, 6.0])
    mixed = token_logprobs(cond, uncond, tokens, head, Sampling(temperature=0.7), chunk, scales_N=scales_N)
    for row, scale in enumerate(scales_N.tolist()):
        piece, sampling = slice(row, row + 1), Sampling(temperature=0.7, guidance_scale=scale)
        alone = token_logprobs(cond[piece], uncond[piece], tokens[piece], head, sampling)
        torch.testing.assert_close(mixed.logp_NL[piece], alone.logp_NL, atol=1e-5, rtol=0)
        torch.testing.assert_close(mixed.entropy_NL[piece], alone.entropy_NL, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [4096, 4])
def test_the_entropy_has_a_gradient_where_a_loss_needs_it(chunk: int) -> None:
    """Also where a probability underflows to 0: there d/dp of p log p is infinite, the entropy's gradient is not."""
    cond, _, head, tokens = inputs()
    head = head * torch.tensor([100.0] + [1.0] * 10)[:, None]
    head.requires_grad_()
    found = token_logprobs(cond, None, tokens, head, Sampling(), chunk, "gradient").entropy_NL
    probabilities = (cond.double() @ head.double().T).softmax(-1)
    expected = -(probabilities * probabilities.clamp(min=1e-300).log()).sum(-1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(value.sum(), head)[0] for value in (found, expected)]
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)
    assert not token_logprobs(cond, None, tokens, head, Sampling()).entropy_NL.requires_grad


def test_filters_keep_the_likeliest_codes() -> None:
    hidden = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    head = torch.eye(4)

    def kept(**options: float) -> list[int]:
        logits = policy_logits(hidden, None, head, Sampling(**options))
        return torch.isfinite(logits[0]).nonzero().flatten().tolist()

    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.7) == [0, 1]
    assert kept(top_p=0.71) == [0, 1, 2]
    assert kept(top_p=0.01) == [0]
    assert kept(top_k=99) == [0, 1, 2, 3]
    assert kept(top_k=3, top_p=0.5) == [0, 1]
    out = token_logprobs(hidden[None], None, torch.tensor([[0]]), head, Sampling(top_k=2))
    assert out.logp_NL.item() == pytest.approx(math.log(4 / 7), abs=1e-6)
    assert math.isfinite(out.entropy_NL.item())
