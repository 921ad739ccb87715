"""The command line: each verb reads its options and calls one function."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from riskmtl import __version__
from riskmtl.panics import without_panics

if TYPE_CHECKING:
    import polars as pl

    from riskmtl.schema import Checked, DataSchema
    from riskmtl.scoring.batches import ScoreSettings
    from riskmtl.scoring.job import ScoreReport
    from riskmtl.tuning import Tuned

_Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_PARTS = ("all", "train", "validation", "test")
_SCHEDULED = ("score", "monitor")


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one verb.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.

    Returns
    -------
    int
        0 if it was done, 1 if the input cannot be used; a wrong option exits with 2. Verbs for
        schedulers say more: see :func:`exit_code`.
    """
    options = _parser().parse_args(arguments)
    try:
        with without_panics() if options.verb in _SCHEDULED else nullcontext():
            code = options.run(options)
    except (ValueError, OSError) as error:
        print(f"riskmtl {options.verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return exit_code(error) if options.verb in _SCHEDULED else 1
    return code or 0


def exit_code(error: Exception) -> int:
    """What a scheduler is told: who must act."""
    from riskmtl.artefact import ArtefactError
    from riskmtl.files import TableError
    from riskmtl.schema import RefusedRows
    from riskmtl.scoring.folder import JobError

    codes = ((RefusedRows, 3), (TableError, 4), (ArtefactError, 5), ((JobError, OSError), 6))
    return next((code for kind, code in codes if isinstance(error, kind)), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="riskmtl", description=sys.modules["riskmtl"].__doc__)
    parser.add_argument("--version", action="version", version=f"riskmtl {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (
        _add_simulate,
        _add_train,
        _add_tune,
        _add_evaluate,
        _add_validate,
        _add_score,
        _add_monitor,
        _add_export,
        _add_explain,
    ):
        add(verbs)
    return parser


def _add_simulate(verbs: _Verbs) -> None:
    simulate = verbs.add_parser("simulate", help="write a simulated portfolio")
    simulate.set_defaults(run=_simulate)
    simulate.add_argument("--rows", type=int, default=200_000, help="rows (default: 200000)")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--months", type=int, default=24, help="length of the window")
    simulate.add_argument(
        "--relatedness", type=float, default=0.7, help="0: heads unrelated, 1: causes shared"
    )
    simulate.add_argument("--out", type=Path, required=True, help="Parquet file of the table")
    simulate.add_argument("--truth", type=Path, help="Parquet file of the true probabilities")


def _add_train(verbs: _Verbs) -> None:
    train = verbs.add_parser("train", help="train a network and its LightGBM challengers")
    train.set_defaults(run=_train)
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
    tune.set_defaults(run=_tune)
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
        "--timeout", type=float, metavar="MINUTES", help="begin no further trial after so long"
    )
    _add_parameters(tune)
    _add_max_bad(tune)


def _add_evaluate(verbs: _Verbs) -> None:
    evaluate = verbs.add_parser("evaluate", help="figures of a model on labelled rows")
    evaluate.set_defaults(run=_evaluate)
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
    validate.set_defaults(run=_validate)
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


def _add_score(verbs: _Verbs) -> None:
    score = verbs.add_parser(
        "score",
        help="score files, part by part",
        description="Score Parquet and CSV files into a folder, which counts once it holds "
        "_MANIFEST.json. Rows that break the schema go to its quarantine/. Exit codes: 3, too many "
        "rows refused; 4, a file that cannot be read or was changed; 5, no sound model; 6, a "
        "folder that cannot be written; 1, anything else.",
    )
    score.set_defaults(run=_score)
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
    monitor.set_defaults(run=_monitor)
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
    export.set_defaults(run=_export)
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
    explain.set_defaults(run=_explain)
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
    parser.add_argument("--network", help="ple (default), mmoe, shared_bottom or single_task")
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


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 1% or 0.01")
    return share


# ---- the verbs -----------------------------------------------------------------------------------


def _simulate(options: argparse.Namespace) -> None:
    from riskmtl.files import replacing
    from riskmtl.simulate import simulate_portfolio

    _require_other_file(options.truth, options.out, "--truth")
    portfolio = simulate_portfolio(
        options.rows,
        seed=options.seed,
        relatedness=options.relatedness,
        months=options.months,
    )
    with replacing(options.out) as scratch:
        portfolio.frame.write_parquet(scratch)
    print(f"{portfolio.frame.height:,} rows: {options.out}")
    if options.truth is not None:
        with replacing(options.truth) as scratch:
            portfolio.truth.write_parquet(scratch)
        print(f"truth: {options.truth}")


def _train(options: argparse.Namespace) -> None:
    from riskmtl.artefact import require_writable
    from riskmtl.estimator import MultiTaskClassifier
    from riskmtl.files import read_table
    from riskmtl.schema_file import load_schema
    from riskmtl.validation.evaluation import evaluate_model

    schema = load_schema(options.schema)
    settings = _settings(options)
    require_writable(options.out)
    frame = _checked(schema, read_table(options.data), options.max_bad, options.data)
    parts = schema.split(frame)
    unfinished = options.out.with_name(f"{options.out.name}.unfinished")
    defaults = {
        "challenger": "lightgbm",
        "checkpoint_dir": str(unfinished),
        "random_state": 0,
        "verbose": sys.stderr.isatty(),
    }
    model = MultiTaskClassifier(schema=schema, **{**defaults, **settings})
    validation = parts.validation if parts.validation.height else None
    try:
        model.fit(parts.train, X_val=validation)
    finally:
        if not any(unfinished.rglob("*.ckpt")):
            shutil.rmtree(unfinished, ignore_errors=True)
    model.save(options.out)
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"trained on {parts.train.height:,} rows")
    if validation is not None:
        print(f"on {validation.height:,} validation rows:")
        print(format_figures(evaluate_model(model.model_, validation)))
    print(f"model: {options.out}")


def _tune(options: argparse.Namespace) -> None:
    from riskmtl.files import read_table
    from riskmtl.schema_file import load_schema

    try:
        from riskmtl.tuning import tune
    except ImportError as error:
        raise ValueError(str(error)) from error
    journal = options.journal or options.out.with_name(f"{options.out.name}.journal")
    for source in (options.data, options.schema):
        _require_other_file(options.out, source)
        _require_other_file(journal, source, "--journal")
    _require_other_file(journal, options.out, "--journal")
    schema = load_schema(options.schema)
    settings = _settings(options)
    frame = _checked(schema, read_table(options.data), options.max_bad, options.data)
    parts = schema.split(frame)
    tuned = tune(
        parts.train,
        parts.validation if parts.validation.height else None,
        schema=schema,
        trials=options.trials,
        fixed=settings,
        seed=options.seed,
        journal=journal,
        timeout=None if options.timeout is None else 60 * options.timeout,
        progress=sys.stderr.isatty(),
    )
    _write_tuned(tuned, options)


def _write_tuned(tuned: Tuned, options: argparse.Namespace) -> None:
    """Write the parameters for train --config, and say what was found."""
    import yaml

    from riskmtl.files import replacing

    states = [tuned.trials.filter(state=state).height for state in ("complete", "pruned", "failed")]
    scores = f"{tuned.default_score:.4f} with the defaults, {tuned.score:.4f} at best"
    with replacing(options.out) as scratch:
        parameters = yaml.safe_dump(tuned.parameters, sort_keys=False, allow_unicode=True)
        text = f"# validation score: {scores}\n{parameters}"
        scratch.write_text(text, encoding="utf-8")
    counts = "{} complete, {} cut short, {} failed".format(*states)
    print(f"{tuned.trials.height:,} trials: {counts}")
    print(f"validation score: {scores}")
    print(f"parameters: {options.out}")
    files = ["--data", options.data, "--schema", options.schema, "--config", options.out]
    command = ["riskmtl", "train", *map(str, files), "--out", "model"]
    print(f"train with them: {shlex.join(command)}")


def _require_other_file(out: Path | None, source: Path, option: str = "--out") -> None:
    """Refuse to write over what is read, and find a folder before the work is done."""
    if out is not None and out.is_dir():
        raise ValueError(f"{option} {out}: is a folder, choose a file to write")
    if out is not None and out.resolve() == source.resolve():
        raise ValueError(f"{option} {out}: would be written over {source}, choose another file")


def _evaluate(options: argparse.Namespace) -> None:
    from riskmtl.artefact import load_model
    from riskmtl.columns import DataError
    from riskmtl.files import read_table, replacing
    from riskmtl.validation.evaluation import evaluate_model, evaluation_record

    _require_other_file(options.out, options.data)
    model = load_model(options.model, with_challenger=True)
    if model.schema is None:
        raise DataError(f"{options.model}: was trained without a schema, which evaluation needs")
    frame = _checked(model.schema, read_table(options.data), options.max_bad, options.data)
    if options.part != "all":
        frame = getattr(model.schema.split(frame), options.part)
    if frame.is_empty():
        raise DataError(f"{options.data}: the {options.part} part has no rows")
    figures = evaluate_model(model, frame)
    with replacing(options.out) as scratch:
        scratch.write_text(json.dumps(evaluation_record(model, figures), indent=1))
    print(format_figures(figures))
    print(f"evaluation: {options.out}")


def _validate(options: argparse.Namespace) -> None:
    import polars as pl

    from riskmtl.artefact import load_model
    from riskmtl.columns import DataError
    from riskmtl.files import read_table
    from riskmtl.validation import Settings, load_settings, validate

    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out}: is a file, choose a folder")
    settings = Settings() if options.config is None else load_settings(options.config)
    challengers = {}
    for item in options.challenger:
        name, equals, folder = item.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--challenger {item}: write NAME=FOLDER")
        challengers[name] = load_model(folder)
    model = load_model(options.model, with_challenger=True)
    if model.schema is None:
        raise DataError(f"{options.model}: was trained without a schema, which validation needs")
    frame = read_table(options.data)
    reference = None if options.reference is None else read_table(options.reference)
    if options.part != "all":
        # Split as in training, which left out refused rows; these are reported with any part.
        checked = _check(model.schema, frame, options.data)
        parts = model.schema.split(checked.good)
        refused = checked.quarantine.drop("_row", "_rule")
        frame = pl.concat([getattr(parts, options.part), refused])
        if reference is None and options.part == "test":
            reference = parts.train
    if frame.is_empty():
        raise DataError(f"{options.data}: the {options.part} part has no rows")
    report = validate(
        model,
        frame,
        reference=reference,
        challengers=challengers,
        settings=settings,
        progress=sys.stderr.isatty(),
    )
    page = report.write(options.out)
    for section, result, _ in report.sections:
        print(f"{section.title:<20} {result.verdict.value if result.findings else '–'}")
    print(f"{report.verdict.value}: {page}")


def _score(options: argparse.Namespace) -> None:
    from riskmtl.explain.wording import load_reasons
    from riskmtl.scoring.batches import ScoreSettings

    settings = ScoreSettings(
        graded=tuple(options.graded),
        challenger=options.challenger,
        reasons=options.reasons,
        words=None if options.words is None else load_reasons(options.words),
    )
    engine = _score_with_spark if options.engine == "spark" else _score_here
    report = engine(options, settings)
    print(f"{report.scored:,} of {report.rows:,} rows scored: {report.out}")
    if report.kept:
        print(f"{report.kept:,} of them were scored before")
    for rule, count in report.refusals.items():
        print(f"refused {count:,} rows: {rule}")


def _score_here(options: argparse.Namespace, settings: ScoreSettings) -> ScoreReport:
    from riskmtl.artefact import load_model
    from riskmtl.scoring.local import score_files

    if options.master is not None:
        raise ValueError("--master is of Spark: add --engine spark")
    return score_files(
        load_model(options.model, with_challenger=options.challenger),
        options.data,
        options.out,
        settings,
        max_bad=options.max_bad,
        resume=options.resume,
        restart=options.restart,
        format=options.format,
        threads=options.threads,
        device=options.device,
        time=options.time,
        progress=sys.stderr.isatty(),
    )


def _score_with_spark(options: argparse.Namespace, settings: ScoreSettings) -> ScoreReport:
    from riskmtl.scoring.spark_job import score_files_spark

    if options.threads is not None:
        raise ValueError("--threads is not of Spark: say local[N] with --master")
    if options.device == "cuda":
        raise ValueError("--device cuda is not of Spark, whose workers compute on processors")
    if options.format != "parquet":
        raise ValueError("--engine spark writes Parquet only")
    return score_files_spark(
        options.model,
        options.data,
        options.out,
        settings,
        master=options.master,
        max_bad=options.max_bad,
        resume=options.resume,
        restart=options.restart,
        time=options.time,
    )


def _monitor(options: argparse.Namespace) -> int:
    from riskmtl.artefact import load_model
    from riskmtl.files import read_table
    from riskmtl.scoring.monitor import monitor
    from riskmtl.validation import Verdict, load_settings

    report = monitor(
        load_model(options.model),
        options.scores,
        outcomes=None if options.outcomes is None else read_table(options.outcomes),
        as_of=options.as_of,
        bounds=None if options.config is None else load_settings(options.config).bounds,
    )
    page = report.write(options.out)
    for section, result, _ in report.sections:
        print(f"{section.title:<20} {result.verdict.value if result.findings else '–'}")
    print(f"{report.verdict.value}: {page}")
    return {Verdict.WATCH: 10, Verdict.FAIL: 11}.get(report.verdict, 0)


def _export(options: argparse.Namespace) -> None:
    export = _export_mlflow if options.format == "mlflow" else _export_program
    try:
        export(options)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _export_mlflow(options: argparse.Namespace) -> None:
    from riskmtl.scoring.mlflow_flavour import save_mlflow

    for name in ("head", "int8", "data"):
        if getattr(options, name):
            raise ValueError(f"--{name} is of onnx and pt2: an MLflow model is the model as it is")
    out = save_mlflow(options.model, options.out)
    print(f"MLflow model: {out}")
    files = ["-m", out, "-i", "rows.csv", "-t", "csv", "--env-manager", "local"]
    print(f"score with it: {shlex.join(['mlflow', 'models', 'predict', *map(str, files)])}")


def _export_program(options: argparse.Namespace) -> None:
    from riskmtl.artefact import load_model
    from riskmtl.files import read_table
    from riskmtl.scoring.export import export_model

    _require_other_file(options.out, options.data or options.model)
    report = export_model(
        load_model(options.model),
        options.out,
        format=options.format,
        head=options.head,
        int8=options.int8,
        rows=None if options.data is None else read_table(options.data),
    )
    simulated = "simulated " if options.data is None else ""
    print(f"beside the model on {report.rows:,} {simulated}rows:")
    for head, largest, mean, correlation in report.heads.iter_rows():
        order = "all alike" if correlation is None else f"rank correlation {correlation:.6f}"
        print(f"{head}: largest difference {largest:.1e}, mean {mean:.1e}, {order}")
    print(f"program of {report.bytes:,} bytes: {report.out}")


def _explain(options: argparse.Namespace) -> None:
    from riskmtl.artefact import load_model
    from riskmtl.explain.job import Settings, explain_file
    from riskmtl.explain.wording import load_reasons

    settings = Settings(
        rows=options.rows,
        heads=options.heads,
        words=None if options.words is None else load_reasons(options.words),
        n=options.reasons,
        budget=options.budget,
        tolerance=options.tolerance,
        seed=options.seed,
        max_bad=options.max_bad,
    )
    report = explain_file(
        load_model(options.model),
        options.data,
        options.out,
        settings,
        announce=lambda message: print(message, flush=True),
        progress=sys.stderr.isatty(),
    )
    print(f"{report.explained:,} of {report.rows:,} rows explained: {report.out}")


# ---- what verbs share ----------------------------------------------------------------------------


def _check(schema: DataSchema, frame: pl.DataFrame, source: Path) -> Checked:
    try:
        return schema.check(frame)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _checked(schema: DataSchema, frame: pl.DataFrame, max_bad: float, source: Path) -> pl.DataFrame:
    checked = _check(schema, frame, source)
    checked.require_few_refused(max_bad, source=str(source))
    for rule, count in checked.refusals().items():
        print(f"left out {count:,} rows: {rule}", file=sys.stderr)
    return checked.good


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Parameters of the estimator from --config, --set and --network."""
    import yaml

    from riskmtl.errors import unknown_name
    from riskmtl.estimator import MultiTaskClassifier

    objects = ("schema", "callbacks", "logger")  # of a running program, not to be written down
    valid = [name for name in MultiTaskClassifier._get_param_names() if name not in objects]
    settings: dict[str, Any] = {}
    if options.config is not None:
        try:
            loaded = yaml.safe_load(options.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{options.config}: not a readable YAML file ({error})") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"{options.config}: expected a mapping of parameters to values")
        settings.update(loaded)
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: write KEY=VALUE")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {item}: the value is not YAML ({error})") from error
    if options.network is not None:
        settings["network"] = options.network
    for key in settings:
        if key not in valid:
            raise ValueError(unknown_name("option", key, valid))
    return settings


def format_figures(figures: pl.DataFrame) -> str:
    """
    Lay figures out as a table for a terminal.

    Parameters
    ----------
    figures : polars.DataFrame
        From :func:`riskmtl.validation.evaluation.evaluate_model`.

    Returns
    -------
    str
    """
    columns = {
        "task": "task",
        "model": "model",
        "observed": "observed",
        "events": "events",
        "roc_auc": "AUC",
        "average_precision": "AP",
        "brier": "Brier",
        "recall_at_1pct_fpr": "recall@1%FPR",
    }
    rows = [[_cell(value) for value in row] for row in figures.select(list(columns)).iter_rows()]
    table = [list(columns.values()), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
