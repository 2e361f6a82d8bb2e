"""The settings every experiment starts from, with their meaning beside them.

`experiments/<task>.py` takes these and says what is different about its task. All of them can be
set on the command line, e.g. `--config.train.steps=500`. `check` builds everything that is built
from a config, so that a wrong value is told before any work starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from experiments.methods import PAIRS_START_FROM, parse_method, rounds_of
from experiments.metrics import LoggingConfig, check_backends
from ilql_jax.errors import UserError
from ilql_jax.methods import METHODS, Method, TrainOverrides
from ilql_jax.models import ModelConfig
from ilql_jax.models.config import COMPUTE_DTYPES
from ilql_jax.models.hugging_face import check_tensors
from ilql_jax.models.network_config import SHAPE_OF_FRESH, network_config
from ilql_jax.partition import check_start
from ilql_jax.policy import DecodingConfig
from ilql_jax.settings import SettingError
from ilql_jax.sharding import HostsConfig, MeshConfig
from ilql_jax.train_step import (
    TrainConfig,
    check_accumulation,
    check_adapters,
    check_learns,
    train_config_of,
)
from imagination.corpora import CORPORA, ReadOptions

if TYPE_CHECKING:  # loaded where an LLM is used
    from imagination.engine import EngineConfig
    from imagination.hindsight.llm import LLMHindsightConfig
    from imagination.llm import LLMConfig


class ConfigError(UserError, ValueError):
    """A setting that cannot be used. The message names key, value and what would be right."""


def base_config() -> ConfigDict:
    """Settings shared by all tasks; for training small networks from scratch on a laptop."""
    config = ConfigDict()
    config.seed = 0  # of the imagined dialogues; training seed k is seed + k
    config.seeds = 1  # trainings of each method
    config.methods = ("bc", "fbc", "ilql")  # also: mc, ilql_hindsight1, dpo (see methods.py)
    config.workers = 0  # processes side by side; 0 = by the number of cores, 1 = none

    # Where dialogues come from.
    config.data = ConfigDict()
    config.data.source = "world"  # world, persuasionforgood, esconv
    config.data.path = ""  # of a corpus's files as published: their folder (esconv: or a file)
    config.data.max_reward = 2.0  # donations above are capped (persuasionforgood)
    config.data.missing_outcome = "drop"  # surveys without outcome: drop, unchanged (esconv)

    config.task = ConfigDict()
    config.task.world = ""  # an embedded world by name, or a .py file that defines WORLD; "" = none

    # Of the embedded world by default; what is given here changes its task for an LLM that
    # imagines. With a description, all that is left empty is derived from it (see task.yaml).
    config.task.description = ""  # the task in a paragraph
    config.task.agent_role = ""
    config.task.human_role = ""
    config.task.persona_axes = ConfigDict()  # axis -> tuple of values, in the experiment's file
    config.task.criteria = ()  # what a good dialogue must fulfil, a sentence each
    config.task.success = ""  # in words
    config.task.max_turns = 0

    config.imagination = ConfigDict()
    config.imagination.engine = "world"  # who writes the dialogues: world, or anthropic (an LLM)
    config.imagination.dialogues = 24000
    # With an LLM (see imagination/engine/config.py):
    config.imagination.way = "rollout"  # agent and human in turn; script: whole dialogues at once
    config.imagination.rewards = "human"  # whose rating counts: outcome (scripts), judge, human
    config.imagination.also_rewards = ()  # computed too, for the card's table of agreement
    config.imagination.outcomes = 2  # levels of reward that scripts are written for
    config.imagination.personas_per_call = 8
    config.imagination.critique_rounds = 1  # rewritten at most this often; 0 = no critique
    config.imagination.judge_votes = 3
    config.imagination.conversations = 256  # under way at the same time
    _add_llm(config.imagination)
    _add_batches(config.imagination)

    # How finished dialogues are looked back on; done where a method learns from it.
    config.hindsight = ConfigDict()
    config.hindsight.engine = "world"  # who plays its parts: world, or anthropic (an LLM)
    config.hindsight.max_changes = 2  # turns put better, each in a new dialogue of its own
    config.hindsight.calibration_dialogues = 300  # that the reward model is first compared on
    config.hindsight.min_agreement = 0.3  # rank correlation with known rewards; -1 = go on anyway
    # With a world (see imagination/hindsight/world.py):
    config.hindsight.belief = "prefix"  # best act by what was known then; finished: by all replies
    config.hindsight.error_rate = 0.0  # of the controller
    # With an LLM (see imagination/hindsight/llm.py):
    config.hindsight.way = "rollout"  # the rest is played in turn; script: written in one call
    config.hindsight.judge_votes = 3  # ratings of which a dialogue's is the mean
    config.hindsight.conversations = 256  # under way at the same time
    _add_llm(config.hindsight)
    _add_batches(config.hindsight)

    config.tokenizer = ConfigDict()
    config.tokenizer.pretrained = (
        ""  # Hugging Face name or folder; "" = that of the pretrained model, or a BPE trained here
    )
    config.tokenizer.vocab_size = 1024  # of the trained BPE, at most

    config.model = ConfigDict()
    config.model.pretrained = ""  # Hugging Face name or folder to start from, of any size
    # Else a fresh network: GPT-2's shape, but for rotary positions.
    config.model.hidden_size = 64
    config.model.num_layers = 2
    config.model.num_heads = 2
    config.model.mlp_size = 256
    config.model.max_positions = 240  # longest dialogue, in tokens
    config.model.position_encoding = "rotary"  # or learned
    config.model.rotary_base = 100.0  # wavelengths from 6 to some 470 tokens
    config.model.initializer_range = 0.08  # GPT-2's 0.02 is for a width of 768
    # Of the pretrained one: thin adapters learn, beside the value heads (LoRA).
    config.model.lora_rank = 0  # width of the adapters; 0 = none, all of the network learns
    config.model.lora_scale = 1.0  # of what they add (the paper's α / r)
    # Of both (see ilql_jax/models/config.py):
    config.model.compute_dtype = "float32"  # or bfloat16; parameters are float32 in any case
    config.model.attention = "xla"  # on accelerators; or cudnn (GPUs, with bfloat16)
    config.model.remat = False  # keep less for the backward pass, compute it again
    config.model.scan_layers = False  # compile one block for all
    config.model.value_inner_size = 128  # hidden layer of the value heads
    config.model.value_heads = "mlp"  # or linear, tied (see ilql_jax/models/heads.py)
    config.model.value_trunk = "shared"  # with the policy; separate: a second one, values' own
    config.model.utterance_q = "sum"  # of its tokens' shares; last: Q of the last token

    config.train = ConfigDict()
    config.train.steps = 6000
    config.train.batch_rows = 4  # rows of max_positions tokens, several dialogues in each
    config.train.gradient_accumulation = 1  # parts that those rows are looked at in
    config.train.freeze_trunk = False  # learn values alone, beside a pretrained policy
    config.train.optimizer = "muon"  # for the trunk's matrices, adamw for the rest; or adamw
    config.train.learning_rate = 3e-3  # peak
    config.train.muon_learning_rate = 0.01  # peak
    config.train.warmup_steps = 200
    config.train.weight_decay = 0.01
    config.train.max_gradient_norm = 1.0
    config.train.polyak_rate = 0.005  # target Q heads
    config.train.token_discount = 0.99  # γ from token to token
    config.train.utterance_discount = 0.99  # γ from utterance to utterance
    config.train.checkpoint_every = 1000
    config.train.log_every = 50

    # The devices of a training, all hosts together (see ilql_jax/sharding.py); on more than one,
    # trainings go one after the other. One axis may be -1: all devices that are left.
    config.mesh = ConfigDict()
    config.mesh.data = 1  # rows are split
    config.mesh.fsdp = 1  # rows and parameters are split
    config.mesh.tensor = 1  # matrices are split

    # How this process finds those of the other hosts; not kept with the run.
    config.machine = ConfigDict()
    config.machine.coordinator = ""  # auto (TPU pods, Slurm), or host:port of process 0; "" = alone
    config.machine.processes = 1  # with host:port
    config.machine.id = 0  # with host:port, from 0

    # What ILQL learns (mc takes from it what applies; see ilql_jax/methods/ilql.py).
    config.objective = ConfigDict()
    config.objective.credit = "utterance"  # decisions are utterances, or (the paper) tokens
    config.objective.expectile = 0.8  # 0.5 = mean of the data, towards 1 = best of it
    config.objective.cql_weight = 0.0  # needed for steering tokens, not for re-ranking
    config.objective.value_loss_weight = 0.1  # value losses against the policy's
    config.objective.token_trace = 0.0  # λ inside an utterance (credit "token")
    config.objective.utterance_trace = 0.0  # λ across the human's turn
    config.objective.trace_fade = (0.15, 0.45)  # both λ fall from 1 between these fractions
    config.objective.awac_temperature = 0.5  # of rewards of unit spread; 0 = plain cloning
    config.objective.awac_max_weight = 20.0
    config.objective.fbc_fraction = 0.25  # filtered BC keeps this share of the dialogues
    config.objective.action_chunk = 1024  # decisions with scores of all words in memory together

    # How dpo goes on from what bc has learned. Short and slow: pairs are soon learned by heart.
    config.dpo = ConfigDict()
    config.dpo.kl_weight = 0.1  # β: the larger, the closer it stays to bc
    config.dpo.steps = 200
    config.dpo.learning_rate_factor = 0.01  # of the peaks in config.train

    # Ways of choosing words, by what is learned; each training's is picked on validation episodes.
    config.decoding = ConfigDict()
    config.decoding.bc = ("sampled", "sampled at 0.5", "greedy")
    config.decoding.fbc = ("sampled", "sampled at 0.5", "greedy")
    config.decoding.mc = ("sampled at 0.4, best of 8", "sampled at 0.6, best of 16")
    config.decoding.ilql = ("sampled at 0.4, best of 8", "sampled at 0.6, best of 16")
    config.decoding.dpo = ("sampled", "sampled at 0.5", "greedy")
    config.decoding.max_utterance = 24  # tokens
    config.decoding.batch_size = 64  # conversations decoded together

    config.evaluation = ConfigDict()
    config.evaluation.validation_episodes = 100  # for each way of choosing words
    config.evaluation.average_episodes = 300
    config.evaluation.difficult_episodes = 200
    config.evaluation.prompted = ()  # LLM baselines: plain, reasoning, clam, gdp_zero
    config.evaluation.prompted_episodes = 0  # of each population, for these; 0 = all
    config.evaluation.human = "world"  # who agents talk with; prompted: played by config.llm
    config.evaluation.human_guidance = ""  # what else a prompted human is told of such people

    # The tree search with a prompted model (see imagination/agents/gdp_zero.py).
    config.evaluation.gdp_zero = ConfigDict()
    config.evaluation.gdp_zero.simulations = 10  # walks down the tree per turn
    config.evaluation.gdp_zero.max_realizations = 3  # ways in words of a sequence of acts
    config.evaluation.gdp_zero.value_samples = 1  # estimates averaged for the value of a state
    config.evaluation.gdp_zero.c_puct = 1.0  # weight of the prior against the values
    config.evaluation.gdp_zero.q_0 = 0.0  # value of an act never tried, from -1 to 1
    config.evaluation.gdp_zero.acts = ConfigDict()  # act -> what is done; empty: the model lists

    # Who is asked where an LLM takes part in the evaluation.
    config.llm = ConfigDict()
    _add_llm(config.llm)

    config.chat = ConfigDict()
    config.chat.method = "ilql"  # who talks in --stage=chat
    config.chat.notice = ""  # told before it: what these agents are not for

    # Where metrics and scores go (see experiments/metrics.py).
    config.logging = ConfigDict(dataclasses.asdict(LoggingConfig()))

    config.export = ConfigDict()
    config.export.method = "ilql"  # whose network --stage=export writes for transformers
    config.export.seed = 0
    config.export.dtype = "float32"  # of the policy; or bfloat16
    return config


def _add_llm(section: ConfigDict) -> None:
    """Settings of an LLM. The key comes from the environment alone (ANTHROPIC_API_KEY)."""
    section.model = ""  # its name, as the service knows it
    section.base_url = ""  # any server that speaks the Messages API; "" = the SDK's default
    section.max_tokens = 4096  # longest answer, where a request names none
    section.max_in_flight = 64  # calls that wait for their answer at the same time
    section.max_retries = 6  # of a call that failed on the way (408, 409, 429, 5xx, connection)
    section.max_asks = 3  # how often a question is put again after an unusable answer
    section.timeout = 120.0  # seconds to wait for an answer
    section.cache = True  # keep answers on disk, and take them from there
    section.cache_folder = ""  # where; runs may share one. "" = llm/ in the run's folder
    section.cache_max_megabytes = 0.0  # oldest answers above this are dropped; 0 = unbounded
    section.max_cost = 0.0  # dollars for one folder of answers, over all runs; 0 = unbounded
    section.price_input = 0.0  # dollars per million tokens, like the next three
    section.price_output = 0.0
    section.price_cache_read = 0.0
    section.price_cache_write = 0.0
    section.price_date = ""  # when the prices were written down


def _add_batches(section: ConfigDict) -> None:
    section.batch = False  # Message Batches, at batch price
    section.batch_poll = 30.0  # seconds between two looks at an unfinished batch
    section.batch_price_factor = 0.5  # what a batch costs as a fraction of the prices


def look_back(config: ConfigDict) -> None:
    """For tasks with few dialogues: methods that learn from hindsight, beside those that do not."""
    config.imagination.dialogues = 3000
    config.methods = _WITH_HINDSIGHT
    config.train.steps = 3000
    config.chat.method = "ilql_hindsight1"


_WITHOUT_HINDSIGHT = ("bc", "fbc", "ilql")
_WITH_HINDSIGHT = (*_WITHOUT_HINDSIGHT, "ilql_hindsight1", "ilql_hindsight2", "dpo")


def on_real_dialogues(config: ConfigDict) -> dict[str, Any]:
    """Key -> value where the dialogues are those of real people, who say more, in more words.

    There are few of them, so the network is wider and the training shorter. Only an LLM can look
    back on them: without one, no method learns from hindsight.
    """
    by_llm = config.hindsight.engine != "world"
    # People who look for support talk on for up to a hundred turns and more.
    longest, rows = (3072, 1) if config.data.source == "esconv" else (1536, 2)
    return {
        "methods": _WITH_HINDSIGHT if by_llm else _WITHOUT_HINDSIGHT,
        "chat.method": "ilql_hindsight1" if by_llm else "ilql",
        "tokenizer.vocab_size": 4096,
        "model.max_positions": longest,
        "model.hidden_size": 96,
        "model.mlp_size": 384,
        "model.num_heads": 4,
        "model.rotary_base": 1000.0,
        "model.initializer_range": 0.06,
        "decoding.max_utterance": 64,
        "train.batch_rows": rows,
        "train.steps": 300,
        "train.warmup_steps": 30,
        "train.weight_decay": 0.1,
        "train.checkpoint_every": 100,
        "train.log_every": 10,
        "dpo.steps": 60,
        "objective.trace_fade": (0.3, 0.8),
    }


def read_options(config: ConfigDict) -> ReadOptions:
    """What the readers of corpora are told."""
    return ReadOptions(config.data.max_reward, config.data.missing_outcome)


def method_of(config: ConfigDict, name: str) -> Method:
    """The method of this name in `config.methods`, with its settings."""
    method = METHODS[parse_method(name).objective]
    values = config.objective.to_dict()
    values |= {"fraction": values["fbc_fraction"], "kl_weight": config.dpo.kl_weight}
    names = {field.name for field in dataclasses.fields(method.config)}
    method = method.configured(**{name: values[name] for name in names})
    if method.train is None:
        return method
    steps, factor = config.dpo.steps, config.dpo.learning_rate_factor
    return dataclasses.replace(method, train=TrainOverrides(steps, factor))


def train_config(config: ConfigDict, method: str) -> TrainConfig:
    """How long and how fast."""
    found = TrainConfig(**_of_section(config.train, TrainConfig))
    on_pairs = parse_method(method).on_pairs
    rows = rows_of_pairs(config) if on_pairs else config.train.batch_rows
    check_accumulation(rows, found.gradient_accumulation)
    learned = method_of(config, method)
    check_learns(learned, found)
    return train_config_of(learned, found)


def rows_of_pairs(config: ConfigDict) -> int:
    """Rows of a batch of pairs, which are twice as long: half as many."""
    return max(1, config.train.batch_rows // 2)


def mesh_config(config: ConfigDict) -> MeshConfig:
    """How the devices of a training are laid out."""
    return MeshConfig(**config.mesh.to_dict())


def hosts_config(config: ConfigDict) -> HostsConfig:
    """How this process finds the others."""
    return HostsConfig(**config.machine.to_dict())


def model_config(config: ConfigDict, vocab_size: int, method: str = "ilql") -> ModelConfig:
    """Shape of a method's network, for a tokenizer of this size."""
    whole = network_config(config.model.to_dict(), vocab_size)
    return method_of(config, method).network_for(whole)


# Settings that a pretrained network says of itself.
SHAPE_KEYS = {f"model.{name}" for name in SHAPE_OF_FRESH}


def decodings(config: ConfigDict, method: str) -> list[DecodingConfig]:
    """The ways of choosing words that are tried for a method."""
    learned = parse_method(method)
    if not config.decoding[learned.objective]:
        raise ValueError("name at least one way of choosing words.")
    found = [DecodingConfig.parse(text) for text in config.decoding[learned.objective]]
    for decoding in found:
        method_of(config, method).check_decoding(decoding)
    return found


MOST_UNLIMITED = 2000  # dialogues that an LLM is asked for without a limit on their cost
TASK_FIELDS = (
    *("description", "agent_role", "human_role", "persona_axes"),
    *("criteria", "success", "max_turns"),
)


def imagines_with_llm(config: ConfigDict) -> bool:
    """Whether the dialogues come from an LLM."""
    return config.data.source == "world" and config.imagination.engine != "world"


def imagination_llm(config: ConfigDict) -> LLMConfig:
    """Who imagines, and how it is asked. Raises `ConfigError` for a field that cannot be."""
    return _llm_config(config.imagination, "config.imagination")


def hindsight_llm(config: ConfigDict) -> LLMConfig:
    """Who looks back, and how it is asked. Raises `ConfigError` for a field that cannot be."""
    return _llm_config(config.hindsight, "config.hindsight")


def llm_config(config: ConfigDict) -> LLMConfig:
    """Who takes part in the evaluation. Raises `ConfigError` for a field that cannot be."""
    return _llm_config(config.llm, "config.llm")


def _llm_config(section: ConfigDict, where: str) -> LLMConfig:
    from imagination.llm import LLMConfig

    try:
        return LLMConfig(**_of_section(section, LLMConfig))
    except SettingError as error:
        raise ConfigError(f"{where}.{error}") from None


def _of_section(section: ConfigDict, kind: type) -> dict[str, Any]:
    """The settings of a section that are fields of a dataclass."""
    return {f.name: section[f.name] for f in dataclasses.fields(kind) if f.name in section}


def logging_config(config: ConfigDict) -> LoggingConfig:
    """Builds the settings of the loggers. Raises `SettingError` for a wrong value."""
    return LoggingConfig(**_of_section(config.logging, LoggingConfig))


def to_log(config: ConfigDict) -> dict[str, Any]:
    """All settings of a run but those of this process, for loggers."""
    return {key: value for key, value in config.to_dict().items() if key != "machine"}


def engine_config(config: ConfigDict) -> EngineConfig:
    """How dialogues are imagined with an LLM. Raises `ConfigError` for a field that cannot be."""
    from imagination.engine import EngineConfig

    try:
        return EngineConfig(**_of_section(config.imagination, EngineConfig), seed=config.seed)
    except SettingError as error:
        raise ConfigError(f"config.imagination.{error}") from None


def hindsight_config(config: ConfigDict) -> LLMHindsightConfig:
    """Settings of hindsight by an LLM. Raises `ConfigError` for a value out of bounds."""
    from imagination.hindsight.llm import LLMHindsightConfig

    try:
        return LLMHindsightConfig(
            **_of_section(config.hindsight, LLMHindsightConfig), seed=config.seed
        )
    except SettingError as error:
        raise ConfigError(f"config.hindsight.{error}") from None


def agent_settings(config: ConfigDict, agent: str) -> dict[str, Any]:
    """What a prompted agent is built with, beside client and task."""
    if agent != "gdp_zero":
        return {}
    search = config.evaluation.gdp_zero.to_dict()
    return {**search, "acts": search["acts"] or None}


def needs_llm(config: ConfigDict) -> bool:
    """Whether the evaluation talks to an LLM."""
    return bool(config.evaluation.prompted) or config.evaluation.human == "prompted"


def _check_imagination(config: ConfigDict) -> None:
    _one_of("imagination.engine", config.imagination.engine, ("world", "anthropic"))
    if not imagines_with_llm(config):
        given = [f"task.{name}" for name in TASK_FIELDS if config.task[name]]
        if given or config.imagination.model:
            raise ConfigError(
                f"config.{given[0] if given else 'imagination.model'} is for an LLM that imagines, "
                "and none does: set config.imagination.engine=anthropic."
            )
        return
    llm, engine = imagination_llm(config), engine_config(config)
    if engine.dialogues > MOST_UNLIMITED and not llm.max_cost and not llm.base_url:
        raise ConfigError(
            f"config.imagination.dialogues is {engine.dialogues:,} and an LLM is to imagine them, "
            "with no limit on the cost. Set config.imagination.max_cost (with price_input and "
            f"price_output), or at most {MOST_UNLIMITED:,} dialogues; --dry_run shows the cost."
        )


_OF_WORLD_HINDSIGHT = ("belief", "error_rate")


def check_methods(config: ConfigDict) -> None:
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ConfigError(f"config.methods is {config.methods}; name each method once.")
    try:
        methods = [parse_method(name) for name in config.methods]
    except ValueError as error:
        raise ConfigError(f"config.methods: {error}") from None
    if any(each.on_pairs for each in methods) and PAIRS_START_FROM not in config.methods:
        raise ConfigError(
            f"config.methods is {config.methods}: dpo goes on from the {PAIRS_START_FROM} of its "
            f"seed. Name {PAIRS_START_FROM} too."
        )


def _check_hindsight(config: ConfigDict) -> None:
    """Who looks back, and that there is somebody who can."""
    section = config.hindsight
    by_llm = section.engine == "anthropic"
    _one_of("hindsight.engine", section.engine, ("world", "anthropic"))
    _one_of("hindsight.belief", section.belief, ("prefix", "finished"))
    for name, low, high in (("error_rate", 0, 1), ("min_agreement", -1, 1)):
        if not low <= section[name] <= high:
            raise ConfigError(
                f"config.hindsight.{name} is {section[name]}, but must lie in [{low}, {high}]."
            )
    shared = ("engine", "max_changes", "calibration_dialogues", "min_agreement")
    of_world = _OF_WORLD_HINDSIGHT
    of_llm = [name for name in section if name not in (*shared, *of_world)]
    untouched = base_config().hindsight
    given = [n for n in (of_world if by_llm else of_llm) if section[n] != untouched[n]]
    if given:
        whose, other = ("a world's controller", "world") if by_llm else ("an LLM", "anthropic")
        raise ConfigError(
            f"config.hindsight.{given[0]} is for {whose}, and none looks back: set "
            f"config.hindsight.engine={other}."
        )
    if by_llm:
        hindsight_config(config)
        hindsight_llm(config)
    elif rounds_of(config.methods) and (config.data.source != "world" or imagines_with_llm(config)):
        whose = "an LLM" if imagines_with_llm(config) else config.data.source
        raise ConfigError(
            f"config.methods is {config.methods}, which asks for hindsight, but the dialogues are "
            f"those of {whose}, which no embedded world can look back on. Set "
            "config.hindsight.engine=anthropic and config.hindsight.model, or leave these methods "
            "out."
        )


def _check_model(config: ConfigDict) -> None:
    """Shape, and for a checkpoint that lies here the names and shapes of its tensors."""
    pretrained = config.model.pretrained
    shape = model_config(config, config.tokenizer.vocab_size)
    check_start(shape, bool(pretrained))
    check_adapters(shape, TrainConfig(**_of_section(config.train, TrainConfig)))
    if pretrained and Path(pretrained).expanduser().is_dir():
        check_tensors(Path(pretrained).expanduser())


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"config.{key} is {value!r}, but must be one of {', '.join(allowed)}.")


def _check_llm(config: ConfigDict) -> None:
    """Wrong fields are told always, a missing model where one is needed."""
    untouched = ConfigDict()
    _add_llm(untouched)
    if not needs_llm(config):
        if config.llm == untouched:
            return
        config = config.copy_and_resolve_references()
        config.llm.model = config.llm.model or "none"
    llm_config(config)


def _check_evaluation(config: ConfigDict) -> None:
    """Who talks in the evaluation."""
    prompted, human = config.evaluation.prompted, config.evaluation.human
    if prompted:
        from imagination.agents import AGENTS

        if unknown := [name for name in prompted if name not in AGENTS]:
            raise ConfigError(
                f"config.evaluation.prompted: there is no prompted agent {unknown[0]!r}; there "
                f"are {', '.join(AGENTS)}."
            )
    _check_gdp_zero(config)
    if len(set(prompted)) < len(prompted):
        raise ConfigError(f"config.evaluation.prompted is {prompted}; name each agent once.")
    _one_of("evaluation.human", human, ("world", "prompted"))
    if config.data.source != "world" and (prompted or human == "prompted"):
        raise ConfigError(
            f"config.evaluation.{'prompted' if prompted else 'human'}: a run on "
            f"{config.data.source} is judged on dialogues that were set apart, where nobody talks."
        )


def _check_gdp_zero(config: ConfigDict) -> None:
    from imagination.agents.gdp_zero import SearchConfig
    from imagination.agents.prompted import check_acts

    search = agent_settings(config, "gdp_zero")
    try:
        if (acts := search.pop("acts")) is not None:
            check_acts(acts)
        SearchConfig(**search)
    except ValueError as error:
        raise ConfigError(f"config.evaluation.gdp_zero.{error}") from None


def _check_world(config: ConfigDict, judged: bool) -> None:
    """Without a world, dialogues and humans come from an LLM."""
    if config.task.world or config.data.source != "world":
        return
    if not imagines_with_llm(config) or not config.task.description:
        raise ConfigError(
            'config.task.world is "". Name a world (teaching, travel, or a .py file of your own); '
            "or have an LLM imagine the dialogues, with config.imagination.engine=anthropic and "
            "the task in a paragraph, config.task.description."
        )
    if judged and config.evaluation.human == "world":
        raise ConfigError(
            'config.task.world is "", so there are no humans of a world to judge by. Have an LLM '
            "play them, with config.evaluation.human=prompted and config.llm.model; or stop before "
            "that, with --stage=train."
        )


def check(config: ConfigDict, judged: bool = True, trained: bool = True) -> None:
    """Raises `ConfigError` for the first value that cannot work.

    Args:
        config: The settings.
        judged: Whether agents are to be judged with them.
        trained: Whether networks are to be trained with them; those that are there need not find
            again what they were trained from.
    """
    check_methods(config)
    _check_imagination(config)
    _check_world(config, judged)
    _check_hindsight(config)
    _check_evaluation(config)
    _check_llm(config)
    builders: dict[str, Any] = {
        "model": lambda: _check_model(config) if trained else None,
        "data": lambda: read_options(config),
        "mesh": lambda: mesh_config(config),
        "logging": lambda: check_backends(logging_config(config)),
        "machine": lambda: hosts_config(config),
    }
    for method in config.methods:
        section = "dpo" if parse_method(method).on_pairs else "train"
        builders[section] = lambda method=method: train_config(config, method)
        builders[f"objective ({method})"] = lambda method=method: method_of(config, method)
        objective = parse_method(method).objective
        builders[f"decoding.{objective}"] = lambda method=method: decodings(config, method)
    for section, build in builders.items():
        try:
            build()
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise ConfigError(f"config.{section}: {error}") from None
    trains_tokenizer = not config.tokenizer.pretrained and not config.model.pretrained
    smallest = {
        "seed": 0,
        "seeds": 1,
        "workers": 0,
        "train.batch_rows": 1,
        "tokenizer.vocab_size": 260 if trains_tokenizer else 0,  # bytes and markers
        "imagination.dialogues": 1,
        "hindsight.max_changes": 1,
        "hindsight.calibration_dialogues": 5,  # fewer say nothing
        "hindsight.judge_votes": 1,
        "hindsight.conversations": 1,
        "evaluation.validation_episodes": 1,
        "evaluation.average_episodes": 1,
        "evaluation.difficult_episodes": 1,
        "evaluation.prompted_episodes": 0,
        "decoding.max_utterance": 1,
        "decoding.batch_size": 1,
        "train.token_discount": 0,
        "train.utterance_discount": 0,
    }
    flat = config.to_dict()
    for key, least in smallest.items():
        section, _, name = key.rpartition(".")
        value = flat[section][name] if section else flat[name]
        if not least <= value:
            raise ConfigError(f"config.{key} is {value}, but must be at least {least}.")
        if name.endswith("discount") and value > 1:
            raise ConfigError(f"config.{key} is {value}, but must not be above 1.")
    if config.objective.credit == "token" and config.model.utterance_q != "last":
        raise ConfigError(
            f"config.model.utterance_q is {config.model.utterance_q!r}, but credit by token "
            "(config.objective.credit) needs last: there, Q of a token is a value of its own."
        )
    if config.decoding.max_utterance >= config.model.max_positions:
        raise ConfigError(
            f"config.decoding.max_utterance {config.decoding.max_utterance} leaves no room for a "
            f"conversation in config.model.max_positions {config.model.max_positions}."
        )
    _one_of("data.source", config.data.source, ("world", *CORPORA))
    _one_of("export.dtype", config.export.dtype, COMPUTE_DTYPES)
