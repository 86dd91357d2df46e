"""lightly-train's DINO on a folder of crops, beside which `step.py` and `quality.py` put a run of ours.

lightly-train is AGPL, so it has an environment and a process of its own: this file as a script, run by the interpreter
of `augment_peer.peer_python`. Backbone, its first weights, sizes and number of views, batch and steps are ours; the
rest (optimiser, temperatures, head, schedules, augmentations) are its defaults for a set of this size.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class PeerRun:
    """One run of lightly-train: what its process is given, as JSON."""

    crops: str
    """Folder of PNG files."""
    out: str
    """Gets teacher.pt (state dict of our Backbone), steps.json and a run's state.json."""
    backbone: str
    global_size: tuple[int, int]
    local_size: tuple[int, int]
    local_count: int
    batch_size: int
    steps: int
    seed: int
    threads: int
    precision: str = "32-true"
    optimizer: str = "auto"  # SGD for DINO in 0.18
    frozen_share: float | None = None
    """Share of the steps in which its last layer does not learn; left out, 1,250 steps in 0.18, in short runs all."""
    workers: int = 1

    def command(self, python: Path) -> list[str]:
        return [str(python), "-I", str(Path(__file__).resolve()), json.dumps(asdict(self))]


def export_crops(shards: str, folder: Path) -> int:
    """Write the crops of a shard folder as PNG files of 8 bits; returns their number. What is there is kept."""
    import cv2
    import numpy as np
    from tqdm import tqdm

    from data_shards.shards.shard_set import ShardSet

    crops = ShardSet(shards)
    folder.mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(len(crops)), desc="crops for lightly-train", unit="crop", disable=None):
        if not (path := folder / f"{i:06d}.png").exists():
            image = crops.image(i)
            cv2.imwrite(str(path), image if image.dtype == np.uint8 else (image // 257).astype(np.uint8))
    return len(crops)


def serve(run: PeerRun) -> None:
    """Train; runs in the environment of lightly-train only."""
    os.environ |= {"OMP_NUM_THREADS": str(run.threads), "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    sys.path.insert(0, str(ROOT))
    import lightly_train
    import torch
    from lightly_train._methods import method_helpers

    from pretrain.models.backbones import Backbone, build_backbone
    from pretrain.runs.run_folder import RunFolder

    torch.set_num_threads(run.threads)
    folder = RunFolder(run.out)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.lock()

    class Wrapped(torch.nn.Module):
        """What lightly-train asks of a model that is not its own. Its loader makes three equal channels of a gray."""

        def __init__(self, backbone: Backbone) -> None:
            super().__init__()
            self.backbone = backbone

        def get_model(self) -> Backbone:
            return self.backbone

        def feature_dim(self) -> int:
            return self.backbone.num_features

        def forward_features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": self.backbone.feature_map(x[:, :1])}

        def forward_pool(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"pooled_features": x["features"].mean((2, 3), keepdim=True)}

    class DINO(method_helpers.DINO):
        """Notes the seconds from the end of a step to the end of the next, and those of them that it waited for data.

        A callback will not do: lightly-train logs its arguments as JSON.
        """

        ended, steps, waits = time.perf_counter(), [], []

        def on_train_batch_start(self, *arguments: Any) -> None:
            self.waits.append(time.perf_counter() - DINO.ended)
            super().on_train_batch_start(*arguments)

        def on_train_batch_end(self, *arguments: Any) -> None:
            super().on_train_batch_end(*arguments)
            now = time.perf_counter()
            self.steps.append(now - DINO.ended)
            DINO.ended = now

    torch.manual_seed(run.seed)
    wrapped = Wrapped(build_backbone(run.backbone))
    method_helpers.DINO = DINO
    per_epoch = len(list(Path(run.crops).glob("*.png"))) // run.batch_size
    lightly_train.pretrain(
        out=Path(run.out) / "lightly",
        data=run.crops,
        model=wrapped,
        method="dino",
        epochs=-(-run.steps // per_epoch),
        batch_size=run.batch_size,
        num_workers=run.workers,
        precision=run.precision,
        seed=run.seed,
        optim=run.optimizer,
        overwrite=True,
        method_args={"student_freeze_last_layer_steps": round(run.frozen_share * run.steps)}
        if run.frozen_share
        else None,
        transform_args={
            "image_size": run.global_size,
            "local_view": {"num_views": run.local_count, "view_size": run.local_size},
            "normalize": {"mean": (0.5,) * 3, "std": (0.25,) * 3},
        },
        callbacks={"model_checkpoint": None},  # it pickles the model, which a class in a function forbids
        trainer_args={"max_steps": run.steps, "enable_checkpointing": False},
    )
    torch.save(wrapped.backbone.state_dict(), Path(run.out) / "teacher.pt")
    measured: dict[str, Any] = {"seconds": DINO.steps, "waited": DINO.waits}
    if torch.cuda.is_available():
        measured["gpu_bytes"] = torch.cuda.max_memory_allocated()
    (Path(run.out) / "steps.json").write_text(json.dumps(measured))
    folder.write_state("finished", run.steps)


if __name__ == "__main__":
    serve(PeerRun(**json.loads(sys.argv[1])))
