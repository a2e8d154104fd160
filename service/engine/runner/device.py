"""Errors of an accelerator that no later call on it survives."""

from __future__ import annotations

import torch


def is_lost(error: BaseException) -> bool:
    """Whether an error of CUDA has ended its context, so that this process can use the device no more.

    An illegal address or a failed assertion in a kernel comes back from every later call; a refused launch or full
    memory does not. So the device is asked once more.
    """
    if not isinstance(error, torch.AcceleratorError) and "CUDA error" not in str(error):
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False
