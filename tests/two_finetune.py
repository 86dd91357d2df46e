"""Called by test_finetune.py and started by it in two processes: what each step trains on and the loss it finds."""

import json
import sys
from pathlib import Path

import numpy as np

from downstream.config import FinetuneConfig
from downstream.data.crops import find_crops
from downstream.data.labelled_views import shuffled
from downstream.features.weights import load_weights
from downstream.tasks.classifier import plan, predict, train_classifier
from downstream.tasks.finetune import processes


def report(accelerator, shards, checkpoint):
    # Random weights' features hardly differ from crop to crop: standardized, they would magnify every rounding.
    options = {"batch_size": 8, "epochs": 1, "min_steps": 0, "workers": 0, "lr": (1e-3,)}
    options |= {"features": "pooled", "probe_first": False}
    config = FinetuneConfig(checkpoint=str(checkpoint), out="", shards=[str(shards)], label="finding", **options)
    weights = load_weights(config)
    crops = find_crops(config.shards, [config.label])
    codes = np.unique(crops.labels["finding"], return_inverse=True)[1]
    train, rest, none = np.arange(34), np.arange(34, 41), np.array([], int)
    batch = plan(len(train), config, accelerator.num_processes).batch
    trained = train_classifier(weights.model, weights, crops, codes, 2, train, none, config, accelerator)
    return {
        "rank": accelerator.process_index,
        "batches": [[i for _, i in draws] for draws in shuffled(train, 0, batch, config.seed, accelerator)],
        "losses": trained.losses,
        "weights": [float(tensor.double().sum()) for tensor in trained.model.state_dict().values()],
        "probabilities": predict(trained.model, weights, crops, rest, config, accelerator).tolist(),
    }


if __name__ == "__main__":
    out, shards, *checkpoints = sys.argv[1:]
    with processes() as accelerator:
        reports = [report(accelerator, shards, checkpoint) for checkpoint in checkpoints]
    # A file each: what two processes print into one pipe may mix.
    Path(out, f"report-{reports[0]['rank']}.json").write_text(json.dumps(reports))
