"""
The search behind the defaults: candidates on validation rows of all tables, none on test rows.

Run with ``make benchmark-search``. The validation rows of a table are halved at random: one half
stops training and calibrates, the other measures. Finished fits are not repeated. Results:
``search.json`` and ``search.md`` in ``reports/benchmarks``; the judge alone sees test rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from benchmark_tables import FILES, LARGE, ROOT, Parts, add_data_option, read_parts

from riskmtl import MultiTaskClassifier
from riskmtl.files import replacing
from riskmtl.metrics import log_loss_skill, roc_auc
from riskmtl.sizing import Sizes

# The first is what the others are compared with; a rate is a factor on the automatic one.
CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "linear_path": {"linear_path": True},
    "one_member": {"members": 1},
    "two_members": {"members": 2},
    "four_members": {"members": 4},
    "no_steps": {"steps": 1},
    "all_steps": {"steps": 256},
    "every_category_whole": {"credible_rows": 0},
    "little_embedding_decay": {"embedding_decay": 0.01},
    "more_embedding_decay": {"embedding_decay": 5.0},
    "feature_dropout": {"feature_dropout": 0.1},
    "one_expert": {"task_experts": 1, "shared_experts": 1},
    "two_experts": {"task_experts": 2, "shared_experts": 2},
    "shared_bottom": {"network": "shared_bottom"},
    "mmoe": {"network": "mmoe"},
    "half_rate": {"rate": 0.5},
    "double_rate": {"rate": 2.0},
    "six_epochs": {"epochs": 6},
    "less_dropout": {"dropout": 0.2},
    "more_bins": {"bins": 96},
    "float32": {"precision": "32"},
}


def main() -> None:
    """Run what is not yet in the results, then write the page."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "search.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(options.seeds):
        for table in options.tables:
            for name in options.candidates:
                key = f"{table}/{name}/seed {seed}"
                if key in results or (seed and table in LARGE):
                    continue
                print(key, flush=True)
                results[key] = _measure(read_parts(table, options.data), CANDIDATES[name], seed)
                with replacing(path) as scratch:
                    scratch.write_text(json.dumps(results, indent=1, sort_keys=True))
    with replacing(options.out / "search.md") as scratch:
        scratch.write_text(as_page(results))


def _measure(parts: Parts, parameters: Mapping[str, Any], seed: int) -> dict[str, Any]:
    stops, measures = halves(parts.validation)
    given = dict(parameters)
    if "rate" in given:
        sizes = Sizes.make(parts.train.height)
        given["learning_rate"] = given.pop("rate") * sizes.learning_rate(sizes.batch_size)
    model = MultiTaskClassifier(schema=parts.schema, random_state=seed, **given)
    started = time.perf_counter()
    model.fit(parts.train, X_val=stops)
    seconds = time.perf_counter() - started
    labels, scores = parts.labels(measures), model.predict_frame(measures)
    return {
        "parameters": dict(parameters),
        "seconds": round(seconds, 1),
        "git_commit": model.model_.lineage["git_commit"],
        "skill": [log_loss_skill(labels[:, i], scores[t].to_numpy()) for i, t in _tasks(parts)],
        "roc_auc": [roc_auc(labels[:, i], scores[t].to_numpy()) for i, t in _tasks(parts)],
    }


def halves(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Halve rows at random, the same way every time."""
    first = np.random.default_rng(0).random(frame.height) < 0.5
    return frame.filter(first), frame.filter(~first)


def _tasks(parts: Parts) -> list[tuple[int, str]]:
    return list(enumerate(parts.tasks))


# ---- the page ------------------------------------------------------------------------------------


def as_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    Lay the search out as a Markdown page.

    Parameters
    ----------
    results : mapping
        As in ``search.json``.

    Returns
    -------
    str
    """
    names = list(dict.fromkeys([*CANDIDATES, *(key.split("/")[1] for key in results)]))
    tables = [t for t in FILES if any(key.startswith(f"{t}/") for key in results)]
    parameters = {key.split("/")[1]: record["parameters"] for key, record in results.items()}
    commits = sorted({str(record["git_commit"])[:10] for record in results.values()})
    seconds = sum(record["seconds"] for record in results.values())
    return "\n".join(
        [
            "# The search behind the defaults",
            "",
            f"{len(results)} fits, {seconds / 60:.0f} minutes of training, at commit(s) "
            f"{', '.join(commits)}. Every figure is on",
            "the half of the validation rows that neither stopped the training nor calibrated it;",
            "no test row was looked at. Each cell: the difference to the first row in the share of",
            "the base rate's log-loss that is saved, in hundredths, averaged over heads and seeds",
            "that both have; in the last columns the mean over tables, of this and of the AUC in",
            "hundredths, and the time of a fit against the first row's.",
            "",
            "| candidate | " + " | ".join(tables) + " | mean skill | mean AUC | time |",
            "|---|" + "---|" * (len(tables) + 3),
            *(_line(name, parameters.get(name), tables, results) for name in names),
            "",
        ]
    )


def _line(
    name: str,
    parameters: Mapping[str, Any] | None,
    tables: Sequence[str],
    results: Mapping[str, Mapping[str, Any]],
) -> str:
    skills, areas, times, cells = [], [], [], []
    for table in tables:
        pairs = _pairs(name, table, results)
        if not pairs:
            cells.append("–")
            continue
        skills.append(float(np.mean([np.subtract(a["skill"], b["skill"]) for a, b in pairs])))
        areas.append(float(np.mean([np.subtract(a["roc_auc"], b["roc_auc"]) for a, b in pairs])))
        times.append(float(np.mean([a["seconds"] / b["seconds"] for a, b in pairs])))
        cells.append(f"{100 * skills[-1]:+.2f}")
    if not skills:
        return f"| {name} | " + " | ".join([*cells, "–", "–", "–"]) + " |"
    described = ", ".join(f"{key}={value}" for key, value in (parameters or {}).items())
    ends = [
        f"{100 * np.mean(skills):+.2f}",
        f"{100 * np.mean(areas):+.2f}",
        f"{np.mean(times):.1f}",
    ]
    return f"| {name}{f' ({described})' if described else ''} | " + " | ".join(cells + ends) + " |"


def _pairs(
    name: str, table: str, results: Mapping[str, Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Fits of a candidate with those of the first, seed by seed."""
    first = next(iter(CANDIDATES))
    found = []
    for key, record in results.items():
        if key.startswith(f"{table}/{name}/"):
            reference = results.get(key.replace(f"/{name}/", f"/{first}/"))
            if reference is not None:
                found.append((record, reference))
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument(
        "--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES)
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds; 1 on the large tables")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "benchmarks")
    add_data_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
