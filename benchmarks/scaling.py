"""What more GPUs would bring, on paper: each figure of docs/scaling.md from a few measured inputs.

    python benchmarks/scaling.py --parameters 21.6e6 --rate 1000 --batch-per-gpu 64 --link 25

Formulas (docs/scaling.md explains them): a ring all-reduce of G bytes over N processes sends 2 (N - 1) / N G through
each link; it can hide behind the backward pass; what does not hide, and the step's small gathers and sums, add to it.
"""

import argparse
import math
from dataclasses import dataclass

OVERLAP = 0.5  # share of a step, at the end of the backward pass, behind which gradients can travel
FLOAT = 4  # bytes: gradients and gathered features are float32
LATENCY = 30e-6  # seconds for each hop, a usual figure for InfiniBand with NCCL; Ethernet is worse
GATHERS = 3  # of a step, around the ring: the samples' records, teacher logits, student features
REDUCES = 2  # small ones of a step, up and down a tree, as NCCL does: what was measured, and whether to stop


@dataclass(frozen=True)
class Inputs:
    """Measured on one GPU, or stated."""

    parameters: float
    rate: float  # crops a second on one GPU
    batch: int  # crops on each GPU
    link: float  # GB/s of a node's link, shared by its GPUs
    gpus_per_node: int
    crop_bytes: float  # as stored
    features: int  # C
    prototypes: int  # K


@dataclass(frozen=True)
class Row:
    """One number of GPUs."""

    gpus: int
    gradient_bytes: float  # that each process sends a step
    gather_bytes: float  # that each process receives a step: teacher logits and student features of all
    sent_seconds: float
    step_seconds: float
    efficiency: float
    crops: float  # a second, all together
    read_bytes: float  # a second, all together


def row(inputs: Inputs, gpus: int) -> Row:
    """The prediction for so many GPUs, each with its own batch (weak scaling)."""
    alone = inputs.batch / inputs.rate
    gradients = 2 * (gpus - 1) / gpus * inputs.parameters * FLOAT
    # Two global views of every image of the other processes: K teacher logits (Sinkhorn), C student features (KoLeo).
    gathers = (gpus - 1) * inputs.batch * 2 * (inputs.prototypes + inputs.features) * FLOAT
    bandwidth = inputs.link * 1e9 if gpus > inputs.gpus_per_node else 100e9  # NVLink within a node, well below its peak
    sent = gradients / bandwidth + 2 * (gpus - 1) * LATENCY
    gathered = gathers / bandwidth + GATHERS * (gpus - 1) * LATENCY
    reduced = REDUCES * 2 * math.ceil(math.log2(gpus)) * LATENCY
    step = alone + max(0.0, sent - OVERLAP * alone) + gathered + reduced
    crops = gpus * inputs.batch / step
    return Row(gpus, gradients, gathers, sent, step, alone / step, crops, crops * inputs.crop_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, required=True, help="of backbone and head")
    parser.add_argument("--rate", type=float, required=True, help="crops/s on one GPU, measured")
    parser.add_argument("--batch-per-gpu", type=int, default=64)
    parser.add_argument(
        "--link", type=float, default=25, help="GB/s between nodes; 25 is 200 Gbit/s, 1.25 is 10 Gbit/s"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--crop-bytes", type=float, default=13e3, help="a stored crop")
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--prototypes", type=int, default=256)
    parser.add_argument("--checkpoint-mb", type=float, default=346, help="a resume checkpoint")
    parser.add_argument("--disk", type=float, default=0.65, help="GB/s written with fsync")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 256])
    given = parser.parse_args()
    inputs = Inputs(
        given.parameters,
        given.rate,
        given.batch_per_gpu,
        given.link,
        given.gpus_per_node,
        given.crop_bytes,
        given.features,
        given.prototypes,
    )
    print(
        "| GPUs | gradients sent, MB | gathered, MB | all-reduce, ms | step, ms | efficiency | crops/s | read, MB/s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for one in (row(inputs, gpus) for gpus in given.gpus):
        sent = f"{one.gradient_bytes / 1e6:.0f} | {one.gather_bytes / 1e6:.1f} | {one.sent_seconds * 1e3:.1f}"
        print(
            f"| {one.gpus} | {sent} | {one.step_seconds * 1e3:.1f} "
            f"| {one.efficiency:.0%} | {one.crops:,.0f} | {one.read_bytes / 1e6:,.0f} |"
        )
    print(f"\na checkpoint of {given.checkpoint_mb:.0f} MB: {given.checkpoint_mb / 1e3 / given.disk:.2f} s to write")


if __name__ == "__main__":
    main()
