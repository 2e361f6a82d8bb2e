"""Judging agents: environments, prompted baselines, held-out dialogues, statistics."""
