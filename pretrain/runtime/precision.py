"""Which arithmetic and how many CPU threads a process uses, and who decided it."""

import os
from typing import NamedTuple

import torch

from pretrain.config.schema import ConfigError


class Precision(NamedTuple):
    """`mixed` is Accelerate's name of it ("no" or "bf16"); `why` says who decided."""

    mixed: str
    why: str

    @property
    def name(self) -> str:
        """fp32 or bf16, as in the configuration."""
        return self.mixed.replace("no", "fp32")


def resolve_precision(setting: str, device: torch.device) -> Precision:
    """Decide between the launcher's value, the configuration's and the device's.

    The launcher always exports ACCELERATE_MIXED_PRECISION, `no` by default, so only another value counts as said.
    Raises ConfigError for fp16, whose loss scaling this method does not need and a resume could not repeat.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launcher not in ("no", "bf16"):
        raise ConfigError(f"the launcher asks for mixed precision {launcher}; use --mixed_precision bf16 or no")
    if launcher == "bf16":
        return Precision("bf16", "from the launcher")
    if setting != "auto":
        return Precision("bf16" if setting == "bf16" else "no", "from the configuration")
    return Precision("bf16", f"auto: {device.type} computes in it") if _has_bf16(device) else Precision("no", "auto")


def resolve_threads(setting: int | None, local_processes: int) -> int:
    """CPU threads for one of `local_processes` on this machine: as set, or its share of the cores it may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return setting or max(1, cores // local_processes)


def busy_note(threads: int) -> str:
    """What to know where others compute on this machine: threads that wait for one another are slow. "" elsewhere."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads == 1 or load < cores:
        return ""
    return f"note: this machine is busy (a load of {load:.0f} on {cores} cores); --threads 1 may then be much faster"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere; older cards emulate it
    if device.type == "cpu":
        # Without the instructions bf16 is emulated and several times slower. Private names, the only ones there are.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False
