"""Travel: an agent finds out what a traveller wants, and recommends an activity.

python experiments/travel.py
python experiments/travel.py --workdir=runs/travel-rounds --config.methods=ilql,ilql_imagination1 \
    --config.imagination.round_start=agent --config.imagination.round_steps=4000 \
    --config.train.steps=14000 --config.model.hidden_size=96 --config.model.mlp_size=384
python experiments/travel.py --workdir=runs/travel-full --config.seeds=3 \
    --config.methods=bc,fbc,mc,ilql --config.train.steps=12000 --config.imagination.personas=prior

With a round of imagination the second comes to a normalized score of 0.86, with difficult
travellers 0.96, without to 0.76 and 0.78 (two trainings; half an hour on a core for each): 108
kinds of travellers and 12 activities take a critic long to tell apart. The third, with travellers
as they come, takes 66 minutes on two cores; ILQL comes to 0.76 (filtered BC and BC: 0.64), with
difficult travellers 0.29.
"""

from experiments import launch
from experiments.config import base_config

WITHOUT_ROUNDS = (*base_config().methods, "mc")


def get_config():
    config = base_config()
    config.task.world = "travel"
    config.methods = (*WITHOUT_ROUNDS, "ilql_imagination1", "ilql_imagination2")
    config.train.steps = 8000
    # The values of the data err where the trained agent goes: it meets that in a round, and learns
    # on from there.
    config.imagination.round_start = "agent"
    config.imagination.round_steps = 3000
    config.decoding.ilql = ("sampled at 0.6, best of 16", "sampled at 0.8, best of 16")
    # Difficult travellers are 20 % of those who come: too few to learn from.
    config.imagination.personas = "balanced"
    config.imagination.difficult_share = 0.4
    config.evaluation.diagnosed_episodes = 20
    return config


# An LLM tells which travellers are difficult only once it has described them. Where it plays them,
# each conversation of a round is paid for; in dialogues of one's own there is nobody to talk with.
VARIANTS = (
    (
        {"imagination.engine": "anthropic"},
        {"imagination.personas": "prior", "methods": WITHOUT_ROUNDS},
    ),
    ({"evaluation.human": "prompted"}, {"methods": WITHOUT_ROUNDS}),
    ({"data.source": "jsonl"}, {"methods": WITHOUT_ROUNDS}),
)


if __name__ == "__main__":
    launch.main("travel", get_config(), VARIANTS)
