"""Counseling: somebody is in distress, and what they say first is not what lies behind it.

python experiments/counseling.py
python experiments/counseling.py --config.seeds=3

The same on what real people said (ESConv; `ESConv.json` as published, for research alone), judged
on dialogues that were set apart; an LLM looks back on them:

python experiments/counseling.py --config.data.source=esconv --config.data.path=ESConv.json
python experiments/counseling.py --config.data.source=esconv --config.data.path=ESConv.json \
    --config.hindsight.engine=anthropic --config.hindsight.model=MODEL
"""

from experiments import launch
from experiments.config import base_config, look_back, on_real_dialogues


def get_config():
    config = base_config()
    config.task.world = "counseling"
    look_back(config)
    config.chat.notice = (
        "This agent is for research. It is no counsellor, no therapist and no medical device, and "
        "must not be used in place of one. If you are in distress, talk to somebody you trust or "
        "to a professional; in an emergency, call your local emergency number."
    )
    return config


def dependent(config):
    """Settings that are different where the dialogues are those of real people."""
    if config.data.source == "world":
        return {}
    return on_real_dialogues(config) | {"data.path": "data/ESConv.json"}


if __name__ == "__main__":
    launch.main("counseling", get_config(), dependent)
