"""Started by test_same_run.py with 1, 2 and 4 processes: the first step of one global batch, with BatchNorm in eval."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from data_shards.shards.stream import ShardSet, Stream
from pretrain.__main__ import read_command_line
from pretrain.data.multicrop_loader import view_batches
from pretrain.method.step_rates import rates_at
from pretrain.method.trainer import Trainer, step_seed

shards, out, *more = sys.argv[1:]
config, _ = read_command_line(["--recipe", "smoke", "--data.shards", shards, *more])
config = replace(config, precision="fp32", data=replace(config.data, workers=0))
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
stream = Stream([ShardSet(Path(shards))], None, config.seed, config.data.shard_group)
trainer = Trainer(config, accelerator, stream)
trainer.trained = accelerator.prepare(trainer.student)
for network in (trainer.trained, trainer.student, trainer.teacher):
    network.eval()
ranks = accelerator.process_index, accelerator.num_processes
batch = next(view_batches(config, stream, 0, 1, *ranks))
trainer._note_samples(batch.samples)
torch.manual_seed(step_seed(config.seed, 0, ranks[0]))
result = trainer.train_step(batch.views, rates_at(config, 0, trainer.total))
loss, koleo, gradient = result["measured"][:3].tolist()
if accelerator.is_main_process:
    found = {
        "loss": loss,
        "koleo": koleo,
        "gradient": gradient,
        "center": trainer.center.tolist(),
        "samples": trainer.samples.tolist(),
    }
    Path(out).write_text(json.dumps(found))
accelerator.wait_for_everyone()  # all is gathered and written
os._exit(0)  # DDP's gloo threads, left to the interpreter's end, abort some runs (3 of 7)
