"""Launchable experiments: one file per task, and the stages they share."""

from experiments import interrupts

if interrupts.is_experiment():
    interrupts.end_at_once()  # until its libraries are imported, and `launch.main` begins
