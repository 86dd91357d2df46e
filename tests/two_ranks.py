"""Started twice by test_method.py: each rank's slice gives what the whole batch would."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate import Accelerator

from pretrain.config import Config
from pretrain.loss import koleo_loss, sinkhorn_targets
from pretrain.trainer import Trainer

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.manual_seed(0)
logits, features, share = torch.rand(2, 12, 16) * 2 - 1, torch.randn(2, 12, 8), 6
mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
trainer = cast(Any, SimpleNamespace(config=Config(), accelerator=accelerator))
targets = Trainer.targets(trainer, logits[:, mine], 0.02)
torch.testing.assert_close(targets, sinkhorn_targets(logits, 0.02)[:, mine])
koleo = accelerator.reduce(Trainer.koleo(trainer, features[:, mine], None, mine.start), reduction="mean")
torch.testing.assert_close(koleo, koleo_loss(features, features, 0))
print("equal", flush=True)
accelerator.end_training()  # a gloo group left to the interpreter's end sometimes aborts (SIGABRT, 3 of 25 busy runs)
