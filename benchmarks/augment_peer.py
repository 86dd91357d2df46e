"""lightly-train's DINO transform for `augment_speed.py`: AGPL, so it has an environment and a process of its own.

`peer_process` is what `augment_speed.py` calls; this file as a script, run by that environment, is the process.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from augment import ViewConfig

LIGHTLY = "lightly-train==0.18.0"
"""The version that `serve` was written against."""


@contextmanager
def peer_process(
    crops: dict[str, list[np.ndarray]], config: "ViewConfig", out: Path
) -> Iterator[tuple[Callable[[str, str], float], dict[str, Any]]]:
    """A function that times one round: (transform "whole" or "bare", set) -> ms a crop; and what the peer is."""
    python = peer_python(out / "peer-venv")
    paths = {name: str((out / f"crops-{name}.npz").resolve()) for name in crops}
    for name, images in crops.items():
        np.savez(paths[name], *images)
    task = json.dumps({"crops": paths, "views": asdict(config)})
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LIGHTLY_TRAIN_EVENTS_DISABLED": "1"}
    command = [str(python), "-I", str(Path(__file__).resolve()), task]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def answer() -> Any:
            if line := answers.readline():
                return json.loads(line)
            raise SystemExit("error: lightly-train ended, see above; --no-peer leaves it out")

        def ask(transform: str, name: str) -> float:
            requests.write(json.dumps([transform, name]) + "\n")
            return float(answer())

        yield ask, answer()
        requests.close()


def peer_python(folder: Path) -> Path:
    """The interpreter of an environment with lightly-train, made in `folder` unless it is there.

    A .pth file lets it see this environment's packages, so that torch is not downloaded again and both sides use the
    same OpenCV and albumentations. pip installs beside them and never changes them; this environment sees nothing.
    """
    python, done = folder.resolve() / "bin" / "python", folder / LIGHTLY
    if not done.exists():
        print(f"installing {LIGHTLY} into {folder}")
        venv.create(folder, with_pip=True, clear=True)
        packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (folder / packages / "benchmark.pth").write_text(sysconfig.get_path("purelib") + "\n")
        if subprocess.run([python, "-m", "pip", "install", "-q", LIGHTLY], check=False).returncode:
            raise SystemExit(f"error: pip could not install {LIGHTLY}, see above; --no-peer leaves it out")
        done.touch()
    return python


def serve(task: dict[str, Any]) -> None:
    """Answer requests on stdin; runs in the environment of lightly-train only."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that is imported may write between the answers
    import albumentations
    import torch
    from lightly_train._methods.dino.dino_transform import DINOTransform, DINOTransformArgs

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    views = task["views"]
    assert views["global_count"] == 2  # the transform has two
    args = DINOTransformArgs(image_size=tuple(views["global_size"]))
    args.local_view.num_views, args.local_view.view_size = views["local_count"], tuple(views["local_size"])
    args.resolve_auto()
    args.resolve_incompatible()
    assert args.color_jitter  # switched off for one channel, which is why it gets three
    assert args.random_gray_scale
    transforms = {"whole": DINOTransform(args), "bare": DINOTransform(args)}
    for view in {id(v): v for v in transforms["bare"].transforms}.values():
        steps = list(view.transform.transforms)
        assert [type(step).__name__ for step in steps[-2:]] == ["NormalizeDtypeAware", "ToTensorV2"]
        view.transform = albumentations.Compose(steps[:-2])
    crops = {}
    for name, path in task["crops"].items():
        with np.load(path) as stored:  # its loader makes RGB of gray files
            crops[name] = [cv2.cvtColor(stored[key], cv2.COLOR_GRAY2RGB) for key in stored]
    first = next(iter(crops.values()))[0]
    told: dict[str, Any] = {n: version(n) for n in ("lightly-train", "albumentations", "torch")}
    told |= {
        "opencv": cv2.__version__,
        "views": [list(v["image"].shape) for v in transforms["whole"]({"image": first})],
    }
    print(json.dumps(told), file=answers, flush=True)
    for line in sys.stdin:
        transform, name = json.loads(line)
        began = time.perf_counter()
        for crop in crops[name]:
            transforms[transform]({"image": crop})
        print(json.dumps((time.perf_counter() - began) / len(crops[name]) * 1e3), file=answers, flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
