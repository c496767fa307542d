"""Rollouts: draws that depend on (seed, uid, member) alone, layouts, the prefix cache, and what rewards get to see."""

from pathlib import Path

import pytest
import torch
from grpo_toys import toy_policy

from mentor_base.checkpoint import load_policy
from mentor_base.data.mixture import PromptList
from mentor_base.settings import EmojiData, Sampling
from mentor_rl.rollout import Groups, PromptStore, reward_batch, roll_out, uniforms


@pytest.fixture(scope="module")
def policy_and_processor(tmp_path_factory):
    torch.set_num_threads(1)
    return load_policy(toy_policy(tmp_path_factory.mktemp("toy") / "policy"))


@pytest.fixture
def store(policy_and_processor) -> PromptStore:
    prompts = PromptList(EmojiData(), {"subject": 1.0, "t2i": 1.0}, "train", seed=3, length=8)
    return PromptStore(prompts, policy_and_processor[1], frozen_encoder=True)


def test_a_picture_does_not_depend_on_who_else_is_drawn(policy_and_processor, store) -> None:
    """Whole groups at once, the same rows shuffled, parts of groups: the same tokens with the same log-probs."""
    policy, _ = policy_and_processor
    uids, members = [0] * 4 + [5] * 4, [0, 1, 2, 3] * 2
    whole = roll_out(policy, store, uids, members, Sampling(), seed=1)
    mixed = [6, 0, 3, 4, 1, 7, 2, 5]
    shuffled = roll_out(policy, store, [uids[i] for i in mixed], [members[i] for i in mixed], Sampling(), seed=1)
    part = roll_out(policy, store, uids[2:7], members[2:7], Sampling(), seed=1)
    assert torch.equal(shuffled.tokens_NL, whole.tokens_NL[mixed])
    assert torch.equal(part.tokens_NL, whole.tokens_NL[2:7])
    torch.testing.assert_close(part.sampler_logp_NL, whole.sampler_logp_NL[2:7], atol=1e-5, rtol=0)
    assert len({tuple(row) for row in whole.tokens_NL.tolist()}) == 8


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, guidance_scale=2.0)])
@pytest.mark.parametrize("uids", [[2, 2, 2, 7, 7, 7], [2, 2, 2, 7]])
def test_sampler_log_probs_are_the_scoring_pass_log_probs(policy_and_processor, store, sampling, uids) -> None:
    policy, _ = policy_and_processor
    rollout = roll_out(policy, store, uids, list(range(len(uids))), sampling, seed=0)
    groups = Groups.of(uids)
    with torch.no_grad():
        scored = policy(
            mode="logprobs",
            tokens=rollout.tokens_NL[groups.order_N],
            group_size=groups.size,
            sampling=sampling,
            **store.condition(policy, groups.uids, policy.device, "policy"),
        )
    torch.testing.assert_close(scored.logp_NL[groups.inverse_N], rollout.sampler_logp_NL, atol=1e-4, rtol=0)


def test_groups_are_whole_where_they_can_be() -> None:
    whole = Groups.of([4, 1, 4, 1])
    assert (whole.uids, whole.size) == ((1, 4), 2)
    assert whole.order_N.tolist() == [1, 3, 0, 2]
    assert whole.order_N[whole.inverse_N].tolist() == [0, 1, 2, 3]
    uneven = Groups.of([4, 1, 4])
    assert (uneven.uids, uneven.size) == ((1, 4, 4), 1)


def test_uniforms_are_a_function_of_seed_stream_uid_and_member() -> None:
    base = uniforms([3], [1], 16, seed=0, stream=1)
    assert torch.equal(base[0], uniforms([9, 3], [0, 1], 16, seed=0, stream=1)[1])
    for other in ([[4], [1], 16, 0, 1], [[3], [2], 16, 0, 1], [[3], [1], 16, 1, 1], [[3], [1], 16, 0, 2]):
        assert not torch.equal(base, uniforms(*other))
    assert base.min() >= 0.0
    assert base.max() < 1.0


def test_a_frozen_encoder_runs_once_for_each_prompt(policy_and_processor, store, monkeypatch) -> None:
    policy, _ = policy_and_processor
    encoded = []
    forward = policy.encoder.forward

    def counted(ids, *rest):
        encoded.append(len(ids))
        return forward(ids, *rest)

    monkeypatch.setattr(policy.encoder, "forward", counted)
    first = store.prefix(policy, (0, 5, 1), policy.device, "policy")
    again = store.prefix(policy, (1, 1, 0), policy.device, "policy")
    assert encoded == [3]
    first_last = first.features_KTC[2][first.mask_KT[2]]
    assert torch.equal(again.features_KTC[0][again.mask_KT[0]], first_last)
    store.keep_only([1])
    store.prefix(policy, (0, 1), policy.device, "policy")
    store.prefix(policy, (1,), policy.device, "reference")
    assert encoded == [3, 1, 1]


def test_gradients_reach_a_trained_encoder(policy_and_processor, store) -> None:
    policy, processor = policy_and_processor
    trained = PromptStore(store.prompts, processor, frozen_encoder=False)
    policy.encoder.connector.requires_grad_(True)
    tokens_NL = torch.zeros(2, policy.config.image_tokens, dtype=torch.long)
    inputs = trained.condition(policy, (0, 5), policy.device, "policy")
    policy(mode="logprobs", tokens=tokens_NL, **inputs).logp_NL.sum().backward()
    assert policy.encoder.connector.fc1.weight.grad is not None
    policy.zero_grad()


def test_rewards_see_the_prompt_that_was_drawn(policy_and_processor, store) -> None:
    policy, _ = policy_and_processor
    rollout = roll_out(policy, store, [5, 5, 0], [0, 1, 0], Sampling(), seed=0)
    batch = reward_batch(rollout, step=7)
    assert batch.step == 7
    assert list(batch.group_ids) == [5, 5, 0]
    assert batch.prompts[0] == batch.prompts[1] == store[5].plain_text
    assert batch.references[2] == store[0].images
    assert batch.images[0].size == (32, 32)


def test_sampling_leaves_the_mode_and_the_global_generator_alone(policy_and_processor, store, tmp_path: Path) -> None:
    policy, _ = policy_and_processor
    policy.train()
    before = torch.random.get_rng_state()
    roll_out(policy, store, [0], [0], Sampling(), seed=0)
    assert policy.training
    assert torch.equal(torch.random.get_rng_state(), before)
    policy.eval()
