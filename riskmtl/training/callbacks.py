"""Lightning callbacks: the best weights, each epoch's score, one bar over the whole of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor
from tqdm.auto import tqdm

from riskmtl.training.module import MultiTaskModule


class BestWeights(pl.Callback):
    """
    Keep the weights of the epoch with the best validation score, in memory and in checkpoints.

    Attributes
    ----------
    epoch : int
        The best epoch so far, from 0; -1 before the first.
    score : float
    weights : dict of str to Tensor
        The network's state in that epoch, on the CPU.
    """

    def __init__(self) -> None:
        self.epoch = -1
        self.score = -float("inf")
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights if this epoch is the best so far."""
        assert isinstance(pl_module, MultiTaskModule)
        score = float(trainer.callback_metrics["val_score"])
        if score > self.score:
            self.score, self.epoch = score, trainer.current_epoch
            state = pl_module.network.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"epoch": self.epoch, "score": self.score, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.epoch, self.score = state_dict["epoch"], state_dict["score"]
        self.weights = state_dict["weights"]


class Patience(EarlyStopping):
    """
    Stop where the validation score gets no better, and stay so when taken up from a checkpoint.

    Parameters
    ----------
    epochs : int
        Without a better score.
    """

    def __init__(self, epochs: int) -> None:
        # Not strict: that no epoch was validated is said at the end, and why.
        super().__init__("val_score", mode="max", patience=epochs, strict=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's own would train an epoch more each time that a finished run is taken up."""
        super().on_train_start(trainer, pl_module)
        if self.stopped_epoch:
            trainer.should_stop = True


class KeptHistory(pl.Callback):
    """Keep the module's history in checkpoints, so that a resumed run tells the whole story."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the history."""
        assert isinstance(pl_module, MultiTaskModule)
        checkpoint["riskmtl_history"] = list(pl_module.history)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the history."""
        assert isinstance(pl_module, MultiTaskModule)
        pl_module.history = list(checkpoint["riskmtl_history"])


class EpochReport(pl.Callback):
    """
    Hand on each epoch's validation score, to whoever may want to stop the training.

    Parameters
    ----------
    report : callable
        Called with the epoch, from 0, and its score; what it raises ends the training.
    """

    def __init__(self, report: Callable[[int, float], None]) -> None:
        self.report = report

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the epoch's score."""
        self.report(trainer.current_epoch, float(trainer.callback_metrics["val_score"]))


class FitProgress(pl.Callback):
    """
    One progress bar over all epochs, with the time left and the validation score.

    Parameters
    ----------
    description : str
    every : int
        Batches between two updates.
    """

    def __init__(self, description: str, *, every: int = 20) -> None:
        self.description = description
        self.every = every
        self._bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            desc=self.description,
            unit="batch",
            dynamic_ncols=True,
            disable=not trainer.is_global_zero,
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Move the bar now and then."""
        if trainer.global_step % self.every == 0:
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch's score."""
        if self._bar is not None:
            score = float(trainer.callback_metrics["val_score"])
            self._bar.set_postfix(epoch=trainer.current_epoch + 1, score=f"{score:.4f}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._bar.update(trainer.global_step - self._bar.n)
        self._bar.close()
        self._bar = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
