"""What a network sees, for the page of a run: neighbours, feature maps, attention, and a map of the crops."""

from collections.abc import Sequence

import cv2
import numpy as np

from augment import fit
from pretrain.config.schema import Config
from pretrain.models.backbones import Backbone
from pretrain.report.feature_maps import activation_maps, at_size, attention_maps, feature_maps, larger, pca_colours
from pretrain.report.sample_crops import Specimens, examples
from tooth_foundations.core.html import photo, text

QUERIES, NEIGHBOURS = 6, 5
"""Crops whose neighbours are shown, and how many of each."""
MAPPED = 6
"""Crops whose feature maps are shown."""
TALL = 224
"""Height of a map on the page, pixels; a neighbour has half."""
MOST_COLOURS = 16
PALETTE = (
    "#3b82c4", "#e07b2e", "#3f9e57", "#d1495b", "#9467bd", "#b5892c", "#dd78b8", "#2fa8a8",
    "#7f8c3a", "#6b7fd7", "#c05a2b", "#5fb37c", "#b0467f", "#8c6d5a", "#4fa3d1", "#a3a3a3",
)  # fmt: skip


def neighbours(crops: Specimens, features: np.ndarray) -> str:
    """For some crops, those nearest to them by cosine in unit features [N, C] and in raw pixels, of other patients."""
    if len(np.unique(crops.patients)) < 2:
        return "<p>These crops are of one patient; neighbours are shown of other patients only.</p>"
    spaces = {"trained features": features, "raw pixels": crops.pixels}
    nearest = {name: _nearest(space, crops.patients) for name, space in spaces.items()}
    blocks = ""
    for query in examples(crops, QUERIES):
        rows = "".join(
            f"<b>{name}</b>" + "".join(_tile(crops, i, crops.labels[query]) for i in found[query])
            for name, found in nearest.items()
        )
        blocks += f'<div class="near"><div class="query"><b>crop</b>{_tile(crops, query)}</div>'
        blocks += f'<div class="found" style="--n:{NEIGHBOURS}">{rows}</div></div>'
    words = f"The {NEIGHBOURS} nearest of {len(crops.labels):,} crops by cosine, from other patients only. "
    words += "The crops asked for are chosen by rule, one of each label in turn, not by looks. "
    if crops.label:
        same = {name: np.mean(crops.labels[f] == crops.labels[:, None]) for name, f in nearest.items()}
        words += f"Framed: the same {crops.label}. Of all crops' {NEIGHBOURS} nearest, "
        words += " and ".join(f"{share:.0%} by {name}" for name, share in same.items()) + " have the same."
    return f'<p>{text(words)}</p><div class="nears">{blocks}</div>'


def _nearest(space: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The nearest of other patients in unit vectors [N, C]: int [N, NEIGHBOURS], fewer where there are fewer."""
    likeness = space @ space.T
    likeness[patients[:, None] == patients] = -np.inf
    fewest = len(patients) - np.unique(patients, return_counts=True)[1].max()
    return np.argsort(-likeness, axis=1, kind="stable")[:, : min(NEIGHBOURS, fewest)]


def _tile(crops: Specimens, i: int, sought: str = "") -> str:
    same = ' class="same"' if sought and crops.labels[i] == sought else ""
    label = crops.labels[i] or f"crop {i + 1}"
    return (
        f"<figure{same}>{photo(fit(crops.images[i], (128, 96)), label)}<figcaption>{text(label)}</figcaption></figure>"
    )


def maps(crops: Specimens, backbone: Backbone, config: Config) -> str:
    """PCA colours and activation maps of some crops, at the size of training and larger, and attention if there is."""
    chosen = examples(crops, MAPPED)
    small, large = config.views.global_size, larger(backbone, config.views.global_size)
    columns: list[tuple[str, list[np.ndarray]]] = []
    shown = [fit(crops.images[i], (TALL, round(TALL * small[1] / small[0]))) for i in chosen]
    columns.append(("crop", [cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in shown]))
    said = []
    for size in (small, large):
        inputs = crops.resized(chosen, size)
        network = backbone if size == small else at_size(backbone, inputs, config.mean, config.std)
        found = feature_maps(network, inputs, config.mean, config.std, batch_size=2)
        colours, share = pca_colours(found)
        cells = f"{found.shape[1]} × {found.shape[2]}"
        said.append(f"{cells} cells at {size[0]} × {size[1]} px ({share:.0%} of the variance in three components)")
        where = f"{size[0]} × {size[1]} px"
        columns.append((f"PCA, {where}", [_over(c, image, 0.6) for c, image in zip(colours, shown, strict=True)]))
        active = activation_maps(found)
        columns.append((f"activation, {where}", [_heat(a, image) for a, image in zip(active, shown, strict=True)]))
    attention = attention_maps(backbone, crops.resized(chosen, small), config.mean, config.std)
    words = f"Height × width. The last feature map has {' and '.join(said)}. "
    words += "PCA: the first three components of all cells of these crops as red, green and blue, so that like colours "
    words += "are like features. Activation: where a crop differs from the mean of these crops (bright), scaled for "
    words += f"each crop. The network was trained at {small[0]} × {small[1]} px: the larger map is finer, but of a "
    words += "tooth that is larger than any it learnt from (its BatchNorm, if it has any, is set to these inputs)."
    heads = ""
    if attention is not None:
        heads = _heads(attention, shown)
    return f"<p>{text(words)}</p>{_gallery(columns)}{heads}"


def _heads(attention: np.ndarray, shown: list[np.ndarray]) -> str:
    """The attention of each head [N, heads, h, w], and of their mean."""
    columns = [("crop", [cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) for image in shown])]
    columns.append(("all heads", [_heat(a.mean(0), image) for a, image in zip(attention, shown, strict=True)]))
    for head in range(attention.shape[1]):
        columns.append((f"head {head + 1}", [_heat(a[head], i) for a, i in zip(attention, shown, strict=True)]))
    words = "Attention of the last layer at the size of training: what all patches together look at, each map scaled "
    words += "for itself."
    return f"<h3>Attention</h3><p>{words}</p>{_gallery(columns)}"


def _gallery(columns: Sequence[tuple[str, list[np.ndarray]]]) -> str:
    """A row for each crop, scrolled sideways where the screen is narrow."""
    heads = "".join(f"<b>{text(name)}</b>" for name, _ in columns)
    cells = "".join(
        photo(pictures[row], f"{name} of crop {row + 1}", 82)
        for row in range(len(columns[0][1]))
        for name, pictures in columns
    )
    return f'<div class="wide"><div class="maps" style="--n:{len(columns)}">{heads}{cells}</div></div>'


def _over(colours: np.ndarray, image: np.ndarray, strength: float) -> np.ndarray:
    """Colours [h, w, 3] from 0 to 1 over the gray image [H, W], each cell as large as it is: uint8 [H, W, 3]."""
    spread = cv2.resize(colours, image.shape[::-1], interpolation=cv2.INTER_NEAREST)
    gray = (image / 255.0)[..., None]
    return ((strength * spread + (1 - strength) * gray).clip(0, 1) * 255).round().astype(np.uint8)


def _heat(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A map [h, w] over the gray image [H, W]: nothing at or below 0, and brightest at its highest."""
    share = (values / max(float(values.max()), 1e-12)).clip(0, 1).astype(np.float32)
    spread = cv2.resize(share, image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    heat = cv2.applyColorMap((spread * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1] / 255.0
    gray = (image / 255.0)[..., None]
    return ((0.65 * heat + 0.35 * gray).clip(0, 1) * 255).round().astype(np.uint8)


def embedding(crops: Specimens, features: np.ndarray) -> str:
    """Maps of the crops by trained unit features [N, C] and by raw pixels, coloured by label, as SVG."""
    names, counts = np.unique(crops.labels, return_counts=True)
    coloured = [str(name) for name in names[np.argsort(-counts, kind="stable")][:MOST_COLOURS]]
    colours = {name: PALETTE[i] for i, name in enumerate(sorted(coloured))}
    plots = "".join(
        f"<figure><figcaption><b>{name}</b></figcaption>{_scatter(_flat(space), crops.labels, colours)}</figure>"
        for name, space in (("trained features", features), ("raw pixels", crops.pixels))
    )
    keys = "".join(f'<span><i style="background:{c}"></i>{text(name)}</span>' for name, c in colours.items() if name)
    others = len(names) - len(colours)
    keys += f'<span><i style="background:var(--line)"></i>{others} rarer ones</span>' if others else ""
    words = f"{len(crops.labels):,} crops, each a point, by t-SNE (scikit-learn, seed 0) of the first 50 principal "
    words += "components: near points are alike; distances between groups and the axes mean nothing."
    words += f" Coloured by {crops.label}." if crops.label else " These crops carry no label to colour them by."
    return f'<p>{text(words)}</p><div class="plots two">{plots}</div><p class="keys">{keys}</p>'


def _flat(space: np.ndarray) -> np.ndarray:
    """Points [N, 2] of vectors [N, C] (t-SNE, van der Maaten & Hinton 2008)."""
    from sklearn.decomposition import PCA  # here, as they take a second of the start of every command
    from sklearn.manifold import TSNE

    reduced = PCA(min(50, *space.shape), svd_solver="randomized", random_state=0).fit_transform(space)
    near = min(30.0, (len(space) - 1) / 3)
    return TSNE(perplexity=near, init="pca", max_iter=500, random_state=0).fit_transform(reduced)


def _scatter(points: np.ndarray, labels: np.ndarray, colours: dict[str, str]) -> str:
    low, high = points.min(0), points.max(0)
    placed = 6 + (points - low) / (high - low).clip(1e-12).max() * 288
    width, height = placed.max(0) + 6
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" fill="{colours.get(str(label), "var(--line)")}"/>'
        for (x, y), label in zip(placed, labels, strict=True)
    )
    dots = dots.replace("<circle", '<circle r="2.6"')
    box = f"0 0 {width:.0f} {height:.0f}"
    return f'<svg viewBox="{box}" role="img" aria-label="map of the crops" opacity=".85">{dots}</svg>'
