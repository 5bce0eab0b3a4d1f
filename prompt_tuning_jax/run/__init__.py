"""A run: its folder, checkpoints, artifact, log, report and processes."""
