"""Your own dialogues: offline RL on a file of rated conversations, with no world and no LLM.

python experiments/own_data.py --config.data.path=dialogues.jsonl
python experiments/own_data.py --config.data.path=dialogues.jsonl --config.methods=bc,ilql,mc

One JSON object a line: `messages` (role user or assistant, content), and a `reward` of the dialogue
or of messages of the assistant; experiments/own_dialogues.py has the fields. Judged on dialogues
that are set apart: perplexity, and how well values foretell the outcome. The time goes with the
data: 300 steps over rows of 1,536 tokens take some minutes on two cores.
"""

from experiments import launch
from experiments.config import base_config


def get_config():
    config = base_config()
    config.data.source = "jsonl"
    # Real people say more, in more words: a wider network, trained for a shorter time.
    config.tokenizer.vocab_size = 4096
    config.model.max_positions = 1536
    config.model.hidden_size = 96
    config.model.mlp_size = 384
    config.model.num_heads = 4
    config.model.rotary_base = 1000.0
    config.model.initializer_range = 0.06
    config.decoding.max_utterance = 64
    config.train.batch_rows = 2
    config.train.steps = 300
    config.train.warmup_steps = 30
    config.train.weight_decay = 0.1
    config.train.checkpoint_every = 100
    config.train.log_every = 10
    config.method.ilql.trace_fade = (0.3, 0.8)
    return config


if __name__ == "__main__":
    launch.main("own_data", get_config())
