"""On what an experiment ran: kinds of processor and accelerator, and nothing that says whose they are."""

from __future__ import annotations

import os
import pathlib
import platform
import re

import torch

__all__ = ["machine"]


def machine(device: str = "cpu") -> dict[str, str | int]:
    """Return the kind of processor, the cores and threads that this process may use, and the kind of accelerator.

    Examples
    --------
    >>> sorted(machine())
    ['cores', 'processor', 'threads']
    """
    listed = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", listed.read_text(), re.MULTILINE) if listed.is_file() else []
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    found: dict[str, str | int] = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found
