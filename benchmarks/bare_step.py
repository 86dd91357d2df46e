"""The bare step for `step.py`: the passes, AdamW and the moving average of a plain DINO loop, on ready tensors.

Torch alone, but for the layers of backbone and head: no data, no schedules, no metrics, no checks. This file as a
script is a process of its own: given a BareRun as JSON it prints its seconds as JSON.
"""

import copy
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pretrain.models.backbones import build_backbone
from pretrain.models.depthwise_conv import speed_up
from pretrain.models.projection_head import proj_head


@dataclass(frozen=True)
class BareRun:
    """What the process is given. `views` are (count, height, width) of the global and of the local ones, if any."""

    backbone: str
    prototypes: int
    views: list[tuple[int, int, int]]
    batch: int
    steps: int
    precision: str
    device: str
    threads: int

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(self))]


def measured(run: BareRun) -> list[float]:
    """Seconds of each step."""
    device = torch.device(run.device)
    torch.manual_seed(0)
    backbone = build_backbone(run.backbone)
    speed_up(backbone)  # in both, so that the ratio tells what a run adds
    student = nn.Sequential(backbone, proj_head(backbone.num_features, run.prototypes))
    student = student.to(device, memory_format=torch.channels_last).train()
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.04, fused=device.type != "mps")
    center = torch.zeros(run.prototypes, device=device)
    views = [torch.randn(count * run.batch, 1, *size, device=device) for count, *size in run.views]
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16")
    seconds = []
    for _ in range(run.steps):
        began = time.perf_counter()
        with torch.no_grad(), autocast:
            goals = teacher(views[0])
        with autocast:
            logits = torch.cat([student(batch) for batch in views])
        loss(logits, torch.softmax((goals - center) / 0.04, dim=-1), run.batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.004)
            center.lerp_(goals.mean(0), 0.1)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def loss(logits: Tensor, targets: Tensor, batch: int) -> Tensor:
    """DINO's cross-entropy of logits [V x B, K] with targets [T x B, K], the first T views' own left out."""
    predicted = torch.log_softmax(logits / 0.1, dim=-1).unflatten(0, (-1, batch))
    wanted = targets.unflatten(0, (-1, batch))
    of_pairs = -torch.einsum("tbk,vbk->tv", wanted, predicted) / batch
    others = 1 - torch.eye(*of_pairs.shape, device=logits.device)
    return (of_pairs * others).sum() / others.sum()


if __name__ == "__main__":
    task = BareRun(**json.loads(sys.argv[1]))
    torch.set_num_threads(task.threads)
    found: dict[str, object] = {"seconds": measured(task)}
    if task.device == "cuda":
        found["gpu_bytes"] = torch.cuda.max_memory_allocated()
    print(json.dumps(found))
