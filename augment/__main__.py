"""`python -m augment preview`: draw what the views of a recipe make of one's own radiographs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from augment import RECIPES, MultiCrop, ViewConfig, ViewError
from augment.gray_levels import checked
from augment.preview import draw_sheet
from data_shards.decode.radiograph import DEPTHS
from data_shards.errors import ShardError
from data_shards.phantom.render import render_radiograph
from data_shards.shards.shard_set import ShardSet
from tooth_foundations.core import cli

RUN_RECIPES = Path(__file__).resolve().parent.parent / "pretrain" / "recipes"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (the process's own by default)."""
    preview = cli.new_parser(
        "python -m augment preview", "Draw the views of some radiographs, each with its box on it."
    )
    preview.add_argument(
        "paths",
        nargs="*",
        default=[],
        help="shard folders, .tar shards, or image files; without any, phantom crops are drawn",
    )
    preview.add_argument("--out", type=str, required=True, help="the PNG file to write")
    preview.add_argument("--recipe", type=str, help="a run's recipe, or a YAML file such as a run's config.yaml")
    preview.add_argument("--views", type=str, help="panoramic or periapical, over the recipe's views")
    preview.add_argument("--count", type=int, default=6, help="rows for each shard set, evenly spread over it")
    preview.add_argument("--seed", type=int, default=0, help="another seed draws other views")
    parser = cli.new_parser("python -m augment", "Views made for radiographs.")
    parser.add_subcommands().add_subcommand("preview", preview, help="draw a sheet of views to look at")
    options = cli.read(parser, sys.argv[1:] if argv is None else argv).preview
    views = [name for name in (options.recipe, options.views) if name]
    cli.run(lambda: write_preview(options.paths, Path(options.out), views, options.count, options.seed))


def write_preview(paths: Sequence[str], out: Path, recipes: Sequence[str], count: int, seed: int) -> None:
    """Write the sheet as the PNG `out`. Raises `UserError` for what cannot be read, drawn or written."""
    cv2.setNumThreads(1)
    if out.suffix.lower() != ".png":
        raise cli.UserError(f"--out is {out}: give a file name that ends in .png")
    if count < 1 or seed < 0:
        raise cli.UserError(f"--count {count} --seed {seed}: give a count of at least 1 and a seed of 0 or more")
    try:
        images = [image for path in paths for image in _read(Path(path), count)] or _phantom_crops(count, seed)
        multi_crop = MultiCrop(recipe_views(*recipes))
        sheet = draw_sheet(images, multi_crop, [(seed, row) for row in range(len(images))])
    except (ShardError, ViewError) as error:
        raise cli.UserError(str(error)) from None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    except OSError as error:
        raise cli.UserError(f"cannot write {out} ({error.strerror}): choose another --out") from None
    print(f"{out}: {len(images)} radiographs, {len(sheet)} x {sheet.shape[1]} pixels")


def recipe_views(*names: str) -> ViewConfig:
    """The `views` of recipes and YAML files, each over those before it; of none, the defaults.

    Raises `UserError` naming the valid recipes, or fields.
    """
    settings: dict[str, Any] = {}
    for name in names:
        settings |= _views_of(name)
    parser = cli.new_parser("views", "The views of a recipe.")
    parser.add_class_arguments(ViewConfig, "views")
    views = cli.read(parser, [f"--views={yaml.safe_dump(settings)}"]).views
    assert isinstance(views, ViewConfig)
    return views


def _views_of(name: str) -> dict[str, Any]:
    named = {path.stem: path for folder in (RECIPES, RUN_RECIPES) for path in sorted(folder.glob("*.yaml"))}
    path = named.get(name, Path(name))
    if path.name == name and not path.suffix:
        raise cli.UserError(f"there is no recipe '{name}'; valid here: {', '.join(named)}, or a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return dict(content.get("views") or {})
    except OSError as error:
        raise cli.UserError(f"cannot read {path} ({error.strerror}): check the path") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError):
        raise cli.UserError(f"{path} is no YAML file of settings: give one with a mapping `views:`") from None


def _read(path: Path, count: int) -> list[np.ndarray]:
    """The image of a file, or `count` images spread evenly over a shard set."""
    if path.is_dir() or path.suffix == ".tar":
        shards = ShardSet(path)
        return [shards.image(int(i)) for i in np.unique(np.linspace(0, len(shards) - 1, count).round())]
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise cli.UserError(f"cannot read {path} ({error.strerror}): check the path") from None
    image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH) if encoded.size else None
    if image is None:
        raise cli.UserError(f"{path} is not an image that OpenCV reads: give PNG, JPEG or TIFF files, or shards")
    if image.dtype == np.uint16:
        bits = next(depth for depth in DEPTHS if image.max() < 1 << depth)
        if bits < 16:
            print(f"{path} is taken to have {bits} bits, by its largest gray {image.max()}")
        image = checked(image, bits)
    return [image]


def _phantom_crops(count: int, seed: int) -> list[np.ndarray]:
    """One tooth each of `count` phantom patients."""
    crops = []
    for patient in range(count):
        phantom = render_radiograph(seed, patient)
        x0, y0, x1, y1 = np.rint(phantom.boxes[0]).astype(int)
        crops.append(phantom.image[y0:y1, x0:x1])
    return crops


if __name__ == "__main__":
    main()
