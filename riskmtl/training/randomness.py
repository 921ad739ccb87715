"""Where torch's random numbers stand, to draw the same ones again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """
    Where torch's random numbers stand.

    Parameters
    ----------
    cpu, cuda : Tensor, optional
        States of the generators.
    device : torch.device, optional
        The CUDA device whose generator it is.

    Examples
    --------
    >>> before = RandomState.of(torch.device("cpu"))
    >>> drawn = torch.rand(3)
    >>> with before.again():
    ...     torch.equal(torch.rand(3), drawn)
    True
    """

    cpu: Tensor | None = None
    cuda: Tensor | None = None
    device: torch.device | None = None

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        """The state now, of all that computing on a device draws from."""
        if device.type != "cuda":
            return cls(torch.get_rng_state())
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device), device)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw from here once more; afterwards all goes on as if nothing had been drawn."""
        with torch.random.fork_rng(devices=[] if self.device is None else [self.device]):
            if self.cpu is not None:
                torch.set_rng_state(self.cpu)
            if self.cuda is not None and self.device is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
