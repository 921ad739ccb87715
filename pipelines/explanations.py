"""
Pictures of explanations: one customer's waterfall and many customers' beeswarm, head by head.

Run with ``make explanations``, after ``make demo``, whose model and test rows it takes. Results:
``waterfall_<head>.svg`` and ``beeswarm_<head>.svg`` in ``reports/example``, drawn by shap.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib as mpl
import polars as pl

from riskmtl import MultiTaskClassifier
from riskmtl.explain.explanation import Explanation

ROOT = Path(__file__).parents[1]
_SHOWN = 9


def main() -> None:
    """Explain rows of the demo and draw them."""
    options = _options()
    model = MultiTaskClassifier.load(options.demo / "model")
    test = pl.read_parquet(options.demo / "test.parquet")
    options.out.mkdir(parents=True, exist_ok=True)
    # Somebody about whom every head has something to say.
    customer = test[int(model.decision_function(test).sum(1).argmax())]
    draw(model.explain(customer), options.out, "waterfall")
    draw(model.explain(test.sample(options.rows, seed=0)), options.out, "beeswarm")


def draw(explanation: Explanation, folder: Path, kind: str) -> None:
    """
    Draw one picture per head.

    Parameters
    ----------
    explanation : Explanation
    folder : Path
    kind : {"waterfall", "beeswarm"}
        The first is of one row.
    """
    mpl.use("agg")
    with warnings.catch_warnings():
        # shap and matplotlib warn of each other.
        warnings.simplefilter("ignore")
        import matplotlib.pyplot as plt
        import shap

        mpl.rcParams["svg.hashsalt"] = "riskmtl"
        for head in explanation.heads:
            values = explanation.to_shap(head)
            if kind == "waterfall":
                values.data = values.display_data
                shap.plots.waterfall(values[0], max_display=_SHOWN, show=False)
            else:
                shap.plots.beeswarm(values, max_display=_SHOWN, show=False, plot_size=(7, 3.6))
                plt.gca().set_xlabel("added to the log-odds")
            plt.title(head, loc="left", fontweight="bold")
            path = folder / f"{kind}_{head}.svg"
            plt.savefig(path, bbox_inches="tight", metadata={"Date": None}, dpi=110)
            plt.close("all")
            print(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="folder of the demo")
    parser.add_argument("--rows", type=int, default=600, help="rows of the beeswarm")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "example")
    return parser.parse_args()


if __name__ == "__main__":
    main()
