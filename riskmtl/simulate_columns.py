"""
The columns of the simulated portfolio: hidden traits drive how accounts behave month by month.

What becomes of the accounts is decided in :mod:`riskmtl.simulate`, from these columns alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

_Floats: TypeAlias = NDArray[np.float32]
_Codes: TypeAlias = NDArray[np.int64]
_Columns: TypeAlias = dict[str, pl.Series]
_Float = TypeVar("_Float", bound=np.floating[Any])

START = np.datetime64("2023-01", "M")
DRIFT_MONTHS = 24  # the calendar time over which the drift reaches its full size

EARLY_MERCHANTS, _LATE_MERCHANTS = 4_000, 1_000
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


def account_months(rng: np.random.Generator, n: int, months: int) -> pl.DataFrame:
    """
    Draw the recorded columns of accounts, month by month.

    Parameters
    ----------
    rng : numpy.random.Generator
    n : int
        Rows.
    months : int
        Length of the window.

    Returns
    -------
    polars.DataFrame
        Keys, time, inputs and protected columns, ordered by time and account.
    """
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
    date = (START + month).astype("datetime64[D]") + day
    order = np.lexsort((account, date))
    account, month, date = account[order], month[order], date[order]
    drift = (month / DRIFT_MONTHS).astype(np.float32)
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
    first_day = (START + rows.first_month[rows.account]).astype("datetime64[D]")
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
            rng.random(n) < sigmoid(-2.7 + 0.4 * stress - 0.8 * (np.log(income) - 10.2)),
        ),
        "acc_limit": _money(np.round(limit, -2) + 200),
        "acc_utilisation": _round(1.15 * sigmoid(-0.7 + 0.9 * stress + 0.7 * _normal(rng, n))),
        "acc_payment_ratio": _round(sigmoid(1.2 - 0.9 * stress + 0.9 * _normal(rng, n))),
        "acc_delinquencies_12m": pl.Series(late.astype(np.int16)),
        **_bureau(rng, rows, late, late_months),
        "acc_inquiries_6m": pl.Series(rng.poisson(np.exp(-0.4 + 0.6 * strain)).astype(np.int16)),
        "acc_address_changes_12m": pl.Series(
            rng.poisson(np.exp(-1.9 + 0.3 * strain)).astype(np.int16)
        ),
        "acc_contact_changed": pl.Series(rng.random(n) < sigmoid(-2.2 + 0.8 * rows.exposure)),
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
    unknown = rng.random(n) < sigmoid(-2.9 + 0.4 * rows.stress)
    return np.where(unknown, 5, code)


def _transactions(rng: np.random.Generator, rows: _Rows, limit: _Floats) -> _Columns:
    n, stress, intent, strain = rows.account.size, rows.stress, rows.intent, rows.strain
    count = 1 + rng.poisson(np.exp(3.1 + 0.5 * rows.per_account(rng)))
    mean = np.exp(3.3 + 0.35 * _normal(rng, n) + 0.4 * (np.log(limit) - 8.2))
    foreign = sigmoid(-2.6 + 1.0 * intent + 0.8 * _normal(rng, n))
    gambling = sigmoid(-3.5 + 0.6 * stress + 0.8 * _normal(rng, n))
    low_balance = rng.binomial(30, sigmoid(-1.6 + 0.9 * strain + 0.6 * _normal(rng, n)))
    return {
        "txn_count": pl.Series(count.astype(np.int16)),
        "txn_amount_sum": _money(count * mean),
        "txn_amount_mean": _money(mean),
        "txn_amount_max": _money(mean * np.exp(0.8 + 0.5 * np.abs(_normal(rng, n)))),
        "txn_velocity_ratio": _round(np.exp(0.4 * intent + 0.35 * _normal(rng, n))),
        "txn_night_share": _round(sigmoid(-2.0 + 0.8 * intent + 0.6 * _normal(rng, n))),
        "txn_foreign_share": _round(np.where(rng.random(n) < 0.4, 0, foreign)),
        "txn_online_share": _round(sigmoid(-0.4 + 0.8 * _normal(rng, n) + 0.6 * rows.drift)),
        "txn_cash_share": _round(sigmoid(-1.7 + 0.8 * strain + 0.6 * _normal(rng, n))),
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
            rng.random(n) < sigmoid(-1.2 + 0.5 * stress),  # no salary came in
        ),
    }


def _merchants(rng: np.random.Generator, rows: _Rows) -> _Columns:
    n, accounts = rows.account.size, rows.first_month.size
    weight = np.cumsum(1 / np.arange(3, EARLY_MERCHANTS + 3))
    favourite, other = (
        np.searchsorted(weight, rng.random(size) * weight[-1]) for size in (accounts, n)
    )
    rank = np.where(rng.random(n) < 0.6, favourite[rows.account], other)
    late, newcomer = _newcomer(rng, rows.month, _LATE_MERCHANTS, 0.15)
    # The factor is coprime with the count: names must not give away how popular a merchant is.
    code = np.where(late, EARLY_MERCHANTS + newcomer, rank * 1237 % EARLY_MERCHANTS)
    merchants = EARLY_MERCHANTS + _LATE_MERCHANTS
    name = "M" + pl.Series(np.arange(merchants)).cast(pl.String).str.zfill(4)
    return {
        "txn_main_merchant": name.gather(code),
        "txn_main_category": _pick(_CATEGORIES, code % len(_CATEGORIES)),
    }


def _newcomer(
    rng: np.random.Generator, month: _Codes, count: int, share: float
) -> tuple[NDArray[np.bool_], _Codes]:
    """Draw who meets one of ``count`` newcomers, which open one after another over the months."""
    elapsed = np.minimum(month, DRIFT_MONTHS) / DRIFT_MONTHS
    opened = (count * elapsed).astype(np.int64)
    late = (rng.random(month.size) < share * elapsed) & (opened > 0)
    return late, (rng.random(month.size) * opened).astype(np.int64)


def _device_model(rng: np.random.Generator, month: _Codes) -> _Codes:
    late, newcomer = _newcomer(rng, month, _LATE_MODELS, 0.3)
    usual = (rng.random(month.size) ** 1.7 * _EARLY_MODELS).astype(np.int64)
    return np.where(late, _EARLY_MODELS + newcomer, usual)


def _devices(rng: np.random.Generator, rows: _Rows) -> pl.DataFrame:
    n, intent, exposure = rows.account.size, rows.intent, rows.exposure
    new = rng.random(n) < sigmoid(-2.2 + 0.9 * exposure)
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
            "dev_emulator": pl.Series(rng.random(n) < sigmoid(-4.5 + 0.9 * intent)),
            "dev_new_device": pl.Series(new),
            "dev_vpn": pl.Series(rng.random(n) < sigmoid(-2 + 0.3 * exposure + 0.6 * rows.drift)),
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
        rng.random(n) < sigmoid(0.45 + 0.6 * rows.per_account(rng) + 0.4 * rows.drift),
    )
    recorded = frame.with_columns(
        pl.when(login).then(cs.string()).otherwise(pl.lit("none")),
        pl.when(login).then(~cs.string()),
    )
    return recorded.insert_column(0, login)


# --- How a drawn value is recorded ----------------------------------------------------------------


def _normal(rng: np.random.Generator, n: int) -> _Floats:
    return rng.standard_normal(n, dtype=np.float32)


def sigmoid(x: NDArray[_Float]) -> NDArray[_Float]:
    """Probabilities of log-odds, in the precision given."""
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
    return _pick(names, (sigmoid(1.7 * latent) * 0.9999 * len(names)).astype(np.int64))


def _withheld(values: pl.Series, missing: NDArray[np.bool_]) -> pl.Series:
    return values.set(pl.Series(missing), None)
