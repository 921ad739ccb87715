"""Weights of gradients in conflict by the methods of TorchJD, on what `conflict` says of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from riskmtl.training.conflict import GradientWeighing
from riskmtl.training.weighing import count, not_negative, one_of, positive, share


class Surgery(GradientWeighing):
    """
    One of TorchJD's ways to weigh gradients by their inner products; base class.

    What is random or remembered begins anew with each epoch, and with each other set of tasks that
    a batch observes.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    options : dict, optional
        Keyword arguments of TorchJD's class.
    at, every
        As for :class:`GradientWeighing`.

    Raises
    ------
    ImportError
        If TorchJD or the solver that it needs is not installed.
    """

    weighting: ClassVar[str]  # a name in torchjd.aggregation

    # Methods of TorchJD give a mean, but for those that add up as the sum does.
    adds_up: ClassVar[bool] = False

    def __init__(
        self,
        task_weights: Tensor,
        options: dict[str, Any] | None = None,
        *,
        at: str = "parameters",
        every: int = 1,
    ) -> None:
        super().__init__(task_weights, at=at, every=every)
        self.options = options or {}
        self._seed = 0
        self._made: dict[tuple[int, ...], Callable[[Tensor], Tensor]] = {}
        # What is missing should be missed before anything is trained.
        self._of(range(len(task_weights)))

    def start_epoch(self, seed: int) -> None:
        """Begin an epoch, so that a resumed run repeats it."""
        super().start_epoch(seed)
        self._seed = seed
        self._made.clear()

    def solve(self, gramian: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:
        """What TorchJD finds, on the scale of the sum."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # What is drawn has to be the same in all processes, whose dropout differs. It is drawn
            # on the CPU: torch.manual_seed would begin the GPU's numbers anew too, the same ones.
            torch.default_generator.manual_seed(self._seed + self._step)
            # Solvers warn where they are not exact to the last digit.
            warnings.simplefilter("ignore")
            return self.scaled(self._of(tasks)(gramian))

    def make(self, aggregation: Any, tasks: int) -> Callable[[Tensor], Tensor]:
        """Make the weighting from the module :mod:`torchjd.aggregation`."""
        made: Callable[[Tensor], Tensor] = getattr(aggregation, self.weighting)(**self.options)
        return made

    def scaled(self, weights: Tensor) -> Tensor:
        """On the scale of the sum."""
        return weights if self.adds_up else weights * len(weights)

    def _of(self, tasks: Sequence[int]) -> Callable[[Tensor], Tensor]:
        key = tuple(tasks)
        if key not in self._made:
            try:
                from torchjd import aggregation

                self._made[key] = self.make(aggregation, len(key))
            except ImportError as error:
                raise ImportError(
                    f"balancing by {type(self).__name__} needs TorchJD with its solvers, an "
                    f"optional extra: pip install 'riskmtl[balancing]' ({error})"
                ) from error
        return self._made[key]


class PCGrad(Surgery):
    """
    Take from each gradient what pulls against another (Yu et al. 2020, algorithm 1).

    The others are gone through in random order.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "PCGradWeighting"
    adds_up = True


class GradVac(Surgery):
    """
    Bring each gradient as near to the others as it usually is (Wang et al. 2021).

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    beta : float
        Share of the latest cosine in what is usual.
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "GradVacWeighting"
    adds_up = True

    def __init__(
        self,
        task_weights: Tensor,
        *,
        beta: float = 0.5,
        at: str = "parameters",
        every: int = 1,
    ) -> None:
        super().__init__(task_weights, {"beta": share("beta", beta)}, at=at, every=every)


class CAGrad(Surgery):
    r"""
    Near the mean gradient, the direction that helps the worst-off task most (Liu et al. 2021).

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    c : float
        How far from the mean gradient, in parts of its length. The paper's sum grows by
        :math:`1 + c` where gradients agree; this factor is taken out.
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "CAGradWeighting"

    def __init__(
        self,
        task_weights: Tensor,
        *,
        c: float = 0.5,
        at: str = "parameters",
        every: int = 1,
    ) -> None:
        super().__init__(task_weights, {"c": not_negative("c", c)}, at=at, every=every)

    def scaled(self, weights: Tensor) -> Tensor:
        """From the scale of the mean, grown by c, to that of the sum."""
        return weights * (len(weights) / (1 + self.options["c"]))


class MGDA(Surgery):
    """
    The shortest convex combination of the gradients (Sener & Koltun 2018, algorithm 2).

    Of gradients that are the same one may have all the weight, which makes the same step.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    epsilon : float
        Length of a step of the Frank-Wolfe search at which it ends.
    max_iters : int
        Its most steps.
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "MGDAWeighting"

    def __init__(
        self,
        task_weights: Tensor,
        *,
        epsilon: float = 1e-3,
        max_iters: int = 100,
        at: str = "parameters",
        every: int = 1,
    ) -> None:
        options = {
            "epsilon": positive("epsilon", epsilon),
            "max_iters": count("max_iters", max_iters),
        }
        super().__init__(task_weights, options, at=at, every=every)


class FairGrad(Surgery):
    r"""
    Gains that are fair in another sense (Ban & Ji 2024, equation 4).

    The weights solve :math:`G w = w^{-1 / \alpha}`, and are then made to add up to the number of
    tasks.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    alpha : float
        1: proportional fairness, as Nash-MTL; the higher, the more the worst-off task counts.
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "FairGradWeighting"

    def __init__(
        self,
        task_weights: Tensor,
        *,
        alpha: float = 2.0,
        at: str = "parameters",
        every: int = 1,
    ) -> None:
        options = {"alpha": positive("alpha", alpha)}
        super().__init__(task_weights, options, at=at, every=every)

    def scaled(self, weights: Tensor) -> Tensor:
        """Add up to the number of tasks."""
        return weights * (len(weights) / weights.sum())


class AlignedMTL(Surgery):
    """
    Make the gradients orthogonal and equally long, then add them (Senushkin et al. 2023).

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    scale_mode : {"min", "median", "rmse"}
        Which singular value gives the length.
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "AlignedMTLWeighting"

    def __init__(
        self,
        task_weights: Tensor,
        *,
        scale_mode: str = "min",
        at: str = "parameters",
        every: int = 1,
    ) -> None:
        options = {"scale_mode": one_of("scale_mode", scale_mode, ("min", "median", "rmse"))}
        super().__init__(task_weights, options, at=at, every=every)


class UPGrad(Surgery):
    """
    Project each gradient to where no task is harmed, then add them (Quinton & Rey 2024).

    To first order the step raises no task's loss.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "UPGradWeighting"


class DualProj(Surgery):
    """
    Add the gradients, then project the sum to where no task is harmed (Lopez-Paz & Ranzato 2017).

    To first order the step raises no task's loss.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "DualProjWeighting"


class IMTLG(Surgery):
    """
    The direction whose projections on all gradients are equally long (Liu et al. 2021, IMTL-G).

    Its weights can be negative. Where those that add up to 1 project to less than nothing, so that
    a step would raise every loss, it is the opposite direction.

    Parameters
    ----------
    task_weights : Tensor of shape (tasks,)
    at, every
        As for :class:`GradientWeighing`.
    """

    weighting = "IMTLGWeighting"

    def solve(self, gramian: Tensor, losses: Tensor, tasks: Sequence[int]) -> Tensor:
        """What TorchJD finds, so that losses fall."""
        found = super().solve(gramian, losses, tasks)
        return found if (gramian @ found).sum() >= 0 else -found
