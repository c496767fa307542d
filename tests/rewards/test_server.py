"""The reward server over real sockets: same numbers as in process, requests scored together, faults as one line."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from mentor_rewards.composite import Composite
from mentor_rewards.contract import AsyncReward, Reward, RewardBatch, RewardEntry, RewardError, RewardOutput, RewardSpec
from mentor_rewards.micro_batching import Batching, merge, split
from mentor_rewards.server import Settings, read_entries, serve_recipe, serving
from mentor_rewards.testing import sample_batch
from mentor_rewards.wire import (
    Limits,
    WireFault,
    batch_of,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from PIL import Image

HERE = __name__
ENTRIES = {name: RewardEntry(role="monitor") for name in ("colour_match", "jpeg_size")}


class Slow(Reward):
    """The red value of the first pixel, 0.1 s a call; notes the size of every call. Fails on red 255."""

    spec = RewardSpec(name="slow", version="1")
    sizes: list[int]
    groups: list[list[int]]

    def load(self, device: str, dtype: str) -> None:
        type(self).sizes, type(self).groups = [], []

    def score(self, batch: RewardBatch) -> RewardOutput:
        time.sleep(0.1)
        self.sizes.append(len(batch))
        self.groups.append(list(batch.group_ids))
        reds = [float(np.asarray(image)[0, 0, 0]) for image in batch.images]
        if 255.0 in reds:
            raise ValueError("red 255")
        return RewardOutput(list(reds), details={"seen": list(range(len(reds)))})


class Neighbourly(Slow):
    """As Slow, but its scores depend on what stands beside a picture."""

    spec = RewardSpec(name="neighbourly", version="1", batch_invariant=False)


class Rings(Reward):
    """Rings a bell."""

    spec = RewardSpec(name="rings", version="1")
    bell = threading.Event()

    def score(self, batch: RewardBatch) -> RewardOutput:
        self.bell.set()
        return RewardOutput([1.0] * len(batch))


class Listens(AsyncReward):
    """Whether the bell rings within five seconds."""

    spec = RewardSpec(name="listens", version="1")

    async def ascore(self, batch: RewardBatch) -> RewardOutput:
        return RewardOutput([float(await asyncio.to_thread(Rings.bell.wait, 5.0))] * len(batch))


SLOW = {"slow": RewardEntry(use=f"{HERE}:Slow")}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = Limits(body=200_000, picture=10_000, pixels=60_000)
    with serving(ENTRIES, Settings(port=0, limits=limits)) as address:
        yield address


def post(url: str, body: bytes, path: str = "/score", **headers: str) -> tuple[int, Any]:
    """Status and JSON of one request."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("POST" if body else "GET", path, body or None, {"content-type": "application/json", **headers})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def request_body(reward: str = "colour_match", batch: RewardBatch | None = None, **changes: Any) -> bytes:
    body = json.loads(encode_request(reward, batch or sample_batch(count=3), 0)[0])
    return json.dumps({**body, **changes}).encode()


def ask(url: str, reward: str, batch: RewardBatch) -> RewardOutput:
    body, ids = encode_request(reward, batch, batch.step)
    status, answer = post(url, body)
    assert status == 200, answer
    return decode_answer(json.dumps(answer).encode(), reward, ids)[0]


def reds(*values: int, step: int = 0) -> RewardBatch:
    n = len(values)
    images = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in values]
    return RewardBatch(images, [""] * n, [()] * n, [None] * n, [0] * n, [{}] * n, step=step)


# -------------------------------------------------------------------------------------------------------------- wire


def test_a_batch_survives_the_wire_exactly() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (7, 5, 4), dtype=np.uint8)
    pictures = [Image.fromarray(noise), Image.fromarray(noise[..., :3].copy()), Image.fromarray(noise[..., 0].copy())]
    pictures += [pictures[1].convert("1"), pictures[0].convert("LA"), pictures[1].copy()]
    facts = {"text": 'a "quote" \u2028 \U0001f98a', "number": 0.1 + 0.2, "nested": {"list": [1, None, True, 2**70]}}
    batch = RewardBatch(
        images=pictures,
        prompts=["é", "", "a\nb", "x", "y", "z"],
        references=[(pictures[1], pictures[0]), (), (pictures[1],), (), (), ()],
        subjects=["fox", None, "", None, None, None],
        group_ids=[5, 5, -1, 7, 7, 2**40],
        metadata=[facts, {}, {}, {}, {}, {}],
        step=12,
    )
    body, _ = encode_request("x", batch, batch.step)
    request = decode_request(body)
    found = batch_of(request, Limits())
    assert len(request.pictures) == 5, "equal content travels once, whichever object holds it"
    for column in ("prompts", "subjects", "group_ids", "metadata", "step"):
        assert getattr(found, column) == getattr(batch, column)
    for one, two in zip(batch.images, found.images, strict=True):
        assert (one.mode, one.size, one.tobytes()) == (two.mode, two.size, two.tobytes())
    assert [[p.tobytes() for p in row] for row in found.references] == [
        [p.tobytes() for p in r] for r in batch.references
    ]


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"a": {"b": (1, 2)}}, r"sample 0: metadata\.a\.b: expected JSON .* found tuple"),
        ({"a": float("nan")}, r"sample 0: metadata\.a: expected a finite number, found nan"),
        ({"a": [{1: 2}]}, r"sample 0: metadata\.a\.0: expected text as key, found 1"),
        ({"a": Path("x")}, r"sample 0: metadata\.a: expected JSON"),
    ],
)
def test_metadata_that_json_would_change_is_refused(facts: dict[str, Any], line: str) -> None:
    with pytest.raises(RewardError, match=line):
        encode_request("x", replace(reds(1), metadata=[facts]), 0)


def test_pictures_that_png_would_change_are_refused() -> None:
    with pytest.raises(RewardError, match=r"sample 0: expected a picture of mode RGB, .* found CMYK"):
        encode_request("x", replace(reds(1), images=[Image.new("CMYK", (2, 2))]), 0)


def test_details_become_json() -> None:
    request = decode_request(encode_request("x", reds(1), 0)[0])
    details = {"box": [np.arange(4.0)], "tensor": [torch.tensor([[1, 2]])], "n": [np.float32(0.5)], "no": [np.nan]}
    answer = json.loads(encode_answer(request, RewardOutput([2], details=details), "f"))
    assert answer["details"] == {"box": [[0.0, 1.0, 2.0, 3.0]], "tensor": [[[1, 2]]], "n": [0.5], "no": [None]}
    found, _ = decode_answer(json.dumps(answer).encode(), "x", [sample.id for sample in request.samples])
    assert found.scores == [2.0]
    with pytest.raises(RewardError, match=r"details\.seen: expected JSON, found PosixPath"):
        encode_answer(request, RewardOutput([1.0], details={"seen": [Path()]}), "f")


# ------------------------------------------------------------------------------------------------------------ scores


def test_round_trip_equals_local_scores_bit_for_bit(url: str) -> None:
    batch = sample_batch(count=6)
    with Composite(ENTRIES) as composite:
        local = composite.score(batch)
    for name in ENTRIES:
        assert ask(url, name, batch).scores == local.raw[name]
    strange = replace(batch, metadata=[{"background": "octarine"}, {}, *batch.metadata[2:]])
    output = ask(url, "colour_match", strange)
    assert output.scores == [None, None, *local.raw["colour_match"][2:]]
    assert "octarine" in str(output.reasons[0])
    assert output.reasons[1] == "does not apply: no metadata.background"
    assert ask(url, "jpeg_size", batch.select([])).scores == []


def test_concurrent_requests_are_scored_together_and_not_mixed_up() -> None:
    requests = [reds(*range(10 * n, 10 * n + 1 + n % 4)) for n in range(20)]
    with serving(SLOW, Settings(port=0, batching=Batching(0.05, 16))) as url, ThreadPoolExecutor(20) as clients:
        outputs = list(clients.map(lambda batch: ask(url, "slow", batch), requests))
        health = post(url, b"", "/health")[1]["rewards"]["slow"]
    for batch, output in zip(requests, outputs, strict=True):
        assert output.scores == [float(image.getpixel((0, 0))[0]) for image in batch.images]  # type: ignore[index]
    pictures = sum(map(len, requests))
    assert sum(Slow.sizes) == pictures == health["pictures"]
    assert len(Slow.sizes) == health["calls"] <= 8, "20 calls of 0.1 s without micro-batching"
    assert max(Slow.sizes) <= 16
    assert max(len(set(groups)) for groups in Slow.groups) > 1, "group 0 of one request is not group 0 of another"


def test_only_like_requests_are_scored_together() -> None:
    entries = {"slow": SLOW["slow"], "neighbourly": RewardEntry(use=f"{HERE}:Neighbourly")}
    with serving(entries, Settings(port=0, batching=Batching(0.1, 16))) as url, ThreadPoolExecutor(6) as clients:
        steps = [clients.submit(ask, url, "slow", reds(n, step=n % 2)) for n in range(4)]
        alone = [clients.submit(ask, url, "neighbourly", reds(n)) for n in range(2)]
        assert [job.result().scores for job in steps + alone] == [[0.0], [1.0], [2.0], [3.0], [0.0], [1.0]]
    assert sorted(Slow.sizes) == [2, 2], "steps 0 and 1 apart"
    assert Neighbourly.sizes == [1, 1]


def test_a_reward_that_waits_for_a_server_keeps_no_device() -> None:
    entries = {name: RewardEntry(use=f"{HERE}:{name.title()}") for name in ("rings", "listens")}
    with serving(entries) as url, ThreadPoolExecutor(1) as client:
        waiting = client.submit(ask, url, "listens", reds(1))
        time.sleep(0.2)  # it has its turn now
        assert ask(url, "rings", reds(1)).scores == waiting.result().scores == [1.0]


def test_a_request_that_fails_does_not_fail_its_neighbours() -> None:
    with serving(SLOW, Settings(port=0, batching=Batching(0.1, 16))) as url, ThreadPoolExecutor(3) as clients:
        good = [clients.submit(ask, url, "slow", reds(n)) for n in (1, 2)]
        bad = clients.submit(post, url, request_body("slow", reds(255)))
        assert [job.result().scores for job in good] == [[1.0], [2.0]]
        assert bad.result() == (500, {"error": "reward 'slow': score failed: ValueError: red 255"})


def test_a_client_that_leaves_gives_its_place_up() -> None:
    with serving(SLOW, Settings(port=0, batching=Batching(0.3, 16))) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request("POST", "/score", request_body("slow", reds(1)), {"content-type": "application/json"})
        while post(url, b"", "/health")[1]["rewards"]["slow"]["queued"] == 0:
            time.sleep(0.01)
        connection.close()
        assert ask(url, "slow", reds(7)).scores == [7.0]
    assert Slow.sizes == [1]


def test_merge_and_split_are_inverse() -> None:
    parts = [reds(1, 2, step=5), reds(3, step=5), reds(step=5)]
    merged = merge(parts)
    assert (merged.group_ids, merged.step) == ([0, 0, 1], 5)
    whole = RewardOutput([1.0, None, 3.0], [None, "no", None], {"d": ["a", "b", "c"]})
    back = split(whole, [2, 1, 0])
    assert [part.scores for part in back] == [[1.0, None], [3.0], []]
    assert back[0].details == {"d": ["a", "b"]}
    assert back[1].reasons == [None]


# ------------------------------------------------------------------------------------------------------------ faults


def png_claiming(width: int, height: int) -> str:
    """A few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def jpeg() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


SAMPLE = {"id": "a", "image": 0, "prompt": "", "group": 0}


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"{", 400, "request: Invalid JSON"),
        (b"[" * 100_000, 400, "request: Invalid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", 400, "request: "),
        (request_body(format=2), 400, "request: format: Input should be 1"),
        (request_body(rewrad="x"), 400, "request: unknown key 'rewrad'; did you mean 'reward'?"),
        (request_body(samples=[{**SAMPLE, "imgae": 0}]), 400, "unknown key 'samples.0.imgae'; did you mean 'image'?"),
        (request_body(samples=[{**SAMPLE, "prompt": 3}]), 400, "samples.0.prompt: Input should be a valid string"),
        (request_body(samples=[{**SAMPLE, "image": 99}]), 400, "samples.0: no picture 99, the request has"),
        (request_body(samples=[{**SAMPLE, "references": [-1]}]), 400, "samples.0: no picture -1"),
        (request_body(samples=[SAMPLE, SAMPLE]), 400, "expected ids that differ"),
        (request_body(samples=[{**SAMPLE, "metadata": {"x": float("nan")}}]), 400, "samples.0.metadata.x: expected a"),
        (request_body(pictures=["%%"], samples=[SAMPLE]), 400, "request: pictures.0: expected base64"),
        (request_body(pictures=["AAAA"], samples=[SAMPLE]), 400, "request: pictures.0: expected a PNG, found other"),
        (request_body(pictures=[jpeg()], samples=[SAMPLE]), 400, "request: pictures.0: expected a PNG, found other"),
        (request_body(pictures=[png_claiming(50, 50)], samples=[SAMPLE]), 400, "pictures.0: expected a whole PNG"),
        (
            request_body(pictures=[png_claiming(200, 200)], samples=[SAMPLE]),
            413,
            "at most 10000 pixels, found 200 x 200",
        ),
        (request_body(pictures=[png_claiming(2**30, 2**30)], samples=[SAMPLE]), 413, "at most 10000 pixels"),
        (request_body(pictures=[png_claiming(90, 90)] * 9, samples=[SAMPLE]), 413, "at most 60000 pixels in all"),
        (request_body("colour_mach"), 404, "unknown reward 'colour_mach'; did you mean 'colour_match'?"),
        (request_body(pictures=["A" * 200_000]), 413, "request: expected at most 200000 bytes, found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_name_the_field(url: str, body: bytes, status: int, line: str) -> None:
    found, answer = post(url, body)
    assert found == status
    assert set(answer) == {"error"}
    assert line in answer["error"]
    assert "\n" not in answer["error"]


def test_a_body_of_unknown_length_is_limited_too(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    connection.request("POST", "/score", (b"x" * 100_000 for _ in range(3)), {"content-type": "application/json"})
    assert connection.getresponse().status == 413


def test_other_pages_and_types(url: str) -> None:
    assert post(url, b"{}", **{"content-type": "text/plain"})[0] == 415
    status, answer = post(url, b"", "/scores")
    assert status == 404
    assert "POST /score" in answer["error"]
    assert post(url, b"", "/score")[0] == 405


def test_a_token_is_needed_off_the_loopback_device(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(RewardError, match=r"host 0.0.0.0 can be reached .* expected --token-env NAME"):
        Settings(host="0.0.0.0").token()
    with (
        pytest.raises(RewardError, match="expected a token in the environment variable NO_SUCH, found none"),
        serving(ENTRIES, Settings(host="0.0.0.0", port=0, token_env="NO_SUCH")),
    ):
        pass
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    with serving({"jpeg_size": ENTRIES["jpeg_size"]}, Settings(port=0, token_env="REWARD_TOKEN")) as url:
        for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}):
            for body, path in ((b"", "/health"), (b"", "/rewards"), (b"{", "/score")):
                assert post(url, body, path, **headers)[0] == 401
        assert post(url, b"", "/health", authorization="Bearer s3cret")[0] == 200
        assert post(url, b"{", authorization="Bearer s3cret")[0] == 400
    assert "s3cret" not in "".join(capsys.readouterr())


def test_health_and_listing_say_what_is_served(url: str) -> None:
    status, health = post(url, b"", "/health")
    assert status == 200
    assert health["status"] == "ok"
    assert set(health["rewards"]) == set(ENTRIES)
    assert health["rewards"]["jpeg_size"]["version"] == "1"
    listing = post(url, b"", "/rewards")[1]
    spec = listing["rewards"]["colour_match"]["spec"]
    assert spec["metadata"] == ["background"]
    assert spec["range"] == [0.0, 1.0]
    assert listing["max_body"] == 200_000


# ------------------------------------------------------------------------------------------------------ command line


def test_entries_of_any_recipe_are_read(tmp_path: Path) -> None:
    document = {"kind": "grpo", "rewards": {"jpeg_size": None, "tint": {"use": "colour_match", "weight": 2}}}
    assert set(read_entries(document, "r.yaml")) == {"jpeg_size", "tint"}
    assert set(read_entries(document, "r.yaml", ["tint"])) == {"tint"}
    with pytest.raises(RewardError, match=r"r.yaml: rewards: no entry 'tin'; did you mean 'tint'"):
        read_entries(document, "r.yaml", ["tin"])
    with pytest.raises(RewardError, match=r"r.yaml: expected a section 'rewards'"):
        read_entries([], "r.yaml")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("rewards: {jpeg_size: {weigth: 2}}")
    with pytest.raises(RewardError, match=r"r.yaml: rewards.jpeg_size: unknown key 'weigth'; did you mean 'weight'\?"):
        serve_recipe(recipe, Settings(port=0))
    for text, message in (
        (
            "rewards:\n  jpeg_size: {}\n  jpeg_size: {}\n",
            r"r.yaml:3: rewards.jpeg_size: key given twice, first on line 2",
        ),
        ("rewards:\n  jpeg_size: {weight: 1, weight: 2}\n", r"r.yaml:2: rewards.jpeg_size.weight: key given twice"),
        ("rewards: &all\n  jpeg_size: {}\nmore: *all\n", r"r.yaml:3: not YAML: aliases .* are not allowed here"),
        ("rewards: [jpeg_size", "r.yaml:1: not YAML"),
        ("", "r.yaml: expected a recipe, found an empty file"),
    ):
        recipe.write_text(text)
        with pytest.raises(RewardError, match=message):
            serve_recipe(recipe, Settings(port=0))
    with pytest.raises(RewardError, match=r"none.yaml: cannot read this recipe: No such file"):
        serve_recipe(tmp_path / "none.yaml", Settings(port=0))


def test_a_taken_port_is_said(url: str) -> None:
    with (
        pytest.raises(RewardError, match=r"cannot listen on 127.0.0.1:.* in use"),
        serving(ENTRIES, Settings(port=urlsplit(url).port or 0)),
    ):
        pass


def test_serving_works_inside_an_event_loop() -> None:
    async def inside() -> int:
        with serving({"jpeg_size": ENTRIES["jpeg_size"]}) as url:
            return (await asyncio.to_thread(post, url, b"", "/health"))[0]

    before = threading.active_count()
    assert asyncio.run(inside()) == 200
    assert threading.active_count() == before


def test_answers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WireFault, match="answer: Invalid JSON"):
        decode_answer(b'{"format": 1, "resul', "x", ["a"])
