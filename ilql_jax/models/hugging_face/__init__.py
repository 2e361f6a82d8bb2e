"""Checkpoints of Hugging Face: families, reading and writing."""
