"""What a run computed with: versions, devices, threads. Nothing that names a person, a host or a folder."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "timm", "accelerate", "numpy", "opencv-python-headless", "albumentations", "scikit-learn")


def environment(device: torch.device, processes: int, threads: int, precision: str) -> dict[str, Any]:
    """The versions of all that computes, the device's model, and how many processes and threads used it."""
    return {
        "device": f"{processes} x {_model(device)}",
        "threads": threads,
        "precision": precision,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        **{package: found for package in PACKAGES if (found := _version(package))},
    }


def _model(device: torch.device) -> str:
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
        return f"{name} ({memory / 1e9:.0f} GB)"
    if device.type != "cpu":
        return device.type
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "cpu")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
