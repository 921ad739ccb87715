"""Several processes that train one network: which of Lightning's ways, and what they agree on."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor, distributed


def require_whole_networks(trainer: pl.Trainer) -> None:
    """
    Refuse a strategy after which the caller would not hold the trained network.

    Parameters
    ----------
    trainer : pytorch_lightning.Trainer

    Raises
    ------
    ValueError
        If the strategy trains in processes that end with `fit`, or splits a network over several.
    """
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return
    if not isinstance(strategy, DDPStrategy):
        raise ValueError(
            f"trainer_options: {type(strategy).__name__} splits a network over processes; "
            "use strategy='ddp', where each of them holds it whole"
        )
    if not isinstance(strategy.launcher, _SubprocessScriptLauncher):
        raise ValueError(
            "trainer_options: processes that are forked or spawned keep the trained network to "
            "themselves; use strategy='ddp' in a script, which then runs once per process"
        )


def mean_over_processes(value: Tensor) -> Tensor:
    """
    Mean of each number over the processes that train together.

    Parameters
    ----------
    value : Tensor
        Of the same shape in each of them.

    Returns
    -------
    Tensor
        The same in each of them.
    """
    # Lightning's own reduction waits at a barrier first, which a step cannot afford.
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class SameRun(pl.Callback):
    """
    Refuse to train together what was not begun alike.

    Processes that each draw a seed, or read another table, would take the gradients of different
    batches for shares of one.

    Parameters
    ----------
    run : callable
        Gives a text that is the same for the same settings, rows and checkpoint; called only where
        there are several processes.
    """

    def __init__(self, run: Callable[[], str]) -> None:
        self.run = run

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the first process; if one differs, all of them stop."""
        if trainer.world_size == 1:
            return
        run = self.run()
        is_same = run == trainer.strategy.broadcast(run)
        if not trainer.strategy.reduce_boolean_decision(is_same):
            raise ValueError(
                "the processes do not train the same: give each the same rows and settings, "
                "a whole number as random_state, and the same checkpoint_dir"
            )
