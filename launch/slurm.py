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


def script(config: SlurmConfig, run: list[str], out: str, folder: str) -> str:
    """The sbatch script that runs `pretrain.py` with the options `run` and `--out OUT` from `folder`.

    One task a node runs `accelerate launch`; Slurm signals the batch shell (`--signal=B:USR1@s`, sbatch(1)), which puts
    OUT/stop there, waits for the run to save, and requeues the job (scontrol(1)) unless the run is finished or failed.
    Raises ValueError for values that would not stand in a script.
    """
    _check(config, out)
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
    several = config.nodes * config.processes > 1
    file = "nodes" if several else "gpu" if config.gpus else "cpu"
    cpu = "export ACCELERATE_USE_CPU=true\n" if not config.gpus else ""
    return f"""#!/bin/bash
#SBATCH --job-name={config.name}
#SBATCH --nodes={config.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={config.processes * config.cpus}
{gpus}{options}{array}#SBATCH --time={config.time}
#SBATCH --signal=B:USR1@{config.grace}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir={folder}
#SBATCH --output={logs}/%x-%{"A_%a" if config.seeds else "j"}.log

set -u
{config.setup}
{cpu}{seeds}mkdir -p "$out"
rm -f "$out/stop"  # of an earlier try
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export first port=$(({config.port} + ${{SLURM_ARRAY_TASK_ID:-0}}))

leaving=
trap 'leaving=yes' USR1

echo "$(date -Is) job $SLURM_JOB_ID, try $((${{SLURM_RESTART_COUNT:-0}} + 1)), on $SLURM_JOB_NODELIST"
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --config_file launch/{file}.yaml \\
    --num_machines {config.nodes} --num_processes {config.nodes * config.processes} \\
    --machine_rank "$SLURM_PROCID" --main_process_ip "$first" --main_process_port "$port" \\
    pretrain.py "$@"' \\
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


def _check(config: SlurmConfig, out: str) -> None:
    for name in ("nodes", "processes", "cpus", "grace", "port"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name} is {getattr(config, name)}; give 1 or more")
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", config.time):
        raise ValueError(f"--time is '{config.time}'; write it as Slurm does: minutes, HH:MM:SS or D-HH:MM:SS")
    for name in ("name", "partition", "account", "memory"):
        value = getattr(config, name)
        if value is not None and not re.fullmatch(r"[\w.,@+-]+", value):
            raise ValueError(f"--{name} is '{value}'; letters, digits and . , @ + - are taken")
    if not re.fullmatch(r"[\w./@+-]+", out):
        raise ValueError(
            f"--out is '{out}'; sbatch takes no blanks or signs in it: letters, digits and . / @ + - are taken"
        )
