"""
What joint training is worth where one head has few labels.

Run with ``make benchmark-scarce``. Of one head's training labels a share is kept, drawn at random;
the other heads keep all of theirs. Compared on that head's test rows: the joint network, the same
network trained on that head alone, and LightGBM, tuned, on the same few labels. Finished fits are
not repeated. Results: ``scarce_labels.json``, ``.md`` and ``.svg`` in ``reports/benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from benchmark_tables import ROOT, SIMULATED, Parts, add_data_option, read_parts

from riskmtl import DataSchema, LightGBMBaseline, MultiTaskClassifier
from riskmtl.base import MultiTaskEstimator
from riskmtl.files import replacing
from riskmtl.metrics import average_precision, roc_auc

SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
MODELS = ("joint", "single", "lightgbm")
LIGHTGBM_TRIALS = 8
# Table, relatedness of its heads where it is simulated, and the head whose labels are hidden.
SETTINGS: Mapping[str, tuple[str, float, str]] = {
    "census_income": ("census_income", 0.7, "income"),
    "card_transactions": ("card_transactions", 0.7, "account_takeover"),
    "simulated takeover, relatedness 1": (SIMULATED, 1.0, "takeover"),
    "simulated takeover, relatedness 0": (SIMULATED, 0.0, "takeover"),
    "simulated takeover, relatedness 0.5": (SIMULATED, 0.5, "takeover"),
    "simulated default, relatedness 1": (SIMULATED, 1.0, "default"),
    "simulated default, relatedness 0": (SIMULATED, 0.0, "default"),
    "simulated default, relatedness 0.5": (SIMULATED, 0.5, "default"),
}


def main() -> None:
    """Run what is not yet in the results, then write page and picture."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scarce_labels.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for setting, seed, share, model in _jobs(options):
        key = f"{setting}/{share:g}/{model}/seed {seed}"
        if key in results:
            continue
        print(key, flush=True)
        table, relatedness, head = SETTINGS[setting]
        parts = read_parts(table, options.data, relatedness=relatedness)
        results[key] = {
            "setting": setting,
            "head": head,
            "share": share,
            "model": model,
            "seed": seed,
            **_measure(parts, head, share, model, seed),
        }
        with replacing(path) as scratch:
            scratch.write_text(json.dumps(results, indent=1, sort_keys=True))
    with replacing(options.out / "scarce_labels.md") as scratch:
        scratch.write_text(as_page(results))
    with replacing(options.out / "scarce_labels.svg") as scratch:
        draw(results, scratch)


def _jobs(options: argparse.Namespace) -> Iterator[tuple[str, int, float, str]]:
    for seed in range(options.seeds):
        for setting in options.settings:
            if seed and SETTINGS[setting][0] != SIMULATED:
                continue
            for share in options.shares:
                for model in MODELS:
                    yield setting, seed, share, model


def _measure(parts: Parts, head: str, share: float, model: str, seed: int) -> dict[str, Any]:
    hidden = hide(parts.schema.labels(parts.train), head, share, seed)
    kept = hidden[head].drop_nulls()
    if model != "joint":
        # On the head alone, and on the rows that observe it.
        seen = parts.train.filter(hidden[head].is_not_null())
        parts = replace(parts, train=seen, schema=_without_constants(parts.schema, seen))
        hidden = hidden.select(head).drop_nulls()
    estimator = _estimator(model, parts, seed)
    validation = parts.schema.labels(parts.validation).select(hidden.columns)
    started = time.perf_counter()
    estimator.fit(parts.train, hidden, X_val=parts.validation, y_val=validation)
    seconds = time.perf_counter() - started
    labels = parts.labels(parts.test)[:, parts.tasks.index(head)]
    scores = estimator.predict_frame(parts.test)[head].to_numpy()
    return {
        "labels": len(kept),
        "events": int(kept.cast(pl.Int64).sum()),
        "test_events": int(np.nansum(labels)),
        "roc_auc": roc_auc(labels, scores),
        "average_precision": average_precision(labels, scores),
        "seconds": round(seconds, 1),
        "git_commit": estimator.model_.lineage["git_commit"],
    }


def _without_constants(schema: DataSchema, frame: pl.DataFrame) -> DataSchema:
    """Ignore inputs with one value, such as whether there was a login where logins are observed."""
    distinct = schema.inputs(frame).select(pl.all().n_unique()).row(0, named=True)
    columns = tuple(
        replace(column, role="ignored") if distinct.get(column.name) == 1 else column
        for column in schema.columns
    )
    return replace(schema, columns=columns)


def hide(labels: pl.DataFrame, head: str, share: float, seed: int) -> pl.DataFrame:
    """Keep a share of one head's labels; a smaller share is part of a larger one."""
    drawn = pl.Series(np.random.default_rng(seed).random(labels.height))
    return labels.with_columns(pl.when(drawn < share).then(pl.col(head)).alias(head))


def _estimator(model: str, parts: Parts, seed: int) -> MultiTaskEstimator:
    common: dict[str, Any] = {"schema": parts.schema, "random_state": seed}
    if model == "lightgbm":
        return LightGBMBaseline(trials=LIGHTGBM_TRIALS, **common)
    return MultiTaskClassifier(**common)


# ---- page and picture ----------------------------------------------------------------------------


def as_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Lay the results out as a Markdown page.

    Parameters
    ----------
    results : mapping
        As in ``scarce_labels.json``.

    Returns
    -------
    str
    """
    lines = [
        "# Few labels for one head",
        "",
        "Of one head's training labels a share is kept at random, the other heads keep all of",
        "theirs; validation and test rows stay as they are. `joint` is the package's default",
        "network over all heads, in which a head with fewer than 100 events leans on the others",
        "where the validation rows bear it out; `single` the network on that head alone.",
        f"LightGBM has that head's labels too, and {LIGHTGBM_TRIALS} seeded trials on validation",
        "rows. Mean over seeds (number in brackets); the last columns are the mean differences of",
        "seeds that both have, **bold** where joint training hurts.",
        "",
        "![Gain of joint training against the share of labels](scarce_labels.svg)",
        "",
        "| setting | head | share | labels | events | joint AUC | single AUC | LightGBM AUC |"
        " joint − single | joint − LightGBM |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        for share in SHARES:
            runs = _runs(results, setting, share)
            if len(runs) == len(MODELS):
                lines.append(_line(setting, share, runs))
    return "\n".join([*lines, "", *_summary(results), ""])


def _line(setting: str, share: float, runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    joint = runs["joint"][min(runs["joint"])]
    areas = [_area(list(runs[model].values())) for model in MODELS]
    gains = [_gain(runs, other) for other in MODELS[1:]]
    cells = [
        setting,
        str(joint["head"]),
        f"{share:.0%}",
        f"{joint['labels']:,}",
        f"{joint['events']:,}",
        *areas,
        *(f"{gain:+.4f}" if gain >= 0 else f"**{gain:+.4f}**" for gain in gains),
    ]
    return f"| {' | '.join(cells)} |"


def _area(runs: Sequence[Mapping[str, Any]]) -> str:
    return f"{np.mean([run['roc_auc'] for run in runs]):.4f} ({len(runs)})"


def _gain(runs: Mapping[str, Mapping[int, Mapping[str, Any]]], other: str) -> float:
    """Mean gain in AUC of joint training over another model, over the seeds of both."""
    seeds = runs["joint"].keys() & runs[other].keys()
    gains = [runs["joint"][s]["roc_auc"] - runs[other][s]["roc_auc"] for s in seeds]
    return float(np.mean(gains))


def _runs(
    results: Mapping[str, Mapping[str, Any]], setting: str, share: float
) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Fits of one setting and share: model to seed to record."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in results.values():
        if record["setting"] == setting and record["share"] == share:
            found.setdefault(record["model"], {})[record["seed"]] = record
    return found


def _summary(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in words where joint training hurts."""
    hurts = []
    for setting in SETTINGS:
        for share in SHARES:
            runs = _runs(results, setting, share)
            if len(runs) == len(MODELS) and _gain(runs, "single") < 0:
                hurts.append(f"{setting} at {share:.0%}")
    if not hurts:
        return ["Joint training is nowhere below single-task training here."]
    return [f"Joint training is below single-task training for: {'; '.join(hurts)}."]


def draw(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """
    Draw the gain of joint training against the share of labels.

    Parameters
    ----------
    results : mapping
        As in ``scarce_labels.json``.
    path : Path
        SVG file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, other, title in zip(
        panels, MODELS[1:], ("over the network on that head alone", "over LightGBM"), strict=True
    ):
        for setting in SETTINGS:
            points = [
                (share, _gain(runs, other))
                for share in SHARES
                if len(runs := _runs(results, setting, share)) == len(MODELS)
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=setting)
        axes.axhline(0, color="#555555", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
        axes.minorticks_off()
        axes.set_title(f"gain in AUC {title}", fontsize=10)
        axes.set_xlabel("share of the head's training labels")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False, fontsize=8)
    # The same results give the same file.
    with mpl.rc_context({"svg.hashsalt": "scarce labels"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--shares", nargs="+", type=float, choices=SHARES, default=list(SHARES))
    parser.add_argument("--seeds", type=int, default=2, help="seeds; 1 on the public tables")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    add_data_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
