"""The command line: each verb reads its options and calls one function."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riskmtl.options import parser
from riskmtl.panics import without_panics

if TYPE_CHECKING:
    import polars as pl

    from riskmtl.schema import Checked, DataSchema
    from riskmtl.scoring.batches import ScoreSettings
    from riskmtl.scoring.job import ScoreReport
    from riskmtl.tuning import Tuned

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
    options = parser().parse_args(arguments)
    try:
        with without_panics() if options.verb in _SCHEDULED else nullcontext():
            code = _VERBS[options.verb](options)
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


def _diagnose(options: argparse.Namespace) -> None:
    from riskmtl.artefact import load_model
    from riskmtl.diagnosis.report import diagnose

    model = load_model(options.model)
    if options.out.resolve().is_relative_to(options.model.resolve()):
        raise ValueError(f"--out {options.out}: is within the model, which holds nothing else")
    try:
        found = diagnose(model)
    except ValueError as error:
        raise ValueError(f"{options.model}: {error}") from error
    page = found.write(options.out)
    for sentence in found.findings:
        print(sentence)
    print(f"diagnosis: {page}")


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


_VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "simulate": _simulate,
    "train": _train,
    "tune": _tune,
    "evaluate": _evaluate,
    "validate": _validate,
    "diagnose": _diagnose,
    "score": _score,
    "monitor": _monitor,
    "export": _export,
    "explain": _explain,
}


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
    from riskmtl.yaml_file import read_values

    objects = ("schema", "callbacks", "logger")  # of a running program, not to be written down
    valid = [name for name in MultiTaskClassifier._get_param_names() if name not in objects]
    settings: dict[str, Any] = {}
    if options.config is not None:
        try:
            loaded = read_values(options.config.read_text(encoding="utf-8"))
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
            settings[key] = read_values(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {item}: the value is not YAML ({error})") from error
    if options.network is not None:
        settings["network"] = options.network
    for key in settings:
        if key not in valid:
            raise ValueError(unknown_name("option", key, valid))
    if isinstance(settings.get("precision"), int):
        # A name, whatever YAML makes of its digits.
        settings["precision"] = str(settings["precision"])
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
