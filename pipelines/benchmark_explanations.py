"""
Error and time of explanations beside shap's: the same models, rows, background and log-odds.

Run with ``make benchmark-explanations``. All methods have one thread and take turns. Finished runs
are not repeated as long as the models are the same. Results: ``explanations.json`` and ``.md`` in
``reports/benchmarks``; the values stay in a folder of their own, which is not committed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import polars as pl
import torch
from benchmark_explanations_page import OWN, REFERENCE, SHAP, as_page, headlines
from benchmark_tables import ROOT, SIMULATED, schema_of
from numpy.typing import NDArray

from riskmtl import MultiTaskClassifier, simulate_portfolio
from riskmtl.base import MultiTaskEstimator
from riskmtl.explain.background import background_hash
from riskmtl.files import replacing
from riskmtl.model import linear_form
from riskmtl.scorers import NetworkScorer, Scorer, TreeScorer
from riskmtl.threads import one_thread_each

PORTFOLIO_ROWS = 60_000
# Its permutations are not those of the runs that are held against it.
REFERENCE_BUDGET, REFERENCE_SEED = 64, 1000
DEFAULT_BUDGET, MORE_BUDGET = 4, 8
# Of shap, each forwards and backwards.
PERMUTATIONS = (1, 4, 16)
COALITIONS = (512, 2048)
GRADIENTS = 200
# Rows of a method that is too slow for more.
FEW = 2


class Found(NamedTuple):
    """Values ``(rows, columns, heads)``, base ``(heads,)``, and standard errors where stated."""

    values: NDArray[np.float64]
    base: NDArray[np.float64]
    errors: NDArray[np.float64] | None = None


Explain = Callable[[MultiTaskEstimator, pl.DataFrame, int], Found]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to explain one of the models."""

    model: str
    method: str
    setting: str
    explain: Explain
    # All of them, or the first alone.
    heads: str = "all"
    is_slow: bool = False


def main() -> None:
    """Run what is not yet in the results, then write the page."""
    options = _options()
    for folder in (options.out, options.scores):
        folder.mkdir(parents=True, exist_ok=True)
    with one_thread_each(), _quiet():
        results = _results(options)
    _write(results, options.out / "explanations.json")
    with replacing(options.out / "explanations.md") as scratch:
        scratch.write_text(as_page(results))


def _results(options: argparse.Namespace) -> dict[str, Any]:
    models, rows = train(options.rows)
    path = options.out / "explanations.json"
    results = _read(path, _facts(models, rows))
    runs, found = results["runs"], {}
    _warm_up(models, rows)
    for case, number in _jobs(options.repetitions):
        key = f"{case.model}/{case.method}/{case.setting}/{case.heads}/run {number}"
        kept = options.scores / f"explanations__{key.replace('/', '__')}.npz"
        if key not in runs or not kept.exists():
            print(key, flush=True)
            runs[key] = _measure(case, number, models[case.model], rows, kept)
            _write(results, path)
        found[key] = Found(**np.load(kept))
    _compare(runs, found)
    results["headlines"] = {model: headlines(results, model) for model in models}
    results["check"] = {model: _check(found, model) for model in models}
    return results


def train(rows: int) -> tuple[dict[str, MultiTaskEstimator], pl.DataFrame]:
    """Train the default network and its challenger; draw test rows to explain."""
    schema = schema_of(SIMULATED)
    frame = simulate_portfolio(PORTFOLIO_ROWS, seed=0).frame
    training, validation, test = schema.split(schema.check(frame).good)
    trees = {"trials": 1, "n_jobs": 1}
    network = MultiTaskClassifier(
        schema=schema, challenger="lightgbm", challenger_options=trees, random_state=0
    ).fit(training, X_val=validation)
    challenger = network.challenger_
    assert isinstance(challenger.model_.scorer, TreeScorer)
    challenger.model_.scorer.threads = 1
    return {"network": network, "lightgbm": challenger}, test.sample(rows, seed=0)


def _facts(models: Mapping[str, MultiTaskEstimator], rows: pl.DataFrame) -> dict[str, Any]:
    """What was explained, and where: runs with other facts do not go together."""
    fitted = models["network"].model_
    answers = [model.decision_function(rows) for model in models.values()]
    assert fitted.background is not None
    return {
        "portfolio_rows": PORTFOLIO_ROWS,
        "rows": rows.height,
        "columns": len(fitted.encoder.columns_),
        "categorical": sum(column.is_categorical for column in fitted.encoder.columns_),
        "heads": fitted.tasks,
        "background_rows": len(fitted.background),
        "background": background_hash(fitted.background),
        "answers": background_hash(np.concatenate(answers).astype(np.float32)),
        "default_budget": DEFAULT_BUDGET,
        "reference_budget": REFERENCE_BUDGET,
        "git_commit": fitted.lineage["git_commit"],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "shap", "lightgbm")},
    }


def _read(path: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results if results.get("facts") == facts else {"facts": facts, "runs": {}}


def _write(results: Mapping[str, Any], path: Path) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(results, indent=1, allow_nan=False))


# ---- ways to explain -----------------------------------------------------------------------------


def _jobs(repetitions: int) -> Iterator[tuple[Case, int]]:
    """References first, then run by run, so that what is compared is measured side by side."""
    for model in ("network", "lightgbm"):
        yield Case(model, OWN, REFERENCE, _own(budget=REFERENCE_BUDGET)), 0
    for number in range(repetitions):
        yield from ((case, number) for case in _cases() if not (case.is_slow and number))


def _cases() -> Iterator[Case]:
    for model in ("network", "lightgbm"):
        default = f"budget {DEFAULT_BUDGET}"
        first = _own(budget=DEFAULT_BUDGET, first_only=True)
        yield Case(model, OWN, default, _own(budget=DEFAULT_BUDGET))
        yield Case(model, OWN, default, first, heads="first")
        for count in PERMUTATIONS:
            yield Case(model, SHAP, f"permutations {count}", _permuted(count))
        yield Case(model, OWN, f"budget {MORE_BUDGET}", _own(budget=MORE_BUDGET))
    for count in COALITIONS:
        setting = f"coalitions {count}"
        yield Case("network", "shap.KernelExplainer", setting, _kernel(count), is_slow=True)
    setting = f"samples {GRADIENTS}"
    yield Case("network", "shap.GradientExplainer", setting, _gradients)
    for model, method in (("network", "path"), ("lightgbm", "tree")):
        yield Case(model, OWN, f"method {method}", _own(method=method))


def _own(*, first_only: bool = False, **options: Any) -> Explain:
    def explain(model: MultiTaskEstimator, rows: pl.DataFrame, seed: int) -> Found:
        heads = model.model_.tasks[:1] if first_only else None
        found = model.explain(rows, heads=heads, random_state=seed, **options)
        is_stated = found.method == "sampled"
        return Found(found.values, found.base, found.errors if is_stated else None)

    return explain


def _permuted(permutations: int) -> Explain:
    def explain(model: MultiTaskEstimator, rows: pl.DataFrame, seed: int) -> Found:
        import shap

        answers, background, encoded = _for_shap(model, rows)
        # By default it would compare with 100 of the rows only.
        masker = shap.maskers.Independent(background, max_samples=len(background))
        explainer = shap.PermutationExplainer(answers, masker, seed=seed)
        evaluations = permutations * (2 * encoded.shape[1] + 1)
        # From a call's second row on, shap 0.51 evaluates main effects that nobody asked for.
        found = [
            explainer(encoded[row : row + 1], max_evals=evaluations, silent=True)
            for row in range(len(encoded))
        ]
        return Found(np.concatenate([one.values for one in found]), found[0].base_values[0])

    return explain


def _kernel(coalitions: int) -> Explain:
    def explain(model: MultiTaskEstimator, rows: pl.DataFrame, seed: int) -> Found:
        import shap

        answers, background, encoded = _for_shap(model, rows)
        np.random.seed(seed)
        explainer = shap.KernelExplainer(answers, background)
        values = explainer.shap_values(encoded, nsamples=coalitions, l1_reg=0, silent=True)
        return Found(values, explainer.expected_value)

    return explain


def _gradients(model: MultiTaskEstimator, rows: pl.DataFrame, seed: int) -> Found:
    """On encoded rows, as a user would try it."""
    import shap

    answers, background, encoded = _for_shap(model, rows)
    scorer = model.model_.scorer
    assert isinstance(scorer, NetworkScorer)
    explainer = shap.GradientExplainer(scorer.network, torch.from_numpy(background))
    values = explainer.shap_values(torch.from_numpy(encoded), nsamples=GRADIENTS, rseed=seed)
    heads = model.model_.heads
    factors, _ = linear_form(heads)
    slopes = [head.calibrator.slope for head in heads]
    return Found(np.asarray(values) @ factors.T * slopes, answers(background).mean(0))


Answers = Callable[[NDArray[Any]], NDArray[np.float64]]


def _for_shap(
    model: MultiTaskEstimator, rows: pl.DataFrame
) -> tuple[Answers, NDArray[np.float32], NDArray[np.float32]]:
    """Calibrated log-odds of all heads as a function of encoded rows; background; the rows."""
    fitted = model.model_
    assert fitted.background is not None

    def answers(encoded: NDArray[Any]) -> NDArray[np.float64]:
        return fitted.margins(encoded.astype(np.float32, copy=False))

    return answers, fitted.background, fitted.encode(rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """Do without shap's warnings: of a large background, and of other libraries."""
    logging.getLogger("shap").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _warm_up(models: Mapping[str, MultiTaskEstimator], rows: pl.DataFrame) -> None:
    """What shap compiles at its first call is part of no time."""
    for model in models.values():
        for explain in (_permuted(1), _own(budget=4)):
            explain(model, rows.head(1), 0)


# ---- measuring -----------------------------------------------------------------------------------


def _measure(
    case: Case, number: int, model: MultiTaskEstimator, rows: pl.DataFrame, kept: Path
) -> dict[str, Any]:
    """Explain once, write the values down, and give what it cost and whether it adds up."""
    rows = rows.head(FEW) if case.is_slow else rows
    seed = REFERENCE_SEED if case.setting == REFERENCE else number
    with _counted(model.model_.scorer) as asked:
        started, started_wall = time.process_time(), time.perf_counter()
        found = case.explain(model, rows, seed)
        seconds, wall = time.process_time() - started, time.perf_counter() - started_wall
    np.savez(kept, **{name: part for name, part in found._asdict().items() if part is not None})
    answers = model.decision_function(rows)[:, : found.values.shape[2]]
    residual = float(np.abs(found.base + found.values.sum(1) - answers).max())
    categorical = [column.is_categorical for column in model.model_.encoder.columns_]
    return {
        "model": case.model,
        "method": case.method,
        "setting": case.setting,
        "heads": case.heads,
        "rows": rows.height,
        "seconds": seconds / rows.height,
        "wall_seconds": wall / rows.height,
        "evaluations": sum(asked) / rows.height,
        "residual": residual if np.isfinite(residual) else None,
        "states_errors": found.errors is not None,
        "not_numbers": float(np.isnan(found.values).mean()),
        "zero_categories": float((found.values[:, categorical] == 0).mean()),
    }


@contextmanager
def _counted(scorer: Scorer) -> Iterator[list[int]]:
    """Note how many rows a scorer answers for at a time, mixtures behind a first layer too."""
    asked: list[int] = []
    owner, name = (scorer.network, "rest") if isinstance(scorer, NetworkScorer) else (scorer, "raw")
    answer = getattr(owner, name)

    def noting(*given: Any, **options: Any) -> Any:
        found = answer(*given, **options)
        asked.append(len(found))
        return found

    with mock.patch.object(owner, name, noting):
        yield asked


def _compare(runs: Mapping[str, dict[str, Any]], found: Mapping[str, Found]) -> None:
    """Add each run's error against its model's reference, and how far stated errors hold."""
    for key, (values, _, errors) in found.items():
        run = runs[key]
        if run["setting"] == REFERENCE:
            continue
        rows, _, heads = values.shape
        known = found[_reference(run["model"])].values[:rows, :, :heads]
        missed = np.abs(values - known)
        # Over the columns that have a number at all, per row and head.
        relative = np.sqrt(np.nanmean(missed**2, axis=1) / (known**2).mean(1))
        run["error"] = float(relative.mean())
        if errors is not None:
            # A column that the model does not use is right, and says so, at no cost.
            used = errors > 1e-12
            for times in (2, 3):
                run[f"within_{times}"] = float((missed <= times * errors)[used].mean())


def _check(found: Mapping[str, Found], model: str) -> dict[str, float]:
    """How far the reference is from the mean of shap's longest runs, beside both errors."""
    values, _, errors = found[_reference(model)]
    assert errors is not None
    longest = f"{model}/{SHAP}/permutations {max(PERMUTATIONS)}/all/"
    shaps = np.array([other.values for key, other in found.items() if key.startswith(longest)])
    parts = {
        "difference": shaps.mean(0) - values,
        "reference_error": errors,
        "shap_error": shaps.std(axis=0, ddof=1) / np.sqrt(len(shaps)),
    }
    size = (values**2).mean()
    relative = {name: float(np.sqrt((part**2).mean() / size)) for name, part in parts.items()}
    return {**relative, "shap_permutations": max(PERMUTATIONS) * len(shaps)}


def _reference(model: str) -> str:
    return f"{model}/{OWN}/{REFERENCE}/all/run 0"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6, help="rows to explain")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each; at least 2")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    parser.add_argument(
        "--scores", type=Path, default=ROOT / ".benchmark", help="folder for values"
    )
    options = parser.parse_args()
    if options.repetitions < 2:
        parser.error("--repetitions must be at least 2: shap's error is read off their spread")
    return options


if __name__ == "__main__":
    main()
