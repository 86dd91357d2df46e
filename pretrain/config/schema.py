"""The configuration of a run: typed, every default with its reason beside it (and in `--help`).

The library underneath is jsonargparse: a YAML recipe, then dotted overrides from the command line.
"""

import math
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, TypeAlias

from augment.albumentations_extra import build_extra
from augment.config import ViewConfig
from data_shards.errors import Mistake
from pretrain.config.bounds import LIMITS
from pretrain.config.tracker_names import check_trackers

if TYPE_CHECKING:  # from pretrain.config.auto.resolved on, which comes before all that computes, these are numbers
    AutoInt: TypeAlias = int
    AutoFloat: TypeAlias = float
else:
    AutoInt, AutoFloat = int | Literal["auto"], float | Literal["auto"]


LENGTH_UNCLEAR = "the length of the run is not clear: give either --steps N or --epochs N"


class ConfigError(Mistake):
    """Settings that cannot work together; one line saying which and what to do."""


class ChangedError(ConfigError):
    """A resume with settings that would make it another run; the message ends in a table of old and new."""


@dataclass(frozen=True)
class DataConfig:
    """Where the tooth crops come from."""

    shards: list[str] = field(default_factory=list)
    """Shard folders, or http(s):// and s3:// URLs of such folders, each as it is or with =WEIGHT (not after a query).
    Without weights the sets are concatenated, with weights their endless cycles are interleaved by share. Empty: the
    phantom is rendered and packed instead (see phantom_patients)."""
    batch_size: AutoInt = 64
    """Crops in a global batch, over all processes; auto: 64 for each GPU, 64 in all on CPUs. 64 still gives BatchNorm
    and the targets steady statistics, and more steps teach more than larger batches when a run lasts minutes."""
    workers: int = 2
    """Data worker processes for each training process. Order and pixels do not depend on it; 0 loads in the process."""
    shard_group: int = 8
    """Shards shuffled together: large enough to mix sources, small enough to keep reads local."""
    bad_samples: int = 0
    """Distinct samples that may be unreadable before the run stops. Each is recorded in OUT/bad_samples.jsonl and
    another of its shard takes its place. 0 stops at the first: silence about bad data should be somebody's choice."""
    record: bool = False
    """Whether OUT/samples.jsonl records each step's samples, with a checksum of their views; 40 bytes a sample."""
    cache: str | None = None
    """Folder on this node that holds copies of remote shards. Left out: the user's cache folder."""
    cache_gb: float = 20.0
    """Largest size of that folder in GB: 8 groups of shards as packed here, so an epoch finds some left of the last."""
    patience: float = 300.0
    """Seconds that a failing download is tried again before the run stops. Short outages pass in minutes."""
    phantom_patients: int = 0
    """Patients of the phantom rendered into the run folder when `shards` is empty; 0 makes `shards` required."""
    phantom_views: int = 2
    """Radiographs of each phantom patient: two, so that a patient's crops differ in pose and exposure."""
    phantom_holdout: float = 0.3
    """Share of the phantom's patients held out for k-NN; 0.3 is the split the real figures are quoted on."""


@dataclass(frozen=True)
class MethodConfig:
    """Student-teacher self-distillation (DINO)."""

    prototypes: AutoInt = 256
    """Width K of the head's output. 256 as released; 64, 1,024 and 4,096 could not be told from it on thousands of
    real crops (docs/recipes.md); auto: by the number of crops."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax, as published."""
    teacher_temperature: AutoFloat = 0.02
    """Temperature of the teacher's targets (sharpening); auto: 0.02 to 0.07 by the number of crops. Published sources
    use 0.02 to 0.04 under 20,000 images; with Sinkhorn-Knopp 0.04 left the targets of short runs close to uniform."""
    teacher_temperature_start: AutoFloat = 0.02
    """Temperature at the first step; start lower than teacher_temperature to sharpen early targets; auto: 0.02 to 0.04
    by the number of crops."""
    teacher_temperature_warmup: AutoFloat = 0.0
    """Share of the run over which the temperature rises linearly from its start; auto: of 37,500 steps, at most 0.3."""
    ema_start: AutoFloat = 0.99
    """EMA momentum at the first step; auto: the teacher averages 5 cbrt(steps) of them. Small runs need a teacher that
    moves: 0.996 is for 100 epochs of photographs."""
    ema_end: float = 1.0
    """EMA momentum at the last step, reached by a cosine: the teacher settles as the run ends."""
    centering: Literal["sinkhorn", "mean"] = "sinkhorn"
    """How the targets are kept off one prototype for all: Sinkhorn-Knopp over the global batch, or DINO's moving mean.
    With the mean, short runs fell into few clusters and knew less than random weights."""
    center_momentum: float = 0.9
    """EMA momentum of the mean that `mean` centers by, as published."""
    koleo: float = 0.2
    """Weight of KoLeo, which spreads the student's features of the global views; 0 for none. 0.2 did a
    little better than 0.4; some three times more drowned the cross-entropy."""
    freeze_last_layer: AutoFloat = 0.05
    """Share of the run in which the head's last layer does not learn: moving prototypes early invites collapse; auto:
    of 1,250 steps, at most 0.05."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules."""

    lr: AutoFloat = 5e-4
    """Peak learning rate; a number is taken as it is, auto follows the batch and the backbone. 5e-4, cautious; the
    recipes of minutes take 1e-3."""
    lr_end: float = 1e-6
    """Learning rate at the last step, as published."""
    init_lr: float = 0.3
    """Factor of the learning rate in a run that starts from `init`: weights that know something keep it, and learn more
    than at 0.1 (docs/recipes.md); the full rate is for weights of the same crops."""
    init_freeze: AutoFloat = "auto"  # type: ignore[assignment]
    """Share of a run that starts from `init` in which only the head learns: its gradients are large at first. The
    backbone's learning rate rises after it. auto: 0.05, and 0.15 where the weights have no head, so that it is new."""
    warmup: AutoFloat = 0.05
    """Share of the run over which the learning rate rises linearly; auto: of 12,500 steps, at most 0.1."""
    weight_decay: float = 0.04
    """Weight decay at the first step, on matrices and kernels only."""
    weight_decay_end: float = 0.04
    """Weight decay at the last step, reached by a cosine. Constant: the published rise to 0.4 is for long ViT runs."""
    clip: float = 3.0
    """Largest gradient norm, as published."""
    micro_batches: int = 1
    """Pieces in which each process passes its crops of a step, one after the other, so that they fit the memory. The
    step stays that of the whole batch, but BatchNorm sees a piece at a time, and KoLeo costs one more pass of the
    global views. 1: no more than the batch asks for."""
    gradient_checkpointing: bool = False
    """Whether the student's blocks are computed again in the backward pass instead of kept. False: a third more
    arithmetic is the price. For batches that do not fit; before micro_batches where there is BatchNorm."""
    compile: bool = False
    """Whether torch.compile makes machine code of both networks' passes. False: on a CPU 7 core-minutes at each start,
    for steps of half the time (measured once, mambaout_femto); needs a C++ compiler there, Triton on CUDA."""


@dataclass(frozen=True)
class EvalConfig:
    """k-NN on labelled crops, while a run trains and at its end."""

    shards: list[str] = field(default_factory=list)
    """Labelled shard folders. Empty: the `holdout` folder beside each training set, where there is one."""
    label: str = "tooth_type"
    """Label to predict; any label the shards carry (tooth_type, position, fdi, ...)."""
    neighbours: int = 10
    """k of k-NN: 10, as in the figures on real crops that this project is measured against."""
    folds: int = 5
    """Patient-disjoint folds: each fold's crops are classified by the crops of the other patients."""
    bank: int = 10000
    """Labelled training crops that serve as neighbours beside the other folds; 0 for none. 10,000 embed in seconds."""
    every: int | None = None
    """Steps between two scores while training, of which the best one's weights are kept; 0: only at the end. Left out:
    so many that they cost some 1 % of the run, by the time that its first 20 steps take; in a short run one at half
    and one at the end."""
    crops: int = 2000
    """Labelled crops that those scores are measured on, evenly spread: an error of 0.01, and seconds to embed."""
    batch_size: int = 64
    """Crops embedded at a time; changes memory and speed only."""


@dataclass(frozen=True)
class Config:
    """One pretraining run."""

    backbone: str = "starnet_s4"
    """One of the 12 released backbones, or any timm model with feature maps. starnet_s4: small, quick on 2 cores."""
    out: str = "runs/demo"
    """Run folder. Its name is the run's name: <out>/<name>.pth."""
    init: str | None = None
    """Weights to start from. FILE.pth or FILE.safetensors: a combined checkpoint, released or your own, with its head;
    or a backbone alone, as timm, torchvision, Hugging Face, DINO, DINOv2 or Lightning store it, which gets a new head.
    timm: the backbone's own pretrained weights, which timm downloads; timm:NAME: those of that timm model. A run that
    is continued has its own weights and does not read it."""
    steps: int | None = None
    """Length of the run in steps; give this or `epochs`."""
    epochs: AutoFloat | None = None
    """Length of the run in passes over the data; give this or `steps`. auto: 100, at most 128 million crops in all."""
    batchnorm: Literal["auto", "batch", "frozen"] = "auto"
    """Statistics that the backbone's BatchNorm normalizes by. frozen: those of `init`, in student, teacher and export.
    batch: each batch's, and an export has those of training crops. auto: frozen in a run from `init`, else batch. New
    statistics alone cost ImageNet weights 2 to 8 points of k-NN; random weights have none to keep. The projection
    head's BatchNorm always takes the batch's."""
    seed: int = 0
    """Seed of weights, order, views and phantom."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward passes; weights, EMA and loss are always fp32. auto: bf16 where the device computes in
    it. A value other than `no` given to the launcher wins."""
    threads: int | None = None
    """CPU threads of each process. Left out: the machine's cores shared among its processes, since accelerate launch
    would leave one. Runs are equal to the bit for equal threads only."""
    checkpoint_every: int = 100
    """Steps between checkpoints, each of which also rewrites <name>.pth."""
    keep: int = 3
    """Resume checkpoints kept: if the newest is damaged, an older one serves."""
    milestone_every: int = 10_000
    """Steps between checkpoints that are kept for good, to go back to when a run turned bad. 350 MB each for the ViT,
    so ten in a run of 100,000 steps."""
    on_collapse: Literal["stop", "warn"] = "warn"
    """What follows on the verdict that a run collapses or diverges: an end with an error, its checkpoint kept, or only
    the warning. warn: the thresholds come from small runs, and it is worse to end a sound run than a bad one late."""
    pictures: bool = True
    """Whether the page at the end shows what the network sees: neighbours, feature maps, a map of the crops. True: some
    20 seconds after hours of training; `python -m pretrain report` draws them at any time."""
    log_with: list[str] = field(default_factory=list)
    """Trackers that get each step's figures too, through Accelerate: tensorboard, wandb, mlflow and others.
    Empty: metrics.jsonl and the report need no package, no service and no word to anybody outside."""
    timeout: float = 1800.0
    """Seconds without any progress after which a run ends with an error that names the process that hangs; a dead
    process is told at once. Longer than any step or save: half an hour, as torch's own collectives wait, since to end
    a slow run is worse than to end a hung one late."""
    mean: float = 0.5
    """Subtracted from pixels in [0, 1]. One fixed convention, so that weights need no data set's statistics."""
    std: float = 0.25
    """Pixels are divided by it, which brings radiographs near unit variance."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the tooth crops come from."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Multi-crop views. `--views panoramic` and `--views periapical` set those for crops of such radiographs."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """Student-teacher self-distillation."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its schedules."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """k-NN while the run trains and at its end."""

    def total_steps(self, samples: int) -> int:
        """Steps of the run over `samples` crops. Raises ConfigError unless exactly one length is given."""
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(LENGTH_UNCLEAR)
        return self.steps if self.steps is not None else math.ceil((self.epochs or 0) * samples / self.data.batch_size)

    @property
    def freezes_batchnorm(self) -> bool:
        """Whether the backbone's BatchNorm keeps the statistics of `init`."""
        return self.init is not None if self.batchnorm == "auto" else self.batchnorm == "frozen"

    def check_limits(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        for name, (low, high) in LIMITS.items():
            value = attrgetter(name)(self)
            if value is not None and value != "auto" and not (low <= value <= high and math.isfinite(value)):
                least = f"of {low:g} or more" + (", finite" if not math.isfinite(value) else "")
                wanted = f"from {low:g} to {high:g}" if math.isfinite(high) else least
                raise ConfigError(f"{name} is {value}; give --{name} a value {wanted}")

    def check(self, processes: int) -> None:
        """Raise ConfigError for a global batch that does not divide over `processes`, and for impossible values.

        Raises ViewError for `views.extra` that albumentations cannot make or that does nothing, TrackerError for a
        tracker that is unknown or not installed.
        """
        self.check_limits()
        if self.init == "":
            raise ConfigError("--init is empty: give a checkpoint or timm, or leave it out")
        if self.batchnorm == "frozen" and self.init is None:
            raise ConfigError(
                "--batchnorm frozen keeps the statistics of --init, which is not given: give it, or --batchnorm batch"
            )
        if self.steps is not None and self.epochs is not None:  # here, before `epochs: auto` becomes steps of its own
            raise ConfigError(LENGTH_UNCLEAR)
        build_extra(self.views)
        check_trackers(self.log_with)
        if self.views.global_count + self.views.local_count < 2:
            raise ConfigError("a single view has no other to predict; give --views.global_count 2 or local views")
        batch, pieces = self.data.batch_size, self.optim.micro_batches
        if batch != "auto" and (batch % processes or batch < 2 * processes):  # BatchNorm needs two crops a process
            fits = max(2 * processes, batch - batch % processes)
            raise ConfigError(
                f"a global batch of {batch} crops does not divide over {processes} processes with at least 2 for each; "
                f"use --data.batch_size {fits} or {fits + processes}"
            )
        if batch != "auto" and (batch % (processes * pieces) or batch < 2 * processes * pieces):
            raise ConfigError(
                f"{batch // processes} crops of each process do not divide into {pieces} pieces of at least 2; "
                f"use another --optim.micro_batches, or --data.batch_size {2 * processes * pieces} or a multiple of it"
            )
