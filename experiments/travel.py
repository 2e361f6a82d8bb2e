"""Travel: an agent finds out what a traveller wants, and recommends an activity.

python experiments/travel.py
python experiments/travel.py --config.seeds=3 --config.methods=bc,fbc,mc,ilql \
    --config.train.steps=12000 --config.imagination.personas=prior

The second command, with travellers as they come, takes 66 minutes on two cores. ILQL comes to a
normalized score of 0.76 (filtered BC and BC: 0.64), with difficult travellers 0.29; with 8,000
steps ILQL and filtered BC come to 0.68 and 0.69: 108 kinds of travellers and 12 activities take a
critic longer to tell apart. The first command imagines 40 % difficult travellers: a single
training of ILQL came to 0.60, with difficult ones 0.61; with 14,000 steps and a
width of 96 to 0.86 and 0.90.
"""

from experiments import launch
from experiments.config import base_config


def get_config():
    config = base_config()
    config.task.world = "travel"
    config.train.steps = 8000
    # Difficult travellers are 20 % of those who come: too few to learn from.
    config.imagination.personas = "balanced"
    config.imagination.difficult_share = 0.4
    return config


# An LLM tells which travellers are difficult only once it has described them.
VARIANTS = (({"imagination.engine": "anthropic"}, {"imagination.personas": "prior"}),)


if __name__ == "__main__":
    launch.main("travel", get_config(), VARIANTS)
