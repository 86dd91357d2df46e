"""The model card beside exported weights: README.md, from the run's facts. What nobody stated it says is unknown.

Names are identifying in medical data: of the facts only numbers and short plain words enter the card, no path, no file
name and not the checkpoint's.
"""

import re
from collections.abc import Iterable
from typing import Any

import timm

from downstream.features.weights import Weights
from pretrain.config.released_backbones import release_of

FRONT = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
{onnx}- dental
- radiograph
- feature-extraction
---
"""

LIMITS = """## Intended use and limits

For research: as features of dental radiograph crops for nearest neighbours, a linear probe or retrieval, and as a start
for fine-tuning on labelled crops.

- Not a medical device. Nothing here was validated for diagnosis, triage, or any decision about a patient.
- The features hold where the data come from: other detectors, clinics, views, populations or ways of cropping were not
  measured unless they are named above. Measure on your own data, split by patient, before you rely on them.
- A score above is of one label on one set of crops. It says nothing of other labels, of several findings in one crop,
  of calibration, of subgroups (age, sex, device), of robustness, or of whole radiographs.
- What the features keep of a patient's identity was not measured: treat features as you treat the images.
- No licence for the weights is stated here; whoever shares them states it.
"""


def is_card(text: str) -> bool:
    """Whether a README is such a card."""
    return text.startswith("---\n") and "\nlibrary_name: timm\n" in text[:200]


def model_card(weights: Weights, onnx: dict[str, Any] | None) -> str:
    """Markdown with front matter as Hugging Face reads it. `onnx` is what write_onnx found, None if there is no graph.

    Facts that are missing or of another kind than this project writes are left out; it raises nothing for them.
    """
    count = sum(p.numel() for p in weights.model.parameters())
    timm_name = release.timm_name if (release := release_of(weights.backbone)) else weights.backbone
    model = [
        ("backbone", f"`{weights.backbone}`, in timm `{timm_name}` (timm {timm.__version__} wrote and loaded it)"),
        ("features", f"{weights.model.num_features} an image, the last feature map averaged over space"),
        ("parameters", f"{count:,}"),
        ("files", "`model.safetensors` with `config.json`" + (", `model.onnx`" if onnx else "")),
    ]
    return "\n".join(
        [
            FRONT.format(onnx="- onnx\n" if onnx else "") + f"\n# {weights.backbone} for crops of dental radiographs\n",
            _origin(weights) + "\n",
            *_bullets(model),
            "\n## Input\n",
            *_bullets(_input(weights)),
            "\n## Use\n",
            _use(weights, onnx),
            "## Training data\n",
            *_data(weights.facts),
            "\n## Training\n",
            *(_bullets(_training(weights.facts)) or ["Unknown: nothing beside the checkpoint says it."]),
            "\n## Scores\n",
            *_scores(weights.facts),
            "",
            LIMITS,
        ]
    )


def _origin(weights: Weights) -> str:
    if weights.release:
        published = weights.release.published
        return f"Published weights, trained on the release's {published.mix} data; MD5 {weights.release.md5}."
    if _word(weights.facts, "weights_of") == "teacher":
        return (
            "Trained without labels: a student network learned to agree with its moving average, the teacher, on views "
            "of the same crop (DINO). These are the teacher's weights."
        )
    return "How these weights were trained is unknown: no facts of a training run lay beside them."


def _input(weights: Weights) -> list[tuple[str, Any]]:
    facts, (height, width) = weights.facts, weights.size
    trained = _get(facts, "input", "size")
    differs = isinstance(trained, list) and trained != [height, width] and all(_is_number(side) for side in trained)
    other = f"; trained at {' x '.join(map(_figure, trained))}" if differs else ""
    aspect = _get(facts, "input", "pixel_aspect")
    return [
        ("channels", "1, gray"),
        ("size", f"{height} x {width} (height x width in pixels){other}{_unstated(weights, 'size')}"),
        (
            "values",
            f"(pixel / 255 - {weights.mean:g}) / {weights.std:g}, float32"
            + _unstated(weights, *(name for name in ("mean", "std") if name in weights.assumed)),
        ),
        ("polarity", _word(facts, "input", "polarity") or "unknown"),
        ("width of a pixel over its height", _figure(aspect) or _word(facts, "input", "pixel_aspect") or "unknown"),
        ("resize", _word(facts, "input", "resize_rule") or "unknown"),
    ]


def _unstated(weights: Weights, *names: str) -> str:
    found = [name for name in names if name in weights.assumed]
    return f" - {' and '.join(found)} assumed, as nobody stated {'it' if len(found) == 1 else 'them'}" if found else ""


def _use(weights: Weights, onnx: dict[str, Any] | None) -> str:
    height, width = weights.size
    image = f"""crop = np.random.randint(0, 256, ({height}, {width}), np.uint8)  # here: a gray crop, resized as above
image = (crop[None, None].astype(np.float32) / 255 - {weights.mean!r}) / {weights.std!r}"""
    space = (1, 2) if str(getattr(weights.model.m, "output_fmt", "NCHW")).endswith("NHWC") else (2, 3)
    text = f"""In this folder, with timm:

```python
import numpy as np
import timm
import torch

{image}
model = timm.create_model("local-dir:.", pretrained=True).eval()
with torch.no_grad():
    features = model(torch.from_numpy(image))[-1].mean({space})  # [1, {weights.model.num_features}]
```
"""
    if not onnx:
        return text
    checked = onnx["checked"]
    sizes = ", ".join(f"{c['batch']} of {c['size'][0]} x {c['size'][1]}" for c in checked)
    shape = ", ".join(map(str, onnx["shape"]))
    worst = max(c["max_difference"] / max(1, c["largest_feature"]) for c in checked)
    return f"""{text}
Without torch, with onnxruntime:

```python
import numpy as np
import onnxruntime

{image}
session = onnxruntime.InferenceSession("model.onnx")
features = session.run(["features"], {{"image": image}})[0]  # [1, {weights.model.num_features}]
```

`model.onnx` (opset {onnx["opset"]}) takes `image`, float32 [{shape}]. On phantom teeth, in batches of {sizes}, its
features were torch's to within {worst:.1e} (of the largest feature where that is above 1).
"""


def _data(facts: dict[str, Any]) -> list[str]:
    sets = [one for one in _as_list(facts.get("data")) if isinstance(one, dict)]
    if not sets:
        return ["Unknown: nothing beside the checkpoint says on what it was trained."]
    rows = ["| set, by SHA-256 | crops | patients | share |", "|---|---|---|---|"]
    for one in sets:
        checksum = _get(one, "sha256")
        known = isinstance(checksum, str) and re.fullmatch(r"[0-9a-f]{16,64}", checksum)
        figures = (_figure(_get(one, name)) or "unknown" for name in ("crops", "patients"))
        share = _figure(_get(one, "weight")) or ("all" if len(sets) == 1 else "by its size")
        rows.append(f"| {f'`{checksum}`' if known else 'unknown'} | {' | '.join(figures)} | {share} |")
    phantom = _get(facts, "settings", "data", "phantom_patients")
    if _is_number(phantom) and phantom > 0:
        rows.append(
            f"\nThe run was set to render {_figure(phantom)} phantom patients where no data were named: whether these "
            "crops are such renderings or radiographs, the facts do not say."
        )
    return rows


def _training(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    settings = _get(facts, "settings")
    names = {
        "crops in a batch": ("data", "batch_size"),
        "learning rate": ("optim", "lr"),
        "weight decay": ("optim", "weight_decay"),
        "prototypes": ("method", "prototypes"),
        "weight of KoLeo": ("method", "koleo"),
    }
    views = []
    for kind in ("global", "local"):
        sides = [_figure(side) for side in _as_list(_get(settings, "views", f"{kind}_size"))]
        if (count := _figure(_get(settings, "views", f"{kind}_count"))) and len(sides) == 2 and all(sides):
            views.append(f"{count} {kind} of {sides[0]} x {sides[1]}")
    step, steps = (_figure(_get(facts, "training", name)) for name in ("step", "steps"))
    return [
        ("steps", f"{step} of {steps}" if step and steps else step),
        ("crops seen, repeats counted", _figure(_get(facts, "training", "samples_seen"))),
        ("seed", _figure(_get(settings, "seed")).replace(",", "")),
        *((name, _figure(_get(settings, *where))) for name, where in names.items()),
        ("views of a crop", ", ".join(views)),
        ("centering", _word(settings, "method", "centering")),
        ("precision", _word(settings, "precision")),
        ("loss at the end", _figure(_get(facts, "monitors", "loss"))),
    ]


def _scores(facts: dict[str, Any]) -> list[str]:
    knn = _get(facts, "scores", "knn")
    columns = {
        "trained": "these weights",
        "before": "the random weights they began with",
        "pixels": "raw pixels",
        "size": "crop size",
    }
    figures = {words: _get(knn, "after" if name == "trained" else name) for name, words in columns.items()}
    rows = [f"| {words} | {value:.3f} |" for words, value in figures.items() if _is_number(value)]
    if not _is_number(figures["these weights"]):
        return ["None: nothing beside the checkpoint states a score."]
    label, classes = _word(knn, "label"), _figure(_get(knn, "classes"))
    counts = [f"{n} {name}" for name in ("crops", "patients") if (n := _figure(_get(knn, name)))]
    neighbours = _figure(_get(knn, "neighbours"))
    said = (
        f"Balanced accuracy of the {neighbours + ' ' if neighbours else ''}nearest neighbours among other patients' "
        f"crops, for the label {f'`{label}`' if label else 'that the run was scored on'}"
        + (f" of {classes} classes" if classes else "")
        + (f", on {' of '.join(counts)}" if counts else "")
        + ":\n"
    )
    after = "\nWhat training taught is what the first row has above every other."
    return [said, "| features | balanced accuracy |", "|---|---|", *rows, after]


def _bullets(lines: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"- {name}: {value}" for name, value in lines if value]


def _get(facts: Any, *names: str) -> Any:
    """What lies under these names, None where a step leads nowhere."""
    for name in names:
        facts = facts.get(name) if isinstance(facts, dict) else None
    return facts


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15  # so not NaN either


def _figure(value: Any) -> str:
    """A number as people read it, `` for anything else."""
    if not _is_number(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _word(facts: Any, *names: str) -> str:
    """Plain words under these names; `` for anything that could be a place or Markdown."""
    value = _get(facts, *names)
    plain = isinstance(value, str) and re.fullmatch(r"[\w ,;:()'%.+-]{1,600}", value)
    return str(value) if plain else ""
