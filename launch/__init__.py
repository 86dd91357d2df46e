"""Command lines: how every command reads its options, and the configurations that start a run."""
