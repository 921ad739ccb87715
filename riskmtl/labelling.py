"""Which labels to ask for, and which to doubt."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from riskmtl.base import MultiTaskEstimator
from riskmtl.errors import unknown_name
from riskmtl.model import RiskModel, sigmoid
from riskmtl.networks import Network
from riskmtl.scorers import NetworkScorer

# So many times as many rows as are asked for are looked at for how far apart they lie.
_CANDIDATES = 10
_LEAST_EVIDENCE = 20


class LabellingMixin(MultiTaskEstimator, ABC):
    """Methods of a fitted network that help whoever labels rows."""

    def suggest_labels(
        self, X: Any, n: int, *, head: str | None = None, diversity: bool = True
    ) -> pl.DataFrame:
        r"""
        Pick the rows whose labels would teach most.

        Parameters
        ----------
        X : table of shape (rows, columns)
            Rows to choose from, most often without labels.
        n : int
            How many to pick.
        head : str, optional
            A binary task; default: jointly for all, as one who looks at a row labels it for each.
        diversity : bool
            Whether to pick rows that lie apart from one another. Without it the highest scores are
            taken, which may be much alike.

        Returns
        -------
        polars.DataFrame
            A line per picked row, in the order picked: ``rank``; ``row``, its position in `X`;
            ``score``; ``uncertainty``; ``disagreement``, null where there is one member; and
            ``distance`` to the nearest row picked before, null for the first and without
            `diversity`.

        Raises
        ------
        ValueError
            If the head is unknown, or `n` is not a number from 1 to that of the rows.

        Notes
        -----
        The uncertainty of a head is the entropy of its probability over the entropy of its mean
        over `X`: 1 is as uncertain as before the model saw the row. So heads of any base rate
        count alike, and for rare events the highest scores are the most uncertain. Disagreement is
        the information that the label would give about which member is right,
        :math:`H(\bar p) - \overline{H(p_m)}`, over the same entropy (BALD, Houlsby et al. 2011).
        Jointly both are means over the heads. Each becomes the share of the rows that have less of
        it, and the score is their mean. Of the ten times `n` rows of the highest scores, the next
        picked is that with the largest product of score and distance to the nearest picked row, in
        the representation that the towers read (greedy k-centre, Sener and Savarese 2018, with
        weights).

        Examples
        --------
        >>> import polars as pl
        >>> from riskmtl import MultiTaskClassifier
        >>> X = pl.DataFrame({"amount": [1.0, 9.0, 5.0, 6.0] * 50})
        >>> y = pl.DataFrame({"fraud": [0, 1, 0, 1] * 50, "takeover": [0, 1, None, 0] * 50})
        >>> model = MultiTaskClassifier(network="mmoe", epochs=2, random_state=0).fit(X, y)
        >>> model.suggest_labels(X, 3, head="fraud").columns
        ['rank', 'row', 'score', 'uncertainty', 'disagreement', 'distance']
        """
        self._require_fitted()
        heads = self._heads_of(head)
        encoded = self._encode(X)
        if (
            isinstance(n, bool)
            or not isinstance(n, (int, np.integer))
            or not 1 <= n <= len(encoded)
        ):
            raise ValueError(f"n must be a whole number from 1 to {len(encoded)}, got {n!r}")
        uncertainty, disagreement = information(self.model_, encoded, heads)
        score = _shares_below(uncertainty)
        if disagreement is not None:
            score = (score + _shares_below(disagreement)) / 2
        best = np.argsort(-score, kind="stable")[: _CANDIDATES * n if diversity else n]
        distance = np.full(len(best), np.nan)
        picked = np.arange(len(best))
        if diversity:
            points = representation(self.model_, encoded[best], heads)
            picked, distance = apart(points, score[best], int(n))
        rows = best[picked]
        nothing = np.full(len(rows), np.nan)
        return pl.DataFrame(
            {
                "rank": np.arange(1, len(rows) + 1),
                "row": rows,
                "score": score[rows],
                "uncertainty": uncertainty[rows],
                "disagreement": nothing if disagreement is None else disagreement[rows],
                "distance": distance,
            }
        ).with_columns(pl.col("disagreement", "distance").fill_nan(None))

    def check_labels(
        self,
        X: Any,
        y: Any = None,
        *,
        head: str | None = None,
        cv: Any = None,
        others: bool = True,
    ) -> pl.DataFrame:
        r"""
        List labels that contradict the model, and the other heads' labels, most.

        Parameters
        ----------
        X : table of shape (rows, columns)
        y : labels, optional with a schema
            Null or NaN where not observed.
        head : str, optional
            A binary task; default: all.
        cv : splitter or int, optional
            Judge each label by a model that did not see it: the estimator is trained anew for each
            fold, such as 5. Wise for the rows of training, whose wrong labels a network may have
            learned by heart. Default: this model judges.
        others : bool
            Whether the observed labels of the other heads count as evidence.

        Returns
        -------
        polars.DataFrame
            A line per observed label, the most doubtful first: ``rank``; ``row`` in `X`; ``head``;
            ``label``, 0 or 1; ``probability`` of an event by the model; ``evidence``, what the
            other heads' labels add to its log-odds; ``contradiction``; and ``suspicious``, whether
            the label is more likely the other one, as rows of the other label go.

        Raises
        ------
        ValueError
            If the head is unknown, or no label is observed.

        Notes
        -----
        With :math:`p` the probability of the label that is given, the contradiction is
        :math:`t - p`, where :math:`t` is the mean of that probability over the rows with the same
        label; a label is suspicious if that is above 0 and the probability of the other one is at
        least the mean of that over the rows that have it (confident learning, Northcutt et al.
        2021). So an event of a rare kind is not doubted for being rare, and a model that tells no
        row from another doubts none. The other heads' evidence is
        :math:`\sum_j \beta_j (y_j - p_j)` over the heads that observe the row: how far their labels
        are above what the model expects of them. The :math:`\beta` are fitted by a logistic
        regression of the head's labels on its log-odds and these.

        Examples
        --------
        >>> import polars as pl
        >>> from riskmtl import MultiTaskClassifier
        >>> X = pl.DataFrame({"amount": [1.0, 9.0, 5.0, 6.0] * 50})
        >>> y = pl.DataFrame({"fraud": [0, 1, 0, 1] * 50, "takeover": [0, 1, None, 0] * 50})
        >>> model = MultiTaskClassifier(network="mmoe", epochs=2, random_state=0).fit(X, y)
        >>> found = model.check_labels(X, y, head="takeover")
        >>> found.height, found["label"].null_count()
        (150, 0)
        """
        self._require_fitted()
        heads = self._heads_of(head)
        labels = self.read_labels(X, y)
        if np.isnan(labels).all():
            raise ValueError("y has no observed label: there is nothing to check")
        probabilities = self._judged(X, y, cv)
        if len(probabilities) != len(labels):
            raise ValueError(f"X has {len(probabilities)} rows, y has {len(labels)}")
        frames = []
        for task in heads:
            position = self.tasks_.index(task)
            evidence = np.zeros(len(labels))
            if others:
                evidence = evidence_of_others(labels, probabilities, position)
            # A fold may leave rows untested.
            seen = ~np.isnan(labels[:, position]) & ~np.isnan(probabilities[:, position])
            rows = np.flatnonzero(seen)
            given, p = labels[rows, position], probabilities[rows, position]
            known = sigmoid(_log_odds(p) + evidence[rows])
            contradiction, suspicious = doubts(given, known)
            frames.append(
                pl.DataFrame(
                    {
                        "row": rows,
                        "head": [task] * len(rows),
                        "label": given.astype(np.int8),
                        "probability": p,
                        "evidence": evidence[rows],
                        "contradiction": contradiction,
                        "suspicious": suspicious,
                    },
                    schema_overrides={"head": pl.String},
                )
            )
        found = pl.concat(frames).sort("contradiction", descending=True, maintain_order=True)
        return found.with_row_index("rank", offset=1)

    def _heads_of(self, head: str | None) -> list[str]:
        if head is None:
            return list(self.tasks_)
        if head not in self.tasks_:
            raise ValueError(unknown_name("head", head, self.tasks_))
        return [head]

    def _judged(self, X: Any, y: Any, cv: Any) -> NDArray[np.float64]:
        """P(positive) of each binary task, by this model or by some that did not see the row."""
        if cv is None:
            return self.model_.probabilities(self._encode(X))
        from sklearn.model_selection import KFold

        from riskmtl.frames import as_frame
        from riskmtl.selection import out_of_fold

        if isinstance(cv, (int, np.integer)):
            if cv < 2:
                raise ValueError(f"cv must be at least 2 folds, got {cv!r}")
            cv = KFold(int(cv), shuffle=True, random_state=self._seed())
        if y is None:
            assert self.model_.schema is not None
            y = self.model_.schema.labels(as_frame(X))
        return out_of_fold(self, X, y, cv=cv)


# ---- what a label would teach --------------------------------------------------------------------


def information(
    model: RiskModel, encoded: NDArray[np.float32], tasks: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """
    How uncertain heads are of rows, and how far their members disagree, as shares of an entropy.

    Parameters
    ----------
    model : RiskModel
    encoded : ndarray of shape (rows, columns)
    tasks : sequence of str
        Binary tasks; the mean over them is taken.

    Returns
    -------
    uncertainty : ndarray of shape (rows,)
    disagreement : ndarray of shape (rows,), or None
        None where there is one member.
    """
    positions = [model.tasks.index(task) for task in tasks]
    p = model.probabilities(encoded)[:, positions]
    prior = np.maximum(entropy(p.mean(axis=0)), 1e-12)
    uncertainty = (entropy(p) / prior).mean(axis=1)
    members = _member_probabilities(model, encoded, tasks)
    if members is None:
        return uncertainty, None
    apart = entropy(members.mean(axis=0)) - entropy(members).mean(axis=0)
    return uncertainty, (np.maximum(apart, 0) / prior).mean(axis=1)


def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Entropy of a yes-or-no question, in nats.

    Parameters
    ----------
    p : ndarray

    Returns
    -------
    ndarray

    Examples
    --------
    >>> entropy(np.array([0.0, 0.5, 1.0])).round(4).tolist()
    [0.0, 0.6931, 0.0]
    """
    from scipy.special import entr

    return np.asarray(entr(p) + entr(1 - p), dtype=np.float64)


def _member_probabilities(
    model: RiskModel, encoded: NDArray[np.float32], tasks: Sequence[str]
) -> NDArray[np.float64] | None:
    """What each member says by itself, after calibration, ``(members, rows, tasks)``."""
    scorer = model.scorer
    assert isinstance(scorer, NetworkScorer)
    if scorer.shape.members == 1:
        return None
    names = [head.task for head in model.heads]
    chosen = [names.index(task) for task in tasks]
    parts = [_asked(scorer, network, encoded, _members) for network in scorer.networks]
    raw = np.concatenate(parts, axis=-1)[..., scorer.places]  # (rows, members, tasks)
    members = [sigmoid(model.finished(member)[:, chosen]) for member in raw.swapaxes(0, 1)]
    return np.stack(members)


def _members(network: Network, rows: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = network(rows, pooled=False)  # (members, batch, tasks)
    return found.transpose(0, 1)


def representation(
    model: RiskModel, encoded: NDArray[np.float32], tasks: Sequence[str]
) -> NDArray[np.float64]:
    """
    What the towers of some heads read, standardised, so that rows can be told near or far.

    Parameters
    ----------
    model : RiskModel
    encoded : ndarray of shape (rows, columns)
    tasks : sequence of str

    Returns
    -------
    ndarray of shape (rows, numbers)
        The mean over the members, heads side by side.
    """
    scorer = model.scorer
    assert isinstance(scorer, NetworkScorer)
    names = [head.task for head in model.heads]
    # (rows, tasks, out) of each network
    parts = [_asked(scorer, n, encoded, _read_by_towers) for n in scorer.networks]
    by_task = [part[:, task] for part in parts for task in range(part.shape[1])]
    order = scorer.places
    found = np.column_stack([by_task[order[names.index(task)]] for task in tasks])
    spread = found.std(axis=0)
    moving = spread > 1e-6 * max(float(spread.max(initial=0.0)), 1e-12)
    return np.asarray((found[:, moving] - found[:, moving].mean(axis=0)) / spread[moving])


def _read_by_towers(network: Network, rows: torch.Tensor) -> torch.Tensor:
    parts = network.first(network.embedding(rows))
    if network.linear is not None:
        parts = parts[:-1]
    found: torch.Tensor = network.trunk.rest(*parts)  # (tasks, members * batch, out)
    tasks, _, width = found.shape
    return found.view(tasks, network.towers.members, len(rows), width).mean(1).transpose(0, 1)


def _asked(
    scorer: NetworkScorer,
    network: Network,
    encoded: NDArray[np.float32],
    ask: Callable[[Network, torch.Tensor], torch.Tensor],
) -> NDArray[np.float64]:
    """What a network says of all rows, the first axis."""
    with torch.inference_mode():
        found = [ask(network, rows).double().cpu().numpy() for rows in scorer.batches(encoded)]
    return np.concatenate(found)


def apart(
    points: NDArray[np.float64], score: NDArray[np.float64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """
    Pick points of high score that lie apart, one after the other.

    Parameters
    ----------
    points : ndarray of shape (rows, numbers)
    score : ndarray of shape (rows,)
        Not negative.
    n : int
        At most as many as there are rows.

    Returns
    -------
    picked : ndarray of int, shape (n,)
    distance : ndarray of shape (n,)
        To the nearest point picked before; NaN for the first.

    Examples
    --------
    >>> apart(np.array([[0.0], [0.1], [5.0]]), np.array([1.0, 0.9, 0.5]), 2)[0].tolist()
    [0, 2]
    """
    picked = np.empty(n, dtype=np.int64)
    distance = np.full(n, np.nan)
    squared = (points**2).sum(axis=1)
    nearest = np.full(len(points), np.inf)
    is_left = np.ones(len(points), dtype=bool)
    picked[0] = int(np.argmax(score))
    for step in range(n):
        if step:
            # Where all that is left coincides with what is picked, the score decides.
            gain = np.where(is_left, score * (nearest + 1e-9), -1.0)
            picked[step] = int(np.argmax(gain))
            distance[step] = nearest[picked[step]]
        is_left[picked[step]] = False
        gap = squared + squared[picked[step]] - 2 * points @ points[picked[step]]
        nearest = np.minimum(nearest, np.sqrt(np.maximum(gap, 0)))
    return picked, distance


def _shares_below(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the rows that have less, from 0 to 1; equal rows share alike."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values) / len(values), dtype=np.float64)


# ---- which labels to doubt -----------------------------------------------------------------------


def doubts(
    labels: NDArray[np.float64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """
    How far each label is contradicted, as rows of its kind go, and whether it is suspicious.

    Parameters
    ----------
    labels : ndarray of shape (rows,)
        0 or 1.
    probabilities : ndarray of shape (rows,)
        Of 1.

    Returns
    -------
    contradiction : ndarray of shape (rows,)
    suspicious : ndarray of bool, shape (rows,)

    Examples
    --------
    >>> found = doubts(np.array([0, 0, 1, 1]), np.array([0.1, 0.9, 0.9, 0.7]))
    >>> found[0].round(2).tolist(), found[1].tolist()
    ([-0.4, 0.4, -0.1, 0.1], [False, True, False, False])
    """
    given = np.where(labels == 1, probabilities, 1 - probabilities)
    usual = np.array([given[labels == kind].mean() if (labels == kind).any() else np.inf
                      for kind in (0, 1)])  # fmt: skip
    own = labels.astype(np.int64)
    contradiction = usual[own] - given
    # Means of equal numbers differ from them by rounding.
    return contradiction, (contradiction > 1e-12) & (1 - given >= usual[1 - own])


def evidence_of_others(
    labels: NDArray[np.float64], probabilities: NDArray[np.float64], position: int
) -> NDArray[np.float64]:
    r"""
    What the labels of the other heads add to a head's log-odds.

    Parameters
    ----------
    labels : ndarray of shape (rows, heads)
        0, 1, or NaN for not observed.
    probabilities : ndarray of shape (rows, heads)
    position : int
        Of the head.

    Returns
    -------
    ndarray of shape (rows,)
        :math:`\sum_j \beta_j (y_j - p_j)` over the other heads that observe the row; 0 where none
        does, or the head has too few labels of either kind to learn it from.
    """
    from sklearn.linear_model import LogisticRegression

    surprise = np.nan_to_num(labels - probabilities)
    others = [j for j in range(labels.shape[1]) if j != position]
    y = labels[:, position]
    seen = ~np.isnan(y) & ~np.isnan(probabilities[:, position])
    events = int(y[seen].sum())
    if not others or min(events, int(seen.sum()) - events) < _LEAST_EVIDENCE:
        return np.zeros(len(labels))
    z = _log_odds(probabilities[seen, position])
    # Mild shrinkage: few rows may observe two heads at once.
    fit = LogisticRegression(C=1.0, max_iter=1000).fit(
        np.column_stack([z, surprise[seen][:, others]]), y[seen]
    )
    return np.asarray(surprise[:, others] @ fit.coef_[0, 1:], dtype=np.float64)


def _log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), dtype=np.float64)
