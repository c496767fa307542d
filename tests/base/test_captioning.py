"""The projector stage: captions through a frozen T5, learned by the connector alone."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from policies import picture, small_policy
from row_files import write_jsonl
from tiny_stage import also, train_tiny
from transformers import T5Config, T5ForConditionalGeneration, TrainerCallback

import mentor_base.sft
from mentor_base.captioning import IGNORED, CaptionTokens
from mentor_base.checkpoint import load_policy, save_policy
from mentor_base.data.schema import Example
from mentor_base.errors import UserError
from mentor_base.interrupt import Interrupted
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import CONNECTOR_ALONE, Checkpoints, JsonlData, Mixture, Stage, StageOptimisation, Validation
from mentor_base.stage_data import Row

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "yellow": (240, 220, 30)}
CAPTIONS = ("a red fox", "two blue circles on a white background")


def whole_t5(policy: MentorForConditionalGeneration, **changes: Any) -> T5ForConditionalGeneration:
    """A T5 with the policy's text encoder in it, and a decoder whose words are told apart."""
    torch.manual_seed(1)
    names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size", "feed_forward_proj")
    sizes = {name: getattr(policy.config.t5_config, name) for name in names} | changes
    t5 = T5ForConditionalGeneration(
        T5Config(**sizes, num_decoder_layers=1, decoder_start_token_id=0, tie_word_embeddings=False)
    ).eval()
    if not changes:
        t5.encoder.load_state_dict(policy.encoder.text.encoder.state_dict())
        t5.shared.load_state_dict(policy.encoder.text.shared.state_dict())
    return t5


def rows_of(*captions: str) -> list[Row]:
    return [Row(Example("t2i", caption, (), picture(n)), False) for n, caption in enumerate(captions)]


def test_each_caption_has_the_loss_that_t5_itself_gives_it() -> None:
    policy, processor = small_policy()
    t5 = whole_t5(policy)
    encoder = t5.encoder
    objective = CaptionTokens(policy, processor, t5)
    batch = objective.collate(rows_of(*CAPTIONS))
    assert batch["input_ids"].shape == (2, policy.config.picture_slots + 1)
    with torch.no_grad():
        losses = objective.loss(policy, dict(batch))
        t5.encoder = encoder
        marks = batch["input_ids"] == policy.config.placeholder_id
        slots = policy.encoder._slots(batch["pixel_values"], policy.vq)
        embeddings = t5.shared(batch["input_ids"]).masked_scatter(marks[..., None], slots.flatten(0, 1))
        for n, labels in enumerate(batch["labels"]):
            own = t5(
                inputs_embeds=embeddings[n : n + 1],
                attention_mask=batch["attention_mask"][n : n + 1],
                labels=labels[labels != IGNORED][None],
            )
            torch.testing.assert_close(losses.loss_N[n], own.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.loss, losses.loss_N.mean())


def test_captions_end_and_padding_has_no_say() -> None:
    policy, processor = small_policy()
    objective = CaptionTokens(policy, processor, whole_t5(policy))
    short, long = (objective.collate(rows_of(caption))["labels"][0] for caption in CAPTIONS)
    both = objective.collate(rows_of(*CAPTIONS))["labels"]
    assert short[-1] == long[-1] == processor.tokenizer.eos_token_id
    assert both[0].tolist() == [*short.tolist(), *[IGNORED] * (len(long) - len(short))]
    assert both[1].tolist() == long.tolist()


def test_gradients_reach_the_connector_alone() -> None:
    policy, processor = small_policy()
    objective = CaptionTokens(policy, processor, whole_t5(policy))
    mentor_base.sft.set_trained_parts(policy, CONNECTOR_ALONE)
    policy.train()
    objective.loss(policy, objective.collate(rows_of(*CAPTIONS))).loss.backward()
    with_gradient = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"encoder.connector.{name}" for name, _ in policy.encoder.connector.named_parameters()}
    assert all(parameter.grad.abs().sum() > 0 for parameter in policy.encoder.connector.parameters())
    assert all(parameter.grad is None for parameter in objective.t5.parameters())


def test_a_t5_that_does_not_fit() -> None:
    policy, processor = small_policy()
    with pytest.raises(UserError, match=r"stage\.captioner: vocab_size: expected that of the policy's text encoder"):
        CaptionTokens(policy, processor, whole_t5(policy, vocab_size=77))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """policy/, t5/ and four coloured pictures with their captions."""
    folder = tmp_path_factory.mktemp("world")
    policy, processor = small_policy(**{"t5_config.dropout_rate": 0.1})
    save_policy(policy, processor, folder / "policy")
    whole_t5(policy).save_pretrained(folder / "t5")
    rows = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (16, 16), colour).save(folder / f"{name}.png")
        rows.append({"task": "t2i", "text": f"a {name} square", "target": f"{name}.png"})
    write_jsonl(folder, *rows)
    return folder


def train(world: Path, run: Path, epochs: int, grid: int = 0) -> Any:
    data = JsonlData(train=str(world / "rows.jsonl"), val=str(world / "rows.jsonl"))
    stage = Stage(
        name="projector",
        mixture=Mixture(data=data, weights={"t2i": 1}),
        train=CONNECTOR_ALONE,
        captioner=str(world / "t5"),
    )
    return train_tiny(
        world / "policy",
        run,
        stage=stage,
        optimisation=StageOptimisation(lr=2e-2, batch=4, epochs=epochs, final_lr=0.3, threads=1),
        validation=Validation(every=50, examples=4, grid=grid),
        checkpoints=Checkpoints(every=3 if epochs < 10 else epochs),
    )


def test_a_projector_run_learns_captions_and_leaves_the_rest_alone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t5 = T5ForConditionalGeneration.from_pretrained(world / "t5")
    kept = {name: value.clone() for name, value in t5.state_dict().items() if not name.startswith("encoder.")}
    monkeypatch.setattr(mentor_base.sft, "load_t5", lambda path, dtype: t5)
    run = train(world, tmp_path / "run", epochs=60, grid=2)
    validations = [line["val/t2i"] for line in run.metrics() if "val/t2i" in line]
    assert validations[-1] < 0.8 * validations[0]
    assert run.sample_path(60, "t2i").exists()
    before, after = (load_policy(path)[0].state_dict() for path in (world / "policy", run.path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("encoder.connector.") for name in changed)

    policy, processor = load_policy(run.path)
    objective = CaptionTokens(policy, processor, T5ForConditionalGeneration.from_pretrained(world / "t5"))
    pictures = {name: Image.open(world / f"{name}.png") for name in COLOURS}

    def losses(shown: str) -> dict[str, float]:
        rows = [Row(Example("t2i", f"a {said} square", (), pictures[shown]), False) for said in COLOURS]
        with torch.no_grad():
            found = objective.loss(policy, objective.collate(rows))["loss_N"].tolist()
        return dict(zip(COLOURS, found, strict=True))

    for shown in COLOURS:
        of_captions = losses(shown)
        assert min(of_captions, key=of_captions.__getitem__) == shown, of_captions
    assert t5.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in t5.state_dict().items())
    assert len(objective.write(policy, [Example("t2i", "-", (), pictures["red"])])) == 1


class SignalAt(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            signal.raise_signal(signal.SIGTERM)


def test_an_interrupted_projector_run_ends_like_an_undisturbed_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mentor_base.sft, "run_callbacks", also(SignalAt()))
        with pytest.raises(Interrupted, match="stopped at step 4 of 6"):
            train(world, tmp_path / "run", epochs=6)
    run = train(world, tmp_path / "run", epochs=6)
    whole = train(world, tmp_path / "whole", epochs=6)
    assert (run.final / "model.safetensors").read_bytes() == (whole.final / "model.safetensors").read_bytes()


def test_a_captioner_of_another_kind(world: Path, tmp_path: Path) -> None:
    (world / "t5" / "config.json").rename(world / "t5" / "kept.json")
    try:
        (world / "t5" / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        with pytest.raises(UserError, match="expected a model of type 't5', found 'bert'"):
            train(world, tmp_path / "run", epochs=1)
    finally:
        (world / "t5" / "kept.json").rename(world / "t5" / "config.json")
