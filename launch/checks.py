"""What a long run needs of its machines, tried in seconds: each check is one row with advice where it fails."""

import contextlib
import errno
import importlib.metadata
import os
import platform
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

LIBRARIES = ("torch", "timm", "accelerate", "numpy", "albumentations", "opencv-python-headless")
REPEATS = 5


class Row(NamedTuple):
    """One line of the table; `advice` is empty where all is well."""

    check: str
    found: str
    advice: str = ""


def gathered(value: Any) -> list[Any]:
    """`value` of every process, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def versions() -> dict[str, str]:
    """What must agree between nodes."""
    found = {"python": platform.python_version(), "CUDA": str(torch.version.cuda)}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def versions_row(of_ranks: Sequence[dict[str, str]]) -> Row:
    """Versions of all ranks compared."""
    differing = [
        f"{name} {', '.join(sorted({v.get(name, 'missing') for v in of_ranks}))}"
        for name in {name: None for v in of_ranks for name in v}
        if len({v.get(name) for v in of_ranks}) > 1
    ]
    if differing:
        return Row(
            "versions", "; ".join(differing), "install the same versions on every node (one lock file, or image)"
        )
    return Row("versions", f"torch {of_ranks[0]['torch']} and all others alike on {len(of_ranks)} process(es)")


def devices_row(device: torch.device, local_processes: int) -> Row:
    """The devices of the processes, and whether some lie idle."""
    places = gathered((platform.node(), str(device), len(os.sched_getaffinity(0))))
    nodes = sorted({node for node, _, _ in places})
    backend = dist.get_backend() if dist.is_initialized() else "none needed"
    cores = min(cores for _, _, cores in places)
    found = f"{len(places)} x {device.type} on {len(nodes)} node(s), {cores} cores each, backend {backend}"
    idle = torch.cuda.device_count() - local_processes if torch.cuda.is_available() else 0
    if idle > 0:
        return Row("devices", found, f"{idle} GPU(s) of this node lie idle: raise --num_processes")
    if device.type != "cuda" and torch.cuda.is_available():
        return Row("devices", found, "there are GPUs, but the run is on the CPU: unset ACCELERATE_USE_CPU, drop --cpu")
    return Row("devices", found)


def all_reduce_seconds(numbers: int, device: torch.device) -> float:
    """Seconds to sum so many float32 over all processes, the slowest one's median of a few; 0 for one process."""
    if not dist.is_initialized():
        return 0.0
    gradient = torch.ones(numbers, device=device)
    taken = []
    for _ in range(REPEATS + 1):  # the first opens the connections
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradient)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return max(gathered(sorted(taken[1:])[REPEATS // 2]))


def network_row(seconds: float, numbers: int, step_seconds: float) -> Row:
    """The time of an all-reduce of the gradients beside a step."""
    if not seconds:
        return Row("network", "one process, nothing to send")
    megabytes = numbers * 4 / 1e6
    found = f"{megabytes:.0f} MB of gradients summed in {seconds * 1e3:.0f} ms ({megabytes / 1e3 / seconds:.2f} GB/s)"
    if seconds > step_seconds / 2:  # it overlaps with the backward pass, which is some two thirds of a step
        return Row(
            "network", found, "more than half a step: use the fast interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)"
        )
    return Row("network", found)


def storage_row(folder: Path, rank: int) -> Row:
    """Whether what one process writes and syncs in `folder` is what all others read, at once."""
    token = gathered(uuid.uuid4().hex)[0]
    mine = folder / f"rank-{rank}"
    trouble, remedy = "", ""
    try:
        with mine.open("w") as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        pass  # the main process made it, so this one sees another disk
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        trouble, remedy = str(error.strerror), "make room there" if full else "check its rights"
    troubles = gathered((trouble, remedy))  # all have written
    seen = [
        (folder / f"rank-{other}").exists() and (folder / f"rank-{other}").read_text() == token
        for other in range(len(troubles))
    ]
    blind = [r for r, ok in enumerate(gathered(all(seen))) if not ok]
    if said := {trouble: remedy for trouble, remedy in troubles if trouble}:
        return Row("shared storage", f"cannot write beside OUT: {'; '.join(said)}", "; ".join({*said.values()}))
    if blind:
        named = f"rank {blind[0]} does" if len(blind) == 1 else f"ranks {', '.join(map(str, blind))} do"
        return Row("shared storage", f"{named} not see what others write", "put OUT where every node sees it")
    return Row("shared storage", f"written, synced and read back by {len(troubles)} process(es)")


def disk_row(free: int, needed: int) -> Row:
    """Free bytes where OUT will be, beside those that the run keeps."""
    found = f"{free / 1e9:.3g} GB free, the run keeps {needed / 1e9:.2g} GB"
    return Row("disk", found, "make room, lower --keep, or raise --milestone_every" if free < 1.2 * needed else "")


def data_row(crops: int, alone: float, eaten: float, waited: float) -> Row:
    """Crops a second that the readers give, beside what the model eats; `waited` is the share of the trial's time."""
    rates = f"readers alone {alone:.0f} crops/s, the model eats {eaten:.0f}"
    found = f"{crops} crops; {rates}, waiting {waited:.0%} of the time"
    if waited > 0.1 or alone < 1.2 * eaten:
        return Row("data", found, "raise --data.workers, or bring the shards nearer (local disk)")
    return Row("data", found)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, each failing one with its advice below it."""
    wide = max(len(row.check) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"  {'FAIL' if row.advice else 'ok  '}  {row.check:<{wide}}  {row.found}")
        if row.advice:
            lines.append(f"  {'':<6}{'':<{wide}}  -> {row.advice}")
    return "\n".join(lines)
