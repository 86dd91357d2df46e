"""Whether as many processes were started as were asked for: launchers start fewer, or strangers, without a word."""

from collections.abc import Mapping


def shortfall(environment: Mapping[str, str], processes: int) -> str:
    """What is wrong where this run has fewer `processes` than the launcher was asked for, and the remedy; else "".

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
