"""What can be asked on the command line: the options of each verb."""

from __future__ import annotations

import argparse
import math
import sys
from datetime import date, datetime
from pathlib import Path
from typing import TypeAlias

from riskmtl import __version__

_Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_PARTS = ("all", "train", "validation", "test")


def parser() -> argparse.ArgumentParser:
    """
    Lay down the options of all verbs.

    Returns
    -------
    argparse.ArgumentParser
        What it reads has the verb's name as ``verb``.
    """
    found = argparse.ArgumentParser(prog="riskmtl", description=sys.modules["riskmtl"].__doc__)
    found.add_argument("--version", action="version", version=f"riskmtl {__version__}")
    verbs = found.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (
        _add_simulate,
        _add_train,
        _add_tune,
        _add_evaluate,
        _add_validate,
        _add_diagnose,
        _add_score,
        _add_monitor,
        _add_export,
        _add_explain,
    ):
        add(verbs)
    return found


def _add_simulate(verbs: _Verbs) -> None:
    simulate = verbs.add_parser("simulate", help="write a simulated portfolio")
    simulate.add_argument("--rows", type=int, default=200_000, help="rows (default: 200000)")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--months", type=int, default=24, help="length of the window")
    simulate.add_argument(
        "--relatedness", type=float, default=0.7, help="0: heads unrelated, 1: causes shared"
    )
    simulate.add_argument("--out", type=Path, required=True, help="Parquet file of the table")
    simulate.add_argument("--truth", type=Path, help="Parquet file of the true probabilities")


def _add_train(verbs: _Verbs) -> None:
    train = verbs.add_parser(
        "train",
        help="train a network and its LightGBM challengers",
        description="Train on the train part of the schema's split, watch the validation part, and "
        "write the model. The parameters are those of MultiTaskClassifier, but for challenger: "
        "lightgbm and random_state: 0 where nothing else is said. A training that was killed goes "
        "on with the same call.",
    )
    train.add_argument("--data", type=Path, required=True, help="Parquet file")
    train.add_argument("--schema", type=Path, required=True, help="YAML file")
    train.add_argument("--out", type=Path, required=True, help="folder for the model")
    _add_parameters(train)
    _add_max_bad(train)


def _add_tune(verbs: _Verbs) -> None:
    tune = verbs.add_parser(
        "tune",
        help="search the parameters of train",
        description="Search parameters of train by the score on the validation rows. Those given "
        "with --network, --set or --config are fixed. The test rows are not touched.",
    )
    tune.add_argument("--data", type=Path, required=True, help="Parquet file")
    tune.add_argument("--schema", type=Path, required=True, help="YAML file")
    tune.add_argument("--out", type=Path, required=True, help="YAML file for train --config")
    tune.add_argument("--trials", type=int, default=30, help="trials in all (default: 30)")
    tune.add_argument(
        "--journal",
        type=Path,
        help="file of the trials, from which a killed search goes on (default: OUT.journal)",
    )
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument(
        "--timeout", type=_minutes, metavar="MINUTES", help="begin no further trial after so long"
    )
    _add_parameters(tune)
    _add_max_bad(tune)


def _add_evaluate(verbs: _Verbs) -> None:
    evaluate = verbs.add_parser("evaluate", help="figures of a model on labelled rows")
    _add_model_and_data(evaluate)
    evaluate.add_argument("--out", type=Path, required=True, help="JSON file")
    evaluate.add_argument(
        "--part", choices=_PARTS, default="all", help="part of the schema's split (default: all)"
    )
    _add_max_bad(evaluate)


def _add_validate(verbs: _Verbs) -> None:
    validate = verbs.add_parser(
        "validate",
        help="write a validation report",
        description="Hold a model against labelled rows that it has not seen, and write "
        "validation.html, validation.json and tables/*.csv. Rows that break the schema are left "
        "out and reported.",
    )
    _add_model_and_data(validate)
    validate.add_argument("--out", type=Path, required=True, help="folder for the report")
    validate.add_argument(
        "--part",
        choices=_PARTS,
        default="all",
        help="part of the schema's split (default: all); test takes the train part as reference",
    )
    validate.add_argument("--reference", type=Path, help="Parquet file of the training rows")
    validate.add_argument(
        "--challenger",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another model of the same tasks; single_task=FOLDER shows what joint training did",
    )
    validate.add_argument("--config", type=Path, help="YAML file: protected, costs, bounds, …")


def _add_diagnose(verbs: _Verbs) -> None:
    diagnose = verbs.add_parser(
        "diagnose",
        help="say what training did to each head of a network",
        description="Say whether heads pull against each other, what the kept epoch cost each of "
        "them, and which experts are used, and write a page of it. No data is read: the model "
        "keeps what its training recorded.",
    )
    diagnose.add_argument("--model", type=Path, required=True, help="folder of the model")
    diagnose.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder for diagnosis.html, or a file that ends in .html",
    )


def _add_score(verbs: _Verbs) -> None:
    score = verbs.add_parser(
        "score",
        help="score files, part by part",
        description="Score Parquet and CSV files into a folder, which counts once it holds "
        "_MANIFEST.json. Rows that break the schema go to its quarantine/. Exit codes: 3, too many "
        "rows refused; 4, a file that cannot be read or was changed; 5, no sound model; 6, a "
        "folder that cannot be written; 1, anything else.",
    )
    score.add_argument("--model", type=Path, required=True, help="folder of the model")
    score.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="PATH",
        help="Parquet or CSV files, folders of them, or patterns such as 'in/*.parquet'",
    )
    score.add_argument("--out", type=Path, required=True, help="folder of the scores")
    again = score.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a job begun in --out")
    again.add_argument("--restart", action="store_true", help="delete a job begun in --out")
    score.add_argument(
        "--reasons", default="", metavar="RULE", help="rows that get reasons: score>=0.2, or all"
    )
    score.add_argument("--words", type=Path, help="YAML file of the words of reasons")
    score.add_argument(
        "--graded",
        nargs="*",
        default=["default"],
        metavar="HEAD",
        help="heads with rating grades (default: default)",
    )
    score.add_argument("--challenger", action="store_true", help="add the challenger's scores")
    score.add_argument(
        "--format", choices=("parquet", "csv"), default="parquet", help="of the scores"
    )
    score.add_argument("--threads", type=int, metavar="N", help="parts scored side by side")
    score.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where the network computes (default: auto, CUDA where there is one)",
    )
    score.add_argument(
        "--engine",
        choices=("local", "spark"),
        default="local",
        help="spark: on a cluster, or on this machine in several processes (default: local)",
    )
    score.add_argument(
        "--master", metavar="URL", help="of Spark, such as local[2,4] (default: as configured)"
    )
    score.add_argument(
        "--time", type=datetime.fromisoformat, help="time of the job to write down (default: now)"
    )
    _add_max_bad(score)


def _add_monitor(verbs: _Verbs) -> None:
    monitor = verbs.add_parser(
        "monitor",
        help="hold several nights of scores against training",
        description="Write a page of several scoring jobs: drift of scores and columns, refused "
        "rows, and ranking and calibration where outcomes are known. Exit codes: 0, no alert; 10, "
        "something to watch; 11, a bound is broken; else as for score.",
    )
    monitor.add_argument("--model", type=Path, required=True, help="folder of the model")
    monitor.add_argument(
        "--scores", type=Path, nargs="+", required=True, metavar="FOLDER", help="finished jobs"
    )
    monitor.add_argument("--outcomes", type=Path, help="Parquet file of keys and labels")
    monitor.add_argument(
        "--as-of", type=date.fromisoformat, help="day of the outcomes (default: today)"
    )
    monitor.add_argument("--config", type=Path, help="YAML file with bounds, as for validate")
    monitor.add_argument("--out", type=Path, required=True, help="folder for the page")


def _add_export(verbs: _Verbs) -> None:
    export = verbs.add_parser(
        "export",
        help="write a network as one ONNX or .pt2 file, or any model for MLflow",
        description="Write a network with its calibrators as one file that runs without this "
        "package and says how rows are encoded. It is compared with the model before it appears. "
        "Or write any model as a folder for MLflow, which runs with this package.",
    )
    export.add_argument("--model", type=Path, required=True, help="folder of the model")
    export.add_argument(
        "--out", type=Path, required=True, help="file of the program; for mlflow a new folder"
    )
    export.add_argument(
        "--format",
        choices=("onnx", "pt2", "mlflow"),
        default="onnx",
        help="onnx (default), pt2, or mlflow",
    )
    export.add_argument("--head", help="the one head to export (default: all)")
    export.add_argument("--int8", action="store_true", help="matrices with 8 bits; onnx only")
    export.add_argument(
        "--data",
        type=Path,
        help="Parquet file of rows on which to compare; none of them gets into the file "
        "(default: simulated rows)",
    )


def _add_explain(verbs: _Verbs) -> None:
    explain = verbs.add_parser(
        "explain",
        help="say why rows of a file have their scores",
        description="Explain the scores of rows of a file: what each column adds to each head's "
        "log-odds, the error of that, and the reasons. A job that was killed goes on.",
    )
    _add_model_and_data(explain)
    explain.add_argument("--out", type=Path, required=True, help="new folder for the explanations")
    explain.add_argument(
        "--rows",
        default="all",
        metavar="RULE",
        help="all (default), top:1%% or top:500 (highest scores of any head), score>=0.2 "
        "(of any head), sample:5000 or sample:1%% (at random)",
    )
    explain.add_argument("--heads", nargs="+", metavar="HEAD", help="default: all")
    explain.add_argument("--words", type=Path, help="YAML file of the words that customers read")
    explain.add_argument("--reasons", type=int, default=4, metavar="N", help="per row (default: 4)")
    explain.add_argument(
        "--budget",
        type=int,
        default=4,
        help="most permutations per background row: even, at least 4 (default: 4)",
    )
    explain.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="a row is done once no standard error is above this (default: 0)",
    )
    explain.add_argument("--seed", type=int, default=0)
    _add_max_bad(explain)


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--data", type=Path, required=True, help="Parquet file")


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--network", help="how the heads share, such as ple (default), mmoe or single_task"
    )
    parser.add_argument("--config", type=Path, help="YAML file with parameters of the estimator")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one parameter of the estimator; may be repeated, wins over --config",
    )


def _add_max_bad(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-bad",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="share of rows that may break the schema and be left out, such as 1%% (default: 0)",
    )


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write minutes, such as 90")
    return minutes


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 1% or 0.01")
    return share
