"""One pretraining run from the command line."""

import os
import re
import sys
from collections.abc import Sequence

import torch
from accelerate import PartialState

from augment import ViewError
from data_shards.errors import PackError, ShardError
from launch.cli import one_line
from pretrain.backbones import BackboneError
from pretrain.checkpoint import CheckpointError
from pretrain.command_line import read_command_line
from pretrain.config import ConfigError
from pretrain.evaluate import EvaluationError
from pretrain.run import Run

MISTAKES = (BackboneError, CheckpointError, ConfigError, EvaluationError, PackError, ShardError, ViewError)
PEER_LOST = re.compile(r"closed by peer|reset by peer|Broken pipe", re.IGNORECASE)  # as gloo words it


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run; a user's mistake is one line on standard error and exit 2."""
    config, resume = read_command_line(sys.argv[1:] if argv is None else argv)
    # Accelerate starts several CPU processes as one group only if it is told that there is no accelerator.
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)
    run = Run(config, resume, state)
    try:
        run.execute()
    except (*MISTAKES, OSError, RuntimeError) as error:
        message = one_line(error)
        if isinstance(error, RuntimeError):
            if not PEER_LOST.search(message):
                raise
            message = "another process of this run has ended; its own error says why"
        # Before training every process meets the same mistake, and the first one tells it.
        if state.is_main_process or run.training:
            print(f"error: {message}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)  # an orderly end would wait for processes that may be waiting for this one
    state.destroy_process_group()


if __name__ == "__main__":
    main()
