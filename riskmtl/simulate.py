"""
A simulated portfolio of accounts, with its truth.

Real tables hide what the declined would have done and never show the true probabilities. Here both
are known, so a model can be judged against the best that any model of these columns could reach.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from riskmtl.errors import unknown_name

_Floats: TypeAlias = NDArray[np.float32]
_Codes: TypeAlias = NDArray[np.int64]
_Columns: TypeAlias = dict[str, pl.Series]
_Float = TypeVar("_Float", bound=np.floating[Any])

TASKS = ("default", "fraud", "takeover")
MATURITY_DAYS = {"default": 120, "fraud": 45}

_START = np.datetime64("2023-01", "M")
_DRIFT_MONTHS = 24  # the calendar time over which the drift reaches its full size
_RATE = {"default": 0.04, "fraud": 0.012, "takeover": 0.004}
# Standard deviation of each true logit (takeover: among the logins); sets the best attainable AUC.
_SIGNAL = {"default": 1.4, "fraud": 1.35, "takeover": 1.5}
_APPROVAL_RATE = 0.75
_REFERENCE_ROWS, _REFERENCE_SEED = 50_000, 20_230_101
# Below 1, so that even fully related heads keep a part of their own.
_LARGEST_SHARED_VARIANCE = 0.9

_EARLY_MERCHANTS, _LATE_MERCHANTS = 4_000, 1_000
_EARLY_MODELS, _LATE_MODELS = 32, 8
_CATEGORIES = [
    "groceries", "fuel", "restaurants", "travel", "clothing", "electronics",
    "utilities", "health", "gift_cards", "gaming", "digital_assets", "transfers",
]  # fmt: skip
_EMPLOYMENT = ["employed", "part_time", "self_employed", "retired", "unemployed", "unknown"]
_REGIONS = ["north", "north_east", "east", "south_east", "south", "south_west", "west", "centre"]
_PRODUCTS = ["card", "card_plus", "instalment", "overdraft"]
_CHANNELS = ["branch", "web", "app", "broker"]
_RESIDENCES = ["owner", "mortgage", "tenant", "family"]
_AGE_BANDS = ["18-24", "25-34", "35-44", "45-54", "55-64", "65+"]
_SYSTEMS = ["android", "ios", "windows", "macos"]
_BROWSERS = ["chrome", "safari", "edge", "firefox", "in_app"]
_COUNTRIES = ["home", "neighbour_a", "neighbour_b", "overseas_a", "overseas_b", "overseas_c"]
_SCREENS = np.array([360, 390, 412, 768, 1280, 1440, 1920, 2560])


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
    inputs = _inputs(rng, n, months)
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
    as_of = ((_START + months).astype("datetime64[D]") - np.timedelta64(1, "D")).astype(dt.date)
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
            task: _sigmoid(
                self.intercept[task]
                + self.scale[task] * _combined(indices, task, self.shared_variance)
                + _offset(indices, task)
            )
            for task in TASKS
        }

    def approval(self, indices: pl.DataFrame) -> NDArray[np.float64]:
        return _sigmoid(self.approval_intercept + _creditworthiness(indices))


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
    return _raw_indices(_inputs(rng, _REFERENCE_ROWS, _DRIFT_MONTHS))


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
        if _sigmoid(logit + middle).mean() < rate:
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
        + 0.3 * ((merchant < _EARLY_MERCHANTS) & (merchant % 8 == 3))
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


# --- The columns ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """Who is observed when, and the hidden traits that drive the columns (all one per row)."""

    account: _Codes
    first_month: _Codes  # per account, not per row
    month: _Codes
    date: NDArray[np.datetime64]
    drift: _Floats
    stress: _Floats
    intent: _Floats
    exposure: _Floats

    @property
    def strain(self) -> _Floats:
        """What the three traits have in common to the eye of the shared columns."""
        return (self.stress + self.intent + self.exposure) / np.float32(np.sqrt(3))

    def per_account(self, rng: np.random.Generator) -> _Floats:
        """Draw a standard normal that stays with the account."""
        return _normal(rng, self.first_month.size)[self.account]


def _inputs(rng: np.random.Generator, n: int, months: int) -> pl.DataFrame:
    rows = _rows(rng, n, months)
    names = "A" + pl.Series(np.arange(rows.first_month.size)).cast(pl.String).str.zfill(7)
    account = _account(rng, rows)
    columns: _Columns = {
        "account_id": names.gather(rows.account),
        "snapshot_date": pl.Series(rows.date),
        **account,
        **_transactions(rng, rows, account["acc_limit"].to_numpy()),
        **_merchants(rng, rows),
    }
    return pl.DataFrame(columns).hstack(_devices(rng, rows))


def _rows(rng: np.random.Generator, n: int, months: int) -> _Rows:
    # Spans are laid evenly over the window and cut at its ends, so every month is about as full.
    span = 1 + rng.poisson(6.5, n)
    entry = np.floor(rng.random(n) * (months + span - 1)).astype(np.int64) - (span - 1)
    first, last = np.maximum(entry, 0), np.minimum(entry + span, months)
    end = np.cumsum(last - first)
    accounts = int(np.searchsorted(end, n)) + 1  # each has a row at least, so n are enough
    first, start = first[:accounts], (end - last + first)[:accounts]
    account = np.repeat(np.arange(accounts), (last[:accounts] - first))[:n]
    month = first[account] + np.arange(n) - start[account]
    day = rng.integers(0, 28, accounts)[account]
    date = (_START + month).astype("datetime64[D]") + day
    order = np.lexsort((account, date))
    account, month, date = account[order], month[order], date[order]
    drift = (month / _DRIFT_MONTHS).astype(np.float32)
    lasting = np.float32(0.85) * rng.standard_normal((3, accounts), dtype=np.float32)
    passing = np.float32(np.sqrt(1 - 0.85**2)) * rng.standard_normal((3, n), dtype=np.float32)
    stress, intent, exposure = lasting[:, account] + passing
    stress += np.float32(0.2) * drift
    return _Rows(account, first, month, date, drift, stress, intent, exposure)


def _account(rng: np.random.Generator, rows: _Rows) -> _Columns:
    n, stress, strain = rows.account.size, rows.stress, rows.strain
    years = np.clip(42 + 14 * rows.per_account(rng), 18, 90)
    female = rows.per_account(rng) < 0
    days_open = np.exp(6.3 + 0.9 * rows.per_account(rng)).astype(np.int64)
    first_day = (_START + rows.first_month[rows.account]).astype("datetime64[D]")
    opened = first_day - days_open
    income = np.exp(
        10.2 + 0.45 * rows.per_account(rng) - 0.12 * female + 0.004 * (years - 42)
        + 0.06 * rows.drift - 0.08 * stress
    )  # fmt: skip
    limit = np.exp(np.log(income) - 2 + 0.5 * rows.per_account(rng))
    late = rng.poisson(np.exp(-1.6 + 0.8 * stress))
    late_months = np.where(late > 0, rng.integers(1, 13, n), rng.integers(13, 60, n))
    age = years.astype(np.int16)
    return {
        "gender": _pick(["male", "female"], female.astype(np.int64)),
        "age_band": _pick(_AGE_BANDS, np.digitize(age, [25, 35, 45, 55, 65])),
        "acc_age": pl.Series(age),
        "acc_opened_date": pl.Series(opened),
        "acc_tenure_months": pl.Series((rows.date - opened).astype(np.int32) // 30),
        # The poor and the strained leave it out more often.
        "acc_income": _withheld(
            _money(np.round(income, -2)),
            rng.random(n) < _sigmoid(-2.7 + 0.4 * stress - 0.8 * (np.log(income) - 10.2)),
        ),
        "acc_limit": _money(np.round(limit, -2) + 200),
        "acc_utilisation": _round(1.15 * _sigmoid(-0.7 + 0.9 * stress + 0.7 * _normal(rng, n))),
        "acc_payment_ratio": _round(_sigmoid(1.2 - 0.9 * stress + 0.9 * _normal(rng, n))),
        "acc_delinquencies_12m": pl.Series(late.astype(np.int16)),
        **_bureau(rng, rows, late, late_months),
        "acc_inquiries_6m": pl.Series(rng.poisson(np.exp(-0.4 + 0.6 * strain)).astype(np.int16)),
        "acc_address_changes_12m": pl.Series(
            rng.poisson(np.exp(-1.9 + 0.3 * strain)).astype(np.int16)
        ),
        "acc_contact_changed": pl.Series(rng.random(n) < _sigmoid(-2.2 + 0.8 * rows.exposure)),
        "acc_employment": _pick(_EMPLOYMENT, _employment(rng, rows, age, female)),
        "acc_region": _spread_over(_REGIONS, rows.per_account(rng)),
        "acc_product": _spread_over(_PRODUCTS, rows.per_account(rng)),
        "acc_channel": _spread_over(_CHANNELS, 0.9 * rows.per_account(rng) + 0.5 * rows.drift),
        "acc_residence": _withheld(
            _spread_over(_RESIDENCES, rows.per_account(rng) + 0.02 * (42 - years)),
            rng.random(n) < 0.05,
        ),
    }


def _bureau(rng: np.random.Generator, rows: _Rows, late: _Codes, late_months: _Codes) -> _Columns:
    n = rows.account.size
    score = np.clip(690 - 55 * rows.stress - 45 * _normal(rng, n), 300, 850).astype(np.int16)
    thin = rows.per_account(rng) > 1.4
    unanswered = rng.random(n) < 0.02
    never_late = (late == 0) & (rows.per_account(rng) < 0.8)
    return {
        "acc_bureau_score": pl.Series(np.select([unanswered, thin], [-99, -9], score)),
        "acc_months_since_delinquency": pl.Series(
            np.select([unanswered, never_late], [-99, -9], late_months).astype(np.int16)
        ),
    }


def _employment(
    rng: np.random.Generator, rows: _Rows, age: NDArray[np.int16], female: NDArray[np.bool_]
) -> _Codes:
    draw, n = rows.per_account(rng), rows.account.size
    code = np.select(
        [
            age >= 65,
            rows.stress + 1.5 * _normal(rng, n) > 3.2,
            draw + 0.4 * female > 1.1,
            draw < -1.3,
        ],
        [3, 4, 1, 2],
        0,
    )
    unknown = rng.random(n) < _sigmoid(-2.9 + 0.4 * rows.stress)
    return np.where(unknown, 5, code)


def _transactions(rng: np.random.Generator, rows: _Rows, limit: _Floats) -> _Columns:
    n, stress, intent, strain = rows.account.size, rows.stress, rows.intent, rows.strain
    count = 1 + rng.poisson(np.exp(3.1 + 0.5 * rows.per_account(rng)))
    mean = np.exp(3.3 + 0.35 * _normal(rng, n) + 0.4 * (np.log(limit) - 8.2))
    foreign = _sigmoid(-2.6 + 1.0 * intent + 0.8 * _normal(rng, n))
    gambling = _sigmoid(-3.5 + 0.6 * stress + 0.8 * _normal(rng, n))
    low_balance = rng.binomial(30, _sigmoid(-1.6 + 0.9 * strain + 0.6 * _normal(rng, n)))
    return {
        "txn_count": pl.Series(count.astype(np.int16)),
        "txn_amount_sum": _money(count * mean),
        "txn_amount_mean": _money(mean),
        "txn_amount_max": _money(mean * np.exp(0.8 + 0.5 * np.abs(_normal(rng, n)))),
        "txn_velocity_ratio": _round(np.exp(0.4 * intent + 0.35 * _normal(rng, n))),
        "txn_night_share": _round(_sigmoid(-2.0 + 0.8 * intent + 0.6 * _normal(rng, n))),
        "txn_foreign_share": _round(np.where(rng.random(n) < 0.4, 0, foreign)),
        "txn_online_share": _round(_sigmoid(-0.4 + 0.8 * _normal(rng, n) + 0.6 * rows.drift)),
        "txn_cash_share": _round(_sigmoid(-1.7 + 0.8 * strain + 0.6 * _normal(rng, n))),
        "txn_gambling_share": _round(np.where(rng.random(n) < 0.7, 0, gambling)),
        "txn_declined_count": pl.Series(rng.poisson(np.exp(-0.9 + 0.7 * strain)).astype(np.int16)),
        "txn_chargeback_count": pl.Series(rng.poisson(np.exp(-2 + 0.8 * intent)).astype(np.int16)),
        "txn_new_payees": pl.Series(
            rng.poisson(np.exp(-0.7 + 0.7 * rows.exposure)).astype(np.int16)
        ),
        "txn_low_balance_days": pl.Series(low_balance.astype(np.int16)),
        "txn_days_since_last": pl.Series(rng.exponential(4, n).astype(np.int16)),
        "txn_inflow_ratio": _round(np.exp(-0.2 * stress + 0.3 * _normal(rng, n))),
        "txn_salary_change": _withheld(
            _round(0.03 - 0.05 * stress + 0.12 * _normal(rng, n)),
            rng.random(n) < _sigmoid(-1.2 + 0.5 * stress),  # no salary came in
        ),
    }


def _merchants(rng: np.random.Generator, rows: _Rows) -> _Columns:
    n, accounts = rows.account.size, rows.first_month.size
    weight = np.cumsum(1 / np.arange(3, _EARLY_MERCHANTS + 3))
    favourite, other = (
        np.searchsorted(weight, rng.random(size) * weight[-1]) for size in (accounts, n)
    )
    rank = np.where(rng.random(n) < 0.6, favourite[rows.account], other)
    late, newcomer = _newcomer(rng, rows.month, _LATE_MERCHANTS, 0.15)
    # The factor is coprime with the count: names must not give away how popular a merchant is.
    code = np.where(late, _EARLY_MERCHANTS + newcomer, rank * 1237 % _EARLY_MERCHANTS)
    merchants = _EARLY_MERCHANTS + _LATE_MERCHANTS
    name = "M" + pl.Series(np.arange(merchants)).cast(pl.String).str.zfill(4)
    return {
        "txn_main_merchant": name.gather(code),
        "txn_main_category": _pick(_CATEGORIES, code % len(_CATEGORIES)),
    }


def _newcomer(
    rng: np.random.Generator, month: _Codes, count: int, share: float
) -> tuple[NDArray[np.bool_], _Codes]:
    """Draw who meets one of ``count`` newcomers, which open one after another over the months."""
    elapsed = np.minimum(month, _DRIFT_MONTHS) / _DRIFT_MONTHS
    opened = (count * elapsed).astype(np.int64)
    late = (rng.random(month.size) < share * elapsed) & (opened > 0)
    return late, (rng.random(month.size) * opened).astype(np.int64)


def _device_model(rng: np.random.Generator, month: _Codes) -> _Codes:
    late, newcomer = _newcomer(rng, month, _LATE_MODELS, 0.3)
    usual = (rng.random(month.size) ** 1.7 * _EARLY_MODELS).astype(np.int64)
    return np.where(late, _EARLY_MODELS + newcomer, usual)


def _devices(rng: np.random.Generator, rows: _Rows) -> pl.DataFrame:
    n, intent, exposure = rows.account.size, rows.intent, rows.exposure
    new = rng.random(n) < _sigmoid(-2.2 + 0.9 * exposure)
    own_model = _device_model(rng, rows.first_month)[rows.account]
    model = np.where(new, _device_model(rng, rows.month), own_model)
    model_names = [f"model_{code:02d}" for code in range(_EARLY_MODELS + _LATE_MODELS)]
    age = rng.exponential(np.where(new, 3.0, 400.0))
    far = np.maximum(0, np.sqrt(0.5) * (exposure + _normal(rng, n)) - 0.3 + 0.2 * rows.drift)
    typing = 4.5 + 0.8 * rows.per_account(rng) + 0.5 * _normal(rng, n)
    frame = pl.DataFrame(
        {
            "dev_os": _pick(_SYSTEMS, model % len(_SYSTEMS)),
            "dev_model": _pick(model_names, model),
            "dev_browser": _spread_over(_BROWSERS, rows.per_account(rng)),
            "dev_ip_country": _pick(_COUNTRIES, np.minimum((2.5 * far).astype(np.int64), 5)),
            "dev_screen_width": pl.Series(_SCREENS[model % _SCREENS.size].astype(np.int16)),
            "dev_age_days": pl.Series(age.astype(np.int16)),
            "dev_emulator": pl.Series(rng.random(n) < _sigmoid(-4.5 + 0.9 * intent)),
            "dev_new_device": pl.Series(new),
            "dev_vpn": pl.Series(rng.random(n) < _sigmoid(-2 + 0.3 * exposure + 0.6 * rows.drift)),
            "dev_failed_logins": pl.Series(
                rng.poisson(np.exp(-0.9 + 0.8 * exposure)).astype(np.int16)
            ),
            "dev_distance_km": _round(np.exp(1.5 + 1.0 * exposure + 1.0 * _normal(rng, n))),
            "dev_accounts_on_device": pl.Series(
                (1 + rng.poisson(np.exp(-1.3 + 0.8 * intent))).astype(np.int16)
            ),
            "dev_typing_speed": _withheld(
                _round(np.maximum(typing - 0.2 * exposure, 0.5)), rng.random(n) < 0.1
            ),
            "dev_session_minutes": _round(np.exp(1.2 + 0.7 * _normal(rng, n))),
        }
    )
    login = pl.Series(
        "dev_digital_login",
        rng.random(n) < _sigmoid(0.45 + 0.6 * rows.per_account(rng) + 0.4 * rows.drift),
    )
    recorded = frame.with_columns(
        pl.when(login).then(cs.string()).otherwise(pl.lit("none")),
        pl.when(login).then(~cs.string()),
    )
    return recorded.insert_column(0, login)


# --- How a drawn value is recorded ----------------------------------------------------------------


def _normal(rng: np.random.Generator, n: int) -> _Floats:
    return rng.standard_normal(n, dtype=np.float32)


def _sigmoid(x: NDArray[_Float]) -> NDArray[_Float]:
    probability: NDArray[_Float] = 1 / (1 + np.exp(-x))
    return probability


def _money(values: NDArray[np.floating[Any]]) -> pl.Series:
    return pl.Series(np.round(values, 2).astype(np.float32))


def _round(values: NDArray[np.floating[Any]]) -> pl.Series:
    return pl.Series(np.round(values, 4).astype(np.float32))


def _pick(names: list[str], code: _Codes) -> pl.Series:
    return pl.Series(names).gather(code)


def _spread_over(names: list[str], latent: _Floats) -> pl.Series:
    """Cut a latent normal into categories of about equal share."""
    return _pick(names, (_sigmoid(1.7 * latent) * 0.9999 * len(names)).astype(np.int64))


def _withheld(values: pl.Series, missing: NDArray[np.bool_]) -> pl.Series:
    return values.set(pl.Series(missing), None)
