"""The whole step against an independent one in float64: loops, autograd and AdamW by hand; only layers are shared."""

import contextlib
import copy
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from augment.config import ViewConfig
from pretrain.config.schema import Config, DataConfig, MethodConfig, OptimConfig
from pretrain.method.diagnostics import MONITOR_EVERY, trained_weights
from pretrain.method.step_rates import rates_at
from pretrain.method.trainer import Trainer
from pretrain.models.projection_head import proj_head
from pretrain.models.student_teacher import Network, teacher_of

STEPS, BATCH, K = 8, 12, 10


class TinyBackbone(torch.nn.Module):
    """Convolution, BatchNorm, GELU, mean: enough for every kind of parameter and for two crop sizes."""

    num_features = 8

    def __init__(self):
        super().__init__()
        layers = [
            torch.nn.Conv2d(1, 8, 3, bias=False),
            torch.nn.BatchNorm2d(8),
            torch.nn.GELU(),
            torch.nn.Conv2d(8, 8, 3),
        ]
        self.m = torch.nn.Sequential(*layers)

    def forward(self, x):
        return self.m(x).mean((2, 3))


def configuration(centering: str, micro_batches: int = 1) -> Config:
    return Config(
        steps=STEPS,
        data=DataConfig(batch_size=BATCH),
        views=ViewConfig(global_size=(16, 12), local_size=(8, 6), local_count=3),
        method=MethodConfig(
            prototypes=K,
            centering=centering,
            teacher_temperature=0.1,  # float32 keeps six digits of the logits, and they are divided by this
            teacher_temperature_start=0.05,
            teacher_temperature_warmup=0.5,
            ema_start=0.9,
            freeze_last_layer=0.3,
        ),
        optim=OptimConfig(
            lr=1e-2, warmup=0.25, weight_decay=0.04, weight_decay_end=0.4, clip=0.3, micro_batches=micro_batches
        ),
    )


def reference_rates(step: int) -> SimpleNamespace:
    """The schedules of `configuration`, written out."""
    half = lambda start, end, done: end + (start - end) * (1 + np.cos(np.pi * done)) / 2  # noqa: E731
    lr = 1e-2 * (step + 1) / 2 if step < 2 else half(1e-2, 1e-6, (step - 2) / 5)
    done = step / 7
    return SimpleNamespace(
        lr=lr,
        decay=half(0.04, 0.4, done),
        momentum=half(0.9, 1.0, done),
        temperature=min(0.05 + 0.05 * step / 4, 0.1),
        frozen=step < 2,
    )


class Reference:
    """The method in float64, from the papers' formulas."""

    def __init__(self, student: Network, config: Config) -> None:
        self.config = config
        self.student = copy.deepcopy(student).double()
        self.teacher = copy.deepcopy(self.student)
        self.center = torch.zeros(K, dtype=torch.float64)
        self.moments: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def logits(self, network: Network, features: list[torch.Tensor]) -> torch.Tensor:
        rows = [network.proj_head.mlp(f) for f in features]
        h = torch.cat(rows)
        v = network.proj_head.last_layer.weight_v
        return (h / h.square().sum(1, keepdim=True).sqrt()) @ (v / v.square().sum(1, keepdim=True).sqrt()).T

    def targets(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        if self.config.method.centering == "mean":
            e = torch.exp((logits - self.center) / temperature)
            return e / e.sum(1, keepdim=True)
        q = torch.exp(logits / temperature)
        for _ in range(3):
            q = q / q.sum(0, keepdim=True)
            q = q / q.sum(1, keepdim=True)
        return q

    def step(self, number: int, views: list[torch.Tensor]) -> tuple[float, float, float]:
        rates = reference_rates(number)
        globals_, locals_ = ((v.double() / 255 - 0.5) / 0.25 for v in views)
        with torch.no_grad():
            teacher = self.logits(self.teacher, [self.teacher.backbone(globals_)])
            targets = self.targets(teacher, rates.temperature)
            self.of_all_views = targets.mean(0)
        features = [self.student.backbone(globals_), self.student.backbone(locals_)]
        student = self.logits(self.student, features)

        loss, pairs = torch.zeros((), dtype=torch.float64), 0
        for t in range(2):
            for s in range(5):
                if s == t:
                    continue
                pairs += 1
                for image in range(BATCH):
                    e = torch.exp(student[s * BATCH + image] / 0.1)
                    loss = loss - (targets[t * BATCH + image] * torch.log(e / e.sum())).sum() / BATCH
        loss = loss / pairs
        koleo = torch.zeros((), dtype=torch.float64)
        for view in features[0].split(BATCH):
            unit = view / view.square().sum(1, keepdim=True).sqrt()
            fixed = unit.detach()
            for image in range(BATCH):
                others = torch.cat([fixed[:image], fixed[image + 1 :]])
                squared = (unit[image] - others).square().sum(1)
                koleo = koleo - torch.log(squared.min().sqrt() + 1e-3) / (2 * BATCH)

        named = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        if rates.frozen:
            named = {n: p for n, p in named.items() if "last_layer" not in n}
        gradients = torch.autograd.grad(loss + self.config.method.koleo * koleo, list(named.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        shrink = min(1.0, 0.3 / (norm + 1e-6))  # the small constant is torch's
        with torch.no_grad():
            for (name, p), gradient in zip(named.items(), gradients, strict=True):
                self.adamw(name, p, gradient * shrink, rates.lr, rates.decay if p.ndim > 1 else 0.0)
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.copy_(rates.momentum * mine + (1 - rates.momentum) * theirs)
        self.center = 0.9 * self.center + 0.1 * teacher.mean(0)
        return loss.item(), koleo.item(), norm

    def adamw(self, name: str, p: torch.Tensor, g: torch.Tensor, lr: float, decay: float) -> None:
        """Loshchilov & Hutter 2019, algorithm 2, with beta 0.9 and 0.999, epsilon 1e-8."""
        m, v, t = self.moments.get(name, (torch.zeros_like(p), torch.zeros_like(p), 0))
        m, v, t = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, t + 1
        self.moments[name] = m, v, t
        p.mul_(1 - lr * decay)
        p.sub_(lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))


def trainer_of(config: Config, monkeypatch, precision: str | None = None) -> Trainer:
    torch.manual_seed(0)
    student = Network(TinyBackbone(), proj_head(8, K, 8, 8)).train()
    # Gradients far above float32's rounding, so that Adam's g / |g| has a sign to keep.
    with torch.no_grad():
        for p in student.proj_head.parameters():
            p.mul_(10 if p.ndim > 1 and p.requires_grad else 1)
    monkeypatch.setattr("pretrain.method.trainer.build_networks", lambda _: (student, teacher_of(student)))
    trainer = Trainer(config, Accelerator(cpu=True, mixed_precision=precision), range(1000))
    trainer.trained = trainer.student
    return trainer


def test_in_bf16_passes_are_bf16_and_what_lasts_is_float32(monkeypatch):
    """A CPU without the instructions emulates it: the same numbers, to bf16's 8 bits, only slower."""
    config, views = configuration("sinkhorn"), drawn_views(np.random.default_rng(0))
    exact = Reference(trainer_of(config, monkeypatch).student, config).step(0, views)
    AcceleratorState._reset_state(reset_partial_state=True)  # another precision needs another
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    trainer = trainer_of(config, monkeypatch, "bf16")
    kinds = []
    for network in (trainer.student, trainer.teacher):
        network.backbone.m[3].register_forward_hook(lambda _module, _given, output: kinds.append(output.dtype))
        network.register_forward_hook(lambda _module, _given, outputs: kinds.extend(x.dtype for x in outputs))
    measured = trainer.train_step(views, rates_at(config, 0, STEPS))["measured"]
    teacher, student = [torch.bfloat16, *[torch.float32] * 2], [torch.bfloat16] * 2 + [torch.float32] * 2
    assert kinds == teacher + student
    assert measured[:3].tolist() == pytest.approx(exact, rel=0.03)
    lasting = [*trainer.student.parameters(), *trainer.teacher.parameters(), trainer.center]
    moments = [m for state in trainer.optimizer.state.values() for m in state.values()]
    assert {x.dtype for x in lasting + moments} == {torch.float32}


def test_a_batch_in_pieces_needs_no_koleo(monkeypatch):
    """At weight 0 no piece knows the neighbours in the others: the figure is the piece's, the gradient none."""
    config = configuration("sinkhorn", 3)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, koleo=0.0))
    trainer = trainer_of(config, monkeypatch)
    for network in (trainer.student, trainer.teacher):
        network.eval()
    views = drawn_views(np.random.default_rng(0))
    loss, _, norm = Reference(trainer.student, config).step(0, views)
    measured = trainer.train_step(views, rates_at(config, 0, STEPS))["measured"]
    assert measured[[0, 2]].tolist() == pytest.approx([loss, norm], rel=2e-5)
    assert measured[1].isfinite()


def drawn_views(rng: np.random.Generator) -> list[torch.Tensor]:
    """Global and local views of a batch, by view."""
    return [
        torch.from_numpy(rng.integers(0, 256, (n * BATCH, 1, *size), dtype=np.uint8))
        for n, size in ((2, (16, 12)), (3, (8, 6)))
    ]


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("centering", ["sinkhorn", "mean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_every_step_is_the_formulas(dtype, tolerance, centering, micro_batches, monkeypatch):
    """In float64 nothing but a wrong formula can differ; in float32, as runs compute, rounding of eight steps may.

    A batch in pieces is the whole batch where no BatchNorm sees the pieces: here it has its running statistics.
    """
    config = configuration(centering, micro_batches)
    trainer = trainer_of(config, monkeypatch)
    for network in (trainer.student, trainer.teacher):
        network.train(micro_batches == 1)
    reference = Reference(trainer.student, config)
    if dtype == torch.float64:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the step asks for float32 by this name
        for part in (trainer.student, trainer.teacher):
            part.double()
        trainer.center = trainer.center.double()
    rng = np.random.default_rng(0)
    for number in range(STEPS):
        views = drawn_views(rng)
        loss, koleo, norm = reference.step(number, views)
        measured = trainer.train_step(views, rates_at(config, number, STEPS))["measured"].tolist()
        assert measured[:3] == pytest.approx([loss, koleo, norm], rel=tolerance, abs=tolerance)
        for ours, theirs in ((trainer.student, reference.student), (trainer.teacher, reference.teacher)):
            for (name, p), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
                np.testing.assert_allclose(p.detach(), expected.detach(), rtol=0, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(trainer.center, reference.center, rtol=0, atol=tolerance)
    assert norm > 0.3  # clipping was at work


@pytest.mark.parametrize("pieces", [1, 3])
def test_ranks_wait_for_each_other_at_the_last_piece_only(pieces, monkeypatch):
    trainer = trainer_of(configuration("sinkhorn", pieces), monkeypatch)
    apart, told = [], []

    @contextlib.contextmanager
    def no_sync(network):
        apart.append(network)
        yield
        apart.pop()

    backward = trainer.accelerator.backward
    monkeypatch.setattr(trainer.accelerator, "no_sync", no_sync)
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss: (told.append(list(apart)), backward(loss)))
    trainer.train_step(drawn_views(np.random.default_rng(0)), rates_at(trainer.config, 0, STEPS))
    assert told == [[trainer.trained]] * (pieces - 1) + [[]]


def test_what_a_line_says_of_the_networks_is_that_of_its_step(monkeypatch):
    """Every tenth step, and the last."""
    trainer = trainer_of(configuration("mean"), monkeypatch)
    trainer.stream = SimpleNamespace(sets=["a", "b"])
    trainer.samples = torch.ones(BATCH, 4, dtype=torch.int64)
    reference, views = Reference(trainer.student, trainer.config), drawn_views(np.random.default_rng(0))
    trained = lambda: np.concatenate(  # noqa: E731
        [p.detach().double().numpy().ravel() for p in reference.student.parameters() if p.requires_grad]
    )
    began, before = trained(), trained_weights(trainer.student)
    reference.step(0, views)
    rates = rates_at(trainer.config, 0, STEPS)
    result = trainer.train_step(views, rates)
    measured = []
    for trainer.step in range(STEPS):
        measured += [trainer.step] * trainer._is_measured()
    assert measured == [*range(0, STEPS, MONITOR_EVERY), STEPS - 1]
    line, unmeasured = trainer._line(result, rates, before), trainer._line(result, rates, None)
    moved = np.linalg.norm(trained() - began) / np.linalg.norm(trained())
    assert line["update_ratio"] == pytest.approx(moved, rel=1e-3)
    assert line["center_norm"] == pytest.approx(np.linalg.norm(reference.center), rel=1e-5)
    assert line["weight_norm"] == pytest.approx(np.linalg.norm(trained()), rel=1e-5)
    this = psutil.Process()
    own, below = this.memory_info().rss, sum(child.memory_info().rss for child in this.children())  # of other tests
    assert 0.7 * own < line["memory_gb"] * 1e9 < 1.3 * (own + below)
    seldom = {"rankme", "feature_std", "center_norm", "weight_norm", "update_ratio", "memory_gb"}
    assert line.keys() - unmeasured.keys() == seldom
