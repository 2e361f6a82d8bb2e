"""`build`: the finished config -> `Experiment`, frozen dataclasses that travel.

Built once, before anything starts: each value is checked by the dataclass that it becomes a field
of, what settings require of each other by `checks.py`. A function gets the piece it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from experiments.config import (
    ActsConfig,
    AnswersConfig,
    BatchConfig,
    ChatConfig,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ExportConfig,
    LLMOverride,
    RunConfig,
    SpeakingConfig,
    TaskConfig,
    TokenizerConfig,
)
from experiments.imagination_config import (
    HindsightConfig,
    ImaginerConfig,
    PlantedFlawsConfig,
    RoundsConfig,
    WorldHindsightConfig,
)
from experiments.methods import (
    TrainedMethod,
    configured,
    find_method,
    load_own,
    own_files,
    rounds_of,
)
from experiments.metrics import LoggingConfig
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.errors import UserError, shown
from ilql_jax.methods import METHODS, Method, MethodError, TrainOverrides
from ilql_jax.models import ModelConfig
from ilql_jax.models.network_config import network_config
from ilql_jax.settings import SettingError
from ilql_jax.sharding import HostsConfig, MeshConfig
from ilql_jax.train_step import TrainConfig, train_config_of
from imagination.agents.gdp_zero import SearchConfig
from imagination.engine.config import PURPOSES, EngineConfig
from imagination.hindsight.llm import LLMHindsightConfig
from imagination.llm.config import ABSENT, LLMConfig
from imagination.persona_sampling import PersonaSampling

Built = TypeVar("Built")


@dataclasses.dataclass(frozen=True)
class Network:
    """Shape of the networks, but for the vocabulary, which is the tokenizer's.

    Attributes:
        settings: Values of the section `model`.
    """

    settings: Mapping[str, Any]

    def __post_init__(self):
        # It is asked for before there is a shape, which checks all.
        if type(self.max_positions) is not int:
            raise SettingError("max_positions", self.max_positions, "must be a whole number")

    @property
    def pretrained(self) -> str:
        """Hugging Face name or folder to start from; "" = a fresh network."""
        return self.settings["pretrained"]

    @property
    def max_positions(self) -> int:
        """Longest dialogue, in tokens."""
        return self.settings["max_positions"]

    def shape(self, vocab_size: int) -> ModelConfig:
        """Shape for a tokenizer of this size.

        Raises:
            SettingError: Sizes that exclude each other.
            PretrainedError: The pretrained network cannot be read, or reads less.
        """
        return network_config(self.settings, vocab_size)


@dataclasses.dataclass(frozen=True)
class Imagination:
    """Settings of imagining dialogues.

    Attributes:
        dialogues: Number of dialogues.
        sampling: Choice of the personas to imagine.
        engine: Settings of an LLM that imagines; None = the embedded world does.
        llm: The LLM; None = the embedded world.
        models: Purpose (critic, judge, human) -> its LLM, where it has one of its own.
        rounds: Settings of rounds in which trained agents take part.
        planted: Flaws planted into the dialogues of an embedded world.
    """

    dialogues: int
    sampling: PersonaSampling
    engine: EngineConfig | None = None
    llm: LLMConfig | None = None
    models: Mapping[str, LLMConfig] = dataclasses.field(default_factory=dict)
    rounds: RoundsConfig = dataclasses.field(default_factory=RoundsConfig)
    planted: PlantedFlawsConfig = dataclasses.field(default_factory=PlantedFlawsConfig)


@dataclasses.dataclass(frozen=True)
class HindsightSettings:
    """Settings of hindsight on finished dialogues.

    Attributes:
        config: Settings that hold whoever looks back.
        world: Settings of a world's controller.
        by_llm: Settings of an LLM that looks back; None = the embedded world does.
        llm: The LLM; None = the embedded world.
    """

    config: HindsightConfig
    world: WorldHindsightConfig
    by_llm: LLMHindsightConfig | None = None
    llm: LLMConfig | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Settings of the evaluation.

    Attributes:
        config: Episodes and populations.
        search: Settings of the tree search.
        acts: Acts that it chooses among; None = the model lists them.
        llm: LLM that plays agents or humans; None = none takes part.
        player: LLM that plays the humans, where it is another.
    """

    config: EvaluationConfig
    search: SearchConfig
    acts: Mapping[str, str] | None = None
    llm: LLMConfig | None = None
    player: LLMConfig | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made from. Fields are named like the sections of the config.

    Attributes:
        run: Seeds and workers.
        methods: Methods to train, in the order of the config.
        library: Name -> method without hindsight, for all there are.
        answers: Folder of LLM answers; "" = in the run's folder.
        settings: All of them as set, but for those of this process: for loggers that show them.
    """

    run: RunConfig
    methods: tuple[TrainedMethod, ...]
    library: Mapping[str, TrainedMethod]
    data: DataConfig
    task: TaskConfig
    imagination: Imagination
    hindsight: HindsightSettings
    tokenizer: TokenizerConfig
    network: Network
    train: TrainConfig
    batches: BatchConfig
    mesh: MeshConfig
    machine: HostsConfig
    speaking: SpeakingConfig
    evaluation: Evaluation
    answers: str
    logging: LoggingConfig
    chat: ChatConfig
    export: ExportConfig
    settings: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def rounds(self) -> int:
        """Rounds of hindsight that the methods need; 0 = none."""
        return rounds_of(self.methods)

    @property
    def imagination_rounds(self) -> int:
        """Rounds of imagination that the methods need; 0 = none."""
        return max(each.imagination_rounds for each in self.methods)

    def decoding_of_rounds(self, method: TrainedMethod) -> DecodingConfig:
        """Decoding of the agent that takes part in a method's rounds of imagination.

        Raises:
            PolicyError: The text of the settings is none.
        """
        text = self.imagination.rounds.round_decoding
        return DecodingConfig.parse(text) if text else method.decodings[0]

    @property
    def looks_ahead(self) -> bool:
        """True if an agent does, in rounds of imagination or when it is judged."""
        decodings = [how for each in self.methods for how in each.decodings]
        decodings += [self.decoding_of_rounds(m) for m in self.methods if m.imagination_rounds]
        return any(how.lookahead for how in decodings)

    @property
    def imagines_with_llm(self) -> bool:
        return self.data.source == "world" and self.imagination.llm is not None

    @property
    def speech(self) -> Mapping[str, Any]:
        """Manner of speaking that an LLM was told to imagine; empty where nothing of it is set."""
        engine = self.imagination.engine
        if engine is None or engine.speech == EngineConfig(engine.dialogues).speech:
            return {}
        return engine.speech

    @property
    def llms(self) -> tuple[LLMConfig, ...]:
        """The LLMs that take part."""
        each = [self.imagination.llm, *self.imagination.models.values()]
        each += [self.hindsight.llm, self.evaluation.llm, self.evaluation.player]
        return tuple(llm for llm in each if llm is not None)

    @property
    def is_on_mesh(self) -> bool:
        """True if a training takes more than one device."""
        return bool(self.machine.coordinator) or not self.mesh.is_single

    @property
    def rows_of_pairs(self) -> int:
        """Rows of a batch of pairs, which are twice as long: half as many."""
        return max(1, self.batches.batch_rows // 2)

    @property
    def method_by_name(self) -> dict[str, Method]:
        """All methods there are, with the run's settings."""
        return {name: each.method for name, each in self.library.items()}

    def method(self, name: str) -> TrainedMethod:
        """The method of this name, trained in this run or not.

        Raises:
            MethodError: There is none.
        """
        return find_method(name, self.library)


def build(config: ConfigDict) -> Experiment:
    """Builds everything that is built from a config.

    Raises:
        ConfigError: The first value that cannot be; the message names key, value and way out.
    """
    run = _make(RunConfig, config, "")
    train = _make(TrainConfig, config.train, "train")
    rounds = _make(RoundsConfig, config.imagination, "imagination")
    library = _library(config, train, rounds)
    return Experiment(
        run=run,
        methods=_methods(config, library),
        library=library,
        data=_make(DataConfig, config.data, "data"),
        task=_make(TaskConfig, config.task, "task"),
        imagination=_imagination(config, rounds),
        hindsight=_hindsight(config),
        tokenizer=_make(TokenizerConfig, config.tokenizer, "tokenizer"),
        network=_network(config),
        train=train,
        batches=_make(BatchConfig, config.train, "train"),
        mesh=_make(MeshConfig, config.mesh, "mesh"),
        machine=_make(HostsConfig, config.machine, "machine"),
        speaking=_make(SpeakingConfig, config.decoding, "decoding"),
        evaluation=_evaluation(config),
        answers=_make(AnswersConfig, config.llm, "llm").cache_folder,
        logging=_make(LoggingConfig, config.logging, "logging"),
        chat=_make(ChatConfig, config.chat, "chat"),
        export=_make(ExportConfig, config.export, "export"),
        settings={key: value for key, value in config.to_dict().items() if key != "machine"},
    )


def _network(config: ConfigDict) -> Network:
    with errors_of("model"):
        return Network(config.model.to_dict())


@contextlib.contextmanager
def errors_of(*sections: str, config: ConfigDict | None = None) -> Iterator[None]:
    """Raises errors of settings as `ConfigError`, with the key in the first section that has it.

    Args:
        sections: Sections that the settings may be of, e.g. "train".
        config: The whole config; None = all are of the first section.
    """
    try:
        yield
    except SettingError as error:
        section = sections[0]
        for each in sections if config is not None else ():
            part = config
            for name in filter(None, each.split(".")):
                part = part[name]
            if error.name in part:
                section = each
                break
        raise ConfigError(f"config.{section}{'.' if section else ''}{error}") from None
    except UserError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"config.{sections[0]}: {error}") from None


def values_of(section: ConfigDict, kind: type) -> dict[str, Any]:
    """Settings of a section that are fields of a dataclass, mappings as dicts."""
    values = {f.name: section[f.name] for f in dataclasses.fields(kind) if f.name in section}
    return {
        name: value.to_dict() if isinstance(value, ConfigDict) else value
        for name, value in values.items()
    }


def _make(kind: type[Built], section: ConfigDict, where: str, **more: Any) -> Built:
    """The dataclass of a section's values; `more` are fields that stand elsewhere."""
    with errors_of(where):
        return kind(**values_of(section, kind) | more)


# --- methods ------------------------------------------------------------------------------------


def _library(
    config: ConfigDict, train: TrainConfig, rounds: RoundsConfig
) -> dict[str, TrainedMethod]:
    """All methods with their settings: ours, and those of files that `config.methods` names."""
    files = {load_own(file).name: file for file in own_files(config.methods)}
    own = {name: load_own(file) for name, file in files.items()}
    library = {}
    for name, method in {**METHODS, **own}.items():
        where = f"method.{name}"
        section = config.method[name]
        with errors_of(where):
            overrides = None if method.train is None else values_of(section, TrainOverrides)
            settings = values_of(section, type(method.config))
            method = configured(method, settings, overrides)
        with errors_of(where, "train", config=config):
            own_train = train_config_of(method, train)
        decodings = _decodings(config.decoding[name], method)
        library[name] = TrainedMethod(
            name,
            method,
            own_train,
            decodings,
            file=files.get(name, ""),
            imagination_share=rounds.round_share,
            imagination_goes_on=rounds.round_start == "agent",
        )
    return library


def _decodings(texts: tuple[str, ...], method: Method) -> tuple[DecodingConfig, ...]:
    is_list = isinstance(texts, tuple) and bool(texts)
    if not is_list or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"config.decoding.{method.name} is {shown(texts, 300, repr)}; name at least one way of "
            f"choosing words, as text, e.g. {tuple(map(str, method.decodings))!r}."
        )
    with errors_of(f"decoding.{method.name}"):
        return tuple(map(DecodingConfig.parse, texts))


def _methods(config: ConfigDict, library: Mapping[str, TrainedMethod]) -> tuple[TrainedMethod, ...]:
    try:
        methods = tuple(find_method(entry, library) for entry in config.methods)
    except MethodError as error:
        said = str(error).removeprefix("config.methods: ")  # those of a file say it
        raise ConfigError(f"config.methods: {said}") from None
    if not methods or len({each.name for each in methods}) < len(methods):
        raise ConfigError(f"config.methods is {config.methods}; name each method once.")
    return methods


# --- where an LLM may take part -----------------------------------------------------------------


def set_of(section: ConfigDict) -> list[str]:
    """Settings of another model in a section that are set."""
    fields = [field for field in dataclasses.fields(LLMOverride) if field.name in section]
    return [field.name for field in fields if section[field.name] != field.default]


def _llm(config: ConfigDict, where: str, like: LLMConfig | None = None, **fixed: Any) -> LLMConfig:
    """The LLM of a section: another's, but for what the section sets, and for what is fixed.

    Args:
        config: The whole config.
        where: The section.
        like: The other one; None = `config.llm`.
        **fixed: Fields.

    Raises:
        ConfigError: A value that cannot be; another model without its prices.
    """
    section = functools.reduce(operator.getitem, where.split("."), config)
    override = _make(LLMOverride, section, where)
    changes = {name: getattr(override, name) for name in set_of(section)}
    if override.batch:
        changes["batch"] = override.batch == "true"
    values = vars(like) if like else values_of(config.llm, LLMConfig)
    has_prices = bool(values["price_input"] or values["price_output"])
    is_another = override.model not in ("", values["model"])
    is_paid = bool(override.price_input and override.price_output)
    if is_another and has_prices and not (is_paid or override.free):
        raise ConfigError(
            f"config.{where}.model is {override.model!r}, another model than {values['model']!r}, "
            f"whose prices are given. Set config.{where}.price_input and price_output too, or "
            f"config.{where}.free=true."
        )
    if is_another or override.free:
        # The cached prices of the other model say nothing of this one.
        changes = {"price_cache_read": 0.0, "price_cache_write": 0.0} | changes
    if override.free:
        changes = {"price_input": 0.0, "price_output": 0.0} | changes
    elif is_another or is_paid:
        changes["free"] = False
    if (api := override.api) not in ("", values["api"]):
        changes = ABSENT[api] | changes
    if override.api or override.base_url:
        changes = {"extra_body": ""} | changes  # what another server has of its own
    try:
        return LLMConfig(**values | changes | fixed)
    except SettingError as error:
        sections = (where, "llm") if error.name in changes else ("llm", where)
        with errors_of(*sections, config=config):
            raise


def _imagination(config: ConfigDict, rounds: RoundsConfig) -> Imagination:
    imaginer = _make(ImaginerConfig, config.imagination, "imagination")
    sampling = _make(PersonaSampling, config.imagination, "imagination")
    more = {"seed": config.seed, "sampling": sampling}
    engine = _make(EngineConfig, config.imagination, "imagination", **more)
    if imaginer.engine == "world" or config.data.source != "world":
        planted = _make(PlantedFlawsConfig, config.imagination, "imagination")
        return Imagination(engine.dialogues, sampling, rounds=rounds, planted=planted)
    llm, models = _llm(config, "imagination"), {}
    for purpose in PURPOSES:
        if set_of(config.imagination[purpose]):
            models[purpose] = _llm(config, f"imagination.{purpose}", like=llm)
    return Imagination(engine.dialogues, sampling, engine, llm, models, rounds)


def _hindsight(config: ConfigDict) -> HindsightSettings:
    section = config.hindsight
    shared = _make(HindsightConfig, section, "hindsight")
    world = _make(WorldHindsightConfig, section, "hindsight")
    by_llm = _make(LLMHindsightConfig, section, "hindsight", seed=config.seed)
    if shared.engine == "world":
        return HindsightSettings(shared, world)
    return HindsightSettings(shared, world, by_llm, _llm(config, "hindsight"))


def _evaluation(config: ConfigDict) -> Evaluation:
    section = config.evaluation
    settings = _make(EvaluationConfig, section, "evaluation")
    search = _make(SearchConfig, section.gdp_zero, "evaluation.gdp_zero")
    acts = _make(ActsConfig, section.gdp_zero, "evaluation.gdp_zero").acts or None
    llm = player = None
    if settings.prompted or settings.human == "prompted":
        llm = _llm(config, "evaluation", batch=False)
        if settings.human == "prompted" and set_of(section.player):
            player = _llm(config, "evaluation.player", like=llm)
    else:
        _make(LLMOverride, section, "evaluation")
        named = ConfigDict({**config.llm, "model": config.llm.model or "none"})
        _make(LLMConfig, named, "llm")  # a wrong value is told also where nobody is asked
    return Evaluation(settings, search, acts, llm, player)
