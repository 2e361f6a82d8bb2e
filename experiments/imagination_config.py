"""Settings of how dialogues are imagined and rewritten: by whom, in which rounds, with which flaws.

They are sections of the experiments' settings (see `config.py`).
"""

from __future__ import annotations

import dataclasses

from ilql_jax.settings import SettingError, Settings, setting


@dataclasses.dataclass(frozen=True)
class ImaginerConfig(Settings):
    """Choice of who imagines: the embedded world or an LLM."""

    engine: str = setting(
        "Author of the dialogues: the embedded world, or an LLM (config.llm).",
        "world",
        choices=("world", "anthropic"),
    )


@dataclasses.dataclass(frozen=True)
class RoundsConfig(Settings):
    """Rounds of imagination, in which a trained agent takes part. Held only where a method learns
    from them (ilql_imagination1)."""

    round_dialogues: int = setting(
        "Conversations that an agent holds in a round of imagination, to learn from.",
        4000,
        least=1,
        most=10_000_000,
    )
    round_decoding: str = setting(
        "Decoding of the agent in a round of imagination, e.g. 'sampled at 0.6, best of 16'; "
        "empty = the first that is set for its method.",
        "",
    )
    round_start: str = setting(
        "Start of a training with rounds of imagination: fresh, like one without; or agent, "
        "the network that held the conversations, which goes on learning (ILQL's bootstraps from "
        "the first step, whatever config.method.ilql.trace_fade says).",
        "fresh",
        choices=("fresh", "agent"),
    )
    round_clone: bool = setting(
        "Cloning of what the agent says in a round of imagination, too. false: the values alone "
        "learn from it, so that what the policy proposes keeps the variety of the data; without "
        "values, and in Q-SFT, it is cloned in any case.",
        False,
    )
    round_share: float = setting(
        "Optimizer steps of a training with rounds of imagination, as a share of "
        "config.train.steps, or of those of its method; one step at least.",
        1.0,
        above=0,
        most=100,
    )


@dataclasses.dataclass(frozen=True)
class PlantedFlawsConfig(Settings):
    """Flaws planted into the dialogues of an embedded world, to measure what a critique brings."""

    planted_flaws: float = setting(
        "Share of a world's dialogues with a flaw as LLMs make them: the human names its traits at "
        "once, or the rating is the opposite of what the words tell (each in half of them).",
        0.0,
        least=0,
        most=1,
    )
    mend_flaws: bool = setting(
        "A critique, which has words and ratings alone, finds planted flaws; what it finds is "
        "written anew.",
        False,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.mend_flaws and not self.planted_flaws:
            problem = "asks for planted_flaws above 0"
            raise SettingError("mend_flaws", self.mend_flaws, problem)


@dataclasses.dataclass(frozen=True)
class HindsightConfig(Settings):
    """Hindsight, whoever plays its parts. Done only where a method learns from it."""

    engine: str = setting(
        "Player of controller, human and reward model: the embedded world, or an LLM (config.llm).",
        "world",
        choices=("world", "anthropic"),
    )
    max_changes: int = setting(
        "Turns of a dialogue put better, each in a new dialogue of its own.", 2, least=1
    )
    calibration_dialogues: int = setting(
        "Dialogues on which the reward model is first compared with known outcomes.", 300, least=5
    )
    min_agreement: float = setting(
        "Rank correlation that this comparison must reach; -1 = go on anyway.",
        0.3,
        least=-1,
        most=1,
        shapes_result=False,
    )


@dataclasses.dataclass(frozen=True)
class WorldHindsightConfig(Settings):
    """Controller of an embedded world."""

    belief: str = setting(
        "Best act by what was known at that turn (prefix), or by all replies (finished).",
        "prefix",
        choices=("prefix", "finished"),
    )
    error_rate: float = setting("Share of wrong proposals.", 0.0, least=0, most=1)
