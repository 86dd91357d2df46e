"""Every schedule as a pure function of the step: nothing to save, nothing to drift on resume."""

import math


def ramp(step: int, warmup_steps: int, start: float, end: float) -> float:
    """Linear from `start` at step 0 to `end` at `warmup_steps`, constant afterwards."""
    if step >= warmup_steps:
        return end
    return start + (end - start) * step / warmup_steps


def cosine(step: int, total_steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at the last step (total_steps - 1) and beyond."""
    progress = min(step / max(total_steps - 1, 1), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine to `end` at the last step.

    The first step already moves: step 0 gives peak / warmup_steps.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(step - warmup_steps, total_steps - warmup_steps, peak, end)
