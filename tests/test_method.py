"""Loss, center, EMA, schedules and head against independent float64 formulas."""

import math
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.schema import Config, MethodConfig, OptimConfig
from pretrain.method.diagnostics import (
    ROWS,
    feature_monitors,
    feature_std,
    mean_entropies,
    memory_bytes,
    rankme,
    step_monitors,
    weight_monitors,
)
from pretrain.method.losses import centered_targets, dino_loss, entropy, koleo_loss, sinkhorn_targets, updated_center
from pretrain.method.schedules import cosine, ramp, warmup_cosine
from pretrain.method.step_rates import rates_at
from pretrain.method.trainer import step_seed
from pretrain.models.projection_head import proj_head
from pretrain.models.student_teacher import Network, ema_update, parameter_groups, teacher_of


def softmax64(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(0, 5), st.integers(1, 6), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_loss_is_the_mean_cross_entropy_over_pairs_of_different_views(teachers, locals_, batch, k, seed):
    if teachers + locals_ < 2:
        locals_ = 1  # a single view has no other to predict
    rng = np.random.default_rng(seed)
    student = rng.uniform(-1, 1, (teachers + locals_, batch, k))
    teacher = rng.uniform(-1, 1, (teachers, batch, k))
    center = rng.normal(0, 0.3, k)
    expected, pairs = 0.0, 0
    p = softmax64((teacher - center) / 0.04)
    for t in range(teachers):
        for s in range(teachers + locals_):
            if t != s:
                q = softmax64(student[s] / 0.1)
                expected += -(p[t] * np.log(q)).sum(-1).mean()
                pairs += 1
    targets = centered_targets(torch.tensor(teacher).float(), torch.tensor(center).float(), 0.04)
    loss = dino_loss(torch.tensor(student).float(), targets, 0.1)
    assert loss.item() == pytest.approx(expected / pairs, rel=1e-5, abs=1e-6)  # rounded logits, divided by 0.04
    exact = dino_loss(torch.tensor(student), centered_targets(torch.tensor(teacher), torch.tensor(center), 0.04), 0.1)
    assert exact.item() == pytest.approx(expected / pairs, rel=1e-12, abs=1e-15)


def test_center_follows_the_mean_of_the_teacher():
    rng = np.random.default_rng(0)
    center = torch.zeros(7)
    expected = np.zeros(7)
    for _ in range(50):
        mean = rng.normal(size=7)
        center = updated_center(center, torch.tensor(mean).float(), 0.9)
        expected = 0.9 * expected + 0.1 * mean
    np.testing.assert_allclose(center.numpy(), expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 20), st.integers(2, 40), st.sampled_from([0.01, 0.04, 0.1]), st.integers(0, 2**31)
)
def test_sinkhorn_scales_rows_and_columns_in_turn(views, batch, k, temperature, seed):
    logits = np.random.default_rng(seed).uniform(-1, 1, (views, batch, k))
    q = np.exp(logits.reshape(-1, k).astype(np.longdouble) / temperature)
    for _ in range(3):
        q /= q.sum(0, keepdims=True)
        q /= q.sum(1, keepdims=True)
    expected = q.astype(np.float64).reshape(logits.shape)
    np.testing.assert_allclose(sinkhorn_targets(torch.tensor(logits), temperature).numpy(), expected, atol=1e-12)
    single = sinkhorn_targets(torch.tensor(logits).float(), temperature)
    np.testing.assert_allclose(single.numpy(), expected, rtol=0, atol=2e-7 / temperature)  # of float32 logits


def test_sinkhorn_uses_every_prototype_where_softmax_would_use_one():
    """All images prefer prototype 0: the collapse that the balance is there to stop."""
    torch.manual_seed(0)
    logits = torch.randn(2, 64, 16) * 0.1
    logits[..., 0] += 0.8
    assert torch.softmax(logits / 0.05, -1).mean((0, 1))[0] > 0.99
    share = sinkhorn_targets(logits, 0.05, iterations=100).mean((0, 1))
    np.testing.assert_allclose(share.numpy(), 1 / 16, rtol=0.02)
    extreme = sinkhorn_targets(torch.eye(8)[None] * 2 - 1, 0.001)  # exp(+-1000) has no float
    assert torch.equal(extreme[0], torch.eye(8))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(2, 9), st.integers(2, 12), st.integers(0, 2**31))
def test_koleo_is_the_log_distance_to_the_nearest_of_all_ranks(views, ranks, batch, channels, seed):
    features = np.random.default_rng(seed).normal(size=(views, ranks * batch, channels))
    features += 0.1 * np.sign(features)  # none is so short that it has no direction
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    expected = 0.0
    for view in unit:
        for i, one in enumerate(view):
            nearest = min(np.linalg.norm(one - other) for j, other in enumerate(view) if j != i)
            expected -= np.log(nearest + 1e-3) / (views * ranks * batch)
    everyones = torch.tensor(features)
    parts = [koleo_loss(everyones[:, r * batch : (r + 1) * batch], everyones, r * batch).item() for r in range(ranks)]
    assert np.mean(parts) == pytest.approx(expected, abs=1e-6)


def test_koleo_pushes_neighbours_apart_and_is_safe_at_duplicates():
    torch.manual_seed(0)
    start = torch.nn.functional.normalize(torch.randn(1, 16, 8) * 0.1 + 1, dim=-1)
    features = start.clone().requires_grad_()
    for _ in range(50):
        koleo_loss(features, features.detach(), 0).backward()
        features.data -= 0.1 * features.grad
        features.grad = None
    assert koleo_loss(features, features.detach(), 0) < koleo_loss(start, start, 0) - 1
    twins = torch.ones(1, 4, 8, requires_grad=True)
    koleo_loss(twins, twins.detach(), 0).backward()
    blank = torch.randn(1, 4, 8)
    blank[0, 3] = 0
    blank.requires_grad_()
    koleo_loss(blank, blank.detach(), 0).backward()
    assert blank.grad.norm(dim=-1).max() < 100  # no more than a hundredth of a unit vector has
    assert torch.isfinite(twins.grad).all()


def test_two_ranks_balance_targets_and_spread_features_over_the_global_batch():
    root = Path(__file__).parent.parent
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/cpu-2.yaml"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*launch, "tests/two_ranks.py"], cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


def test_entropy_of_uniform_and_point():
    assert entropy(torch.full((3, 8), 1 / 8)).item() == pytest.approx(math.log(8), abs=1e-6)
    assert entropy(torch.eye(8)).item() == 0


def tiny_network() -> Network:
    class Pool(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6))
            self.num_features = 6

        def forward(self, x):
            return self.m(x).mean((2, 3))

    torch.manual_seed(0)
    return Network(Pool(), proj_head(6, out_dim=10, hidden_dim=8, bottleneck_dim=8))


def test_teacher_is_the_moving_average_of_the_student():
    student = tiny_network()
    teacher = teacher_of(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    expected = [p.detach().double().clone() for p in teacher.parameters()]
    for step in range(30):
        momentum = cosine(step, 30, 0.9, 1.0)
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        ema_update(teacher, student, momentum)
        expected = [
            momentum * e + (1 - momentum) * p.detach().double()
            for e, p in zip(expected, student.parameters(), strict=True)
        ]
    for e, p in zip(expected, teacher.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), e.numpy(), atol=1e-6)


def test_norms_biases_and_fixed_gain_do_not_decay():
    network = tiny_network()
    groups = parameter_groups(network, 0.04)
    for group in groups:
        assert all((p.ndim > 1) == group["decays"] for p in group["params"])
        assert group["weight_decay"] == (0.04 if group["decays"] else 0)
    within = {id(p) for group in groups if group["in_backbone"] for p in group["params"]}
    assert within == {id(p) for p in network.backbone.parameters()}
    listed = {id(p) for group in groups for p in group["params"]}
    assert id(network.proj_head.last_layer.weight_g) not in listed
    assert len(listed) == len(list(network.parameters())) - 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_cosine_matches_its_formula(total, start, end):
    for step in {0, total // 3, total - 1, total + 5}:
        progress = np.minimum(np.float64(step) / max(total - 1, 1), 1)
        expected = end + 0.5 * (start - end) * (1 + np.cos(np.pi * progress))
        assert cosine(step, total, start, end) == pytest.approx(expected, abs=1e-12)


def test_warmup_rises_to_the_peak_and_ends_at_the_end():
    rates = [warmup_cosine(s, 100, 10, 1.0, 0.01) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[99] == pytest.approx(0.01)
    assert [ramp(s, 4, 0.0, 1.0) for s in (0, 1, 2, 4, 9)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert ramp(0, 0, 0.04, 0.07) == 0.07


def test_rates_are_a_pure_function_of_the_step():
    method = MethodConfig(teacher_temperature_start=0.02, teacher_temperature=0.04, teacher_temperature_warmup=0.5)
    config = Config(method=method, optim=OptimConfig(lr=1e-3, weight_decay=0.04, weight_decay_end=0.4))
    first, middle, last = (rates_at(config, s, 101) for s in (0, 50, 100))
    assert first.last_layer_frozen
    assert not middle.last_layer_frozen
    assert (first.ema_momentum, last.ema_momentum) == (0.99, 1.0)
    assert (first.weight_decay, last.weight_decay) == pytest.approx((0.04, 0.4))
    assert middle.weight_decay == pytest.approx(0.22)
    assert (first.teacher_temperature, middle.teacher_temperature) == pytest.approx((0.02, 0.04))
    assert rates_at(config, 50, 101) == middle


def test_head_matches_a_float64_forward_pass():
    torch.manual_seed(1)
    head = proj_head(in_dim=12, out_dim=20, hidden_dim=16, bottleneck_dim=16).train()
    x = torch.randn(9, 12)
    logits = head(x).detach().numpy()
    h = x.double().numpy()
    for i in (0, 3):
        h = h @ head.mlp[i].weight.detach().double().numpy().T
        h = 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    h /= np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-8)
    v = head.last_layer.weight_v.detach().double().numpy()
    expected = h @ (v / np.linalg.norm(v, axis=1, keepdims=True)).T
    np.testing.assert_allclose(logits, expected, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.float32


def test_weight_norm_equals_torchs_own_to_the_bit():
    torch.manual_seed(2)
    ours = proj_head(8, out_dim=30, hidden_dim=8, bottleneck_dim=8).last_layer
    theirs = torch.nn.Linear(8, 30, bias=False)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight_v)
    theirs = torch.nn.utils.parametrizations.weight_norm(theirs)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.fill_(1)
    x = torch.randn(5, 8)
    assert torch.equal(ours(x), theirs(x))


def test_monitors_tell_both_collapses_apart_before_and_after_the_targets_are_balanced():
    k = math.log(16)
    alike = torch.zeros(2, 8, 16)
    alike[..., 3] = 1
    apart = torch.eye(16).view(2, 8, 16)
    uniform = torch.full((2, 8, 16), 1 / 16)
    for teacher, one, mean in ((torch.zeros(2, 8, 16), k, k), (alike, 0, 0), (apart, 0, k)):
        for targets, target, target_mean in ((uniform, k, k), (alike, 0, 0), (apart, 0, k)):
            views, means = step_monitors(teacher, torch.zeros(3, 8, 16), targets, (0.01, 0.1))
            np.testing.assert_allclose(views.numpy(), [one, target, k], atol=1e-5)
            np.testing.assert_allclose(mean_entropies(means).numpy(), [mean, target_mean], atol=1e-5)


def test_each_network_is_measured_at_its_own_temperature():
    rng = np.random.default_rng(0)
    teacher, student = rng.uniform(-1, 1, (2, 6, 9)), rng.uniform(-1, 1, (5, 6, 9))
    targets = softmax64(rng.normal(size=(2, 6, 9)))
    p, q = softmax64(teacher / 0.04), softmax64(student / 0.1)
    expected = [scipy.stats.entropy(x, axis=-1).mean() for x in (p, targets, q, p.mean((0, 1)), targets.mean((0, 1)))]
    views, means = step_monitors(*(torch.tensor(x).float() for x in (teacher, student, targets)), (0.04, 0.1))
    np.testing.assert_allclose([*views, *mean_entropies(means)], expected, rtol=1e-5)


def test_the_spread_of_features_is_that_of_their_directions():
    torch.manual_seed(0)
    assert feature_std(torch.ones(9, 5) * torch.rand(9, 1)) == pytest.approx(0, abs=1e-3)
    assert feature_std(torch.randn(4000, 20) * 7) == pytest.approx(1, abs=0.01)
    angle = 0.3
    cone = torch.tensor([[math.cos(angle), math.sin(angle)], [math.cos(angle), -math.sin(angle)]])
    assert feature_std(cone) == pytest.approx(math.sin(angle), abs=1e-6)


def test_a_large_batch_is_measured_by_part_of_it():
    torch.manual_seed(0)
    features = torch.randn(3 * ROWS, 8)
    assert feature_monitors(features) == {"rankme": rankme(features[::3]), "feature_std": feature_std(features[::3])}


def test_rankme_counts_directions():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64))[0][:, :5]
    five = torch.linalg.qr(torch.randn(500, 5))[0] @ basis.T
    assert rankme(five) == pytest.approx(5, rel=0.02)
    line = torch.randn(500, 1) @ torch.randn(1, 64)
    assert rankme(line) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_rankme_is_that_of_the_spread_about_the_mean(mean):
    """Its singular values are the roots of the covariance's eigenvalues, but for a factor."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 12)) * rng.uniform(0.1, 3, 12) + mean * rng.normal(size=12)
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(features.T)))
    expected = np.exp(scipy.stats.entropy(spread))
    assert expected > 8
    assert rankme(torch.tensor(features).float()) == pytest.approx(expected, rel=1e-4)


def test_the_length_of_the_weights_is_of_those_that_are_trained():
    network = tiny_network()
    with torch.no_grad():
        network.proj_head.last_layer.weight_g.fill_(1e3)  # fixed
    trained = np.concatenate([p.detach().double().numpy().ravel() for p in network.parameters() if p.requires_grad])
    doubled = [2 * p.detach() for p in network.parameters() if p.requires_grad]
    found = weight_monitors(network, doubled)
    assert found == {"weight_norm": pytest.approx(np.linalg.norm(trained), rel=1e-6), "update_ratio": pytest.approx(1)}


def test_memory_on_a_cpu_is_of_the_process_and_its_children():
    before, size = memory_bytes(torch.device("cpu")), 64 * 2**20
    held = mmap.mmap(-1, size)  # an array could take pages that an earlier test freed and the process still holds
    for page in range(0, size, mmap.PAGESIZE):
        held[page] = 1
    own = memory_bytes(torch.device("cpu"))
    assert own - before == pytest.approx(size, rel=0.1)
    worker = "import sys; held = b'1' * int(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-S", "-c", worker, str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        both = memory_bytes(torch.device("cpu"))
        child.communicate(b"\n")
    assert both - own == pytest.approx(size, rel=0.3)  # and Python's own


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_step_seeds_fit_torch_and_differ(seed, step, rank):
    assert len({step_seed(seed, step, rank), step_seed(seed, step + 1, rank), step_seed(seed, step, rank + 1)}) == 3
    torch.manual_seed(step_seed(seed, step, rank))
