"""How a network is trained, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Where and how a run is watched does not change what comes of it.
_ASIDE = ("device", "compile", "checkpoint_dir", "trainer_options", "callbacks", "logger",
          "progress")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """
    How a network is trained.

    Parameters
    ----------
    epochs : int
        Most epochs; the schedule is laid out over all of them.
    patience : int
        Epochs without a better validation score after which training stops.
    batch_size : int
        Rows of a step, over all processes.
    learning_rate : float
        Peak of the one-cycle schedule.
    weight_decay, embedding_decay : float
        Of the matrices of trunk and towers; of the embedding's.
    clip : float
        Largest norm of the gradient.
    balancing : str
        How the tasks' losses become one; a name in :data:`riskmtl.training.balancing.BALANCING`.
    balancing_options : dict
        Keyword arguments of the balancing.
    penalties : dict of str to float
        Factor on each penalty; see :mod:`riskmtl.training.penalties`.
    schedule : {"joint", "round_robin", "by_size", "by_uncertainty"}
        Whether a step trains all tasks, or one of them, and which.
    freeze_shared_after : int, optional
        Epochs after which only what belongs to a single task learns.
    label_smoothing : float
        Share of each label that is replaced by the task's base rate.
    mixup : float
        Both parameters of the Beta distribution that mixes pairs of rows; 0: none are mixed.
    selection : {"entire_space", "inverse_propensity"}
        What is done about tasks that another one selects the rows of.
    propensity_floor : float
        Least probability of selection that a row is weighted by.
    monitor : {"log_loss_skill", "average_precision", "roc_auc"}
        What chooses the best epoch.
    device : {"auto", "cpu", "cuda"}
    precision : {"auto", "32", "bf16"}
        ``"bf16"``: automatic mixed precision; see :func:`resolve_precision`.
    compile : bool
        Whether to compile the network.
    seed : int
    checkpoint_dir : str or Path, optional
        Folder for the last checkpoint; a run that finds its own there goes on from it.
    trainer_options : dict
        Passed on to :class:`pytorch_lightning.Trainer`, over the settings made here. With
        ``strategy="ddp"`` several processes train one network; see
        :mod:`riskmtl.training.processes`.
    callbacks : sequence of pytorch_lightning.Callback
    logger : pytorch_lightning logger, optional
    progress : bool
        Whether to show a progress bar.
    """

    epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    embedding_decay: float = 0.0
    clip: float = 1.0
    balancing: str = "sum"
    balancing_options: dict[str, Any] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)
    schedule: str = "joint"
    freeze_shared_after: int | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    selection: str = "entire_space"
    propensity_floor: float = 0.1
    monitor: str = "log_loss_skill"
    device: str = "auto"
    precision: str = "32"
    compile: bool = False
    seed: int = 0
    checkpoint_dir: str | Path | None = None
    trainer_options: dict[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Any] = ()
    logger: Any = None
    progress: bool = False

    def essence(self) -> dict[str, Any]:
        """What decides the outcome of a training, for runs to be told apart."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in _ASIDE}
