"""torch.compile of both networks' forward passes (`--optim.compile`), and what is said where it does not work.

Each network's whole pass is a graph, made anew for each crop size, for training and without gradients. Modules are
compiled in place: their keys stay, and a copy (an export, the k-NN while training) is an ordinary module.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pretrain.config.schema import ConfigError

REMEDY = "leave --optim.compile out"


def compile_passes(student: nn.Module, teacher: nn.Module, device: torch.device, checkpointing: bool) -> None:
    """Let both networks compile their passes at the first step. Raises ConfigError where nothing can be compiled."""
    _try_compiler(device)
    if checkpointing:  # DDP's cuts of a graph, by which gradients travel early, cannot cut through such blocks
        torch._dynamo.config.optimize_ddp = False
    for network in (student, teacher):
        network.compile(dynamic=False)


@contextmanager
def compiler_mistakes(backbone: str) -> Iterator[None]:
    """Make an error of the compiler, during a step, a ConfigError."""
    try:
        yield
    except Exception as error:
        # By the module of the class: torch's names of them are private, and to import them here takes seconds.
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        raise ConfigError(
            f"torch.compile cannot compile backbone '{backbone}' here ({_reason(error)}); {REMEDY}"
        ) from error


def _try_compiler(device: torch.device) -> None:
    """Compile next to nothing: no C++ compiler, no Triton and no headers of Python are told by all alike."""
    try:
        torch.compile(_next_to_nothing, dynamic=False)(torch.zeros(64, device=device))
    except Exception as error:
        raise ConfigError(
            f"torch.compile does not work here on {device.type} ({_reason(error)}): install what it names, or {REMEDY}"
        ) from error


def _next_to_nothing(x: Tensor) -> Tensor:
    return torch.cos(x) + 1


def _reason(error: BaseException) -> str:
    """The first paragraph, which names the cause; more follows for those who debug torch."""
    return " ".join(str(error).split("\n\n")[0].split())[:200] or type(error).__name__
