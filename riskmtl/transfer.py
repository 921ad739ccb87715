"""Whether training the heads together helped each of them, or hurt it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn.base import clone
from sklearn.utils.validation import check_consistent_length

from riskmtl.affinity import joint_template
from riskmtl.errors import unknown_name
from riskmtl.estimator import MultiTaskClassifier
from riskmtl.frames import as_frame
from riskmtl.given import is_number, require_count
from riskmtl.holdout import held_out_rows
from riskmtl.labels import label_frame
from riskmtl.validation.comparison import DRAWN, compare_heads
from riskmtl.validation.ranges import require_level

HELPED = "helped"
UNDECIDED = "no difference shown"
HURT = "hurt: negative transfer"
TOO_FEW = "too few events"

METRICS = ("roc_auc", *DRAWN)
_LESS_IS_BETTER = ("brier", "log_loss")

# Events and non-events of a head among the test rows from which it is compared.
_FEWEST = 10

# What concerns tasks that are trained together: the control has the defaults.
_OF_JOINT_TRAINING = (
    "groups",
    "task_weights",
    "balancing",
    "balancing_options",
    "penalties",
    "schedule",
    "warm_up",
    "freeze_shared_after",
    "selected_by",
)


@dataclass(frozen=True, slots=True, eq=False)
class TransferReport:
    """
    What joint training did to each head.

    Parameters
    ----------
    gains : polars.DataFrame
        A line per metric and head: ``head``, ``metric``, its value under ``joint`` training and
        ``alone``, ``gain`` (above 0 is better, whatever the metric), the ends ``low`` and ``high``
        of its interval, ``p_value``, the ``events`` and ``rows`` that the head observes among the
        test rows, and the ``verdict``.
    level : float
        Confidence with which the intervals of a metric hold for all heads at once.
    fits : int
        Times that both were trained.
    joint, alone : MultiTaskClassifier
        The first of the fitted models, such as for :func:`riskmtl.validation.validate`.
    """

    gains: pl.DataFrame
    level: float
    fits: int
    joint: MultiTaskClassifier = field(repr=False)
    alone: MultiTaskClassifier = field(repr=False)

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of each head by the first of the metrics."""
        first = self.gains.filter(pl.col("metric") == self.gains["metric"][0])
        return dict(first.select("head", "verdict").iter_rows())

    def __str__(self) -> str:
        lines = [
            f"joint training against a network per head ({self.level:.0%} intervals, "
            f"{self.fits} fit{'s' if self.fits > 1 else ''})"
        ]
        for row in self.gains.iter_rows(named=True):
            said = f"{row['head']}, {row['metric']}: "
            if row["gain"] is not None:
                said += (
                    f"{row['joint']:.4f} jointly, {row['alone']:.4f} alone, gain "
                    f"{row['gain']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], "
                )
            lines.append(said + row["verdict"])
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.gains._repr_html_()


def transfer_report(
    X: Any,
    y: Any = None,
    *,
    model: MultiTaskClassifier | None = None,
    X_test: Any = None,
    y_test: Any = None,
    X_val: Any = None,
    y_val: Any = None,
    test_share: float = 0.25,
    metrics: Sequence[str] = ("roc_auc", "average_precision", "log_loss"),
    level: float = 0.95,
    fits: int = 1,
) -> TransferReport:
    """
    Train the heads together and each alone, on the same rows, and compare them on others.

    Parameters
    ----------
    X : table of shape (rows, columns)
        With a schema of the model: the raw table.
    y : labels of shape (rows, tasks), optional with a schema
        NaN or null where an outcome is not observed.
    model : MultiTaskClassifier, optional
        Settings of both; a fitted one is not changed. The control has ``network="single_task"`` and
        what concerns joint training as by default. Networks are compared: there is no challenger.
    X_test, y_test : optional
        Rows to compare on. Without them a share of `X` is held out: the latest rows where the
        schema has a time column, else at random by label pattern.
    X_val, y_val : optional
        Validation rows of both, as for :meth:`MultiTaskClassifier.fit`.
    test_share : float
        Share of the observed rows of each task that is held out.
    metrics : sequence of str
        The first gives the verdict of a head: ``roc_auc``, ``average_precision``, ``log_loss``,
        ``brier``, ``recall_at_1pct_fpr``, ``recall_at_5pct_fpr``.
    level : float
        Confidence with which the intervals of a metric hold for all heads at once.
    fits : int
        Times that both are trained, with seeds that follow one another; the intervals then hold the
        chance of the seeds too.

    Returns
    -------
    TransferReport
        For binary heads; regression tasks are trained along. A head was helped if its interval lies
        above 0, and hurt if it lies below: that is negative transfer. What joint training gives a
        head beyond the shared network, such as leaning on other heads (`few_events`), counts too.

    Raises
    ------
    ValueError
        If there are fewer than two tasks, no rows to compare on, or a parameter cannot be.

    Notes
    -----
    Both learn from the same training rows, validate on the same ones and have the same seeds. In
    the comparison all rows count alike, whatever weights a schema gives them in training.
    Intervals are those of :func:`riskmtl.validation.comparison.compare_heads`, at a level that is
    Bonferroni's for the heads.

    Examples
    --------
    >>> X = pl.DataFrame({"amount": [1.0, 9.0, 2.0, 8.0] * 60})
    >>> y = pl.DataFrame({"fraud": [0, 1, 0, 1] * 60, "takeover": [0, 1, 0, 0] * 60})
    >>> model = MultiTaskClassifier("shared_bottom", epochs=1, members=1, random_state=0)
    >>> report = transfer_report(X, y, model=model, metrics=["roc_auc"])
    >>> report.gains["head"].to_list(), report.level
    (['fraud', 'takeover'], 0.95)
    """
    joint = joint_template(model).set_params(challenger=None)
    _require_settings(metrics, level, fits, test_share)
    if X_test is None and y_test is not None:
        raise ValueError("y_test was given without X_test: give both, or neither")
    if X_test is not None and y_test is None and joint.schema is None:
        raise ValueError("X_test was given without y_test, and no schema reads labels from it")
    seed = joint._seed()
    joint.set_params(random_state=seed)
    train, test = _parts(joint, X, y, X_test, y_test, test_share)
    control = alone_like(joint)
    first, second = (
        [
            _placed(clone(template), name, seed + fit).fit(*train, X_val=X_val, y_val=y_val)
            for fit in range(fits)
        ]
        for name, template in (("joint", joint), ("alone", control))
    )
    gains = _gains(first, second, test, metrics, level)
    return TransferReport(gains, level, fits, first[0], second[0])


def alone_like(model: MultiTaskClassifier) -> MultiTaskClassifier:
    """
    The control of a model: an unfitted one of the same settings with a network per task.

    Parameters
    ----------
    model : MultiTaskClassifier

    Returns
    -------
    MultiTaskClassifier
        What concerns tasks that are trained together is as by default.
    """
    defaults = MultiTaskClassifier().get_params(deep=False)
    options = {name: defaults[name] for name in _OF_JOINT_TRAINING}
    control: MultiTaskClassifier = clone(model)
    control.set_params(network="single_task", **options)
    return control


def _require_settings(metrics: Any, level: Any, fits: Any, test_share: Any) -> None:
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics must be a sequence such as ('roc_auc',), got {metrics!r}")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(unknown_name("metric", metric, METRICS))
    require_level(level)
    require_count("fits", fits)
    if not is_number(test_share) or not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share!r}")


def _parts(
    model: MultiTaskClassifier, X: Any, y: Any, X_test: Any, y_test: Any, share: float
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Rows to train on and rows to compare on, each with labels."""
    model._check_shared_parameters()
    inputs, times = model._read_inputs(X, reset=True)
    labels = model._read_labels(X, y)
    check_consistent_length(inputs, labels.values)
    if len(labels.tasks) < 2:
        raise ValueError("transfer is between tasks: give labels of at least two")
    if X_test is not None:
        return (X, y), (X_test, y_test)
    held_out = held_out_rows(labels.values, times, share=share, seed=model.random_state)
    if not held_out.any():
        raise ValueError(f"{inputs.height} rows are too few to hold some out: give X_test")
    table = inputs if model.schema is None else as_frame(X)
    frame = None if y is None else label_frame(y)[0]
    train, test = (
        (table.filter(mask), None if frame is None else frame.filter(mask))
        for mask in (~held_out, held_out)
    )
    return train, test


def _placed(model: MultiTaskClassifier, name: str, seed: int) -> MultiTaskClassifier:
    """A model with its seed, and a folder of its own for checkpoints if it keeps any."""
    model.set_params(random_state=seed)
    if model.checkpoint_dir is not None:
        model.set_params(checkpoint_dir=str(Path(model.checkpoint_dir) / f"{name}_{seed}"))
    return model


def _gains(
    joint: Sequence[MultiTaskClassifier],
    alone: Sequence[MultiTaskClassifier],
    test: tuple[Any, Any],
    metrics: Sequence[str],
    level: float,
) -> pl.DataFrame:
    """Compare the fits of both on the test rows."""
    names, labels = joint[0].tasks_, joint[0].read_labels(*test)
    # (fits, rows, heads)
    first, second = (np.stack([m.predict_proba(test[0]) for m in fits]) for fits in (joint, alone))
    counts = np.stack([(labels == 1).sum(0), (labels == 0).sum(0)])
    enough = np.flatnonzero(counts.min(0) >= _FEWEST)
    compared = compare_heads(
        [names[i] for i in enough],
        labels[:, enough],
        first[..., enough],
        second[..., enough],
        metrics=metrics,
        # So that the intervals of all heads hold at once (Bonferroni).
        level=1 - (1 - level) / max(1, len(enough)),
    )
    observed = pl.DataFrame({"head": names, "events": counts[0], "rows": counts.sum(0)})
    lines = pl.DataFrame({"metric": list(metrics)}).join(observed, how="cross")
    sign = pl.when(pl.col("metric").is_in(_LESS_IS_BETTER)).then(-1).otherwise(1)
    gain, ends = sign * pl.col("estimate"), (sign * pl.col("low"), sign * pl.col("high"))
    found = lines.join(compared, on=["metric", "head"], how="left", maintain_order="left").select(
        "head",
        "metric",
        pl.col("first").alias("joint"),
        pl.col("second").alias("alone"),
        gain.alias("gain"),
        pl.min_horizontal(*ends).alias("low"),
        pl.max_horizontal(*ends).alias("high"),
        "p_value",
        "events",
        "rows",
    )
    verdict = (
        pl.when(pl.col("gain").is_null())
        .then(pl.lit(TOO_FEW))
        .when(pl.col("low") > 0)
        .then(pl.lit(HELPED))
        .when(pl.col("high") < 0)
        .then(pl.lit(HURT))
        .otherwise(pl.lit(UNDECIDED))
    )
    return found.with_columns(verdict=verdict)
