"""Whether the processes were started as asked: launchers start fewer, or strangers, without a word."""

from collections.abc import Mapping


def mistake_at_start(environment: Mapping[str, str], processes: int) -> str:
    """What is wrong with how this run of so many `processes` was started, and the remedy; else "".

    Read from what launchers leave in the environment: torchrun sets RANK and WORLD_SIZE for each process. Accelerate's
    launcher of one process sets neither, but MASTER_ADDR and MASTER_PORT if it was asked for several (accelerate 1.10
    to 1.15, `prepare_simple_launcher_cmd_env`). srun numbers its tasks, which without torchrun are as many runs.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    if world > processes:
        return (
            f"the launcher started {world} processes, but each trains alone ({processes} in its group): start CPU "
            "processes with ACCELERATE_USE_CPU=true and launch/cpu-2.yaml"
        )
    nodes, restarts = (int(environment.get(name, "0")) for name in ("GROUP_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS"))
    if nodes > 1 and restarts and environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return (
            "nodes that restart would find what the failed try left in torchrun's store, and end at once: with "
            "--max_restarts on several nodes give --rdzv_backend c10d and set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return ""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_PROCID" in environment and tasks.isdigit() and int(tasks) > 1:
        return (
            f"srun started {tasks} tasks that know nothing of one another: start one task a node, each with torchrun "
            "or accelerate launch (`python -m launch slurm` writes such a script)"
        )
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return (
            "accelerate launch was asked for several processes and started one: with --cpu or MULTI_CPU it does; use "
            "`ACCELERATE_USE_CPU=true accelerate launch --config_file launch/cpu-2.yaml --num_processes N pretrain.py` "
            "(if you did ask for one, unset MASTER_ADDR)"
        )
    return ""
