"""Travel: an agent finds out what a traveller wants, and recommends an activity.

python experiments/travel.py
python experiments/travel.py --config.seeds=3 --config.methods=bc,fbc,mc,ilql \
    --config.train.steps=12000
"""

from experiments import launch
from experiments.config import base_config


def get_config():
    config = base_config()
    config.task.world = "travel"
    config.train.steps = 8000  # more to tell apart: 108 kinds of travellers, 12 activities
    return config


if __name__ == "__main__":
    launch.main("travel", get_config())
