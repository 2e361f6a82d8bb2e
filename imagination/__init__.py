"""From a task to dialogues to trajectories: worlds, speakers, readers, tokenization."""
