"""Names of weights: paths, hub ids, checksums, and errors that say where a file can be put."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import types
from pathlib import Path

import pytest
from mentor_rewards.composite import Composite
from mentor_rewards.contract import RewardEntry, RewardError
from mentor_rewards.registry import BUILT_IN, build_reward
from mentor_rewards.weights import HubId, find_folder, find_weights, hub_id

OID = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of one repository, o/m, with one file on the branch main; no network."""
    repository = tmp_path / "cache" / "models--o--m"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(OID)
    snapshot = repository / "snapshots" / OID
    snapshot.mkdir(parents=True)
    (snapshot / "head.pth").write_bytes(b"weights")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def test_what_is_a_hub_id() -> None:
    assert hub_id("xswu/HPSv2") == HubId("xswu/HPSv2")
    assert hub_id("o/m-1.0@v2:sub/head.pth") == HubId("o/m-1.0", "v2", "sub/head.pth")
    for path in ("head.pth", "./o/m", "../o/m", "/o/m", "~/m", "a/b/c", Path("o/m")):
        assert hub_id(path) is None


def test_local_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(b"weights")
    assert find_weights(tmp_path / "head.pth", "other.pth") == tmp_path / "head.pth"
    assert find_weights(str(tmp_path), "head.pth", hashlib.sha256(b"weights").hexdigest()) == tmp_path / "head.pth"
    assert find_folder(tmp_path, ()) == tmp_path
    with pytest.raises(RewardError, match=r"head\.pth: expected sha256 aa, found [0-9a-f]{64}$"):
        find_weights(tmp_path / "head.pth", sha256="AA")
    with pytest.raises(RewardError, match=r"none\.pth: no such file"):
        find_weights(tmp_path, "none.pth")
    with pytest.raises(RewardError, match="expected a file of weights, found a folder"):
        find_weights(tmp_path)
    with pytest.raises(RewardError, match="expected a folder, found a file"):
        find_folder(tmp_path / "head.pth", ())


def test_hub_ids_come_from_the_cache(hub_cache: Path) -> None:
    assert find_weights("o/m", "head.pth") == find_weights("o/m@main:head.pth") == hub_cache / "head.pth"
    assert find_folder("o/m", ["*.pth"]) == hub_cache


def test_what_is_not_there_names_the_places(hub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RewardError, match=r"^o/x@v2: a\.pt: .*cache\)?.*`hf download o/x a\.pt --revision v2`"
    ) as error:
        find_weights("o/x@v2", "a.pt")
    assert str(tmp_path / "cache") in str(error.value)
    assert "offline" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(RewardError, match=r"`hf download o/x`"):
        find_folder("o/x", ["config.json"])


def test_options_take_paths_beside_the_recipe_and_hub_ids(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    for given, expected in (("clip", tmp_path / "clip"), ("./clip", tmp_path / "clip"), ("o/m@v1", "o/m@v1")):
        reward = build_reward("clip_image", RewardEntry(options={"checkpoint": given}), base=tmp_path)
        assert reward.checkpoint == expected  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=r"option 'checkpoint': no such file or folder: .*clop or clop"):
        build_reward("clip_image", RewardEntry(options={"checkpoint": "clop"}), base=tmp_path)


NO_WEIGHTS = {"colour_match", "shape_match", "jpeg_size", "remote"}
PACKAGED = {"ocr_match", "nsfw_guard", "efficientnet_similarity"}


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - NO_WEIGHTS - PACKAGED))
def test_every_reward_that_reads_weights_says_beforehand_that_they_are_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, attribute = BUILT_IN[name].split(":")
    kind = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(kind).parameters
    options = {key: str(tmp_path) for key, each in parameters.items() if "WeightsSource" in str(each.annotation)}
    if name.startswith("qwen_vl"):
        options = {"backend": "local", "model": str(tmp_path)}
        monkeypatch.setitem(sys.modules, "xgrammar", types.ModuleType("xgrammar"))  # its package is looked for first
    with pytest.raises(RewardError, match=f"^reward 'mine': .*{tmp_path.name}"):
        Composite({"mine": RewardEntry(use=name, options=options)}).check_files()
