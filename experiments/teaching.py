"""Teaching: a tutor finds out what a student knows and likes, and explains accordingly.

python experiments/teaching.py
python experiments/teaching.py --config.seeds=3 --config.methods=bc,fbc,mc,ilql
"""

from experiments import launch
from experiments.config import base_config


def get_config():
    config = base_config()
    config.task.world = "teaching"
    return config


if __name__ == "__main__":
    launch.main("teaching", get_config())
