"""What a training did, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from riskmtl.diagnosis.course import SQUARED_ERROR, Course, Gating, gatings

CONFLICT = -0.05  # mean cosine below which two heads are said to pull against each other
UNEVEN = 5.0  # how many times as hard one head pulls as another before it is said
LOST = 0.001  # how far a head is behind its best epoch before it is said
SETTLED = 0.1  # entropy below which a gate is said to follow one expert


def findings(course: Course) -> list[str]:
    """
    Say what there is to be said, one sentence a finding.

    Parameters
    ----------
    course : Course

    Returns
    -------
    list of str
    """
    return [
        *_unseen(course),
        *_conflicts(course),
        *_seesaw(course),
        *_pulls(course),
        *_experts(course),
    ]


def _unseen(course: Course) -> list[str]:
    said = []
    untold = [*(name for group in course.untold for name in group), *course.elsewhere]
    if untold:
        said.append(
            f"Nothing is recorded of {_listed(untold)}: this is the training of "
            f"{_listed(course.tasks)}."
        )
    for task in course.tasks:
        if not np.isfinite(course.values(task, "gradient_norm")).any():
            said.append(f"{task} has no observed row in training: it learned nothing.")
        if not np.isfinite(course.behind(task)).any():
            said.append(f"{task} has no observed row in validation: how good it is, is not known.")
    return said


def _conflicts(course: Course) -> list[str]:
    pairs = sorted(course.pairs(), key=lambda pair: float(np.nanmean(pair[2])))
    if not pairs and (course.elsewhere or any(course.untold)):
        return []
    if not pairs:
        return ["No two heads share a network, so none can pull against another."]
    said = []
    for one, other, cosines in pairs:
        known = cosines[np.isfinite(cosines)]
        if known.mean() < CONFLICT:
            said.append(
                f"{one} and {other} pull against each other in {(known < 0).sum()} of "
                f"{_count(len(known), 'epoch')}: mean cosine {signed(known.mean(), 2)}."
            )
    if said:
        return said
    one, other, cosines = pairs[0]
    return [
        f"No conflict was found: the lowest mean cosine of two heads' gradients is "
        f"{signed(float(np.nanmean(cosines)), 2)}, of {one} and {other}."
    ]


def _seesaw(course: Course) -> list[str]:
    said = [
        f"No epoch was better for {_listed(group)} than the weights that training started "
        "from: these were kept."
        for group in course.groups
        if course.kept(group[0]) is None
    ]
    for task in course.tasks:
        behind, kept = course.behind(task), course.kept(task)
        if kept is None or not np.isfinite(behind).any():
            continue
        best, lost = int(np.nanargmin(behind)), float(behind[kept])
        if best == kept or not lost >= LOST:
            continue
        how = "it lost {} by then" if best < kept else "it would have gained {} more"
        said.append(
            f"{task}'s best epoch was {course.epochs[best]}, the kept one is "
            f"{course.epochs[kept]}: {how.format(f'{figure(lost)} of {_metric(course, task)}')}."
        )
    if not said and any(course.kept(task) is not None for task in course.tasks):
        return ["Every head is at its best in the kept epoch, or all but."]
    return said


def _pulls(course: Course) -> list[str]:
    said = []
    for group in course.groups:
        means = {task: _mean(course.pull(task)) for task in group}
        known = {task: mean for task, mean in means.items() if mean > 0}
        if len(known) < 2:
            continue
        most, least = max(known, key=known.__getitem__), min(known, key=known.__getitem__)
        ratio = known[most] / known[least]
        if ratio >= UNEVEN:
            said.append(
                f"{most} pulls at what is shared {ratio:.0f} times as hard as {least} (length of "
                "the gradient times the task's weight, mean over the epochs)."
            )
    return said


def _experts(course: Course) -> list[str]:
    found = gatings(course)
    if not found:
        return []
    several = len(found) > 1
    said = []
    for gating in found:
        place = f" of the network of {_listed(gating.tasks)}" if several else ""
        said += [
            f"Expert “{name}”{place} is dead: no gate gives it more than "
            f"{100 * most:.1f} % of its weight in the kept epoch."
            for name, most in zip(gating.experts, gating.most, strict=True)
            if name in gating.dead
        ]
        said += _settled(course, gating, place)
    if said or not all(gating.is_whole for gating in found):
        return said
    return ["No expert is dead."]


def _settled(course: Course, gating: Gating, place: str) -> list[str]:
    said = []
    for task, weights in zip(gating.tasks, gating.weights, strict=True):
        kept = course.kept(task)
        entropy = np.nan if kept is None else course.values(task, "gate_entropy")[kept]
        if entropy < SETTLED:
            first = int(np.nanargmax(weights))
            said.append(
                f"{task}'s gate hardly mixes (entropy {entropy:.2f} of 1): "
                f"{100 * weights[first]:.0f} % of its weight goes to “{gating.experts[first]}”"
                f"{place}."
            )
    return said


def _metric(course: Course, task: str) -> str:
    names = {
        "val_log_loss_skill": "skill",
        "val_roc_auc": "AUC",
        "val_average_precision": "average precision",
        "val_log_loss": "log-loss",
        SQUARED_ERROR: "squared error",
    }
    return names[course.metric(task)]


def _listed(names: Sequence[str]) -> str:
    """Such as "default, fraud and takeover"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def signed(value: float, digits: int) -> str:
    """A number with a true minus sign, and none before nought."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def figure(value: float) -> str:
    """A difference with as many digits as it takes to see it."""
    return f"{value:.3f}" if value >= 0.0005 else f"{value:.1g}"
