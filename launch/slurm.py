"""A run as a Slurm job: an sbatch script that stops in time, is requeued and goes on without a human."""

import re
import shlex
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SlurmConfig:
    """What the job asks of Slurm; the rest of the command line is the run's own."""

    nodes: int = 1
    """Nodes of the job."""
    processes: int = 1
    """Training processes on each node: its GPUs, or 1 to a few on CPUs."""
    gpus: bool = True
    """Whether each process has a GPU; false trains on CPUs over gloo."""
    time: str = "24:00:00"
    """Time limit as Slurm writes it; many queues end jobs after a day. The job is requeued as often as it needs."""
    grace: int = 300
    """Seconds before the limit at which the run is asked to stop. Longer than a step and a save; Slurm may signal a
    minute early."""
    cpus: int = 8
    """Cores for each process: its own and its data workers' (--data.workers)."""
    memory: str | None = None
    """Memory of a node, as `64G`. Left out: what the partition gives."""
    partition: str | None = None
    """Partition. Left out: the cluster's default."""
    account: str | None = None
    """Account to charge. Left out: the user's default."""
    name: str = "pretrain"
    """Name of the job."""
    seeds: list[int] = field(default_factory=list)
    """An array with a job for each seed, in OUT/seed-N. Empty: one job with the run's own --seed."""
    port: int = 29500
    """Port of the rendezvous on the first node; jobs that share nodes need different ones (array tasks add theirs)."""
    setup: str = ""
    """Commands that make `accelerate` available on a node, as `source venv/bin/activate` or `module load ...`."""


SHORTEST = 120
"""Seconds that a try must have before it is asked to stop: to import torch on a slow disk, and to make a step."""


def script(config: SlurmConfig, run: list[str], out: str, code: str, folder: str) -> str:
    """The sbatch script that runs the `pretrain.py` in `code` with the options `run` and `--out OUT` from `folder`.

    One task a node runs `accelerate launch`; Slurm signals the batch shell (`--signal=B:USR1@s`, sbatch(1)), which puts
    OUT/stop there, waits for the run to save, and requeues the job (scontrol(1)) unless the run is finished or failed.
    Raises ValueError for values that would not stand in a script.
    """
    _check(config, out, code, folder)
    logs = f"{out}.slurm"  # beside the run folder, which takes no strangers
    array = f"#SBATCH --array=0-{len(config.seeds) - 1}\n" if config.seeds else ""
    gpus = f"#SBATCH --gpus-per-node={config.processes}\n" if config.gpus else ""
    wanted = {"mem": config.memory, "partition": config.partition, "account": config.account}
    options = "".join(f"#SBATCH --{name}={value}\n" for name, value in wanted.items() if value)
    seeds = (
        f"seeds=({' '.join(map(str, config.seeds))})\nseed=${{seeds[$SLURM_ARRAY_TASK_ID]}}\n"
        f'out={shlex.quote(out)}/seed-$seed\nset -- --seed "$seed"\n'
        if config.seeds
        else f"out={shlex.quote(out)}\nset --\n"
    )
    cores = config.processes * config.cpus
    several = config.nodes * config.processes > 1
    file = "nodes" if several else "gpu" if config.gpus else "cpu"
    cpu = "export ACCELERATE_USE_CPU=true\n" if not config.gpus else ""
    return f"""#!/bin/bash
#SBATCH --job-name={config.name}
#SBATCH --nodes={config.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={cores}
{gpus}{options}{array}#SBATCH --time={config.time}
#SBATCH --signal=B:USR1@{config.grace}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir={folder}
#SBATCH --output={logs}/%x-%{"A_%a" if config.seeds else "j"}.log

leaving=
trap 'leaving=yes' USR1
{config.setup}
set -u  # not before: what sets up conda or Lmod reads variables that are not set
command -v accelerate > /dev/null || {{ echo "error: there is no accelerate here; see --setup"; exit 1; }}
{cpu}{seeds}mkdir -p "$out"
rm -f "$out/stop"  # of an earlier try
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export first port=$(({config.port} + ${{SLURM_ARRAY_TASK_ID:-0}}))

echo "$(date -Is) job $SLURM_JOB_ID, try $((${{SLURM_RESTART_COUNT:-0}} + 1)), on $SLURM_JOB_NODELIST"
srun --export=ALL --kill-on-bad-exit=1 --cpus-per-task={cores} \\
    bash -c 'exec accelerate launch --config_file {code}/launch/{file}.yaml \\
    --num_machines {config.nodes} --num_processes {config.nodes * config.processes} \\
    --machine_rank "$SLURM_PROCID" --main_process_ip "$first" --main_process_port "$port" \\
    {code}/pretrain.py "$@"' \\
    pretrain {shlex.join(run)} --out "$out" "$@" &
run=$!
wait "$run"; code=$?  # a signal ends `wait`, not the run
if [ "$leaving" ]; then
    while kill -0 "$run" 2>/dev/null; do  # again and again: a run that is just starting clears what earlier tries left
        touch "$out/stop"; sleep 2
    done
    wait "$run"; code=$?
    rm -f "$out/stop"
fi

echo "$(date -Is) ended with $code, $(cat "$out/state.json" 2>/dev/null)"
if [ "$leaving" ] && grep -q '"stopped"' "$out/state.json"; then
    exec scontrol requeue "${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"
fi
exit "$code"
"""


def seconds(time: str) -> int | None:
    """A time limit as sbatch(1) takes it, without M:SS, which too many mean as H:MM; None if it is none."""
    parts = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d\d))?(?::(\d\d))?|(\d+):(\d\d):(\d\d)|(\d+))", time)
    if not parts:
        return None
    days, hours, minutes, rest, *clock = (int(part or 0) for part in parts.groups())
    return ((days * 24 + hours + clock[0]) * 60 + minutes + clock[1] + clock[3]) * 60 + rest + clock[2]


def _check(config: SlurmConfig, out: str, code: str, folder: str) -> None:
    for name, most in {"nodes": 10**6, "processes": 1024, "cpus": 4096, "grace": 65535, "port": 65535}.items():
        if not 1 <= getattr(config, name) <= most:
            raise ValueError(f"--{name} is {getattr(config, name)}; give from 1 to {most}")
    if config.port + len(config.seeds) > 65536:
        raise ValueError(f"--port is {config.port}, and each of {len(config.seeds)} seeds takes the next: too high")
    if (limit := seconds(config.time)) is None:
        raise ValueError(f"--time is '{config.time}'; write minutes, H:MM:SS, D-H or D-H:MM:SS")
    if limit < config.grace + SHORTEST:
        raise ValueError(
            f"--time {config.time} less --grace {config.grace} s leaves {max(0, limit - config.grace)} s a try, and a "
            f"run needs {SHORTEST} s to start and to get on; give more --time or less --grace"
        )
    if len({*config.seeds}) < len(config.seeds) or any(not 0 <= seed < 2**32 for seed in config.seeds):
        raise ValueError("--seeds are to be different numbers from 0 to 4294967295: each has its folder OUT/seed-N")
    if config.memory is not None and not re.fullmatch(r"\d+[KMGT]?", config.memory):
        raise ValueError(f"--memory is '{config.memory}'; write it as Slurm does: 64G, or a number of MB")
    for name in ("name", "partition", "account"):
        value = getattr(config, name)
        if value is not None and not re.fullmatch(r"[\w.,@+-]+", value):
            raise ValueError(f"--{name} is '{value}'; letters, digits and . , @ + - are taken")
    for path, remedy in ((out, "give another --out"), (code, "move the repository"), (folder, "go to another folder")):
        if not re.fullmatch(r"[\w./@+-]+", path):
            raise ValueError(f"sbatch takes letters, digits and . / @ + - in a path, not '{path}': {remedy}")
