"""Travel: an agent finds out what a traveller wants, and recommends an activity.

python experiments/travel.py

108 kinds of travellers and 12 activities take a critic long to tell apart, and it errs where the
trained agent goes. So all train four times as long as in teaching, and ILQL has a round of
imagination, in which it talks with travellers and learns on. Twelve minutes on two cores bring it
to a normalized score of 0.88, with difficult travellers to the same (without the round 0.83 and
0.77, filtered BC 0.81 and 0.45, MC 0.72 and 0.54); five trainings are in docs/results.md.
"""

from experiments import launch
from experiments.config import SOURCES, RunConfig, base_config

WITHOUT_ROUNDS = (*RunConfig().methods, "mc")


def get_config():
    config = base_config()
    config.task.world = "travel"
    config.methods = (*WITHOUT_ROUNDS, "ilql_imagination1")
    config.chat.method = "ilql_imagination1"
    config.train.steps = 12_000
    config.train.checkpoint_every = 4000  # at each the agent talks, for its learning curve
    # The values of the data err where the trained agent goes: it meets that in a round, and learns
    # on from there.
    config.imagination.round_start = "agent"
    config.imagination.round_share = 0.25
    # The first one in rounds, too.
    config.decoding.ilql = ("sampled at 0.6, best of 16", "sampled at 0.4, best of 8")
    # Difficult travellers are 20 % of those who come: too few to learn from.
    config.imagination.personas = "balanced"
    config.imagination.difficult_share = 0.4
    config.evaluation.diagnosed_episodes = 20
    return config


# Where an LLM plays travellers, each conversation of a round is paid for; in dialogues of one's own
# there is nobody to talk with. Which travellers are difficult an LLM tells only once it has
# described them.
_ALONE = {"methods": WITHOUT_ROUNDS, "chat.method": "ilql"}
VARIANTS = (
    ({"imagination.engine": "anthropic"}, {**_ALONE, "imagination.personas": "prior"}),
    ({"evaluation.human": "prompted"}, _ALONE),
    *(({"data.source": source}, _ALONE) for source in SOURCES if source != "world"),
)


if __name__ == "__main__":
    launch.main("travel", get_config(), VARIANTS)
