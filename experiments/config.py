"""Settings of an experiment, as a `ConfigDict` that experiment files and command lines change.

Every section is generated from frozen dataclasses (`SECTIONS`): those of the library, and for what
is the experiments' own those below and in `imagination_config.py`. The dataclass is the one place
for a setting's meaning, default and bounds, and for whether it shapes results.
`python experiments/teaching.py --help` shows all.

`build.py` turns the finished config into an `Experiment`, which travels; nothing else reads it.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.imagination_config import (
    HindsightConfig,
    ImaginerConfig,
    PlantedFlawsConfig,
    RoundsConfig,
    WorldHindsightConfig,
)
from experiments.methods import load_own
from experiments.metrics import LoggingConfig
from ilql_jax.errors import UserError, shown
from ilql_jax.methods import METHODS, Method, TrainOverrides
from ilql_jax.models import DecoderConfig, ModelConfig
from ilql_jax.models.config import COMPUTE_DTYPES
from ilql_jax.models.network_config import SMALL_NETWORK
from ilql_jax.settings import REQUIRED, Setting, SettingError, Settings, setting, settings_of
from ilql_jax.sharding import HostsConfig, MeshConfig
from ilql_jax.train_step import TrainConfig
from imagination.agents import AGENTS
from imagination.agents.gdp_zero import SearchConfig
from imagination.chat_formats import LOSS_ON
from imagination.chat_templates import TEMPLATE_DATE
from imagination.corpora import CORPORA, MISSING_OUTCOME
from imagination.engine.config import PURPOSES, EngineConfig
from imagination.hindsight.llm import LLMHindsightConfig
from imagination.llm.config import LLMConfig, price
from imagination.llm.secrets import APIS
from imagination.persona_sampling import PersonaSampling
from imagination.task import MOST_TURNS, TaskError, check_reward_range

MOST_EPISODES = 1_000_000  # conversations are held in memory
SOURCES = ("world", "jsonl", *CORPORA)


class ConfigError(UserError, ValueError):
    """A setting that cannot be used. The message names key, value and what would be right."""


@dataclasses.dataclass(frozen=True)
class RunConfig(Settings):
    """Settings outside of any section."""

    seed: int = setting(
        "Seed of the imagined dialogues and of all that is sampled; training k has seed + k.",
        0,
        least=0,
    )
    seeds: int = setting("Trainings of each method.", 1, least=1, most=10_000)
    methods: tuple[str, ...] = setting(
        "Methods to train: names of config.method, each that learns from dialogues also with "
        "rounds of hindsight (ilql_hindsight2), or a .py file that defines METHOD.",
        ("bc", "fbc", "ilql"),
    )
    workers: int = setting(
        "Processes side by side; 0 = by the number of cores, 1 = one after the other.",
        0,
        least=0,
        most=1000,
        shapes_result=False,
    )


@dataclasses.dataclass(frozen=True)
class DataConfig(Settings):
    """Origin of the dialogues."""

    source: str = setting(
        "Origin of the dialogues: world (an embedded world, or an LLM that imagines), jsonl (your "
        "own, in the chat format), or a published corpus.",
        "world",
        choices=SOURCES,
    )
    path: str = setting(
        "Dialogues of your own: a .jsonl file, a folder of them, or a name that `datasets` loads. "
        "Of a corpus: the folder (esconv: or file) as published.",
        "",
    )
    test_share: float = setting(
        "Share of your own dialogues that is set apart for evaluation, chosen by their ids; a "
        "dialogue's field split (train or test) goes before.",
        0.2,
        above=0,
        below=1,
    )
    loss_on: str = setting(
        "Turns of the agent that are learned from: all (agent), the last (agent_last), or those "
        "with a field learn (marked); a message's clone and credit go before.",
        "agent",
        choices=LOSS_ON,
    )
    importance_weights: bool = setting(
        "Dialogues count in every loss, but that of pairs, as if their personas were drawn from "
        "the prior: a dialogue's weight is the prior probability of its persona over its share of "
        "the dialogues.",
        False,
    )
    max_reward: float = setting(
        "Donations above this are capped (persuasionforgood).", 2.0, above=0
    )
    missing_outcome: str = setting(
        "Dialogues without a rated outcome are dropped, or count as unchanged (esconv).",
        "drop",
        choices=MISSING_OUTCOME,
    )


@dataclasses.dataclass(frozen=True)
class TaskConfig(Settings):
    """Subject of the dialogues. With a world, these change its task for an LLM that imagines; with
    a description, what is left empty is derived from it and written to task.yaml."""

    world: str = setting("An embedded world by name, or a .py file that defines WORLD.", "")
    description: str = setting("The task in a paragraph, as told to a person.", "")
    agent_role: str = setting("The agent in one or two words, e.g. tutor.", "")
    human_role: str = setting("The human in one or two words, e.g. student.", "")
    persona_axes: Mapping[str, tuple[str, ...]] | None = setting(
        "Hidden traits of the human, axis -> values; set in the experiment's file.", None
    )
    criteria: tuple[str, ...] = setting(
        "Criteria that a good dialogue fulfils, a sentence each.", ()
    )
    success: str = setting("Meaning of success, in words.", "")
    max_turns: int = setting(
        "Agent turns of a dialogue at most; 0 = derived.", 0, least=0, most=MOST_TURNS
    )
    reward_range: tuple[float, ...] = setting(
        "Worst and best rating of a dialogue, e.g. 0,10; empty = 0 to 1, the world's, or that of "
        "your own dialogues.",
        (),
    )
    success_reward: float | None = setting(
        "Rating from which a dialogue is a success; None = 0.8 of the way up, the world's, or for "
        "your own dialogues the middle.",
        None,
    )
    reward_unit: str = setting(
        "Unit of a rating, e.g. 'dollars that are given'; empty = it is a mark.", ""
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.reward_range:
            return
        try:
            low, high = check_reward_range(self.reward_range)
        except TaskError:
            problem = "must be two numbers, the worst rating and a higher best one"
            raise SettingError("reward_range", self.reward_range, problem) from None
        if self.success_reward is not None and not low <= self.success_reward <= high:
            problem = f"must lie in reward_range, {low:g} to {high:g}"
            raise SettingError("success_reward", self.success_reward, problem)

    def given(self) -> dict[str, Any]:
        """Fields of a task that are set; those that are not are derived."""
        fields = {name: getattr(self, name) for name in TASK_FIELDS}
        return {n: v for n, v in fields.items() if v or (n == "success_reward" and v is not None)}


TASK_FIELDS = tuple(f.name for f in dataclasses.fields(TaskConfig) if f.name != "world")


@dataclasses.dataclass(frozen=True)
class LLMOverride(Settings):
    """Another model than `config.llm` for one purpose; the defaults = as there.

    Another server gets no `extra_body`, and another wire format nothing that it has not.
    """

    model: str = setting("Another model than config.llm.model.", "")
    base_url: str = setting("Another address than config.llm.base_url.", "")
    api: str = setting("Another wire format than config.llm.api.", "", choices=("", *APIS))
    temperature: float = setting(
        "Another sampling temperature than config.llm.temperature; -2 = as there, -1 = the "
        "service's own.",
        -2.0,
        least=-2,
        most=2,
    )
    max_tokens: int = setting(
        "Another longest answer than config.llm.max_tokens; 0 = as there.", 0, least=0
    )
    batch: str = setting(
        "Other than config.llm.batch; empty = as there.",
        "",
        choices=("", "true", "false"),
        shapes_result=False,
    )
    free: bool = setting(
        "This model costs nothing, whatever the prices of config.llm.", False, shapes_result=False
    )
    price_input: float = price("input tokens")
    price_output: float = price("output tokens")
    price_cache_read: float = price("tokens read from the prompt cache")
    price_cache_write: float = price("tokens written to the prompt cache")


@dataclasses.dataclass(frozen=True)
class AnswersConfig(Settings):
    """Folder of an LLM's answers."""

    cache_folder: str = setting(
        "Folder of the answers, which runs may share; empty = llm/ in the run's folder.",
        "",
        shapes_result=False,
    )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Settings):
    """Tokenizer of the run."""

    pretrained: str = setting(
        "Hugging Face name or folder; empty = that of the pretrained model, or a BPE trained here.",
        "",
    )
    vocab_size: int = setting("Tokens of the BPE trained here, at most.", 1024, least=1)
    opening: str = setting(
        "Words of the human before a conversation that the agent opens, for chat templates; empty "
        "= none where the template lets an agent speak first, else an empty turn.",
        "",
    )
    date: str = setting(
        "Day that chat templates write which ask for today's, year-month-day.",
        TEMPLATE_DATE.isoformat(),
    )

    def __post_init__(self):
        super().__post_init__()
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            problem = "must be a day as year-month-day, e.g. 2025-01-31"
            raise SettingError("date", self.date, problem) from None


@dataclasses.dataclass(frozen=True)
class StartConfig(Settings):
    """Start of the trainings."""

    pretrained: str = setting(
        "Hugging Face name or folder of the network to start from; empty = a fresh one.", ""
    )


@dataclasses.dataclass(frozen=True)
class BatchConfig(Settings):
    """Batches, and how far values look ahead."""

    batch_rows: int = setting(
        "Rows of a batch, of max_positions tokens each, several dialogues in a row.", 4, least=1
    )
    token_discount: float = setting("γ from token to token.", 0.99, least=0, most=1)
    utterance_discount: float = setting("γ from utterance to utterance.", 0.99, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class SpeakingConfig(Settings):
    """Limits of an agent that speaks."""

    max_utterance: int = setting("Longest utterance of an agent, in tokens.", 24, least=1)
    batch_size: int = setting("Conversations decoded together.", 64, least=1, shapes_result=False)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Conversations that agents are judged in."""

    validation_episodes: int = setting(
        "Conversations in which each way of choosing words is tried.",
        100,
        least=1,
        most=MOST_EPISODES,
    )
    curve_episodes: int = setting(
        "Conversations with each population at every checkpoint of a training, for the score's "
        "learning curve; humans of an embedded world alone, and not on a mesh. 0 = none.",
        20,
        least=0,
        most=MOST_EPISODES,
        shapes_result=False,
    )
    average_episodes: int = setting(
        "Test conversations, average population.", 300, least=1, most=MOST_EPISODES
    )
    difficult_episodes: int = setting(
        "Test conversations, difficult population.", 200, least=1, most=MOST_EPISODES
    )
    prompted: tuple[str, ...] = setting(
        "LLM baselines to compare with: plain, reasoning, clam, gdp_zero.",
        (),
        choices=tuple(AGENTS),
    )
    prompted_episodes: int = setting(
        "Test conversations of these, of each population; 0 = as many as of the networks.",
        0,
        least=0,
        most=MOST_EPISODES,
    )
    diagnosed_episodes: int = setting(
        "Test conversations of each population in which what is lost is split into candidates and "
        "choice, by the exact values of a world; the first ones, with the share of difficult "
        "humans that all have; 0 = none. Seconds in teaching; where there are many personas, much "
        "longer.",
        0,
        least=0,
        most=MOST_EPISODES,
        shapes_result=False,
    )
    sample_replies: int = setting(
        "Turns of dialogues that were set apart at which the report sets what methods would say "
        "beside what was said; 0 = none.",
        4,
        least=0,
        most=100,
        shapes_result=False,
    )
    human: str = setting(
        "Humans that agents talk with: those of the world, or prompted ones, played by an LLM.",
        "world",
        choices=("world", "prompted"),
    )
    human_guidance: str = setting("Further facts about such people, for prompted humans.", "")

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.prompted)) < len(self.prompted):
            raise SettingError("prompted", self.prompted, "must name each agent once")


@dataclasses.dataclass(frozen=True)
class ActsConfig(Settings):
    """Acts that the tree search chooses among."""

    acts: Mapping[str, str] | None = setting(
        "Act -> what the agent does; set in the experiment's file. Empty: the model lists them.",
        None,
    )


@dataclasses.dataclass(frozen=True)
class ChatConfig(Settings):
    """--stage=chat."""

    method: str = setting("Method that talks in --stage=chat.", "ilql", shapes_result=False)
    notice: str = setting(
        "Shown before a chat: what these agents are not for.", "", shapes_result=False
    )


@dataclasses.dataclass(frozen=True)
class ExportConfig(Settings):
    """--stage=export."""

    method: str = setting(
        "Method whose network --stage=export writes for transformers.", "ilql", shapes_result=False
    )
    seed: int = setting("Its training, counted from 0.", 0, least=0, shapes_result=False)
    dtype: str = setting(
        "Dtype of the exported policy.", "float32", choices=COMPUTE_DTYPES, shapes_result=False
    )


_FRESH = {**SMALL_NETWORK, "max_positions": 240}
_COMPUTED = ("compute_dtype", "attention", "remat", "scan_layers", "lora_rank", "lora_scale")

# Settings that are mappings, which an experiment's file fills.
MAPPINGS = ("task.persona_axes", "evaluation.gdp_zero.acts")
_MAPPING_FIELDS = ("persona_axes", "acts")

# Section -> the dataclasses that its settings are fields of. Those of the methods are added to
# `method` and `decoding` by `add_method`.
SECTIONS: dict[str, tuple[type[Settings], ...]] = {
    "": (RunConfig,),
    "data": (DataConfig,),
    "task": (TaskConfig,),
    "llm": (LLMConfig, AnswersConfig),
    "imagination": (
        ImaginerConfig,
        EngineConfig,
        PersonaSampling,
        RoundsConfig,
        PlantedFlawsConfig,
        LLMOverride,
    ),
    **{f"imagination.{purpose}": (LLMOverride,) for purpose in PURPOSES},
    "hindsight": (HindsightConfig, WorldHindsightConfig, LLMHindsightConfig, LLMOverride),
    "tokenizer": (TokenizerConfig,),
    "model": (StartConfig, DecoderConfig, ModelConfig),
    "train": (TrainConfig, BatchConfig),
    "mesh": (MeshConfig,),
    "machine": (HostsConfig,),
    "method": (),
    "decoding": (SpeakingConfig,),
    "evaluation": (EvaluationConfig, LLMOverride),
    "evaluation.gdp_zero": (SearchConfig, ActsConfig),
    "evaluation.player": (LLMOverride,),
    "logging": (LoggingConfig,),
    "chat": (ChatConfig,),
    "export": (ExportConfig,),
}
# Fields that are no settings: derived from others, or of pretrained networks alone.
_DERIVED = {
    # Longest answer and batches of stages are those of config.llm.
    "imagination": ("seed", "max_turns", "sampling", "max_tokens", "batch"),
    "hindsight": ("seed", "max_tokens", "batch"),
    # Every turn waits for the one before: batches would take a day for each.
    "evaluation": ("batch",),
    "evaluation.player": ("batch",),
    "model": (
        "decoder",
        *(
            field.name
            for field in dataclasses.fields(DecoderConfig)
            if field.name not in (*_FRESH, *_COMPUTED)
        ),
    ),
}
# Defaults of required fields, and those that differ from the dataclass's.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llm": {"model": ""},
    "imagination": {"dialogues": 24000, "model": ""},
    "model": _FRESH,
    "train": {"steps": 6000},
    "mesh": {"data": 1},
}


def base_config() -> ConfigDict:
    """Settings shared by all tasks, for training small networks from scratch on a laptop."""
    config = ConfigDict()
    for name, classes in SECTIONS.items():
        made = section(*classes, leave_out=_DERIVED.get(name, ()), **_DEFAULTS.get(name, {}))
        parent, _, own = name.rpartition(".")
        if own:
            (config[parent] if parent else config)[own] = made
        else:
            config.update(made)
    for method in METHODS.values():
        add_method(config, method)
    return config


def add_method(config: ConfigDict, method: Method | str) -> Method:
    """Adds a method's settings, and the decodings that are tried for it, where they are missing.

    An experiment's file calls it for a method of its own, whose settings it then changes (see
    docs/own_method.md).

    Args:
        config: Config made by `base_config`.
        method: A method, or the path of a .py file that defines METHOD.

    Returns:
        The method, as its file has it.

    Raises:
        MethodError: The file cannot be used.
        ConfigError: Settings that are there already, and that the method does not have.
    """
    method = load_own(method) if isinstance(method, str) else method
    classes, values = [type(method.config)], dict(vars(method.config))
    if method.train is not None:
        classes.append(TrainOverrides)
        values |= vars(method.train)
    complete = section(*classes, **values)
    for name, value in config.method.get(method.name, ConfigDict()).items():
        key = f"config.method.{method.name}.{name}"
        if name not in complete:
            raise ConfigError(f"{key} is no setting; there are {', '.join(complete)}.")
        try:
            complete[name] = value
        except TypeError:
            raise ConfigError(
                f"{key} is {shown(value, 300, repr)}, which is not of the right type; expected "
                f"{type(complete[name]).__name__}, e.g. {complete[name]!r}."
            ) from None
    config.method[method.name] = complete
    if method.name not in config.decoding:
        config.decoding[method.name] = tuple(method.decodings)
    return method


def section(*classes: type, leave_out: Collection[str] = (), **overrides: Any) -> ConfigDict:
    """Generates the settings of dataclasses with their defaults.

    Args:
        classes: Dataclasses; a field that two of them have is one setting.
        leave_out: Names of fields that are no settings.
        overrides: Defaults that differ here, and those of required fields.

    Raises:
        TypeError: A required field without a default, or an override of no such field.
    """
    fields = {f.name: f for each in classes for f in dataclasses.fields(each)}
    fields = {name: field for name, field in fields.items() if name not in leave_out}
    if unknown := overrides.keys() - fields.keys():
        raise TypeError(f"{classes} have no settings {sorted(unknown)}")
    settings = ConfigDict()
    for name, field in fields.items():
        value = overrides.get(name, field.default)
        if value is REQUIRED:
            raise TypeError(f"the setting {name} of {classes} needs a default")
        if name in _MAPPING_FIELDS:
            value = ConfigDict()
        elif value is None:  # typed, so that the command line can set it
            value = placeholder(float)
        settings[name] = value
    return settings


def described(methods: Iterable[Method] = ()) -> dict[str, Setting]:
    """Key -> description of every setting, e.g. "train.steps".

    Args:
        methods: Methods of one's own, beside those of `METHODS`.
    """
    found: dict[str, Setting] = {}
    for name, classes in SECTIONS.items():
        for each in classes:
            for field, about in settings_of(each).items():
                if field not in _DERIVED.get(name, ()):
                    found.setdefault(f"{name}.{field}" if name else field, about)
    for method in (*METHODS.values(), *methods):
        classes = (type(method.config), *([TrainOverrides] if method.train else ()))
        for each in classes:
            for field, about in settings_of(each).items():
                found[f"method.{method.name}.{field}"] = about
        found[f"decoding.{method.name}"] = Setting(
            f"Ways of choosing words tried for {method.title}; the best on validation episodes is "
            "used."
        )
    return found


def keys_of(config: ConfigDict, prefix: str = "") -> list[str]:
    """Keys of all settings, those of sections with their section, e.g. "train.steps"."""
    keys = []
    for key, value in config.items():
        nested = isinstance(value, ConfigDict) and f"{prefix}{key}" not in MAPPINGS
        keys += keys_of(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return keys
