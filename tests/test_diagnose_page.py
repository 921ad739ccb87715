"""The page of a diagnosis: what it says of trainings made by hand, and how it looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pages import require_page_alone

from riskmtl import LightGBMBaseline, MultiTaskClassifier, RiskModel, diagnose
from riskmtl.encoding import FeatureEncoder
from riskmtl.history import history_frame
from riskmtl.model import Head
from riskmtl.networks import Network, NetworkConfig
from riskmtl.scorers import NetworkScorer

TASKS = ("default", "fraud", "takeover")


def model_of(rows: list[dict[str, Any]] | None, **shape: Any) -> RiskModel:
    """A model with a history, and whatever else there is."""
    config = NetworkConfig(**{"network": "mmoe", "expert_units": (4,), **shape})
    tasks = TASKS if rows is None else tuple(dict.fromkeys(row["task"] for row in rows))
    network = Network([0], len(tasks), replace(config, groups=()))
    frame = pl.DataFrame({"a": [1.0, 2.0]})
    return RiskModel(
        FeatureEncoder([]).fit(frame),
        NetworkScorer(network, config, [0], [False] * len(tasks)),
        [Head(task) for task in tasks],
        history=None if rows is None else history_frame(rows),
    )


def told(
    epochs: int = 4, tasks: tuple[str, ...] = TASKS, kept: int = 2, **changes: Any
) -> list[dict[str, Any]]:
    """A quiet training: no conflict, all best in the kept epoch, experts used alike."""
    rows = []
    for epoch in range(epochs):
        for task in tasks:
            row = {
                "epoch": epoch,
                "task": task,
                "train_loss": 0.5 - 0.05 * epoch,
                "val_log_loss": 0.4 + 0.01 * abs(epoch - kept),
                "val_log_loss_skill": 0.3 - 0.02 * abs(epoch - kept),
                "task_weight": 1.0,
                "gradient_norm": 0.1,
                **{f"gradient_cosine_{other}": 0.25 for other in tasks if other != task},
                "gate_weights": [0.5, 0.3, 0.2],
                "gate_entropy": 0.9,
                "dead_experts": 0,
                "kept": epoch == kept,
            }
            for name, value in changes.items():
                row[name] = value(epoch, task, row.get(name)) if callable(value) else value
            rows.append(row)
    return rows


def said(rows: list[dict[str, Any]], **shape: Any) -> list[str]:
    return list(diagnose(model_of(rows, **shape)).findings)


QUIET = [
    "No conflict was found: the lowest mean cosine of two heads' gradients is 0.25, of default and "
    "fraud.",
    "Every head is at its best in the kept epoch, or all but.",
    "No expert is dead.",
]


def test_a_quiet_training() -> None:
    assert said(told()) == QUIET


def test_conflicts_are_named_the_worst_first() -> None:
    def cosine(epoch: int, task: str, value: Any) -> Any:
        return [-0.4, -0.3, 0.1, -0.24][epoch] if task in ("fraud", "takeover") else value

    rows = told(
        gradient_cosine_takeover=lambda e, t, v: cosine(e, t, v) if t == "fraud" else v,
        gradient_cosine_fraud=lambda e, t, v: (
            cosine(e, t, v) if t == "takeover" else -0.08 if t == "default" else v
        ),
    )
    assert said(rows)[:3] == [
        "fraud and takeover pull against each other in 3 of 4 epochs: mean cosine −0.21.",
        "default and fraud pull against each other in 4 of 4 epochs: mean cosine −0.08.",
        QUIET[1],
    ]


def test_the_seesaw_names_who_lost_and_who_would_have_gained() -> None:
    skill = {"default": [0.1, 0.304, 0.3, 0.2], "fraud": [0.1, 0.2, 0.3, 0.35]}
    rows = told(
        val_log_loss_skill=lambda e, t, v: skill[t][e] if t in skill else v,
    )
    assert said(rows)[1:3] == [
        "default's best epoch was 1, the kept one is 2: it lost 0.004 of skill by then.",
        "fraud's best epoch was 3, the kept one is 2: it would have gained 0.050 of skill more.",
    ]
    # A trifle is not worth a sentence.
    skill["default"][1], skill["fraud"][3] = 0.3009, 0.3
    assert said(told(val_log_loss_skill=lambda e, t, v: skill[t][e] if t in skill else v)) == QUIET


def test_a_number_is_judged_by_its_error() -> None:
    error = [0.5, 0.4, 0.41, 0.6]
    rows = told(
        val_squared_error=lambda e, t, v: error[e] if t == "takeover" else None,
        val_log_loss=lambda e, t, v: None if t == "takeover" else v,
        val_log_loss_skill=lambda e, t, v: None if t == "takeover" else v,
    )
    found = diagnose(model_of(rows))
    assert found.findings[1] == (
        "takeover's best epoch was 1, the kept one is 2: it lost 0.010 of squared error by then."
    )
    assert found["seesaw"].table("seesaw")["lost"].to_list() == pytest.approx([0, 0, 0.01])
    assert len(found["seesaw"].figures) == 3


def test_another_metric_that_was_monitored() -> None:
    rows = told(val_roc_auc=lambda e, t, v: 0.8 + 0.01 * (e == 0 and t == "fraud"))
    model = model_of(rows)
    model.made_by = {"parameters": {"monitor": "roc_auc"}}
    assert diagnose(model).findings[1] == (
        "fraud's best epoch was 0, the kept one is 2: it lost 0.010 of AUC by then."
    )


def test_dead_experts_and_settled_gates_are_named() -> None:
    rows = told(
        gate_weights=lambda e, t, v: [0.991, 0.004, 0.005] if t == "default" else [0.2, 0.008, 0.8],
        gate_entropy=lambda e, t, v: 0.04 if t == "default" else v,
    )
    assert said(rows)[2:] == [
        "Expert “shared 2” is dead: no gate gives it more than 0.8 % of its weight in the kept "
        "epoch.",
        "default's gate hardly mixes (entropy 0.04 of 1): 99 % of its weight goes to “shared 1”.",
    ]


def test_own_experts_have_the_name_of_their_head() -> None:
    places = {"default": 0, "fraud": 1, "takeover": 2}
    rows = told(
        gate_weights=lambda e, t, v: [
            0.999 if i == places[t] else 0.001 if i == 3 else None for i in range(4)
        ]
    )
    found = diagnose(model_of(rows, network="ple"))
    assert found["gates"].table("experts")["expert"].to_list() == [
        "default 1",
        "fraud 1",
        "takeover 1",
        "shared 1",
    ]
    assert found["gates"].table("experts")["state"].to_list() == ["", "", "", "dead"]


def test_an_uneven_pull_counts_the_weights() -> None:
    norm = {"default": 1.4, "fraud": 0.1, "takeover": 0.2}
    rows = told(
        gradient_norm=lambda e, t, v: norm[t],
        task_weight=lambda e, t, v: 0.5 if t == "default" else v,
    )
    assert said(rows)[2] == (
        "default pulls at what is shared 7 times as hard as fraud (length of the gradient times "
        "the task's weight, mean over the epochs)."
    )


@pytest.mark.parametrize(
    ("name", "quiet", "loud", "word"),
    [
        ("gradient_cosine_fraud", -0.045, -0.055, "pull against each other"),
        ("gradient_norm", 0.49, 0.51, "times as hard as"),
        ("gate_entropy", 0.105, 0.095, "hardly mixes"),
        ("val_log_loss_skill", 0.3009, 0.3011, "would have gained 0.001 of skill more"),
    ],
)
def test_where_a_sentence_begins(name: str, quiet: float, loud: float, word: str) -> None:
    for value, is_said in [(quiet, False), (loud, True)]:
        changes = {
            name: lambda e, t, v, value=value: (
                value if t == "default" and (name[:3] != "val" or e == 3) else v
            )
        }
        if name.startswith("gradient_cosine"):
            changes["gradient_cosine_default"] = lambda e, t, v, value=value: (
                value if t == "fraud" else v
            )
        assert any(word in said_of for said_of in said(told(**changes))) == is_said


def test_who_does_not_pull_at_all_is_no_measure_of_the_others() -> None:
    rows = told(gradient_norm=lambda e, t, v: {"default": 0.0, "fraud": 0.1, "takeover": 0.3}[t])
    assert said(rows) == QUIET


def test_groups_are_told_apart() -> None:
    dead = [0.005, 0.5, 0.495]
    rows = [
        {k: v for k, v in row.items() if "cosine" not in k or row["task"] in ("a", "c")}
        for row in told(tasks=("a", "b", "c"), gate_weights=lambda e, t, v: v if t == "b" else dead)
    ]
    for row in rows:
        row.pop("gradient_cosine_b", None)
    found = said(rows, groups=((0, 2), (1,)))
    assert found[0].endswith("is 0.25, of a and c.")
    assert found[2].startswith("Expert “shared 1” of the network of a and c is dead")


def test_networks_by_themselves() -> None:
    rows = told(
        gate_weights=None, gate_entropy=None, dead_experts=None,
        kept=2,
        gradient_cosine_default=None, gradient_cosine_fraud=None, gradient_cosine_takeover=None,
    )  # fmt: skip
    found = diagnose(model_of(rows, network="single_task"))
    assert list(found.findings) == [
        "No two heads share a network, so none can pull against another.",
        QUIET[1],
    ]
    assert [question.key for question, _ in found.sections] == [
        "seesaw",
        "losses",
        "pull",
        "numbers",
    ]


def test_a_head_of_which_nothing_is_known() -> None:
    rows = told()
    for row in rows:
        for name in list(row):
            if row["task"] == "takeover" and name.startswith(("val_", "gradient")):
                row[name] = None
        row["gradient_cosine_takeover"] = None
    found = diagnose(model_of(rows))
    assert found.findings[:2] == [
        "takeover has no observed row in training: it learned nothing.",
        "takeover has no observed row in validation: how good it is, is not known.",
    ]
    assert "nan" not in re.sub(r"<script>.*?</script>", "", found.to_html(), flags=re.S)


def test_one_epoch_of_one_head() -> None:
    found = diagnose(model_of(told(epochs=1, tasks=("a",), kept=0)))
    assert found.findings[0] == "No two heads share a network, so none can pull against another."
    assert found.to_html().count("<svg") > 3
    assert "1 epoch, counted from 0" in found.to_html()
    # Of one gate nobody can tell what is its own.
    assert found["gates"].table("experts")["expert"][0] == "expert 1"


def test_networks_that_stopped_at_different_epochs() -> None:
    rows = [row for row in told() if row["task"] != "fraud" or row["epoch"] < 3]
    table = diagnose(model_of(rows))["seesaw"].table("seesaw")
    assert table["last_epoch"].to_list() == [3, 2, 3]


@pytest.mark.parametrize("kind", ["lightgbm", "no history"])
def test_what_cannot_be_diagnosed(cards: pl.DataFrame, kind: str) -> None:
    if kind == "no history":
        with pytest.raises(ValueError, match="what the training of its heads recorded, as older"):
            diagnose(model_of(None))
        return
    trees = LightGBMBaseline(trials=1, n_estimators=5, n_jobs=1, random_state=0)
    trees.fit(cards.select("amount", "age"), cards["is_fraud"])
    with pytest.raises(ValueError, match=r"kind 'lightgbm' has no epochs: only a network"):
        diagnose(trees)


def test_of_a_blend_it_is_the_network(trained: MultiTaskClassifier) -> None:
    heads = [replace(head, blend=0.5) for head in trained.model_.heads]
    blend = replace(trained.model_, heads=heads)
    assert blend.kind == "blend"
    assert diagnose(blend).findings == diagnose(trained).findings


def test_of_a_smaller_model_it_is_what_is_left(trained: MultiTaskClassifier) -> None:
    head = trained.tasks_[0]
    found = diagnose(trained.only(head, report=False))
    assert list(found.tasks) == [head]
    assert "No two heads share a network, so none can pull against another." in found.findings
    # No expert of the heads that are gone.
    uses = found["gates"].table("experts")
    assert len(uses) < len(diagnose(trained)["gates"].table("experts"))


def test_heads_that_stood_still_are_said_to_be_untold(cards: pl.DataFrame) -> None:
    """They do share the network, and their gates may use what the new one's does not."""
    X, y = cards.select("amount", "age"), cards["is_fraud"]
    labels = pl.DataFrame({"a": y, "b": y, "c": y})
    options = {"epochs": 1, "members": 1, "expert_units": [4], "device": "cpu", "random_state": 0}
    larger = MultiTaskClassifier("mmoe", **options).fit(X, labels).add_task("late", X, y)
    starved = larger.history_.with_columns(gate_weights=pl.lit([0.997, 0.001, 0.001, 0.001]))
    for history in (larger.history_, starved):
        found = diagnose(replace(larger.model_, history=history))
        assert found.tasks == ["late"]
        assert found.findings[0] == (
            "Nothing is recorded of a, b and c: this is the training of late."
        )
        assert not any("share a network" in said or "dead" in said for said in found.findings)
        assert set(found["gates"].table("experts")["state"]) == {""}
    with pytest.raises(ValueError, match="that stood still while another was added: diagnose"):
        diagnose(larger.only("a", report=False))


def test_networks_that_stood_still_are_untold_too() -> None:
    rows = [row for row in told(tasks=("a", "b", "c")) if row["task"] == "b"]
    model = model_of(rows)
    shape = replace(model.scorer.shape, groups=((0, 2), (1,)))
    scorer = NetworkScorer(model.scorer.network, shape, [0], [False] * 3)
    heads = [Head(task) for task in ("a", "b", "c")]
    assert list(diagnose(replace(model, scorer=scorer, heads=heads)).findings) == [
        "Nothing is recorded of a and c: this is the training of b.",
        QUIET[1],
        QUIET[2],
    ]


def test_a_training_that_bettered_nothing_says_so() -> None:
    found = diagnose(model_of(told(kept=-1)))
    assert found.findings[1] == (
        "No epoch was better for default, fraud and takeover than the weights that training "
        "started from: these were kept."
    )
    assert "kept: none ·" in found.to_html()


def test_text_of_heads_cannot_break_the_page() -> None:
    page = diagnose(model_of(told(tasks=("<script>alert(1)</script>", "a & b")))).to_html()
    assert "<script>alert" not in page
    assert "a &amp; b" in page


def test_a_long_training_stays_light() -> None:
    rows = told(epochs=300, tasks=tuple(f"head {i}" for i in range(8)), kept=200)
    found = diagnose(model_of(rows))
    page = found.to_html()
    assert len(page.encode()) < 1_000_000
    assert "The first 400 lines; all are in the model's history_." in page


# ---- in a browser --------------------------------------------------------------------------------


def crowded() -> RiskModel:
    """Eight heads with long names that pull this way and that."""
    rng = np.random.default_rng(0)
    tasks = tuple(f"outcome number {i} of the long list" for i in range(8))
    wild = lambda e, t, v: float(rng.uniform(-1, 1))  # noqa: E731
    cosines = dict.fromkeys((f"gradient_cosine_{task}" for task in tasks), wild)
    rows = told(
        epochs=12,
        tasks=tasks,
        kept=5,
        val_log_loss_skill=wild,
        gradient_norm=lambda e, t, v: float(10 ** rng.uniform(-3, 3)),
        gate_weights=lambda e, t, v: rng.dirichlet(np.full(16, 0.2)).tolist(),
        **cosines,
    )
    return model_of(rows)


@pytest.fixture(scope="module", params=["trained", "crowded"])
def page_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make: Callable[[], Any] = {
        "trained": lambda: request.getfixturevalue("trained"),
        "crowded": crowded,
    }[request.param]
    return diagnose(make()).write(tmp_path_factory.mktemp("page") / "page.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_alone_and_fits(
    browser: Any, page_file: Path, scheme: str, width: int
) -> None:
    require_page_alone(browser, page_file, scheme=scheme, width=width)


def test_it_can_be_read_without_script(browser: Any, page_file: Path) -> None:
    silent = browser.new_context(java_script_enabled=False)
    page = silent.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("section").count() == 7
    assert page.locator("#findings li").first.is_visible()
    silent.close()


def test_every_picture_has_words_and_every_place_a_name(page_file: Path) -> None:
    page = page_file.read_text()
    pictures = re.findall(r"<svg role=\"img\".*?</svg>", page, re.S)
    assert len(pictures) > 8
    for picture in pictures:
        assert re.search(r"<title id=\S+>\S", picture)
        assert re.search(r"<desc id=\S+>\S", picture)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
