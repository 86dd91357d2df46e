"""Started twice by test_method.py: each rank's slice gives what the whole batch would, its gradients too."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
import torch
from accelerate import Accelerator
from test_step import BATCH, STEPS, Reference, configuration, drawn_views, trainer_of

from pretrain.config.schema import Config
from pretrain.method.losses import koleo_loss, sinkhorn_targets
from pretrain.method.step_rates import rates_at
from pretrain.method.trainer import MEASURED, Trainer

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.manual_seed(0)
logits, features, share = torch.rand(2, 12, 16) * 2 - 1, torch.randn(2, 12, 8).requires_grad_(), 6
mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
trainer = cast(Any, SimpleNamespace(config=Config(), accelerator=accelerator))
targets = Trainer.targets(trainer, logits[:, mine], 0.02)
torch.testing.assert_close(targets, sinkhorn_targets(logits, 0.02)[:, mine])
own = features.detach()[:, mine].requires_grad_()
koleo = Trainer.koleo(trainer, own, None, mine.start)
whole = koleo_loss(features, features.detach(), 0)
torch.testing.assert_close(accelerator.reduce(koleo.detach(), reduction="mean"), whole.detach())
torch.testing.assert_close(
    torch.autograd.grad(koleo, own)[0] / 2,
    torch.autograd.grad(whole, features)[0][:, mine],  # the mean of two ranks
)

# Whole steps against one float64 process with the whole batch. BatchNorm, which sees a rank's share, is held.
torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
for pieces in (1, 3):
    config = configuration("sinkhorn", pieces)
    with pytest.MonkeyPatch.context() as patch:
        trainer = trainer_of(config, patch)
    for network in (trainer.student, trainer.teacher):
        network.double().eval()
    trainer.center = trainer.center.double()
    reference = Reference(trainer.student, config)
    trainer.trained = accelerator.prepare(trainer.student)
    rng = np.random.default_rng(0)
    for number in range(4):
        views = drawn_views(rng)
        loss, koleo, norm = reference.step(number, views)
        shares = [v.unflatten(0, (-1, BATCH))[:, mine].flatten(0, 1) for v in views]
        measured = trainer.train_step(shares, rates_at(config, number, STEPS))["measured"].tolist()
        assert measured[:3] == pytest.approx([loss, koleo, norm], rel=1e-10)
        mean_entropy = scipy.stats.entropy(reference.of_all_views)  # of the global batch: not the mean of two ranks'
        assert measured[MEASURED.index("target_mean_entropy")] == pytest.approx(mean_entropy, rel=1e-10)
        for ours, theirs in zip(trainer.student.parameters(), reference.student.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        torch.testing.assert_close(trainer.center, reference.center, rtol=0, atol=1e-10)
print("equal", flush=True)
accelerator.end_training()  # a gloo group left to the interpreter's end sometimes aborts (SIGABRT, 3 of 25 busy runs)
