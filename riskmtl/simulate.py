"""
A simulated portfolio of accounts, with its truth.

Real tables hide what the declined would have done and never show the true probabilities. Here both
are known, so a model can be judged against the best that any model of these columns could reach.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from riskmtl.errors import unknown_name
from riskmtl.simulate_columns import DRIFT_MONTHS, EARLY_MERCHANTS, START, account_months, sigmoid

TASKS = ("default", "fraud", "takeover")
MATURITY_DAYS = {"default": 120, "fraud": 45}

_RATE = {"default": 0.04, "fraud": 0.012, "takeover": 0.004}
# Standard deviation of each true logit (takeover: among the logins); sets the best attainable AUC.
_SIGNAL = {"default": 1.4, "fraud": 1.35, "takeover": 1.5}
_APPROVAL_RATE = 0.75
_REFERENCE_ROWS, _REFERENCE_SEED = 50_000, 20_230_101
# Below 1, so that even fully related heads keep a part of their own.
_LARGEST_SHARED_VARIANCE = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Portfolio:
    """
    A simulated table and the truth behind it.

    Attributes
    ----------
    frame : polars.DataFrame
        One row per account and month, ordered by ``snapshot_date`` and ``account_id``: key, time,
        inputs, ``approved``, and the labels ``default``, ``fraud``, ``takeover`` (Int8, null where
        the outcome is not observed).
    truth : polars.DataFrame
        The same rows: ``account_id``, ``snapshot_date``, the true probabilities ``p_default``,
        ``p_fraud``, ``p_takeover`` given the recorded inputs, and what happened (Int8, never null).
    as_of : datetime.date
        The day the table was drawn: the last day of the window.

    Examples
    --------
    >>> portfolio = simulate_portfolio(2_000, seed=1)
    >>> portfolio.frame.height, portfolio.truth.height, portfolio.as_of.isoformat()
    (2000, 2000, '2024-12-31')
    """

    frame: pl.DataFrame
    truth: pl.DataFrame
    as_of: dt.date

    def best_attainable(
        self, task: str, rows: pl.Expr | pl.Series | NDArray[np.bool_] | None = None
    ) -> dict[str, float]:
        """
        Score the true probabilities against the labels observed in ``frame``.

        No model of the inputs can be expected to do better on the same rows.

        Parameters
        ----------
        task : {"default", "fraud", "takeover"}
            The head.
        rows : polars.Expr, polars.Series or ndarray of shape (n,), optional
            Boolean; the rows to score, all by default. An expression is taken over ``frame``.

        Returns
        -------
        dict of str to float
            ``roc_auc`` and ``average_precision``, both between 0 and 1.

        Raises
        ------
        ValueError
            If the task is unknown, or if the observed labels of these rows are all alike.

        Examples
        --------
        >>> portfolio = simulate_portfolio(20_000, seed=1)
        >>> late = pl.col("snapshot_date") >= dt.date(2024, 4, 1)
        >>> 0.75 < portfolio.best_attainable("default", late)["roc_auc"] < 0.9
        True
        """
        from sklearn.metrics import average_precision_score, roc_auc_score

        if task not in TASKS:
            raise ValueError(unknown_name("task", task, TASKS))
        kept = self.frame[task].is_not_null()
        if isinstance(rows, pl.Expr):
            kept &= self.frame.select(rows).to_series()
        elif rows is not None:
            kept &= pl.Series(rows)
        label = self.frame[task].filter(kept).to_numpy()
        probability = self.truth[f"p_{task}"].filter(kept).to_numpy()
        if np.unique(label).size < 2:
            raise ValueError(
                f"the observed labels of {task!r} in these rows are all alike: choose more rows"
            )
        return {
            "roc_auc": float(roc_auc_score(label, probability)),
            "average_precision": float(average_precision_score(label, probability)),
        }


def simulate_portfolio(
    n: int = 200_000, seed: int = 0, *, relatedness: float = 0.7, months: int = 24
) -> Portfolio:
    """
    Simulate a portfolio of accounts observed monthly.

    Three hidden traits of an account (financial stress, fraudulent intent, exposure of its
    credentials) are independent, persist with monthly noise and drive the columns. Four indices are
    built from recorded columns only: one for each head, over disjoint sets of columns that follow
    one trait each, and one shared, over further columns that follow all three traits. With
    ``g = 0.9 * relatedness``, the logit of a head is its own index times ``sqrt(1 - g)`` plus the
    shared index times ``sqrt(g)``, brought to a fixed standard deviation, plus an intercept that
    sets the rate; without a digital login the takeover logit is lower by 2. So at 0 the heads have
    no column in common and uncorrelated logits; at 0.5 and 1 the logits of two heads correlate by
    about 0.6 and 0.9, because nearly half and nine tenths of their variance is the shared index.
    How well the best model can do barely changes in between.

    Outcomes are drawn independently given the probabilities. The law that turns columns into
    probabilities depends on ``relatedness`` alone: tables of different seed, size or window are
    draws from the same world, and the inputs are the same at every relatedness.

    The columns drift over calendar time, and merchants and device models appear that earlier months
    do not have; the law does not change, and the newcomers carry no effect of their own. In the
    bureau columns -9 says "nothing to report" and -99 "no answer"; to the law both are missing.

    Parameters
    ----------
    n : int, default=200_000
        Rows, that is account-months.
    seed : int, default=0
        Seed of the draw.
    relatedness : float, default=0.7
        Between 0 (heads share no causes) and 1 (causes mostly shared).
    months : int, default=24
        Length of the window, which starts on 2023-01-01; at least 6.

    Returns
    -------
    Portfolio
        The table, the truth, and the day the table was drawn.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Labels are null in ``frame`` where a team would not know them: ``default`` where the account was
    not ``approved`` or fewer than 120 days have passed, ``fraud`` where fewer than 45 days have
    passed, ``takeover`` where there was no digital login. Approval is likelier at low risk, so the
    observed defaults are a selected sample.

    Examples
    --------
    >>> portfolio = simulate_portfolio(1_000, seed=3, relatedness=0.5)
    >>> portfolio.frame.select("account_id", "snapshot_date", "default").columns
    ['account_id', 'snapshot_date', 'default']
    >>> portfolio.truth["p_takeover"].is_between(0, 1).all()
    True
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 row, got {n}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if months < 6:
        raise ValueError(f"months must be at least 6, got {months}")
    if not 0 <= relatedness <= 1:
        raise ValueError(f"relatedness must lie between 0 and 1, got {relatedness}")
    rng = np.random.default_rng(seed)
    law = _law(float(relatedness))
    inputs = account_months(rng, n, months)
    indices = _indices(inputs)
    approved = pl.Series("approved", rng.random(n) < law.approval(indices))
    probabilities = law.probabilities(indices)
    happened = pl.DataFrame(
        {task: (rng.random(n) < probabilities[task]).astype(np.int8) for task in TASKS}
    )
    keys = inputs.select("account_id", "snapshot_date")
    truth = keys.with_columns(
        *(pl.Series(f"p_{task}", probabilities[task]) for task in TASKS),
        *happened.get_columns(),
    )
    as_of = ((START + months).astype("datetime64[D]") - np.timedelta64(1, "D")).astype(dt.date)
    frame = _mask(inputs.with_columns(approved, *happened.get_columns()), as_of)
    return Portfolio(frame, truth, as_of)


def _mask(frame: pl.DataFrame, as_of: dt.date) -> pl.DataFrame:
    """Null the outcomes that nobody would know on the day ``as_of``."""
    date = pl.col("snapshot_date")
    matured = {task: date + pl.duration(days=days) <= as_of for task, days in MATURITY_DAYS.items()}
    observed = {
        "default": pl.col("approved") & matured["default"],
        "fraud": matured["fraud"],
        "takeover": pl.col("dev_digital_login"),
    }
    return frame.with_columns(pl.when(seen).then(pl.col(task)) for task, seen in observed.items())


# --- The law: recorded columns to probabilities ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Law:
    """How standardised indices become probabilities, at one relatedness."""

    shared_variance: float
    scale: dict[str, float]
    intercept: dict[str, float]
    approval_intercept: float

    def probabilities(self, indices: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
        return {
            task: sigmoid(
                self.intercept[task]
                + self.scale[task] * _combined(indices, task, self.shared_variance)
                + _offset(indices, task)
            )
            for task in TASKS
        }

    def approval(self, indices: pl.DataFrame) -> NDArray[np.float64]:
        return sigmoid(self.approval_intercept + _creditworthiness(indices))


def _combined(indices: pl.DataFrame, task: str, shared_variance: float) -> NDArray[np.float64]:
    own, shared = indices[task].to_numpy(), indices["shared"].to_numpy()
    combined: NDArray[np.float64] = (
        np.sqrt(1 - shared_variance) * own + np.sqrt(shared_variance) * shared
    )
    return combined


def _offset(indices: pl.DataFrame, task: str) -> NDArray[np.float64]:
    """Lower the takeover logit by 2 where nobody logged in."""
    offline = indices["offline"].to_numpy()
    return -2.0 * offline if task == "takeover" else np.zeros(offline.size)


def _creditworthiness(indices: pl.DataFrame) -> NDArray[np.float64]:
    # Not by relatedness: who is approved stays the same, so that only the outcomes differ.
    risk: NDArray[np.float64] = indices["default"].to_numpy() + 0.6 * indices["shared"].to_numpy()
    return -0.9 * risk


@lru_cache(maxsize=1)
def _reference() -> pl.DataFrame:
    """Draw the indices that fix the law, the same whatever the caller's seed."""
    rng = np.random.default_rng(_REFERENCE_SEED)
    return _raw_indices(account_months(rng, _REFERENCE_ROWS, DRIFT_MONTHS))


@lru_cache(maxsize=32)
def _law(relatedness: float) -> _Law:
    indices = _standardised(_reference())
    login = ~indices["offline"].to_numpy()
    shared_variance = _LARGEST_SHARED_VARIANCE * relatedness
    scale, intercept = {}, {}
    for task in TASKS:
        combined = _combined(indices, task, shared_variance)
        counted = login if task == "takeover" else slice(None)
        scale[task] = _SIGNAL[task] / float(combined[counted].std())
        logit = scale[task] * combined + _offset(indices, task)
        intercept[task] = _intercept(logit, _RATE[task])
    approval_intercept = _intercept(_creditworthiness(indices), _APPROVAL_RATE)
    return _Law(shared_variance, scale, intercept, approval_intercept)


def _intercept(logit: NDArray[np.float64], rate: float) -> float:
    """Find by bisection the shift that brings the mean probability to ``rate``."""
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        if sigmoid(logit + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _standardised(indices: pl.DataFrame) -> pl.DataFrame:
    """Bring each index to mean 0 and variance 1 over the reference draw."""
    # The takeover index says little without a login, so it is measured over the logins alone.
    reference = _reference().with_columns(pl.when(~pl.col("offline")).then(pl.col("takeover")))
    names = [*TASKS, "shared"]
    centre = reference.select(pl.col(names).mean()).row(0, named=True)
    spread = reference.select(pl.col(names).std()).row(0, named=True)
    return indices.with_columns((pl.col(name) - centre[name]) / spread[name] for name in names)


def _indices(inputs: pl.DataFrame) -> pl.DataFrame:
    """Compute the standardised index of each head and the shared one, and who did not log in."""
    return _standardised(_raw_indices(inputs))


def _raw_indices(inputs: pl.DataFrame) -> pl.DataFrame:
    return inputs.select(
        default=_default_index(),
        fraud=_fraud_index(),
        takeover=_takeover_index(),
        shared=_shared_index(),
        offline=~pl.col("dev_digital_login"),
    )


def _number(name: str, missing: float = 0.0) -> pl.Expr:
    return pl.col(name).cast(pl.Float64).fill_null(missing)


def _default_index() -> pl.Expr:
    score = pl.col("acc_bureau_score").cast(pl.Float64)
    utilisation, paid = _number("acc_utilisation"), _number("acc_payment_ratio")
    return (
        pl.when(score < 0).then(0.5).otherwise(((700 - score) / 70).clip(-1.5, 2.5))
        + 1.6 * ((utilisation - 0.3) / 0.5).clip(0, 1)
        + 0.8 * _number("acc_delinquencies_12m").clip(0, 3)
        + 1.2 * ((utilisation > 0.7) & (paid < 0.5))
        - 1.0 * paid
        + 0.5 * pl.col("acc_employment").is_in(["unemployed", "unknown"])
    )


def _fraud_index() -> pl.Expr:
    merchant = pl.col("txn_main_merchant").str.slice(1).cast(pl.Int32)
    velocity = _number("txn_velocity_ratio")
    return (
        1.3 * velocity.log().clip(-0.5, 1.5)
        + 0.9 * (_number("txn_night_share") / 0.25).clip(0, 2)
        + 1.0 * _number("txn_chargeback_count").clip(0, 2)
        + 0.9 * (_number("dev_accounts_on_device", 1.0) >= 3)
        + 1.0 * ((velocity > 1.5) & (_number("txn_foreign_share") > 0.05))
        + 0.5 * pl.col("txn_main_category").is_in(["gift_cards", "digital_assets"])
        + 0.3 * ((merchant < EARLY_MERCHANTS) & (merchant % 8 == 3))
    )


def _takeover_index() -> pl.Expr:
    new_device = pl.col("dev_new_device").fill_null(False)
    return (
        1.2 * new_device
        + 0.8 * _number("dev_failed_logins").clip(0, 4)
        + 0.9 * ((_number("dev_distance_km") + 1).log() - 1).clip(0, 4)
        + 0.8 * (new_device & pl.col("acc_contact_changed"))
        + 0.5 * _number("txn_new_payees").clip(0, 3)
    )


def _shared_index() -> pl.Expr:
    cash, declined = _number("txn_cash_share"), _number("txn_declined_count")
    return (
        1.0 * declined.clip(0, 4)
        + 0.7 * _number("acc_inquiries_6m").clip(0, 4)
        + 1.8 * ((_number("txn_low_balance_days") - 4) / 12).clip(0, 1)
        + 1.0 * (cash / 0.3).clip(0, 2)
        + 1.0 * ((cash > 0.25) & (declined >= 1))
    )
