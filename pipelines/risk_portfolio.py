"""
The whole way on a simulated portfolio: simulate, train, compare, score.

Run with ``make demo``. The last table sets each head's figures beside the best that any model of
these columns could reach, which only a simulation can know.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import polars as pl

from riskmtl import MultiTaskClassifier, RiskModel, load_schema, simulate_portfolio
from riskmtl.metrics import evaluate
from riskmtl.scoring.local import score_files
from riskmtl.simulate import Portfolio
from riskmtl.validation.evaluation import evaluate_model

SCHEMA = Path(__file__).parents[1] / "data_schemas" / "risk_portfolio.yaml"


def main() -> None:
    """Run the demo."""
    options = _options()
    started = time.perf_counter()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    schema = load_schema(SCHEMA)

    print(f"simulating {options.rows:,} rows", flush=True)
    portfolio = simulate_portfolio(options.rows, seed=options.seed)
    train, validation, test = schema.split(schema.check(portfolio.frame).good)
    portfolio.frame.write_parquet(out / "portfolio.parquet")
    test.write_parquet(out / "test.parquet")

    print(
        f"training on {train.height:,} rows, {validation.height:,} for validation "
        "(a network with three heads, then three LightGBM challengers)",
        flush=True,
    )
    model = MultiTaskClassifier(
        network="ple",
        schema=schema,
        challenger="lightgbm",
        challenger_options={"trials": 3},
        verbose=True,
        random_state=options.seed,
    ).fit(train, X_val=validation)
    model.save(out / "model")

    report = score_files(
        RiskModel.load(out / "model"),
        out / "test.parquet",
        out / "scores",
        restart=True,
        progress=True,
    )
    figures = pl.concat([evaluate_model(model.model_, test), _best(portfolio, test, model.tasks_)])
    figures.write_csv(out / "figures.csv")
    if options.picture is not None:
        draw(figures, options.picture)
    print(f"\non {test.height:,} later rows, where the outcome is observed:")
    print(as_table(figures))
    print(f"\nportfolio   {out / 'portfolio.parquet'}")
    print(f"model       {out / 'model'}")
    print(f"scores      {report.out} ({report.scored:,} rows)")
    print(f"figures     {out / 'figures.csv'}")
    print(f"done in {time.perf_counter() - started:.0f} s")


def as_table(figures: pl.DataFrame) -> str:
    """
    Lay the figures out head by head.

    Parameters
    ----------
    figures : polars.DataFrame
        Columns ``task``, ``model``, ``events``, ``roc_auc``, ``average_precision``.

    Returns
    -------
    str
    """
    models = figures["model"].unique(maintain_order=True).to_list()
    lines = [f"{'head':<10} {'events':>6}" + "".join(f"{name:>22}" for name in models)]
    lines.append(" " * 17 + "".join(f"{'AUC':>13}{'AP':>9}" for _ in models))
    for task, rows in figures.group_by("task", maintain_order=True):
        by_model = {row["model"]: row for row in rows.to_dicts()}
        line = f"{task[0]:<10} {by_model[models[0]]['events']:>6}"
        for name in models:
            line += f"{by_model[name]['roc_auc']:>13.3f}{by_model[name]['average_precision']:>9.3f}"
        lines.append(line)
    return "\n".join(lines)


def draw(figures: pl.DataFrame, path: Path) -> None:
    """
    Draw each head's figures beside the best attainable as an SVG file.

    Parameters
    ----------
    figures : polars.DataFrame
        As for :func:`as_table`.
    path : Path
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"font.family": "sans-serif", "font.size": 11, "svg.hashsalt": "riskmtl"})
    marks = {
        "network": ("o", "#1b5e9e"),
        "lightgbm": ("s", "#d9822b"),
        "best attainable": ("|", "k"),
    }
    heads = figures["task"].unique(maintain_order=True).to_list()
    panels = {"roc_auc": "AUC", "average_precision": "average precision"}
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.6), sharey=True, layout="constrained")
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for name, (marker, colour) in marks.items():
            rows = figures.filter(pl.col("model") == name)
            places = [heads.index(task) for task in rows["task"]]
            size = 260 if marker == "|" else 60
            axis.scatter(
                rows[column], places, marker=marker, s=size, color=colour, label=name, alpha=0.85
            )
        axis.set_title(title, loc="left", fontsize=11)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False)
    axes[0].set_yticks(range(len(heads)), heads)
    axes[0].set_ylim(len(heads) - 0.5, -0.5)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower left", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _best(portfolio: Portfolio, test: pl.DataFrame, tasks: list[str]) -> pl.DataFrame:
    """Figures of the true probabilities on the test rows."""
    truth = test.join(portfolio.truth, on=["account_id", "snapshot_date"], maintain_order="left")
    labels = test.select(pl.col(tasks).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
    best = evaluate(labels, truth.select(f"p_{task}" for task in tasks).to_numpy(), tasks)
    return best.insert_column(1, pl.lit("best attainable").alias("model"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--picture", type=Path, help="SVG file of the last table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
