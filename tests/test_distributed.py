"""Training in several processes: what two real ones do together is what one does alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import two_processes
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor
from two_processes import FITTED, GRADIENT_CASES, NAIVE, TOGETHER

from riskmtl.training.batches import TensorBatches, epoch_seed
from riskmtl.training.loss import task_losses

Told = dict[str, Any]


def run_twice(how: list[str], what: str, out: Path) -> tuple[Told, Told]:
    """What the two processes say."""
    script = str(Path(two_processes.__file__))
    alone = {"LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}
    done = subprocess.run(
        [sys.executable, *how, script, what, str(out)],
        env={**{k: v for k, v in os.environ.items() if k not in alone}, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    # Neither warnings nor announcements.
    assert done.stdout == ""
    first, second = (torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2))
    return first, second


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Told]:
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run_twice(how, "torchrun", tmp_path_factory.mktemp("torchrun"))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Told]:
    return run_twice([], "script", tmp_path_factory.mktemp("script"))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference, in parts of the largest number."""
    assert one.keys() == other.keys()
    largest = max(value.abs().max().item() for value in other.values())
    return max((one[name] - other[name]).abs().max().item() for name in other) / largest


def same_bits(one: Told, other: Told) -> bool:
    names = one["weights"].keys()
    return (
        all(torch.equal(one["weights"][name], other["weights"][name]) for name in names)
        # As text, because NaN is not equal to itself.
        and str(one["history"]) == str(other["history"])
        and one["best_epoch"] == other["best_epoch"]
    )


def figures(told: Told) -> list[list[float]]:
    """All numbers of the history, those of experts among them; NaN where there is none."""
    return [
        [np.nan if x is None else float(x) for name in row if name != "task"
         for x in (row[name] if isinstance(row[name], list) else [row[name]])]
        for row in told["history"]
    ]  # fmt: skip


# ---- Gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradients_are_those_of_one_process(torchrun: tuple[Told, Told], case: str) -> None:
    alone = two_processes.first_step(*GRADIENT_CASES[case])
    for together in torchrun:
        assert distance(together[case]["whole"], alone["whole"]) < 1e-12
        assert distance(together[case]["clipped"], alone["clipped"]) < 1e-12
        # Of all rows, and none of the head that nobody observes.
        losses = pytest.approx(alone["losses"], rel=1e-12, nan_ok=True)
        assert together[case]["losses"] == losses
        assert np.isnan(together[case]["losses"][2])
    clipped, whole = (
        torch.stack(
            [g.norm() for key, g in alone[name].items() if key.startswith("network.")]
        ).norm()
        for name in ("clipped", "whole")
    )
    assert clipped < 0.06 < whole


def test_means_of_each_process_would_be_far_off(torchrun: tuple[Told, Told]) -> None:
    alone = two_processes.first_step("ple", 3, 1, "sum", {})
    assert distance(torchrun[0][NAIVE]["whole"], alone["whole"]) > 0.5
    assert distance(torchrun[0][NAIVE]["clipped"], alone["clipped"]) > 0.5


def test_the_shares_of_observed_labels_are_very_unequal() -> None:
    rows = two_processes.unequal_rows()
    seen = ~np.isnan(rows.y)
    default, fraud, takeover, _ = zip(
        *(seen[two_processes.share_of(process)].sum(0) for process in range(2)), strict=True
    )
    assert default[0] > 5 * default[1] > 0
    assert fraud[0] == 0 < fraud[1]
    assert takeover == (0, 0)


# ---- Whole trainings -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["whole", "row by row"])
def test_both_processes_end_with_the_same_network(torchrun: tuple[Told, Told], case: str) -> None:
    # Row by row one of them has nothing to do in any step.
    first, second = (told[case] for told in torchrun)
    assert same_bits(first, second)
    assert not any(torch.isnan(value).any() for value in first["weights"].values())


def test_a_stopped_training_goes_on_to_the_same_bits(torchrun: tuple[Told, Told]) -> None:
    for told in torchrun:
        assert same_bits(told["whole"], told["resumed"])


def test_processes_with_other_settings_do_not_train_together(torchrun: tuple[Told, Told]) -> None:
    for told in torchrun:
        assert "do not train the same: give each the same rows" in told["refused"]


@pytest.mark.parametrize("case", FITTED)
def test_a_fit_in_a_script_is_that_of_one_process(script: tuple[Told, Told], case: str) -> None:
    first, second = (told[case] for told in script)
    assert same_bits(first, second)
    assert np.array_equal(first["chances"], second["chances"])
    # Not to the bit: each share is added up by itself, and float32 sums depend on their order.
    alone = two_processes.fitted(case)
    assert np.abs(first["chances"] - alone["chances"]).max() < 1e-4
    assert np.ptp(alone["chances"][:, 0]) > 0.1
    for name, value in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(figures(first), figures(alone), rtol=1e-3, atol=1e-4)
    assert first["best_epoch"] == alone["best_epoch"]


# ---- Ways that are refused -----------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_processes_that_keep_the_network_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=r"keep the trained network .* use strategy='ddp'"):
        two_processes.fitted("ple", trainer_options={**TOGETHER, "strategy": strategy})


def test_a_network_in_pieces_is_refused() -> None:
    options = {**TOGETHER, "strategy": ModelParallelStrategy()}
    with pytest.raises(ValueError, match=r"ModelParallelStrategy splits .* use strategy='ddp'"):
        two_processes.fitted("ple", trainer_options=options)


# ---- Shares --------------------------------------------------------------------------------------


def shares(rows: int, size: int, processes: int) -> list[list[Tensor]]:
    """Of each process, the rows of its batches in the second epoch."""
    number = torch.arange(float(rows))[:, None]
    return [
        [
            x.flatten()
            for x, _, _ in TensorBatches(
                number,
                number,
                size=size,
                seed=3,
                epoch=lambda: 1,
                process=process,
                processes=processes,
            )
        ]
        for process in range(processes)
    ]


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 7, 30])
def test_shares_make_up_the_batches_of_one_process(processes: int, size: int) -> None:
    (alone,) = shares(23, size, 1)
    for batch, *parts in zip(alone, *shares(23, size, processes), strict=True):
        assert torch.equal(torch.cat(parts), batch)
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1


def test_losses_of_shares_have_the_mean_of_the_whole() -> None:
    torch.manual_seed(0)
    outputs, weights = torch.randn(50, 3), torch.rand(50)
    labels = (torch.rand(50, 3) < 0.5).float()
    labels[:20, 0], labels[10:, 1], labels[:, 2] = torch.nan, torch.nan, torch.nan
    parts = [slice(0, 30), slice(30, 50)]
    mean = (~torch.isnan(labels) * weights[:, None]).sum(0) / len(parts)
    found = [
        task_losses(outputs[part], labels[part], weights[part], over_processes=lambda _: mean)
        for part in parts
    ]
    torch.testing.assert_close(sum(found) / 2, task_losses(outputs, labels, weights))


def test_each_process_drops_out_by_itself() -> None:
    # The first as if it were alone; torch looks at the last 32 bits of a seed.
    assert epoch_seed(5, 2, 0) == epoch_seed(5, 2)
    assert len({epoch_seed(5, 2, process) % 2**32 for process in range(1000)}) == 1000
