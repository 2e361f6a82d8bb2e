"""Teaching: a tutor finds out what a student knows and likes, and explains accordingly.

python experiments/teaching.py
python experiments/teaching.py --workdir=runs/teaching-5 --config.seeds=5

The first takes about 10 minutes on two slow cores, the second an hour. ILQL comes to a normalized
score of 0.98, with difficult students 0.99 (MC 0.78 and 0.63, filtered BC 0.68 and 0.21, BC 0.62
and -0.19); on lessons with students as they come alone (--config.imagination.personas=prior, 6,000
steps) to 0.97 and 0.61.
"""

from experiments import launch
from experiments.config import base_config


def get_config():
    config = base_config()
    config.task.world = "teaching"
    config.methods = (*config.methods, "mc")
    config.train.steps = 3000
    # Difficult students are 12 % of those who come: too few to learn from.
    config.imagination.personas = "balanced"
    config.imagination.difficult_share = 0.4
    config.evaluation.diagnosed_episodes = 50
    return config


# An LLM tells which students are difficult only once it has described them.
VARIANTS = (({"imagination.engine": "anthropic"}, {"imagination.personas": "prior"}),)


if __name__ == "__main__":
    launch.main("teaching", get_config(), VARIANTS)
