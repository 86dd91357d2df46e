"""The backbone as an ONNX graph, for programs without torch: images of any batch and size in, features out."""

import copy
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from downstream.config import DownstreamError
from downstream.exporters.trial_images import phantom_teeth
from downstream.features.weights import Weights
from pretrain.models.backbones import Backbone
from tooth_foundations.core.files import replace_atomically

TOLERANCE = 1e-4  # of the largest feature where that is above 1: float32 sums taken in another order differ so much
EXTRA = 'pip install -e ".[onnx]"'


def missing_packages() -> list[str]:
    """Those packages of the extra `onnx` that are not installed."""
    return [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


def write_onnx(model: Backbone, weights: Weights, path: Path) -> dict[str, Any]:
    """Write `model`, in eval() on the CPU, as a graph: `image` float32 [B, 1, H, W] to `features` float32 [B, C].

    The image is normalised already; B is free, and so are H and W unless the model is made for one size (`shape` of
    what is returned). onnxruntime runs the graph beside torch on phantom teeth before anything is written. Returns what
    was found, JSON-ready. Raises DownstreamError if the graph cannot be made, cannot be run or gives features other
    than torch's. `weights` says what `model` is and how its images are made.
    """
    name = weights.backbone
    try:
        graph = make_graph(model, weights.size)
        largest, checked = compare_with_torch(graph, model, weights)
    except Exception as error:  # the exporter and onnxruntime raise any kind
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DownstreamError(f"backbone '{name}' cannot be made an ONNX graph ({reason}): {_remedy()}") from error
    if not largest <= TOLERANCE:  # also when it is NaN
        raise DownstreamError(
            f"the ONNX graph of backbone '{name}' gives features other than torch's (by up to "
            f"{largest:.2g} of the largest one): {_remedy()}"
        )
    content = graph.SerializeToString()
    replace_atomically(path, lambda file: file.write(content))
    return {
        "file": path.name,
        "shape": [side.dim_param or side.dim_value for side in graph.graph.input[0].type.tensor_type.shape.dim],
        "max_difference": max(one["max_difference"] for one in checked),
        "checked": checked,
        "opset": next(opset.version for opset in graph.opset_import if opset.domain == ""),
        "megabytes": round(len(content) / 1e6, 2),
    }


def make_graph(model: Backbone, size: tuple[int, int]) -> Any:
    """The onnx.ModelProto of the model; the trace is of images of `size` (H, W) px."""
    traced = copy.deepcopy(model)
    for name, module in model.named_modules():
        if type(module) is Conv2dSame and tuple(module.dilation) == (1, 1):
            traced.set_submodule(name, SameConv(module))
    free = {0: "batch", 2: "height", 3: "width"}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                traced,
                (torch.zeros(2, 1, *size),),
                input_names=["image"],
                output_names=["features"],
                dynamic_shapes=(free,),
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.disable(before)
    graph: Any = program.model_proto  # type: ignore[union-attr]
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output, graph):
        del part.metadata_props[:]  # where torch came from: paths of this machine
    return graph


class SameConv(nn.Module):
    """timm's Conv2dSame, undilated, as ONNX's own operator.

    Its padding depends on the image. Traced in Python, the five of an EfficientNet nest so deep that export takes
    minutes instead of seconds.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] float -> [B, D, H / stride, W / stride], rounded up."""
        conv, (batch, _, height, width) = self.conv, images.shape
        down, across = conv.stride
        return torch.onnx.ops.symbolic(
            "Conv",
            [images, conv.weight, *([] if conv.bias is None else [conv.bias])],
            {"auto_pad": "SAME_UPPER", "strides": list(conv.stride), "group": conv.groups},
            dtype=images.dtype,
            shape=(batch, conv.out_channels, -(-height // down), -(-width // across)),
        )


@torch.no_grad()
def compare_with_torch(graph: Any, model: Backbone, weights: Weights) -> tuple[float, list[dict[str, Any]]]:
    """Run both on phantom teeth of the weights' size and, where the model takes them, of a larger and of an odd one.

    Returns the largest difference, as a share of the largest feature where that is above 1, and each comparison.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    height, width = weights.size
    found, largest = [], torch.tensor(0.0)
    for batch, *sides in ((2, height, width), (1, height + width, width), (3, height + 7, width + 11)):
        images = phantom_teeth(weights, batch, (sides[0], sides[1]))
        try:
            expected = model(images)
        except (RuntimeError, ValueError, AssertionError):
            continue  # a ViT takes whole patches
        features = torch.from_numpy(session.run(["features"], {"image": images.numpy()})[0])
        difference, scale = (features - expected).abs().max(), expected.abs().max()
        largest = torch.maximum(largest, difference / scale.clamp(min=1))  # NaN stays NaN
        found.append(
            {"batch": batch, "size": sides, "max_difference": float(difference), "largest_feature": float(scale)}
        )
    return float(largest), found


def _remedy() -> str:
    return (
        "the folder for timm is complete and gives the same features, use that; or update torch, timm and the packages "
        f"of `{EXTRA}`"
    )
