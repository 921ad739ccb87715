"""Where to compute."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """
    Turn the name of a device into a device.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda"}

    Returns
    -------
    torch.device
        With ``"auto"``: CUDA where there is one.

    Raises
    ------
    ValueError
        If CUDA is asked for and not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' was asked for, but torch sees no CUDA device")
    return torch.device(name)
