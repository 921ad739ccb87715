"""
How the losses of the tasks become the one number that a step minimises.

================== =================================================== ===================
name               class                                               cost of a step
================== =================================================== ===================
``sum``            :class:`~riskmtl.training.weighing.Balancing`       1
``static``         :class:`~riskmtl.training.weighing.Static`          1
``uncertainty``    :class:`~riskmtl.training.weighing.Uncertainty`     about 1
``dwa``            ``weighing.DynamicWeightAverage``                   about 1
``random``         :class:`~riskmtl.training.weighing.RandomWeights`   about 1
``geometric_mean`` :class:`~riskmtl.training.weighing.GeometricMean`   about 1
``famo``           :class:`~riskmtl.training.weighing.FAMO`            a forward pass more
================== =================================================== ===================

All others, ``gradnorm`` among them, look at the gradient of each task; see
:mod:`riskmtl.training.conflict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch

from riskmtl.errors import unknown_name
from riskmtl.training import conflict, surgery, weighing
from riskmtl.training.config import TrainingConfig
from riskmtl.training.rows import TaskPlan
from riskmtl.training.weighing import Balancing

BALANCING: Mapping[str, type[Balancing]] = {
    "sum": Balancing,
    "static": weighing.Static,
    "uncertainty": weighing.Uncertainty,
    "dwa": weighing.DynamicWeightAverage,
    "random": weighing.RandomWeights,
    "geometric_mean": weighing.GeometricMean,
    "famo": weighing.FAMO,
    "gradnorm": conflict.GradNorm,
    "pcgrad": surgery.PCGrad,
    "gradvac": surgery.GradVac,
    "cagrad": surgery.CAGrad,
    "mgda": surgery.MGDA,
    "nash_mtl": conflict.NashMTL,
    "fairgrad": surgery.FairGrad,
    "aligned_mtl": surgery.AlignedMTL,
    "upgrad": surgery.UPGrad,
    "dual_proj": surgery.DualProj,
    "imtl_g": surgery.IMTLG,
}


def check_balancing(
    name: str,
    options: Mapping[str, Any],
    *,
    compiled: bool = False,
    multiplied: bool = False,
    alone: bool = False,
) -> None:
    """
    Refuse a balancing that is not known, and options that it does not take.

    Parameters
    ----------
    name : str
    options : mapping
        Keyword arguments of the balancing.
    compiled : bool
        Whether the network is to be compiled.
    multiplied : bool
        Whether probabilities of tasks are multiplied: a loss then reaches what another task owns.
    alone : bool
        Whether each step trains one task.

    Raises
    ------
    ValueError
        If there is no such balancing, no such option, an option has no possible value, or the
        balancing does not go with a compiled network, multiplied probabilities, or single tasks.
    ImportError
        If the balancing needs a package that is not installed.

    Examples
    --------
    >>> check_balancing("dwa", {"temprature": 1.0})
    Traceback (most recent call last):
    ValueError: balancing_options: unknown option of 'dwa' 'temprature': did you mean
    'temperature'? Valid: temperature
    """
    if name not in BALANCING:
        raise ValueError(unknown_name("balancing", name, BALANCING))
    valid = options_of(name)
    for option in options:
        if not valid:
            raise ValueError(f"balancing_options: balancing={name!r} takes none, got {option!r}")
        if option not in valid:
            message = unknown_name(f"option of {name!r}", option, valid)
            raise ValueError(f"balancing_options: {message}")
    # What else can be wrong is known where it is made.
    made = BALANCING[name](torch.ones(2), **options)
    if multiplied and isinstance(made, conflict.GradientWeighing) and not made.is_exact:
        raise ValueError(
            "balancing_options: in the entire space a loss reaches what another task owns, and "
            "only at='parameters' with every=1 keeps its gradient; use these, or "
            "selection='inverse_propensity'"
        )
    if compiled:
        _require_compiling(name)
    if alone and made.compares:
        fit = [known for known, other in BALANCING.items() if not other.compares]
        raise ValueError(
            f"balancing={name!r} weighs the tasks of one step by each other, of which there is "
            f"one alone: use schedule='joint', or one of {', '.join(fit)}"
        )


def options_of(name: str) -> list[str]:
    """
    The options that a balancing takes.

    Parameters
    ----------
    name : str

    Returns
    -------
    list of str

    Examples
    --------
    >>> options_of("cagrad"), options_of("sum")
    (['c', 'at', 'every'], [])
    """
    parameters = signature(BALANCING[name]).parameters.values()
    return [found.name for found in parameters if found.kind is Parameter.KEYWORD_ONLY]


def make_balancing(config: TrainingConfig, plan: TaskPlan) -> Balancing:
    """
    Make the balancing that a training asks for.

    Parameters
    ----------
    config : TrainingConfig
    plan : TaskPlan

    Returns
    -------
    Balancing
        The plain sum where there is one task alone: there is nothing to weigh.
    """
    weights = torch.tensor(plan.weights)
    if len(plan.names) == 1:
        return Balancing(weights)
    made = BALANCING[config.balancing]
    if config.compile:
        _require_compiling(config.balancing)
    if made is weighing.Uncertainty:
        return weighing.Uncertainty(weights, torch.tensor(plan.regression))
    return made(weights, **config.balancing_options)


def _require_compiling(name: str) -> None:
    # Several passes backwards through one compiled graph can give wrong gradients without a word:
    # torch takes a graph from its cache on disk that was compiled for one pass, which reuses what
    # the second would need.
    if not BALANCING[name].compiles:
        raise ValueError(
            f"balancing={name!r} takes the gradient of each task by itself, which a compiled "
            "network does not allow; use compile=False"
        )
