"""Travel: an agent finds out what a traveller wants, and recommends an activity.

python experiments/travel.py

108 kinds of travellers and 12 activities take a critic long to tell apart, and it errs where the
trained agent goes. So ILQL has two rounds of imagination here, in which it talks with travellers
and learns on. Ten minutes on two cores bring it to a normalized score of 0.94, with difficult
travellers 0.77 (without rounds 0.79 and 0.68, filtered BC 0.73 and 0.49, MC 0.68 and 0.53); five
trainings, and more rounds, are in docs/results.md.
"""

from experiments import launch
from experiments.config import SOURCES, RunConfig, base_config

WITHOUT_ROUNDS = (*RunConfig().methods, "mc")


def get_config():
    config = base_config()
    config.task.world = "travel"
    config.methods = (*WITHOUT_ROUNDS, "ilql_imagination1", "ilql_imagination2")
    config.chat.method = "ilql_imagination2"
    config.train.steps = 8000
    config.train.checkpoint_every = 2000  # at each the agent talks, for its learning curve
    # The values of the data err where the trained agent goes: it meets that in a round, and learns
    # on from there.
    config.imagination.round_start = "agent"
    config.imagination.round_steps = 3000
    config.decoding.ilql = (
        "sampled at 0.6, best of 16",  # in rounds, too
        "sampled at 0.4, best of 8",
        "sampled at 0.8, best of 16",
    )
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
