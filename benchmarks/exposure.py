"""How one tooth's grays differ between patients: where the ranges of brightness, contrast and gamma come from.

    python benchmarks/exposure.py shards/clinic --label fdi

Each crop is compared to the median crop of its label: mean gray by difference, SD by ratio, and the gray curve by the
exponent that moves the place of the median between the 5th and 95th percentile from the label's to the crop's.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from data_shards.errors import ShardError
from data_shards.shards.stream import ShardSet
from tooth_foundations.core.cli import UserError, fail

QUANTILES = (1, 5, 25, 75, 95, 99)
FLAT = 1e-3
"""Least spread of a crop, as a fraction of full scale, from which its contrast and gray curve can be told."""


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.error = fail  # one line, as every command
    parser.add_argument("shards", help="shard folder or URL")
    parser.add_argument("--label", default="fdi", help="crops that share it are compared")
    parser.add_argument("--minimum", type=int, default=100, help="crops a value of the label must have")
    arguments = parser.parse_args()
    try:
        remote = "://" in arguments.shards
        report(ShardSet(arguments.shards if remote else Path(arguments.shards)), arguments.label, arguments.minimum)
    except (UserError, ShardError, OSError) as error:
        fail(error)


def report(shards: ShardSet, label: str, minimum: int) -> None:
    """Print the tables of one shard set."""
    grays, extremes, aspects = defaultdict(list), [], []
    for i in range(len(shards)):
        image = shards.image(i)
        white = np.iinfo(image.dtype).max
        extremes.append([np.mean(image == 0), np.mean(image == white)])
        aspects.append(image.shape[1] / image.shape[0])
        value, of_crop = shards.meta(i).get(label), summary(image / white)
        if value is not None and of_crop:
            grays[value].append(of_crop)
    common = [deviations(np.array(rows)) for rows in grays.values() if len(rows) >= minimum]
    if not common:
        most = max(map(len, grays.values()), default=0)
        raise UserError(f"no value of '{label}' has {minimum} crops, the most are {most}; see --label and --minimum")
    found = np.concatenate(common)
    print(f"{len(found)} of {len(shards)} crops, {len(common)} values of {label}\n")
    print(f"| percentile | {' | '.join(map(str, QUANTILES))} |\n{'|---' * (len(QUANTILES) + 1)}|")
    names = ("shift of mean gray", "factor of gray SD", "gamma", "width / height of all")
    for name, column in zip(names, (*found.T, np.array(aspects)), strict=True):
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in np.percentile(column, QUANTILES))} |")
    black, white = np.mean(extremes, axis=0)
    print(f"\nblack pixels {black:.2%}, white pixels {white:.2%} of all")


def summary(pixels: np.ndarray) -> tuple[float, float, float] | None:
    """Mean, SD and place of the median between the 5th and 95th percentile; pixels [H, W] in 0 to 1. None of flat."""
    low, middle, high = np.percentile(pixels, (5, 50, 95))
    return (pixels.mean(), pixels.std(), (middle - low) / (high - low)) if high - low >= FLAT else None


def deviations(rows: np.ndarray) -> np.ndarray:
    """Shift, contrast and gamma [N, 3] of the crops of one label against their median; rows [N, 3] of `summary`."""
    mean, sd, place = rows.T
    place = place.clip(0.02, 0.98)  # at 0 and 1 there is no exponent
    gamma = np.log(place) / np.log(np.median(place))
    return np.stack([mean - np.median(mean), sd / np.median(sd), gamma], axis=1)


if __name__ == "__main__":
    main()
