"""The shard sets of a run: those it was given, local or remote, or a phantom of its own."""

import math
from collections.abc import Callable
from pathlib import Path

from data_shards.pack.pipeline import PackConfig, pack
from data_shards.phantom.render import write_archive
from data_shards.shards.cache import ShardCache
from data_shards.shards.remote import Url
from data_shards.shards.stream import ShardSet
from pretrain.config.schema import Config, ConfigError, DataConfig

PHANTOM_KEY = b"phantom radiographs identify nobody"  # a fixed key, so that a seed gives the same shards everywhere
NO_SHARDS = (
    "no shards given: --data.shards PATH ..., made with `python -m data_shards pack` "
    "(or --data.phantom_patients 300 for phantoms)"
)


def shard_cache(data: DataConfig) -> ShardCache:
    """Where this node keeps copies of remote shards."""
    folder = Path(data.cache).expanduser() if data.cache else None
    return ShardCache(folder, int(data.cache_gb * 1e9), data.patience)


def open_sets(config: Config, cache: ShardCache) -> tuple[list[ShardSet], list[float] | None]:
    """The sets named in the configuration and their weights. Raises ShardError or ConfigError for what cannot be."""
    paths, weights = parsed_shards(config.data.shards)
    sets = [ShardSet(path, cache) for path in paths]
    check_cache(config, sets, weights is not None)
    return sets, weights


def check_cache(config: Config, sets: list[ShardSet], weighted: bool) -> None:
    """Raise ConfigError for remote sets that cannot be read well.

    The cache must hold the shards in use and the next, else each is fetched many times; and a run must wait for a
    download for longer than that is tried, else it ends without the reason.
    """
    data = config.data
    if any(map(_remote_bytes, sets)) and config.timeout <= data.patience:
        raise ConfigError(
            f"--timeout {config.timeout:g} ends the run before --data.patience {data.patience:g} is over; raise the "
            "first, or lower the second"
        )
    cycles = [_remote_bytes(s) for s in sets]
    if not weighted:  # the sets are one
        cycles = [[size for sizes in cycles for size in sizes]]
    needed = sum(min(2 * data.shard_group * max(sizes), sum(sizes)) for sizes in cycles if sizes)
    if needed > data.cache_gb * 1e9:
        raise ConfigError(
            f"two groups of {data.shard_group} remote shards take up to {needed / 1e9:.3g} GB, more than "
            f"--data.cache_gb {data.cache_gb:g}; raise it, or lower --data.shard_group"
        )


def _remote_bytes(shards: ShardSet) -> list[int]:
    return [s["bytes"] for s in shards.manifest["shards"]] if isinstance(shards.path, Url) else []


def phantom_shards(config: Config, folder: Path, say: Callable[[str], None]) -> Path:
    """Render phantom radiographs into `folder` and pack them as any archive, once; the shard folder."""
    data = config.data
    if not data.phantom_patients:
        raise ConfigError(NO_SHARDS)
    name = f"seed-{config.seed}-{data.phantom_patients}x{data.phantom_views}-{data.phantom_holdout:g}"
    shards = folder / name
    if (shards / "manifest.json").exists():
        return shards
    archive = folder / f"{name}.zip"
    archive.parent.mkdir(parents=True, exist_ok=True)
    say(f"rendering {data.phantom_patients} phantom patients x {data.phantom_views} radiographs")
    # In this process: a spawned worker would import torch for longer than it renders.
    write_archive(archive, patients=data.phantom_patients, seed=config.seed, views=data.phantom_views)
    settings = PackConfig(
        sources=[str(archive)],
        out=shards,
        patient=r"(p\d+)-",
        holdout=data.phantom_holdout,
        key=PHANTOM_KEY,
        quiet=True,
    )
    manifest = pack(settings)
    say(f"packed {manifest['ledgers']['boxes']['used']} tooth crops into {shards}")
    return shards


def parsed_shards(entries: list[str]) -> tuple[list[str], list[float] | None]:
    """Split PATH or PATH=WEIGHT entries into paths and weights (None when no entry has one).

    Raises ConfigError when only some entries are weighted or a weight is not a positive number.
    """
    split = [(e, "", "") if "?" in e or Path(e).exists() else e.rpartition("=") for e in entries]
    split = [parts if parts[1] else ("".join(parts), "", "") for parts in split]
    weighted = [bool(equals) for _, equals, _ in split]
    if not any(weighted):
        return [path for path, _, _ in split], None
    if not all(weighted):
        raise ConfigError("some of --data.shards have a weight and some have none; write PATH=WEIGHT for all or none")
    try:
        weights = [float(weight) for _, _, weight in split]
    except ValueError as error:
        raise ConfigError(f"a weight in --data.shards is not a number ({error}); write PATH=WEIGHT") from error
    if any(not (w > 0 and math.isfinite(w)) for w in weights):
        raise ConfigError("every weight in --data.shards must be above 0; leave a set out to give it no share")
    return [path for path, _, _ in split], weights
