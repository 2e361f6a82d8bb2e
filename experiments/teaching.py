"""Teaching: a tutor finds out what a student knows and likes, and explains accordingly.

python experiments/teaching.py
python experiments/teaching.py --config.seeds=3 --config.methods=bc,fbc,mc,ilql

Takes 38 CPU minutes, 24 minutes on two busy cores. ILQL comes to a normalized score of 0.97,
with difficult students 0.99 (one training). On lessons with students as they come
(--config.imagination.personas=prior) to 0.97 and 0.61; filtered BC and BC to 0.65, with difficult
students -0.1 to 0.1.
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
