"""Persuasion: somebody is asked to give to a charity, and is reluctant for a reason of their own.

python experiments/persuasion.py
python experiments/persuasion.py --workdir=runs/persuasion-5 --config.seeds=5 \
    --config.methods=ilql_hindsight2

The first takes 8 minutes on two cores. ILQL with a round of hindsight comes to a normalized score
of 0.97 (ILQL without: 0.08), with difficult people 0.87 (without: 0.02), with two rounds to 1.00
with both. The second takes about half an hour on two cores: five trainings on two rounds come to
0.99.

The same on what real people said (PersuasionForGood; the folder holds `full_dialog.csv` and
`full_info.csv` as published), judged on dialogues that were set apart; an LLM looks back on them:

python experiments/persuasion.py --workdir=runs/real \
    --config.data.source=persuasionforgood --config.data.path=FOLDER
python experiments/persuasion.py --workdir=runs/looked-back \
    --config.data.source=persuasionforgood --config.data.path=FOLDER \
    --config.hindsight.engine=anthropic --config.llm.model=MODEL
"""

from experiments import launch
from experiments.config import base_config
from experiments.notices import NOTICES

WITHOUT_HINDSIGHT = ("bc", "fbc", "ilql")
WITH_HINDSIGHT = (*WITHOUT_HINDSIGHT, "ilql_hindsight1", "ilql_hindsight2", "dpo")


def get_config():
    config = base_config()
    config.task.world = "persuasion"
    # Few dialogues, of untrained behaviour: what they lack is what hindsight adds.
    config.imagination.dialogues = 3000
    config.train.steps = 6000
    config.methods = WITH_HINDSIGHT
    config.chat.method = "ilql_hindsight1"
    config.chat.notice = NOTICES["persuasion"]
    config.evaluation.diagnosed_episodes = 20
    return config


# Where the settings on the left are asked for, those on the right are the defaults. Real people say
# more, in more words, and there are few of their dialogues: a wider network, a shorter training.
VARIANTS = (
    (
        {"data.source": "persuasionforgood"},
        {
            "data.path": "data/persuasionforgood",
            "methods": WITHOUT_HINDSIGHT,
            "chat.method": "ilql",
            "tokenizer.vocab_size": 4096,
            "model.max_positions": 1536,
            "model.hidden_size": 96,
            "model.mlp_size": 384,
            "model.num_heads": 4,
            "model.rotary_base": 1000.0,
            "model.initializer_range": 0.06,
            "decoding.max_utterance": 64,
            "train.batch_rows": 2,
            "train.steps": 300,
            "train.warmup_steps": 30,
            "train.weight_decay": 0.1,
            "train.checkpoint_every": 100,
            "train.log_every": 10,
            "method.dpo.steps": 60,
            "method.ilql.trace_fade": (0.3, 0.8),
        },
    ),
    (
        {"data.source": "persuasionforgood", "hindsight.engine": "anthropic"},
        {"methods": WITH_HINDSIGHT, "chat.method": "ilql_hindsight1"},
    ),
)


if __name__ == "__main__":
    launch.main("persuasion", get_config(), VARIANTS)
