"""A run that is killed, starved of disk, fed bad data or asked to change: nothing is lost, doubled or kept silent."""

import itertools
import json
import os
import random
import re
import resource
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from loopback import LoopbackServer
from processes import (
    ENVIRONMENT,
    FORKED,
    LAUNCHED,
    assert_same_run,
    complete_lines,
    corrupted,
    kill,
    logged,
    smoke,
    standing,
    start,
    wait_for,
)

from data_shards.shards.shard_set import ShardSet
from data_shards.shards.stream import Stream
from pretrain.runs.metrics_log import StepLog, read_metrics


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "smoke"
    smoke(out, None, "--steps", 1)
    return next((out / "phantom").glob("seed-*/"))


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """Undisturbed smoke runs, by command and options."""
    made = {}

    def run(command=FORKED, *options):
        if (key := (*command, *options)) not in made:
            made[key] = out = tmp_path_factory.mktemp("whole") / "smoke"
            smoke(out, shards, "--data.record", "true", *options, command=command)
        return made[key]

    return run


UNHURRIED = ("--data.batch_size", 48)  # time between two checkpoints for a limit to be set


def killed_after(step: int, command: list[str], out: Path, *arguments: object) -> None:
    process = start(command, "--recipe", "smoke", "--out", out, "--data.record", "true", *arguments)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(complete_lines(out)) > step, process)
    kill(process)


def recorded(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([(8, 1)], id="1", marks=pytest.mark.slow),
        pytest.param([(2, 2), (6, 0), (8, 1), (12, 3), (17, 2)], id="5", marks=pytest.mark.extended),
    ],
)
def test_kills_and_other_numbers_of_workers_leave_the_run_equal_to_the_bit(kills, shards, whole, tmp_path):
    out = tmp_path / "smoke"
    for step, workers in kills:
        killed_after(step, FORKED, out, "--data.shards", shards, "--data.workers", workers)
    smoke(out, shards, "--data.workers", 0, "--data.record", "true")
    assert_same_run(out, whole())
    assert recorded(out) == recorded(whole())


@pytest.mark.extended
@pytest.mark.parametrize(("processes", "seed"), [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4), (2, 5)])
def test_thirty_kill_points(processes, seed, shards, whole, tmp_path):
    """Six runs, each killed at five places drawn by chance."""
    rng, out = random.Random(seed), tmp_path / "smoke"
    command = FORKED if processes == 1 else LAUNCHED
    for step in sorted(rng.sample(range(19), 5)):
        killed_after(step, command, out, "--data.shards", shards, "--data.workers", rng.randrange(3))
    smoke(out, shards, "--data.record", "true", command=command)
    assert_same_run(out, whole(command))
    assert recorded(out) == recorded(whole(command))


@pytest.mark.extended
def test_two_processes_then_one_then_two_take_the_same_samples_and_views_in_the_same_order(shards, whole, tmp_path):
    out = tmp_path / "smoke"
    killed_after(6, LAUNCHED, out, "--data.shards", shards)
    killed_after(12, FORKED, out, "--data.shards", shards)
    printed = smoke(out, shards, "--data.record", "true", command=LAUNCHED)
    assert "the last bits of losses may not be (processes was 1, now 2)" in printed
    assert recorded(out) == recorded(whole())
    stream = Stream([ShardSet(shards)], None, 0, 8)
    for line in recorded(out):
        assert [tuple(row[:3]) for row in line["samples"]] == stream.addresses(16 * line["step"], 16)
    assert [line["step"] for line in logged(out)] == list(range(20))


@pytest.mark.extended
def test_two_processes_agree_on_the_checkpoint_that_is_whole(shards, whole, tmp_path):
    out = tmp_path / "smoke"
    killed_after(12, LAUNCHED, out, "--data.shards", shards)
    newest = max((out / "checkpoints").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    printed = smoke(out, shards, "--data.record", "true", command=LAUNCHED)
    assert "falling back to the one before" in printed
    assert "continuing from step 5" in printed
    assert_same_run(out, whole(LAUNCHED))


@pytest.mark.slow
def test_from_http_a_run_logs_the_same_and_takes_over_from_a_local_one(shards, whole, tmp_path):
    out, cache = tmp_path / "smoke", tmp_path / "cache"
    killed_after(6, FORKED, out, "--data.shards", shards)
    with LoopbackServer(shards, stall=1) as server:
        server.faults = {".tar": iter(["503", "reset", "cut", "flip", "slow"]), "index.npy": iter(["503"])}
        remote = ["--data.shards", f"{server.url}/?token=secret", "--data.cache", cache, "--data.record", "true"]
        smoke(out, None, *remote)
        assert len(server.paths("shard-000000.tar")) > len(server.paths("manifest.json"))
    assert_same_run(out, whole())
    assert recorded(out) == recorded(whole())
    assert all(b"secret" not in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert {path.suffix for path in cache.iterdir()} <= {".tar", ".npy", ""}


@pytest.mark.extended
def test_two_processes_read_s3_through_one_cache_and_log_the_same(shards, whole, tmp_path, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="clinic")
    for path in shards.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "clinic", f"set/{path.relative_to(shards)}")
    out = tmp_path / "smoke"
    with LoopbackServer(upstream=f"{host}:{port}") as proxy:
        proxy.faults = {"set/shard-000000.tar": iter(["503", "reset", "cut", "slow"])}
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        for name, value in {**{k: os.environ[k] for k in keys}, "AWS_ENDPOINT_URL": proxy.url}.items():
            monkeypatch.setitem(ENVIRONMENT, name, value)
        remote = ["--data.shards", "s3://clinic/set", "--data.cache", tmp_path / "cache", "--data.record", "true"]
        smoke(out, None, *remote, command=LAUNCHED)
        assert len(proxy.paths("set/shard-000000.tar")) == 3 + 1  # three failures, then once for both processes
    server.stop()
    assert_same_run(out, whole(LAUNCHED))


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_but_not_the_run(shards, whole, tmp_path):
    """Past the first checkpoint the process may write no file as large as a checkpoint, until that is lifted again."""
    out = tmp_path / "smoke"
    given = ["--data.shards", shards, "--data.record", "true", *UNHURRIED]
    process = start(FORKED, "--recipe", "smoke", "--out", out, *given)
    wait_for((out / "checkpoints" / "step-00000005.pth").exists, process)
    small = 500_000
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (small, resource.RLIM_INFINITY))
    wait_for(lambda: len(complete_lines(out)) > 11, process)
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    printed, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert re.search(
        r"warning: step 10 is not saved \(.*the run goes on, and the last checkpoint is of step 5", printed
    )
    assert not [p for p in out.rglob(".*") if p.name != ".lock"]
    assert_same_run(out, whole(FORKED, *UNHURRIED))


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_saying_what_is_saved(shards, whole, tmp_path):
    out = tmp_path / "smoke"
    process = start(FORKED, "--recipe", "smoke", "--out", out, "--data.shards", shards, *UNHURRIED)
    wait_for((out / "checkpoints" / "step-00000005.pth").exists, process)
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))  # not even its lines
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 2
    assert re.search(r"error: step 20 is not saved .* make room, then the same command continues from step 5", errors)
    assert "Traceback" not in errors
    assert "continuing from step 5" in smoke(out, shards, "--data.record", "true", *UNHURRIED)
    assert_same_run(out, whole(FORKED, *UNHURRIED))


def test_milestones_are_kept_beside_the_newest(shards, tmp_path):
    out = tmp_path / "run"
    smoke(out, shards, "--steps", 12, "--checkpoint_every", 2, "--keep", 2, "--milestone_every", 3)
    newest = out / "checkpoints" / "milestone-00000012.pth"
    shutil.copy(newest, newest.with_stem("step-00000012 copy"))
    smoke(out, shards, "--steps", 14, "--checkpoint_every", 2, "--keep", 1)
    kept = [path.stem.replace("-000000", " ") for path in sorted((out / "checkpoints").glob("*"))]
    assert kept == ["milestone 03", "milestone 06", "milestone 09", "milestone 12", "step 12 copy", "step 14"]


def test_unreadable_samples_are_recorded_and_replaced_up_to_the_number_allowed(shards, tmp_path):
    broken = corrupted(shards, tmp_path / "broken")
    printed = smoke(tmp_path / "whole" / "run", broken, "--data.bad_samples", 1)
    assert re.search(r"warning: sample \w+ in .*shard-\d+\.tar is corrupt.*another takes its place", printed)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert len({line["index"] for line in lines}) == 1
    assert lines[0]["shard"].startswith("shard-")
    assert lines[0]["instead"] != lines[0]["index"]
    assert lines[0]["id"] == ShardSet(shards).key(lines[0]["index"])
    assert [line["bad_samples"] for line in logged(tmp_path / "whole" / "run")][-1] == 1
    assert str(tmp_path) not in (tmp_path / "whole" / "run" / "bad_samples.jsonl").read_text()
    out = tmp_path / "killed" / "run"
    killed_after(12, FORKED, out, "--data.shards", broken, "--data.bad_samples", 1)
    refused = smoke(out, broken, code=2)  # the one of before counts, unless one of the next batches is told first
    assert re.search(
        r"error: (1 samples could .* more than --data\.bad_samples 0 allows|sample \w+ in .* is corrupt)", refused
    )
    smoke(out, broken, "--data.bad_samples", 1, "--data.workers", 0)
    assert_same_run(out, tmp_path / "whole" / "run")
    assert lines == [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]


def test_an_outage_is_no_bad_sample(shards, tmp_path):
    with LoopbackServer(shards) as server:
        given = ["--data.shards", server.url, "--data.cache", tmp_path / "cache", "--data.bad_samples", 50]
        server.faults = {"shard-000000.tar": itertools.repeat("503")}
        printed = smoke(tmp_path / "run", None, *given, "--data.patience", 1, "--eval.shards", shards, code=2)
    assert re.search(r"error: cannot read http://.*shard-000000\.tar \(tried .*503", printed)
    assert not (tmp_path / "run" / "bad_samples.jsonl").exists()


def test_weights_that_are_not_finite_are_never_saved(shards, tmp_path):
    wild = ["--optim.lr", "1e38", "--optim.lr_end", "1e38", "--optim.warmup", 0, "--method.freeze_last_layer", 0]
    wild += ["--method.ema_start", 0, "--method.ema_end", 0]
    printed = smoke(tmp_path / "run", shards, "--steps", 1, *wild, code=2)
    assert "the weights are no longer finite after step 1, so they are not saved" in printed
    assert not (tmp_path / "run" / "run.pth").exists()


def test_a_log_with_a_damaged_line_loses_that_line_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.5}) for step in range(8)]
    lines[2] = lines[2].replace("step", "stfp")
    path.write_text("\n".join(lines))  # the last one torn
    log = StepLog(path, 6)
    assert log.kept == 5
    log.write({"step": 6})
    log.close()
    assert path.read_text().splitlines() == [*lines[:6], '{"step": 6}']
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 3, 4, 5, 6]


@pytest.mark.slow
def test_too_many_unreadable_samples_stop_every_process(shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    path = max(broken.glob("*.tar"))
    parts = path.read_bytes().split(b"\x89PNG")
    path.write_bytes(b"".join(p + (b"oops", b"\x89PNG")[i % 2] for i, p in enumerate(parts[:-1])) + parts[-1])
    out = tmp_path / "run"
    process = start(LAUNCHED, "--recipe", "smoke", "--out", out, "--data.shards", broken, "--data.bad_samples", 3)
    _, errors = process.communicate(timeout=400)
    assert process.returncode != 0
    assert re.search(r"error: \d+ samples could not be read by step \d+, more than", errors)
    assert json.loads((out / "state.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("command", [FORKED, pytest.param(LAUNCHED, marks=pytest.mark.extended)])
def test_numbers_gone_bad_stop_before_the_weights_and_can_be_replayed(command, shards, tmp_path):
    out = tmp_path / "run"
    wild = ["--optim.lr", "1e30", "--optim.clip", "1e30", "--data.record", "true"]
    code = 2 if command == FORKED else 1
    printed = smoke(out, shards, *wild, command=command, code=code)
    step = int(re.search(r"error: the loss is \S+ and the gradient norm \S+ at step (\d+); .*replays it", printed)[1])
    given = json.loads((out / f"nonfinite-{step:08d}.json").read_text())
    stream = Stream([ShardSet(shards)], None, 0, 8)
    found = [(s["source"], s["epoch"], s["index"]) for s in given["samples"]]
    assert found == stream.addresses(16 * step, 16)
    assert [s["id"] for s in given["samples"]] == [stream.sets[0].key(s["index"]) for s in given["samples"]]
    assert standing(out) == {"state": "failed", "step": step}
    before = out / "checkpoints" / f"nonfinite-{step:08d}.pth"
    state = torch.load(before, weights_only=True)
    assert state["step"] == step
    assert all(v.isfinite().all() for k, v in state["student"].items() if "running" in k or "num_batches" in k)
    again = smoke(out, shards, *wild, "--resume", before, command=command, code=code)
    assert re.search(r"error: the loss is .* at step (\d+);", again)[0] in printed


def test_a_longer_run_continues_and_says_what_that_does_and_other_settings_are_refused_in_a_table(shards, tmp_path):
    out = tmp_path / "run"
    smoke(out, shards, "--steps", 4)
    printed = smoke(out, shards, "--steps", 6, "--data.workers", 0, "--checkpoint_every", 3, "--eval.neighbours", 3)
    assert "was to end at step 4 and now goes on to 6; every schedule is stretched" in printed
    assert re.search(r"^  lr +1e-06 +\S+$", printed, re.MULTILINE)
    assert "continuing from step 4" in printed
    assert [line["step"] for line in logged(out)] == list(range(6))
    refused = smoke(out, shards, "--steps", 5, "--optim.lr", 0.1, "--data.batch_size", 8, code=2)
    for row in (r"setting +was +now", r"optim\.lr +0\.0005 +0\.1", r"data\.batch_size +16 +8", r"total steps +6 +5"):
        assert re.search(rf"^ +{row}$", refused, re.MULTILINE), row
    assert "Traceback" not in refused
