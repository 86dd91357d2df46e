"""The method: a student learns to predict, from any view of a tooth, what its teacher sees in another.

DINO (Caron et al. 2021, algorithm 1) with one-channel, portrait views, its targets balanced by Sinkhorn-Knopp and its
features spread by KoLeo, as in DINOv2 (Oquab et al. 2023, section 4). One step is `Trainer.train_step`; the rest of
the file feeds it, records it and saves it.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data_shards.shards.stream import Stream
from pretrain.config.schema import Config
from pretrain.data.multicrop_loader import Batch, SampleRecord, view_batches
from pretrain.method.compilation import compile_passes, compiler_mistakes
from pretrain.method.diagnostics import (
    MEAN_MONITORS,
    MONITOR_EVERY,
    VIEW_MONITORS,
    feature_monitors,
    mean_entropies,
    memory_bytes,
    step_monitors,
    trained_weights,
    weight_monitors,
)
from pretrain.method.losses import centered_targets, dino_loss, koleo_loss, sinkhorn_targets, updated_center
from pretrain.method.step_rates import Rates, rates_at, set_rates
from pretrain.models.backbones import check_width_for_bf16
from pretrain.models.normalization import normalised
from pretrain.models.student_teacher import (
    build_networks,
    by_view,
    ema_update,
    micro_batches,
    parameter_groups,
    view_sizes,
)

MEASURED = ("loss", "koleo", "gradient_norm", *VIEW_MONITORS, *MEAN_MONITORS)  # of each step, over all ranks


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is no longer finite; the trainer's state is that before the step."""


class BadSamplesError(ValueError):
    """More samples cannot be read than the run allows."""


class Trainer:
    """Student, teacher, center and optimiser of one run, and the loop over its steps."""

    def __init__(self, config: Config, accelerator: Accelerator, stream: Stream) -> None:
        self.config, self.accelerator, self.stream = config, accelerator, stream
        self.total = config.total_steps(len(stream))
        self.student, self.teacher = build_networks(config)
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
            for size in view_sizes(config):
                check_width_for_bf16(self.student.backbone, config.backbone, size)
        self.student.to(accelerator.device)
        self.teacher.to(accelerator.device)
        if config.optim.compile:
            compile_passes(self.student, self.teacher, accelerator.device, config.optim.gradient_checkpointing)
        self.center = torch.zeros(config.method.prototypes, device=accelerator.device)
        groups = parameter_groups(self.student, config.optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, fused=accelerator.device.type != "mps")
        self.step = 0  # steps done: the whole position of the run
        no_samples = 0, len(SampleRecord._fields)
        self.samples = torch.empty(no_samples, dtype=torch.int64)  # of the step in progress, all ranks'
        self.bad_samples: set[tuple[int, int]] = set()  # (source, index) of those that could not be read
        self.phase = "starting"  # what this process is at, for the watchdog

    def train_step(self, views: list[Tensor], rates: Rates) -> dict[str, Tensor]:
        """One step on this rank's views, [global views, local views], each [V_i x B, 1, H_i, W_i]."""
        config, accelerator = self.config, self.accelerator
        set_rates(self.optimizer, rates)
        views = [normalised(v.to(accelerator.device, non_blocking=True), config.mean, config.std) for v in views]
        global_count, pieces = config.views.global_count, config.optim.micro_batches
        images = len(views[0]) // global_count // pieces  # B of a micro-batch; one holds all, unless memory is short
        parts = list(zip(*(micro_batches(batch, images, pieces) for batch in views), strict=True))

        with torch.no_grad(), accelerator.autocast():
            teacher_features, teacher_logits = by_view([self.teacher(part[:1]) for part in parts], images)
        targets = self.targets(teacher_logits, rates.teacher_temperature)  # [global views, B, K]
        neighbours, first = self.features_beforehand(parts, images), accelerator.process_index * targets.shape[1]

        losses, student_logits = [], []
        for number, (part, goals) in enumerate(zip(parts, targets.split(images, dim=1), strict=True)):
            with self.gradients_meet(after=number == pieces - 1):
                with accelerator.autocast():
                    features, logits = by_view([self.trained(part)], images)  # [all views, B, C], [all views, B, K]
                loss = dino_loss(logits, goals, config.method.student_temperature)
                koleo = self.koleo(features[:global_count], neighbours, first + number * images)
                accelerator.backward((loss + config.method.koleo * koleo) / pieces)
            losses.append(torch.stack([loss.detach(), koleo.detach()]))
            student_logits.append(logits.detach())

        if rates.last_layer_frozen:
            self.student.proj_head.last_layer.weight_v.grad = None
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), config.optim.clip)
        temperatures = rates.teacher_temperature, config.method.student_temperature
        entropies, means = step_monitors(teacher_logits, torch.cat(student_logits, dim=1), targets, temperatures)
        measured = torch.cat([torch.stack(losses).mean(0), gradient_norm.detach()[None], entropies])
        means = torch.cat([means, teacher_logits.mean((0, 1))[None]])  # [3, K]
        of_all = accelerator.reduce(torch.cat([measured, means.flatten()]), reduction="mean")
        means = of_all[len(measured) :].view_as(means)
        measured = torch.cat([of_all[: len(measured)], mean_entropies(means[:2])])
        if not measured.isfinite().all():  # of all ranks, so all ranks stop, weights untouched
            raise NonFiniteError(
                f"the loss is {measured[0]:g} and the gradient norm {measured[2]:g} at step {self.step}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        ema_update(self.teacher, self.student, rates.ema_momentum)
        self.center = updated_center(self.center, means[2], config.method.center_momentum)
        return {"measured": measured, "features": teacher_features.flatten(0, 1)}

    def targets(self, logits: Tensor, temperature: float) -> Tensor:
        """What the student is to predict, [global views, B, K], from this rank's teacher logits of that shape."""
        if self.config.method.centering == "mean":
            return centered_targets(logits, self.center, temperature)
        images = logits.shape[1]
        first = self.accelerator.process_index * images
        return sinkhorn_targets(everyones(self.accelerator, logits), temperature)[:, first : first + images]

    def koleo(self, features: Tensor, neighbours: Tensor | None, first: int) -> Tensor:
        """KoLeo of student features [global views, B, C], the global batch's images from number `first` on.

        Neighbours are sought in the whole global batch: `neighbours`, or every rank's `features` where those are all
        (or, at weight 0, as the figure of a micro-batch).
        """
        if neighbours is None:
            neighbours = everyones(self.accelerator, features.detach())
            first = self.accelerator.process_index * features.shape[1]
        return koleo_loss(features, neighbours, first)

    def features_beforehand(self, parts: list[tuple[Tensor, ...]], images: int) -> Tensor | None:
        """Everyone's student features [global views, R x B, C]; None for a batch in one piece: its pass gives them."""
        if len(parts) == 1 or not self.config.method.koleo:
            return None
        with torch.no_grad(), self.accelerator.autocast():
            return everyones(self.accelerator, by_view([self.student(part[:1]) for part in parts], images)[0])

    def gradients_meet(self, after: bool) -> contextlib.AbstractContextManager[Any]:
        """Whether the ranks' gradients are averaged after this backward pass, or later, with those of more."""
        return contextlib.nullcontext() if after else self.accelerator.no_sync(self.trained)

    def run(self, log: Callable[[dict[str, Any]], None], save: Callable[[], None], stop: Callable[[], bool]) -> bool:
        """Train from `self.step` to the end; True when it got there, False when `stop()` ended it.

        `log` gets each step's line, `save` is called at every checkpoint and at the end. Raises NonFiniteError,
        BadSamplesError, and what reading a sample raises, before the weights change.
        """
        config, accelerator = self.config, self.accelerator
        self.trained = accelerator.prepare(self.student)  # DDP may replace its buffers
        if isinstance(self.trained, DistributedDataParallel):
            self.trained.broadcast_buffers = False  # BatchNorm's are not used, and measured anew for an export
        self._buffers = [b for network in (self.student, self.teacher) for b in network.buffers()]
        self._buffers_before = [b.clone() for b in self._buffers]
        began = time.perf_counter()
        self.phase = "waiting for data"
        for batch in self._batches():
            waited = time.perf_counter() - began
            self.phase = "computing"
            self._note_samples(batch.samples)
            torch.manual_seed(step_seed(config.seed, self.step, accelerator.process_index))
            rates = rates_at(config, self.step, self.total)
            before = trained_weights(self.student) if self._is_measured() else None
            with self._buffers_restored_on_error(), compiler_mistakes(config.backbone):
                result = self.train_step(batch.views, rates)
            line = self._line(result, rates, before)
            now = time.perf_counter()
            line |= {"images_per_s": config.data.batch_size / (now - began), "data_wait": waited / (now - began)}
            self.step += 1
            log(line)
            stopping = self._agreed(stop())
            if self._is_checkpoint() or stopping:
                self.phase = "saving"
                save()
            if stopping:
                break
            began = time.perf_counter()
            self.phase = "waiting for data"
        return self.step == self.total

    def _note_samples(self, samples: Tensor) -> None:
        """Gather what all ranks read for this step; the same on all ranks, so all stop at too many unreadable ones."""
        self.samples = self.accelerator.gather(samples.to(self.accelerator.device)).cpu()
        for record in map(SampleRecord._make, self.samples.tolist()):
            if record.read != record.index:
                self.bad_samples.add((record.source, record.index))
        if len(self.bad_samples) > self.config.data.bad_samples:
            raise BadSamplesError(f"{len(self.bad_samples)} samples could not be read by step {self.step}")

    def _line(self, result: dict[str, Tensor], rates: Rates, before: list[Tensor] | None) -> dict[str, Any]:
        """What is logged of a step; with the weights from `before` it, what is not measured at each."""
        measured = dict(zip(MEASURED, result["measured"].tolist(), strict=True))
        line = {
            "step": self.step,
            "samples_seen": (self.step + 1) * self.config.data.batch_size,
            "source_counts": torch.bincount(self.samples[:, 0], minlength=len(self.stream.sets)).tolist(),
            "bad_samples": len(self.bad_samples),
            **measured,
            "loss_over_ln_k": measured["loss"] / math.log(self.config.method.prototypes),
            **rates._asdict(),
        }
        if before:
            line |= feature_monitors(self.accelerator.gather(result["features"]))  # of the global batch
            line["center_norm"] = float(self.center.norm())
            line |= weight_monitors(self.student, before)
            line["memory_gb"] = memory_bytes(self.accelerator.device) / 1e9
        return line

    def _is_measured(self) -> bool:
        return self.step % MONITOR_EVERY == 0 or self.step == self.total - 1

    def _is_checkpoint(self) -> bool:
        every = self.config.checkpoint_every, self.config.milestone_every
        return self.step == self.total or any(self.step % steps == 0 for steps in every)

    @contextlib.contextmanager
    def _buffers_restored_on_error(self) -> Iterator[None]:
        """A forward pass moves BatchNorm's running statistics even when its step is not taken."""
        torch._foreach_copy_(self._buffers_before, self._buffers)
        try:
            yield
        except NonFiniteError:
            torch._foreach_copy_(self._buffers, self._buffers_before)
            raise

    def is_finite(self) -> bool:
        """Whether all weights are: a step with finite gradients can still throw them out."""
        return all(bool(p.isfinite().all()) for n in (self.student, self.teacher) for p in n.parameters())

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides its configuration: nothing random, no loader state."""
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "center": self.center,
            "optimizer": self.optimizer.state_dict(),
            "bad_samples": torch.tensor(sorted(self.bad_samples), dtype=torch.int64).view(-1, 2),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; call before `run`."""
        self.student.load_state_dict(state["student"], strict=True)
        self.teacher.load_state_dict(state["teacher"], strict=True)
        self.center = state["center"].to(self.accelerator.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.bad_samples = {(source, index) for source, index in state["bad_samples"].tolist()}
        self.step = int(state["step"])

    def _batches(self) -> Iterator[Batch]:
        accelerator = self.accelerator
        rank, ranks = accelerator.process_index, accelerator.num_processes
        pin_memory = accelerator.device.type == "cuda"
        yield from view_batches(self.config, self.stream, self.step, self.total, rank, ranks, pin_memory)

    def _agreed(self, stop: bool) -> bool:
        """True on every rank as soon as one rank wants to stop."""
        if self.accelerator.num_processes == 1:
            return stop
        wish = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wish, reduction="sum").item())


def everyones(accelerator: Accelerator, of_views: Tensor) -> Tensor:
    """[V, B, ...] of this rank -> [V, R x B, ...] of all ranks in their order."""
    return accelerator.gather(of_views.transpose(0, 1).contiguous()).transpose(0, 1)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Torch's seed at one step on one rank: reseeding at each step leaves no generator state to save."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
