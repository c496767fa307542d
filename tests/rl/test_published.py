"""Published numbers: complete rows that agree with each other, and when a result may stand beside them."""

from __future__ import annotations

import numpy as np
import pytest

from mentor_base.errors import UserError
from mentor_rl.ablation.outcome import ArmOutcome, Cell, Outcome
from mentor_rl.evaluate.dreambench_plus import balance, summary
from mentor_rl.evaluate.dreambench_plus_data import REFERENCES
from mentor_rl.evaluate.geneval import TAGS
from mentor_rl.evaluate.published import published_markdown, published_tables, table_beside
from mentor_rl.evaluate.reconstruction_bench import estimates
from mentor_rl.evaluate.result import Result


def test_every_row_has_a_value_per_column_and_a_source() -> None:
    tables = published_tables()
    assert {table.number for table in tables.values()} >= {1, 2, 4, 6, 7, 8, 9, 10}
    for table in tables.values():
        assert table.source
        assert table.footnote
        for name, values in table.rows.items():
            assert len(values) == len(table.columns), f"{table.name}: {name}"


def test_overall_concept_is_the_mean_over_references() -> None:
    """45 animals, 20 humans, 65 objects, 20 styles: the weights that table 1 was made with, to its two digits."""
    table = published_tables()["dreambench_plus"]
    for row in table.rows:
        parts = [table.value(row, f"CP {category}") for category in REFERENCES]
        mean = sum(float(p) * n for p, n in zip(parts, REFERENCES.values(), strict=True)) / 150  # type: ignore[arg-type]
        assert mean == pytest.approx(table.value(row, "CP"), abs=0.011), row


@pytest.mark.parametrize("name", ["dreambench_plus", "removals", "task_weights", "guidance"])
def test_products_of_published_means(name: str) -> None:
    """CP·PF and CP/PF are made from the overall means, here as there. Two digits of CP and PF leave .01 of room."""
    table = published_tables()[name]
    for row in table.rows:
        cp, pf = (value[0] if isinstance(value, tuple) else value
                  for value in (table.value(row, "CP"), table.value(row, "PF")))  # fmt: skip
        assert cp is not None
        assert pf is not None
        ours = balance(cp, pf)
        assert ours["CP·PF"] == pytest.approx(table.value(row, "CP·PF"), abs=0.0085), row
        if "CP/PF" in table.columns and (ratio := table.value(row, "CP/PF")) is not None:
            assert ours["CP/PF"] == pytest.approx(ratio, rel=0.03), row


def test_overall_of_geneval_is_the_mean_of_six() -> None:
    table = published_tables()["geneval"]
    for row, values in table.rows.items():
        if None not in values:
            assert sum(values[:6]) / 6 == pytest.approx(values[6], abs=0.011), row  # type: ignore[arg-type]


def test_places_are_metrics_that_benchmarks_have() -> None:
    places = {
        name: {p.split("/", 1)[1] for p in table.columns.values() if p} for name, table in published_tables().items()
    }
    assert places["geneval"] == {"overall", *TAGS}
    assert places["reconstruction"] <= set(estimates([[0.1], [0.2]]))
    assert places["dreambench_plus"] <= set(summary(np.ones((2, 3)), np.ones((2, 3))))


def test_every_table_has_a_place_to_be_shown() -> None:
    """Beside the results of its benchmark, which is shown one table, beneath an ablation, or by `mentor rate`."""
    tables = published_tables()
    beside = [table.benchmark for table in tables.values() if table.benchmark is not None]
    assert len(set(beside)) == len(beside)
    ablations = {name for name, table in tables.items() if table.of_ablation}
    assert ablations == {"removals", "task_weights", "guidance"}
    assert {name for name, table in tables.items() if table.benchmark is None} == {*ablations, "human_agreement"}


def result(**changes: object) -> Result:
    metrics = {"fox": {"CP": 0.5, "PF": 0.25, "CP·PF": 0.125, "CP/PF": 2.0}, "fox · animal": {"CP": 0.75}}
    facts = {"metrics": metrics, "judge": "gpt-4o-2024-05-13", "checkpoints": {"fox": "runs/fox 12ab"}}
    facts |= {"details": {"items": 1350, "all items": 1350}, "notes": ("rubric text is ours",)}
    facts |= {"coverage": {"items": 1350, "scored": 1350}}
    return Result("dreambench_plus", **{**facts, **changes})  # type: ignore[arg-type]


def test_ours_stand_beneath_theirs_with_a_footnote() -> None:
    text = published_markdown(result())
    assert "| MENTOR | 0.65 | 0.36 | 0.57 | 0.47 | 0.55 |" in text
    assert "| Kosmos-G trained on MENTOR's data | 0.17 | 0.08 | 0.14 | 0.18 | 0.15 |" in text
    assert "| **fox** (ours)[^protocol] | 0.750 |  |  |  | 0.500 |" in text
    assert "[^protocol]: The paper's judge is gpt-4o-2024-05-13" in text
    assert "rubric text is ours" in text


def test_a_stand_in_never_stands_beside_published_numbers() -> None:
    with pytest.raises(UserError, match="judged by a stand-in"):
        table_beside(result(stand_in=True))
    text = published_markdown(result(stand_in=True))
    assert "left out" in text
    assert "0.65" not in text
    with pytest.raises(UserError, match="only some of the items"):
        table_beside(result(details={"items": 8, "all items": 1350}))
    few = Result("geneval", {}, details={"items": 12, "all items": 12}, coverage={"items": 48, "scored": 48})
    with pytest.raises(UserError, match="only some of the items"):  # a shorter file of prompts
        table_beside(few)
    with pytest.raises(UserError, match="not all pictures were scored"):
        table_beside(result(coverage={"items": 1350, "scored": 1349}))
    assert table_beside(Result("t2i_rewards", {})) is None
    with pytest.raises(UserError, match="did you mean 'MENTOR'"):
        published_tables()["fid"].value("MENTO", "FID")


def test_ade20k_stands_beside_the_paper_by_all_labels_of_all_pictures_at_its_side() -> None:
    def beside(items: int = 300_000, **settings: object) -> bool:
        asked = {"settings": {"labels": "all", "side": 512, **settings}, "items": items, "all items": items}
        return table_beside(Result("ade20k", {}, details=asked, coverage={"items": items, "scored": items})) is not None

    assert beside()
    for changes, why in (
        ({"items": 299_850}, "only some of the items"),  # a folder of 1,999 pictures
        ({"items": 15_000}, "only some of the items"),  # the subset of 100
        ({"labels": "present"}, "labels is present, published numbers need all"),
        ({"side": 256}, "side is 256, published numbers need 512"),
        ({"side": None}, "side is not known"),
    ):
        with pytest.raises(UserError, match=why):
            beside(**changes)  # type: ignore[arg-type]


def test_an_ablation_stands_beneath_the_papers_where_it_was_measured_alike() -> None:
    arms = {"guidance_scale=7.5": ArmOutcome({}, (), (42,), {"benchmark": {"CP": Cell(0.5, {"42": 0.5})}})}
    facts = {"benchmark": "dreambench_plus", "judge": "gpt-4o-2024-05-13", "pictures": 1350, "published": "guidance"}

    def text(missing: tuple[str, ...] = (), **changes: object) -> str:
        return Outcome("abl", "", "x", (42,), arms, missing, {**facts, **changes}).markdown()

    assert "| 7.5 | 0.557 | 0.84 | 0.468 |" in text()
    assert "| guidance_scale=7.5 (ours) | 0.500 |  |  |" in text()
    assert "published: guidance" not in text()
    for changes, why in (
        ({"stand_in": True}, "judged by a stand-in (gpt-4o-2024-05-13)"),
        ({"benchmark": "emojibench"}, "measured by emojibench, theirs by dreambench_plus"),
        ({"pictures": 6}, "not all 1350 items were measured"),
        ({"pictures without a score": 1}, "not all pictures were scored"),
        ({"missing": ("a/seed0/benchmark",)}, "not all runs are finished"),
    ):
        assert f"Published numbers are left out: {why}." in text(**changes)  # type: ignore[arg-type]
        assert "0.557" not in text(**changes)  # type: ignore[arg-type]
    assert "Published" not in text(published=None)
