"""Launchable experiments: one file per task, and the stages they share."""
