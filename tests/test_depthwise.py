"""Depthwise convolutions on low maps: torch's own in float64 is the reference."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pretrain.models.backbones import build_backbone
from pretrain.models.depthwise_conv import LowMapConv, speed_up


@given(
    kernel=st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7])),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients_are_those_of_the_plain_convolution(kernel, size, bias, seed):
    torch.manual_seed(seed)
    plain = nn.Conv2d(4, 4, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=4, bias=bias).double()
    quick = copy.deepcopy(plain)
    speed_up(quick)
    assert type(quick) is LowMapConv
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    weights = torch.randn(3, 4, *size, dtype=torch.float64)
    inputs, outputs = [], []
    for conv in (plain, quick):
        inputs.append(x.clone().requires_grad_())
        outputs.append(conv(inputs[-1]))
        (outputs[-1] * weights).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-12, atol=1e-12)
    for one, other in zip(quick.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 3},
        {"dilation": 2, "padding": 3},
        {"padding": 2},
        {"padding": "same"},
        {"padding": 3, "groups": 2},
        {"padding": 3, "padding_mode": "reflect"},
        {"padding": 3, "out_channels": 8},
    ],
)
def test_other_convolutions_are_left_alone(options):
    conv = nn.Conv2d(**({"in_channels": 4, "out_channels": 4, "kernel_size": 7, "groups": 4} | options))
    speed_up(conv)
    assert type(conv) is nn.Conv2d


@pytest.mark.parametrize("name", ["starnet_s4", "mambaout_femto"])
def test_a_backbone_keeps_its_keys_and_features_and_one_size_leaves_no_trace_in_another(name):
    torch.manual_seed(0)
    plain = build_backbone(name).eval()
    quick = copy.deepcopy(plain)
    speed_up(quick)
    assert any(isinstance(module, LowMapConv) for module in quick.modules())
    assert list(quick.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        for size in ((64, 48), (256, 192), (64, 48)):
            x = torch.randn(2, 1, *size)
            torch.testing.assert_close(quick(x), plain(x), rtol=1e-5, atol=1e-6)
