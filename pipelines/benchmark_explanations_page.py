"""The page of the explanations benchmark and its headline figures, from its results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OWN, SHAP, REFERENCE = "explain", "shap.PermutationExplainer", "reference"
# They play other games.
OTHERS = ("method path", "method tree")
Record = Mapping[str, Any]


def headlines(results: Record, model: str) -> dict[str, Any]:
    """
    Compare the default budget with shap at equal error, and all heads with one.

    Parameters
    ----------
    results : mapping
        As in ``explanations.json``: ``facts`` and ``runs``.
    model : {"network", "lightgbm"}

    Returns
    -------
    dict
        For seconds and evaluations: what the default budget needs, and what shap would need for
        the same error.

    Notes
    -----
    The error of independent permutations falls with the root of their number: shap's cost is read
    off the line of slope -1/2 through its runs, of log error against log cost. A line fitted
    without that knowledge is given beside it.
    """
    groups = _groups(results["runs"])
    default = f"budget {results['facts']['default_budget']}"
    own, first = (groups[model, OWN, default, heads] for heads in ("all", "first"))
    theirs = [runs for key, runs in groups.items() if key[:2] == (model, SHAP)]
    error, errors = _error(own), [_error(runs) for runs in theirs]
    found: dict[str, Any] = {"error": error, "is_extrapolated": error < min(errors)}
    for unit in ("seconds", "evaluations"):
        costs = [_median(runs, unit) for runs in theirs]
        fitted, start = np.polyfit(np.log(costs), np.log(errors), 1)
        level = np.mean(np.log(errors) + np.log(costs) / 2)
        needed, spent = float(np.exp(2 * (level - np.log(error)))), _median(own, unit)
        found[unit] = {
            "own": spent,
            "shap": needed,
            "ratio": needed / spent,
            "fitted_slope": float(fitted),
            "fitted_ratio": float(np.exp((np.log(error) - start) / fitted)) / spent,
        }
    pairs = zip(own, first, strict=True)
    found["heads_ratio"] = float(np.median([a["seconds"] / b["seconds"] for a, b in pairs]))
    for name in ("within_2", "within_3"):
        found[name] = float(np.mean([run[name] for run in own]))
    return found


def _groups(runs: Mapping[str, Record]) -> dict[tuple[str, ...], list[Record]]:
    """Runs of each model, method, setting and heads, in the order of measuring."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for run in runs.values():
        key = tuple(run[name] for name in ("model", "method", "setting", "heads"))
        groups.setdefault(key, []).append(run)
    return groups


def _error(runs: Sequence[Record]) -> float:
    return float(np.sqrt(np.mean([run["error"] ** 2 for run in runs])))


def _median(runs: Sequence[Record], name: str) -> float:
    return float(np.median([run[name] for run in runs]))


def as_page(results: Record) -> str:
    """
    Lay the results out as a Markdown page.

    Parameters
    ----------
    results : mapping
        As in ``explanations.json``.

    Returns
    -------
    str
    """
    return "\n".join(
        [
            "# Explanations beside shap's",
            "",
            *_introduction(results["facts"]),
            "",
            *_verdicts(results["headlines"]),
            "",
            *_table(results["runs"]),
            "",
            *_notes(results),
            "",
        ]
    )


def _introduction(facts: Record) -> list[str]:
    return [
        f"The default network and LightGBM, trained on the simulated portfolio"
        f" ({facts['portfolio_rows']:,} rows before the split,",
        f"{facts['columns']} columns, {facts['categorical']} of them categories, heads"
        f" {', '.join(facts['heads'])}).",
        f"{facts['rows']} test rows drawn at random are compared with the model's own"
        f" {facts['background_rows']} background rows, on",
        "calibrated log-odds. shap gets a function that answers for all heads at once. Seconds are",
        "of a processor per explained row, one thread for every method, in turns, median of the",
        f"runs; the machine has {facts['cores']} cores and other jobs. Python {facts['python']},"
        f" torch {facts['torch']},",
        f"shap {facts['shap']}, LightGBM {facts['lightgbm']}, commit {facts['git_commit']}.",
    ]


def _verdicts(found: Mapping[str, Record]) -> list[str]:
    network, trees = found["network"], found["lightgbm"]
    return [
        f"- Time at equal error, all heads: {SHAP} takes **{_ratio(network)}** as `explain` with"
        f" its default budget (asked: 8). {_fit(network)}",
        f"- The same for LightGBM, which answers far more quickly: **{_ratio(trees)}**."
        f" {_fit(trees)}",
        f"- All heads take **{network['heads_ratio']:.2f} times** as long as one (asked: at most"
        f" 1.2); LightGBM {trees['heads_ratio']:.2f} times.",
        f"- **{_percent(network['within_2'], 1)}** of the default budget's values are within 2 of"
        f" their stated errors of the reference (asked: 90 to 97 %),"
        f" {_percent(network['within_3'], 1)} within 3; LightGBM {_percent(trees['within_2'], 1)}"
        f" and {_percent(trees['within_3'], 1)}.",
    ]


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f} %"


def _ratio(found: Record) -> str:
    return f"{found['seconds']['ratio']:.1f} times as long"


def _fit(found: Record) -> str:
    seconds, evaluations = found["seconds"], found["evaluations"]
    source = "extrapolated from" if found["is_extrapolated"] else "read off"
    return (
        f"{seconds['shap']:.3g} s a row, {source} its runs with slope -1/2, to"
        f" {seconds['own']:.3g} s, at an error of {_percent(found['error'], 2)};"
        f" {evaluations['ratio']:.1f} times as many model rows. With a fitted slope"
        f" ({seconds['fitted_slope']:.2f}): {seconds['fitted_ratio']:.1f} times as long."
    )


def _table(runs: Mapping[str, Record]) -> list[str]:
    lines = [
        "| model | method | setting | heads | rows × runs | error | largest residual |"
        " model rows | seconds | states errors | remark |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for names, group in _groups(runs).items():
        one, residuals = group[0], [run["residual"] for run in group]
        cells = [
            *names,
            f"{one['rows']} × {len(group)}",
            "–" if one["setting"] == REFERENCE else _percent(_error(group), 2),
            "–" if None in residuals else f"{max(residuals):.1e}",
            f"{_median(group, 'evaluations'):,.0f}",
            f"{_median(group, 'seconds'):.3g}",
            "yes" if one["states_errors"] else "no",
            _remark(one),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _remark(run: Record) -> str:
    if run["setting"] in OTHERS:
        return "another game"
    remarks = []
    if run["not_numbers"]:
        remarks.append(f"{_percent(run['not_numbers'], 0)} of the values are no numbers")
    if run["zero_categories"] == 1:
        remarks.append("every category gets exactly 0")
    return "; ".join(remarks)


def _notes(results: Record) -> list[str]:
    lines = [
        "- Error: root mean square over the columns of the difference to the reference, divided by",
        "  that of the reference itself; mean over rows and heads. Values that are no numbers are",
        "  left out.",
        "- Model rows: what the model answers for per explained row; a gradient counts as one.",
        "  `explain` goes through a network's first layer, which is affine, once per row and not",
        "  once per mixture: its model rows cost less.",
        "- Stated errors are counted where they are not 0, as they are for columns without effect.",
        "- Largest residual: how far base and values miss the answer, in log-odds.",
        f"- The reference is `explain` with budget {results['facts']['reference_budget']} and"
        " permutations of its own. It is held against the",
        "  mean of shap's longest runs:",
    ]
    for model, check in results["check"].items():
        own, other = check["reference_error"], check["shap_error"]
        lines.append(
            f"  {model}, {check['shap_permutations']} permutations of shap a row: they differ by"
            f" {_percent(check['difference'], 2)}, and their errors together are"
            f" {_percent(np.hypot(own, other), 2)} ({_percent(own, 2)} and {_percent(other, 2)})."
        )
    return [
        *lines,
        f"- {SHAP} is called row by row: from a call's second row on, 0.51",
        "  evaluates main effects that nobody asked for. What it gives with `error_bounds` is the",
        "  spread of single contributions, not the error of their mean.",
        "- shap.KernelExplainer runs without its selection of features.",
        "- shap.GradientExplainer gets the encoded rows, with codes and missing numbers, as a user",
        "  would try it.",
        "- `path` and `tree` play other games: their error is the distance to the values of this.",
    ]
