"""Persuasion: somebody is asked to give to a charity, and is reluctant for a reason of their own.

python experiments/persuasion.py
python experiments/persuasion.py --config.seeds=3

The same on what real people said (PersuasionForGood; the folder holds `full_dialog.csv` and
`full_info.csv` as published), judged on dialogues that were set apart; an LLM looks back on them:

python experiments/persuasion.py --config.data.source=persuasionforgood --config.data.path=FOLDER
python experiments/persuasion.py --config.data.source=persuasionforgood --config.data.path=FOLDER \
    --config.hindsight.engine=anthropic --config.hindsight.model=MODEL
"""

from experiments import launch
from experiments.config import base_config, look_back, on_real_dialogues


def get_config():
    config = base_config()
    config.task.world = "persuasion"
    look_back(config)
    config.chat.notice = (
        "This agent tries to talk you into giving money. It is for research on people who know "
        "that and have agreed to it, and for nothing else; nobody collects what you promise."
    )
    return config


def dependent(config):
    """Settings that are different where the dialogues are those of real people."""
    if config.data.source == "world":
        return {}
    return on_real_dialogues(config) | {"data.path": "data/persuasionforgood"}


if __name__ == "__main__":
    launch.main("persuasion", get_config(), dependent)
