"""Persuasion: learning from real people who asked others for a donation (PersuasionForGood).

    python experiments/persuasion.py --config.data.path=FOLDER

The folder holds `full_dialog.csv` and `full_info.csv` as published. The reward of a dialogue is
what the persuadee really gave afterwards, capped at the 2 dollars that the task paid. There is no
simulated human here: the report is on dialogues that were set apart.
"""

from experiments import launch
from experiments.config import base_config


def get_config():
    config = base_config()
    config.data.source = "persuasionforgood"
    config.data.path = "data/persuasionforgood"
    config.tokenizer.vocab_size = 4096
    # Real dialogues are longer and there are few of them: a shorter training, wider rows.
    config.model.max_positions = 1536
    config.model.hidden_size = 96
    config.model.mlp_size = 384
    config.model.num_heads = 4
    config.model.rotary_base = 1000.0
    config.model.initializer_range = 0.06
    config.decoding.max_utterance = 64
    config.train.batch_rows = 2
    config.train.steps = 300
    config.train.warmup_steps = 30
    config.train.weight_decay = 0.1
    config.train.checkpoint_every = 100
    config.train.log_every = 10
    config.objective.trace_fade = (0.3, 0.8)
    config.methods = ("bc", "ilql")
    return config


if __name__ == "__main__":
    launch.main("persuasion", get_config())
