"""Plans against what they estimate: built models, saved tensors, counted FLOPs, a filled cache."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mentor_base.config import MentorConfig
from mentor_base.errors import UserError
from mentor_base.model import MentorForConditionalGeneration
from mentor_base.settings import Lora, TrainedParts
from mentor_rl.cli import main
from mentor_rl.plan.compute import captioner_cost, rollout_flops, scoring_flops, update_flops
from mentor_rl.plan.hardware import LAUNCHES, Launch, fits, gpu_of
from mentor_rl.plan.memory import sampling_cache, states_of, update_work
from mentor_rl.plan.policy import Pass, PolicyFacts, captioner_parameters, facts_of

EVERYTHING = TrainedParts(vision=True, text_encoder=True)
CLIP: dict[str, Any] = {
    "vision_tower": "clip",
    "reference_positions": "prefix",
    "factorised_codebook": False,
    "clip_config.hidden_size": 64,
    "clip_config.intermediate_size": 256,
    "vocab_size": 1024,
}
QUERY = {**CLIP, "connector": "query", "queries": 8}
LAUNCH = {launch.name: launch for launch in LAUNCHES}
N, WORDS = 2, 24
GIB = 2**30


def config_of(**options: Any) -> MentorConfig:
    return MentorConfig.of_size("tiny", placeholder_id=2047, **options)


def policy_of(config: MentorConfig, train: TrainedParts) -> MentorForConditionalGeneration:
    torch.manual_seed(0)
    policy = MentorForConditionalGeneration(config)
    policy.requires_grad_(False)
    for part, module in zip(
        ("vision", "connector", "text_encoder", "decoder"),
        (policy.encoder.vision, policy.encoder.connector, policy.encoder.text, policy.decoder),
        strict=True,
    ):
        module.requires_grad_(part in train.parts)
    return policy.train()


def batch_of(config: MentorConfig) -> dict[str, Any]:
    """N prompts of one picture and WORDS words, with tokens."""
    slots = config.picture_slots + WORDS
    ids = torch.randint(3, 100, (N, slots))
    ids[:, : config.picture_slots] = config.placeholder_id
    mask = torch.ones_like(ids)
    mask[0, 0] = 0  # without padding transformers drops the mask, and T5 shares its relative positions
    ids[0, : config.picture_slots + 1] = torch.tensor([0] + [config.placeholder_id] * config.picture_slots)
    side = config.vq_config.image_size if config.vision_tower == "tokenizer" else config.clip_config.image_size
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(N, 3, side, side),
        "tokens": torch.randint(0, config.vocab_size, (N, config.image_tokens)),
    }


def call_of(config: MentorConfig) -> Pass:
    return Pass(prompts=N, slots=config.picture_slots + WORDS, pictures=N, images=N)


@contextlib.contextmanager
def saved_bytes(policy: torch.nn.Module) -> Iterator[dict[int, int]]:
    """What autograd keeps, each storage once, weights and what autocast makes of them left out."""
    seen: dict[int, int] = {}
    kept: list[torch.Tensor] = []
    own = {tensor.untyped_storage().data_ptr() for tensor in (*policy.parameters(), *policy.buffers())}
    shapes = {tuple(weight.shape) for weight in policy.parameters() if weight.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tuple(tensor.shape) not in shapes:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield seen


@pytest.mark.parametrize("options", [{}, CLIP, QUERY], ids=["tokenizer", "clip", "query"])
def test_parts_have_the_parameters_of_a_built_policy(options: dict[str, Any]) -> None:
    config = config_of(**options)
    policy, facts = policy_of(config, EVERYTHING), facts_of(config, EVERYTHING)
    built = {
        "vision": policy.encoder.vision,
        "connector": policy.encoder.connector,
        "text_encoder": policy.encoder.text,
        "decoder": policy.decoder,
        "vq": policy.vq,
    }
    assert facts.parameters == {name: sum(p.numel() for p in part.parameters()) for name, part in built.items()}
    assert facts.total == sum(parameter.numel() for parameter in policy.parameters())
    assert facts.trained == sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)


def test_the_full_size_is_that_of_the_paper() -> None:
    """MENTOR: LlamaGen XL, CLIP-L/14, FlanT5-XL, VQ-16, 2.3B together (arXiv 2507.09574)."""
    facts = facts_of(MentorConfig.of_size("XL"), TrainedParts())
    width, inner, text, codes = 1280, 3584, 2048, 16384
    block = 4 * width**2 + 3 * width * inner + 2 * width
    assert facts.parameters["decoder"] == 36 * block + width + 2 * codes * width + text * width + width**2
    t5_layer = 4 * text * 32 * 64 + 3 * text * 5120 + 2 * text
    assert facts.parameters["text_encoder"] == 24 * t5_layer + text + 32128 * text + 32 * 32
    clip_layer = 4 * (1024 + 1) * 1024 + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    stem = 3 * 14 * 14 * 1024 + 1024 + 257 * 1024
    assert facts.parameters["vision"] == 24 * clip_layer + stem + 4 * 1024
    assert facts.parameters["connector"] == (1024 + 1) * 2048 + (2048 + 1) * 2048
    assert 2.3e9 <= facts.total < 2.4e9
    assert (
        captioner_parameters(facts.config) == 24 * (t5_layer + 4 * text**2 + text) + text + 32 * 32 + 2 * 32128 * text
    )


def test_adapters_count_rank_times_sides() -> None:
    config = config_of()
    facts = facts_of(config, TrainedParts(connector=False, lora=Lora(rank=4, targets=("qkv", "out"))))
    assert facts.trained == 5 * 4 * ((192 + 3 * 192) + (192 + 192))
    with pytest.raises(UserError, match="did you mean 'qkv'"):
        facts_of(config, TrainedParts(lora=Lora(targets=("qkw",))))


def states(facts: PolicyFacts, launch: Launch, gpus: int = 8, precision: str = "bf16", reference: bool = False) -> Any:
    return states_of(facts, launch, precision, gpus, reference)


def test_states_are_sharded_as_the_launch_file_says() -> None:
    facts = facts_of(config_of(**CLIP), TrainedParts(text_encoder=True))
    for name in ("zero2", "fsdp2", "zero3"):
        one, eight = (states(facts, LAUNCH[name], gpus) for gpus in (1, 8))
        assert eight.optimizer * 8 == one.optimizer > 0
        assert eight.gradients * 8 == one.gradients > 0
        assert eight.weights * (1 if name == "zero2" else 8) == one.weights
    alone, ddp = states(facts, LAUNCH["ddp"], 1), states(facts, LAUNCH["ddp"])
    assert (ddp.optimizer, ddp.gradients, ddp.weights) == (alone.optimizer, alone.gradients, alone.weights)
    assert (alone.buffers, ddp.buffers) == (0, ddp.gradients)


def test_bytes_per_parameter() -> None:
    facts = facts_of(config_of(), TrainedParts(text_encoder=True))
    frozen = facts.total - facts.trained
    full = states(facts, LAUNCH["ddp"], 1, "float32")
    assert full.total == 16 * facts.trained + 4 * frozen  # no master weights beside float32 ones
    assert states(facts, LAUNCH["ddp"], 1).total == (16 + 2) * facts.trained + 4 * frozen
    assert states(facts, LAUNCH["zero2"], 1).total == 16 * facts.trained + 2 * frozen


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.name)
def test_frozen_parts_hold_weights_alone(launch: Launch) -> None:
    config = config_of(**CLIP)
    facts = facts_of(config, TrainedParts(decoder=False))
    found = states(facts, launch, 1)
    each = launch.bytes_of("bf16")
    assert found.optimizer == each.optimizer * facts.parameters["connector"]
    assert found.gradients == each.gradients * facts.parameters["connector"]
    assert found.weights >= each.weights * facts.total


def test_the_reference_is_a_second_policy_unless_adapters_train() -> None:
    decoder = TrainedParts(connector=False)
    facts = facts_of(config_of(), decoder)
    second = states(facts, LAUNCH["ddp"], reference=True).reference
    assert second == 4 * (facts.total - facts.parameters["vq"])
    assert states(facts, LAUNCH["zero3"], reference=True).reference == 2 * facts.total / 8
    adapted = facts_of(config_of(), decoder.model_copy(update={"lora": Lora()}))
    assert states(adapted, LAUNCH["ddp"], reference=True).reference == 0


PLANS = {
    "all": (CLIP, EVERYTHING),
    "frozen tower": (CLIP, TrainedParts(text_encoder=True)),
    "frozen encoder": (CLIP, TrainedParts(connector=False)),
    "through a frozen T5": (CLIP, TrainedParts()),
    "tokenizer tower": ({}, TrainedParts(text_encoder=True)),
    "queries": (QUERY, TrainedParts()),
}


def kept_and_estimated(config: MentorConfig, train: TrainedParts, precision: str, checkpointing: bool) -> list[float]:
    """Bytes that autograd keeps of a batch, and what the plan says; without logits (their log-softmax)."""
    policy, facts = policy_of(config, train), facts_of(config, train)
    if checkpointing:
        policy.activation_checkpointing_enable()
    cast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with cast, saved_bytes(policy) as seen:
        policy(mode="loss", **batch_of(config))
    estimated, logits = update_work(facts, call_of(config), precision, checkpointing, with_encoder=True)
    kept_logits = 4 * N * config.image_tokens * config.vocab_size
    assert logits == 3 * kept_logits
    return [sum(seen.values()) - kept_logits, estimated]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("plan", PLANS)
def test_activations_are_those_that_autograd_keeps(plan: str, precision: str) -> None:
    options, train = PLANS[plan]
    kept, estimated = kept_and_estimated(config_of(**options), train, precision, checkpointing=False)
    assert estimated == pytest.approx(kept, rel=0.15)  # measured: 1 % to 8 % too much


def test_checkpointed_layers_keep_their_inputs() -> None:
    """Two layers more, in decoder and T5: what the plan adds is what autograd adds."""
    shallow, deep = (
        kept_and_estimated(
            config_of(num_hidden_layers=layers, **{"t5_config.num_layers": layers}),
            TrainedParts(text_encoder=True),
            "float32",
            checkpointing=True,
        )
        for layers in (2, 4)
    )
    assert deep[1] - shallow[1] == pytest.approx(deep[0] - shallow[0], rel=0.15)


@pytest.mark.parametrize("plan", PLANS)
def test_flops_are_those_that_torch_counts(plan: str) -> None:
    options, train = PLANS[plan]
    config = config_of(**options)
    policy, facts = policy_of(config, train), facts_of(config, train)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        loss = policy(mode="loss", **batch_of(config)).loss
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
        loss.backward()
    found = update_flops(facts, call_of(config), checkpointing=False, with_encoder=True)
    assert found["forward"] == pytest.approx(forward.get_total_flops(), rel=0.05)
    assert found["backward"] == pytest.approx(backward.get_total_flops(), rel=0.25)
    assert found["recompute"] == 0


def test_a_head_is_computed_again_where_one_pass_has_several_chunks() -> None:
    """64 tokens a picture, 4,096 rows a chunk: 64 pictures are one chunk, 65 two. Each pass counts by itself."""
    config = config_of()
    facts = facts_of(config, TrainedParts())
    head = 2 * config.hidden_size * config.vocab_size * config.image_tokens

    def again(images: int, micro: int | None = None) -> float:
        return update_flops(facts, Pass(1, 80, 1, images), False, with_encoder=False, micro=micro)["recompute"]

    assert [again(64), again(65), again(640, 64), again(640, 65)] == [0, 65 * head, 0, 640 * head]


def test_checkpointing_computes_the_blocks_again() -> None:
    facts = facts_of(MentorConfig.of_size("XL"), TrainedParts(text_encoder=True))
    call = Pass(1, 320, 1, 1)
    found = update_flops(facts, call, checkpointing=True, with_encoder=True)
    vision = scoring_flops(facts, Pass(1, 320, 1, 1), with_encoder=True) - scoring_flops(
        facts, Pass(1, 320, 0, 1), with_encoder=True
    )
    assert 0.9 * (found["forward"] - vision) < found["recompute"] < found["forward"] - vision  # all but the head, about


def test_a_rollout_costs_what_torch_counts_and_its_cache_what_it_holds() -> None:
    config, group = config_of(num_hidden_layers=2, **CLIP, **{"vq_config.image_size": 32}), 2
    policy, facts = policy_of(config, TrainedParts(connector=False)).eval(), facts_of(config, TrainedParts())
    inputs = {name: value for name, value in batch_of(config).items() if name != "tokens"}
    call = call_of(config)._replace(images=N * group, halves=2)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        prefix = policy(mode="encode", **inputs)
        hidden, cache = policy(mode="prefill", prefix=prefix, group_size=group, guided=True)
        for _ in range(cache.length - 1):
            policy(mode="step", tokens=torch.zeros(len(hidden), dtype=torch.long), cache=cache)
    head = 2 * config.hidden_size * config.vocab_size * N * group * config.image_tokens
    assert rollout_flops(facts, call) - head == pytest.approx(counted.get_total_flops(), rel=0.05)
    held = sum(tensor.nbytes for pair in (*cache.prefix, *cache.own) for tensor in pair)
    assert sampling_cache(config, call, "float32") - 24 * N * group * config.vocab_size == held


def test_the_captioner_costs_what_torch_counts() -> None:
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    config = config_of()
    t5, slots = T5ForConditionalGeneration(config.t5_config).eval(), 65
    features = torch.randn(N, slots, config.text_width)
    words = torch.randint(0, 100, (N, WORDS))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        t5(encoder_outputs=BaseModelOutput(features), decoder_input_ids=words, use_cache=False)
    assert captioner_cost(config, Pass(N, slots, N, N), WORDS).forward == pytest.approx(
        counted.get_total_flops(), rel=0.02
    )


RECIPE = """\
kind: sft
run: runs/stage2
init: runs/stage1
stage:
  name: instruction
  mixture: {weights: {t2i: 1.0, subject: 1.0}}
  train: {text_encoder: true}
optimisation: {lr: 1e-4, steps: 1000, batch: 128, micro_batch: 16, precision: bf16}
validation: {every: 100}
checkpoints: {every: 100}
"""
GRPO = """\
kind: grpo
run: runs/grpo
policy: runs/stage2
prompts: {weights: {subject: 1.0}}
algorithm: {group_size: 8, prompts_per_step: 8}
optimisation: {lr: 1e-5, steps: 100, precision: bf16}
rewards: {jpeg_size: {}}
checkpoints: {every: 10}
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``mentor plan`` in a folder with two recipes and no policy: exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("sft.yaml").write_text(RECIPE, encoding="utf-8")
    Path("grpo.yaml").write_text(GRPO, encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as done:
            main(["plan", *arguments])
        out, err = capsys.readouterr()
        return int(done.value.code or 0), err.strip() or out

    return run


def test_cards_and_launch_files(plan: Any) -> None:
    code, out = plan("sft.yaml", "model.size=XL", "optimisation.micro_batch=4")
    assert code == 0
    assert "40 GB: recipes/launch/zero2.yaml" in out
    assert "2,382,564,235" in out
    assert "* the policy is of size XL, as given" in out
    code, out = plan("sft.yaml", "model.size=7B", "--gpus", "1", "--no-checkpointing", "optimisation.batch=16")
    for card in (24, 40, 80):
        assert f"{card} GB: nothing fits; the least is " in out


def test_no_digit_is_lost_on_a_narrow_terminal(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = plan("grpo.yaml", "model.size=XL")[1]
    assert "…" not in out
    assert max(map(len, out.partition("GiB")[2].partition("a step,")[0].splitlines())) <= 80


def test_json_adds_up(plan: Any) -> None:
    found = json.loads(plan("grpo.yaml", "model.size=tiny", "--json", "--gpu", "h100", "--utilisation", "0.5")[1])
    assert {way["launch"] for way in found["memory"]} == {f"recipes/launch/{name}.yaml" for name in LAUNCH}
    for way in found["memory"]:
        states = sum(way[share] for share in ("weights", "gradients", "optimizer", "buffers", "reference"))
        assert way["peak"] == states + max(way["activations"] + way["logits"], way["kv_cache"], way["tokenizer"])
        assert way["fits_gb"] == [card for card in (24, 40, 80) if way["peak"] <= 0.9 * card * GIB]
    step = found["step"]
    assert step["image_tokens"] == 64 * 64
    assert step["seconds"]["backward"] == pytest.approx(step["flops"]["backward"] / (8 * 0.5 * 989e12))
    assert found["hours"] == pytest.approx(100 * sum(step["seconds"].values()) / 3600)
    guided = json.loads(plan("grpo.yaml", "model.size=tiny", "--json", "algorithm.guidance.scale=2")[1])
    plain = json.loads(plan("grpo.yaml", "model.size=tiny", "--json", "algorithm.beta=0")[1])
    assert 1.8 < guided["memory"][0]["kv_cache"] / plain["memory"][0]["kv_cache"] <= 2
    assert plain["memory"][0]["reference"] == 0
    assert "reference" not in plain["step"]["flops"]
    many = json.loads(plan("grpo.yaml", "model.size=tiny", "--json", "algorithm.prompts_per_step=32")[1])
    assert many["step"]["flops"]["recompute"] == 0  # 16,384 rows a step, 2,048 on each GPU
    weights = 64 * 2 * found["parameters"]["parts"]["decoder"]  # read in bf16 for each of 64 tokens
    assert step["seconds"]["rollout"] > weights / (0.5 * 3350e9) > step["flops"]["rollout"] / (8 * 0.5 * 989e12)
    supervised = json.loads(plan("sft.yaml", "model.size=tiny", "--json")[1])
    assert supervised["step"]["flops"]["recompute"] == 0  # 8,192 rows a step, 1,024 in each pass
    assert (fits(21.6, 24), fits(21.7, 24)) == (True, False)


def test_a_folder_is_planned_from_its_config_alone(plan: Any, random_policy: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    shutil.copy(random_policy / "config.json", tmp_path / "policy")
    found = json.loads(plan("sft.yaml", "init=policy", "--json")[1])
    policy = MentorForConditionalGeneration.from_pretrained(str(random_policy))
    assert found["parameters"]["total"] == sum(parameter.numel() for parameter in policy.parameters())


def test_epochs_need_rows(plan: Any) -> None:
    epochs = ("optimisation.steps=0", "optimisation.epochs=2", "stage.mixture.data={source: jsonl, train: rows.jsonl}")
    code, out = plan("sft.yaml", "model.size=tiny", *epochs)
    assert code == 0
    assert "give --rows" in out
    assert "2 x 1,000 rows are 16 steps" in plan("sft.yaml", "model.size=tiny", *epochs, "--rows", "1000")[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sft.yaml", "--gpu", "a100-80"), "--gpu: unknown card 'a100-80'; did you mean 'a100-80g'?"),
        (
            ("sft.yaml",),
            "sft.yaml: init: expected a policy's folder, found no config.json in runs/stage1; give",
        ),
        (
            ("sft.yaml", "model.size=tiny", "--rows", "9"),
            "--rows: expected a recipe with optimisation.epochs, found 1000",
        ),
        (("sft.yaml", "model.size=XXXXL"), "command line: model.size: unknown size 'XXXXL'; did you mean 'XXXL'?"),
        (("sft.yaml", "model.options.dropout=0"), "command line: expected model.size=... beside model.options"),
        (("sft.yaml", "model.sise=XL"), "command line: expected model.size=... or model.options.FIELD=..."),
        (
            ("sft.yaml", "model.size=tiny", "--gpus", "3"),
            "optimisation.batch: expected a multiple of micro_batch x proc",
        ),
    ],
)
def test_bad_input_is_one_line(plan: Any, arguments: tuple[str, ...], line: str) -> None:
    code, err = plan(*arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert line in err


def test_every_card_has_a_peak_and_the_listed_names_are_known() -> None:
    for name in ("a100-40g", "a100-80g", "h100", "h200", "rtx4090"):
        assert gpu_of(name).bf16 > gpu_of(name).float32 > 0


def test_the_readme_says_what_the_plan_says(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of recipes/README.md: the launch file and GiB of each card, all weights and adapters."""
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    text = (root / "recipes/README.md").read_text(encoding="utf-8").split("### GRPO on 24, 40 and 80 GB")[1]
    rows = [line for line in text.splitlines() if line.startswith("| a")]
    for row, adapters in zip(rows, ([], ["train.lora={rank: 32}", "optimisation.lr=1e-4"]), strict=True):
        code, out = plan("recipes/subject/grpo.yaml", "model.size=XL", *adapters, "--json")
        assert code == 0
        peaks = {Path(way["launch"]).name: way for way in json.loads(out)["memory"] if way["checkpointing"]}
        assert all(override in row for override in adapters[1:])
        cells = re.findall(r"`(\w+\.yaml)`, ([\d.]+)", row)
        for card, (launch, gib) in zip((24, 40, 80), cells, strict=True):
            assert float(gib) == round(peaks[launch]["peak"] / GIB, 1)
            assert card in peaks[launch]["fits_gb"]
