"""Settings: generated from dataclasses, built once, checked across sections."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import re

import pytest

from experiments.build import build
from experiments.checks import checked
from experiments.config import ConfigError, add_method, base_config, described, keys_of, section
from experiments.methods import load_own
from ilql_jax.methods import METHODS
from ilql_jax.settings import Settings, setting


def config(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    made = base_config()
    made.task.world = "teaching"
    made.update_from_flattened_dict(changes)
    return made


def test_every_setting_has_a_description_and_every_description_a_setting():
    about = described()
    assert set(keys_of(base_config())) == set(about)
    assert all(each.doc for each in about.values())


@dataclasses.dataclass(frozen=True)
class Cake(Settings):
    eggs: int = setting("Eggs.", least=1)
    sugar: float = setting("Spoons of sugar.", 2.0, least=0)


def test_a_section_has_the_defaults_of_its_dataclass():
    assert section(Cake, eggs=3).to_dict() == {"sugar": 2.0, "eggs": 3}
    assert section(Cake, leave_out=("eggs",)).to_dict() == {"sugar": 2.0}
    with pytest.raises(TypeError, match="eggs"):
        section(Cake)
    with pytest.raises(TypeError, match="salt"):
        section(Cake, eggs=1, salt=1)


def test_the_defaults_of_the_learner_are_those_of_the_experiments():
    experiment = build(config())
    for name, method in METHODS.items():
        assert experiment.library[name].method.config == method.config


def test_what_travels_survives_the_way_to_another_process():
    experiment = checked(config(methods=("bc", "ilql_hindsight1", "dpo")))
    again = pickle.loads(pickle.dumps(experiment))
    assert again == experiment
    assert again.method("dpo").train.steps == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__steps": 0}, r"config\.train\.steps is 0, but must be at least 1"),
        ({"seeds": 0}, r"config\.seeds is 0"),
        ({"method__mc__credit": "sentence"}, r"config\.method\.mc\.credit is 'sentence'"),
        ({"methods": ("bc", "dpo", "bc")}, "name each method once"),
        (
            {"methods": ("bc", "ilql_hindsight1"), "data__importance_weights": True},
            r"config\.data\.importance_weights is true, but ilql_hindsight1 learns",
        ),
        ({"methods": ("dpo",)}, "dpo goes on from the bc of its seed"),
        ({"train__freeze_trunk": True}, r"config\.train\.freeze_trunk is True, but bc learns"),
        (
            {"train__gradient_accumulation": 3},
            r"config\.train\.gradient_accumulation is 3, but must divide the 4 rows",
        ),
        ({"method__ilql__credit": "token"}, r"config\.model\.utterance_q is 'sum', but must be"),
        ({"decoding__bc": ("sampled, best of 4",)}, r"config\.decoding\.bc: .*bc learns none"),
        (
            {"decoding__ilql": ("greedy, steered by 8",)},
            r"config\.decoding\.ilql: .*set its credit to 'token'",
        ),
        ({"tokenizer__vocab_size": 100}, r"config\.tokenizer\.vocab_size is 100"),
        ({"model__max_positions": None}, r"config\.model\.max_positions is None, but must be a wh"),
        ({"decoding__max_utterance": 240}, r"no room .*config\.model\.max_positions, 240"),
        ({"train__learning_rate": float("inf")}, r"learning_rate is inf, but must be a finite"),
        ({"model__initializer_range": 1e300}, r"model\.initializer_range is 1e\+300, .*3\.4e\+38"),
        ({"seed": 10**20}, r"config\.seed is 10+, but must be .* at most 2,147,483,647"),
        ({"model__hidden_size": 10**8}, r"config\.model: the network of bc has [\d,]+ par.* GB"),
        ({"model__num_layers": 10**8}, r"config\.model: the network of bc has [\d,]+ par.* GB"),
        ({"tokenizer__vocab_size": 10**9}, r"config\.model: the network of bc has .* GB of mem"),
        ({"train__batch_rows": 10**9}, r"config\.train\.batch_rows is 1,000,000,000: the states"),
        ({"decoding__batch_size": 10**9}, r"config\.decoding\.batch_size is 1,000,000,000: the k"),
        ({"model__lora_rank": 65}, r"config\.model\.lora_rank is 65, but must be at most 64"),
        ({"train__freeze_trunk": True, "methods": ("bc", "fbc", "ilql")}, r"config\.train\.free"),
        ({"tokenizer__date": "today"}, r"config\.tokenizer\.date is 'today', but must be a day"),
        (
            {"model__hidden_size": 6},
            r"config\.model\.hidden_size is 6, but must be a multiple",
        ),
        ({"decoding__bc": ("greedy, best of 4",)}, r"config\.decoding\.bc: decoding 'greedy, best"),
        ({"mesh__data": 0}, r"config\.mesh\.data is 0"),
        ({"imagination__model": "m"}, r"config\.imagination\.model is for an LLM"),
        ({"task__reward_range": (1, 0)}, r"config\.task\.reward_range is .*, but must be two num"),
        ({"task__reward_range": (0, 1, 2)}, r"config\.task\.reward_range is .*, but must be two"),
        (
            {"task__reward_range": (0, 5), "task__success_reward": 6},
            r"config\.task\.success_reward is 6\.0, but must lie in reward_range, 0 to 5",
        ),
        ({"task__success_reward": 0}, r"config\.task\.success_reward is for an LLM that imagines"),
        ({"imagination__mend_flaws": True}, r"config\.imagination\.mend_flaws is .* asks for plan"),
        (
            {
                "imagination__planted_flaws": 0.1,
                "imagination__engine": "anthropic",
                "llm__model": "m",
            },
            r"config\.imagination\.planted_flaws is for the dialogues of an embedded world, and",
        ),
        (
            {"imagination__planted_flaws": 0.1, "data__source": "esconv"},
            r"config\.imagination\.planted_flaws is for .* and these are those of esconv",
        ),
    ],
)
def test_settings_that_cannot_be_are_told_with_key_value_and_way_out(changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(config(**changes))


def test_every_setting_is_told_by_its_own_name():
    """Whole numbers beyond 32 bits, floats beyond float32, words that are no choice."""
    about, tried = described(), 0
    for key in keys_of(base_config()):
        kind = type(functools.reduce(lambda part, name: part[name], key.split("."), base_config()))
        wrong = {int: 10**12, float: 1e300, str: "nonsense" if about[key].choices else None}
        if (value := wrong.get(kind)) is not None:
            tried += 1
            with pytest.raises(ConfigError, match=rf"^config\.{re.escape(key)} is "):
                checked(config(**{key: value}))
    assert tried > 100


def test_a_method_that_is_not_last_is_checked_too():
    for order in (("bc", "ilql"), ("ilql", "bc")):
        with pytest.raises(ConfigError, match="freeze_trunk is True, but bc"):
            checked(config(methods=order, train__freeze_trunk=True))
    checked(config(methods=("mc", "ilql"), train__freeze_trunk=True))


# --- one section for an LLM ---------------------------------------------------------------------

IMAGINES = {"imagination__engine": "anthropic", "imagination__dialogues": 10}


def test_one_section_says_which_llm_all_purposes_have():
    changes = {**IMAGINES, "llm__model": "m", "llm__price_input": 3.0, "llm__price_output": 15.0}
    experiment = checked(
        config(
            **changes,
            llm__batch=True,
            hindsight__engine="anthropic",
            methods=("ilql_hindsight1",),
            evaluation__prompted=("plain",),
        )
    )
    llms = (experiment.imagination.llm, experiment.hindsight.llm, experiment.evaluation.llm)
    assert {llm.model for llm in llms} == {"m"} and {llm.price_output for llm in llms} == {15.0}
    # A conversation waits for every answer.
    assert [llm.batch for llm in llms] == [True, True, False]


def test_a_section_names_another_model_only_where_another_is_wanted():
    changes = {**IMAGINES, "llm__model": "m", "imagination__model": "large"}
    experiment = checked(config(**changes, evaluation__prompted=("plain",)))
    assert experiment.imagination.llm.model == "large" and experiment.evaluation.llm.model == "m"
    priced = {**changes, "llm__price_input": 3.0, "llm__price_output": 15.0}
    with pytest.raises(ConfigError, match=r"Set config\.imagination\.price_input and price_output"):
        checked(config(**priced))
    own = {"imagination__price_input": 5.0, "imagination__price_output": 25.0}
    llm = checked(config(**priced, **own)).imagination.llm
    assert (llm.price_input, llm.price_output) == (5.0, 25.0)


def test_what_another_api_has_not_is_left_out_for_its_models():
    changes = {**IMAGINES, "llm__model": "m", "llm__api": "chat_completions"}
    changes |= {"llm__seed": 3, "llm__presence_penalty": 0.5, "llm__top_k": 5}
    imagination = checked(config(**changes, imagination__critic__api="messages")).imagination
    critic = imagination.models["critic"]
    assert (critic.seed, critic.presence_penalty, critic.top_k) == (-1, 0.0, 5)
    assert (imagination.llm.seed, imagination.llm.presence_penalty) == (3, 0.5)
    with pytest.raises(ConfigError, match=r"config\.llm\.seed is 3, but must be -1"):
        checked(config(**changes | {"llm__api": "messages", "llm__presence_penalty": 0.0}))
    batches = {**IMAGINES, "llm__model": "m", "llm__batch": True}
    judge = checked(config(**batches, imagination__judge__api="chat_completions")).imagination
    assert judge.llm.batch and not judge.models["judge"].batch


def test_the_humans_may_be_played_by_another_model_than_the_agents():
    changes = {"evaluation__prompted": ("plain",), "llm__model": "m"}
    player = {"evaluation__player.model": "other", "evaluation__human": "prompted"}
    evaluation = checked(config(**changes, **player)).evaluation
    assert (evaluation.llm.model, evaluation.player.model) == ("m", "other")
    with pytest.raises(ConfigError, match=r"evaluation\.player\.model is for an LLM that plays"):
        checked(config(**changes, **{"evaluation__player.model": "other"}))


def test_a_purpose_of_imagining_may_have_a_model_of_its_own():
    changes = {**IMAGINES, "llm__model": "m", "imagination__model": "large"}
    experiment = checked(config(**changes, **{"imagination.judge__model": "wise"}), judged=False)
    models = experiment.imagination.models
    assert {name: llm.model for name, llm in models.items()} == {"judge": "wise"}
    assert models["judge"] in experiment.llms and experiment.imagination.llm.model == "large"
    priced = {**changes, "imagination__price_input": 3.0, "imagination__price_output": 15.0}
    with pytest.raises(ConfigError, match=r"config\.imagination\.judge\.model is 'wise', another"):
        checked(config(**priced, **{"imagination.judge__model": "wise"}), judged=False)
    with pytest.raises(ConfigError, match=r"config\.imagination\.human\.model is for an LLM"):
        checked(config(**{"imagination.human__model": "m"}), judged=False)


PRICES = {"price_input": 3.0, "price_output": 15.0}
CRITIC = {f"imagination.critic__{name}": value for name, value in PRICES.items()}


def models_of(**changes):
    changes = {**IMAGINES, "llm__model": "m", "imagination.critic__model": "wise", **changes}
    imagination = checked(config(**changes), judged=False).imagination
    return imagination.llm, imagination.models["critic"]


def test_a_model_that_costs_nothing_is_limited_beside_one_that_does():
    with pytest.raises(ConfigError, match=r"config\.llm\.max_cost is 5\.0.*of 'm'.*free=true"):
        models_of(llm__max_cost=5.0, **CRITIC)
    writer, critic = models_of(llm__max_cost=5.0, llm__free=True, **CRITIC)
    assert (writer.free, writer.cost({"input_tokens": 10**6})) == (True, 0)
    assert (critic.free, critic.cost({"input_tokens": 10**6}), critic.max_cost) == (False, 3, 5)
    # Nothing is known of another model than the one that is free.
    with pytest.raises(ConfigError, match=r"max_cost is 5\.0.*of 'wise'"):
        models_of(llm__max_cost=5.0, llm__free=True)
    paid = {f"llm__{name}": value for name, value in PRICES.items()}
    with pytest.raises(ConfigError, match=r"config\.imagination\.critic\.free=true"):
        models_of(llm__max_cost=5.0, **paid)
    writer, critic = models_of(
        llm__max_cost=5.0, llm__price_cache_read=1.0, **paid, **{"imagination.critic__free": True}
    )
    assert writer.is_priced and critic.is_priced and critic.max_cost == 5
    tokens = ("input_tokens", "output_tokens", "cache_read_tokens")
    assert critic.cost(dict.fromkeys(tokens, 10**6)) == 0 < writer.cost({tokens[0]: 1})
    with pytest.raises(ConfigError, match=r"critic\.free is True, but must be false where 'wise'"):
        models_of(**CRITIC, **{"imagination.critic__free": True})


def test_a_step_may_have_its_own_sampling_and_do_without_batches():
    judge = {"imagination.critic__temperature": 0.0, "imagination.critic__max_tokens": 99}
    writer, critic = models_of(llm__temperature=0.8, **judge)
    assert (writer.temperature, critic.temperature) == (0.8, 0.0)
    assert (writer.max_tokens, critic.max_tokens) == (4096, 99)
    for value, expected in ((-2.0, 0.8), (-1.0, -1.0)):
        _, critic = models_of(llm__temperature=0.8, **{"imagination.critic__temperature": value})
        assert critic.temperature == expected
    chat = {"imagination.critic__api": "chat_completions"}
    with pytest.raises(ConfigError, match=r"config\.imagination\.critic\.batch is True"):
        models_of(**chat, **{"imagination.critic__batch": "true"})
    writer, critic = models_of(llm__batch=True, **{"imagination.critic__batch": "false"})
    assert (writer.batch, critic.batch) == (True, False)
    _, critic = models_of(**{"imagination.critic__batch": "true"})
    assert critic.batch
    # A turn that waits for the one before is asked for by itself.
    assert "batch" not in config().evaluation and "batch" not in config().evaluation.player


def test_another_server_gets_no_fields_that_it_has_not():
    local = {
        **{"llm__api": "chat_completions", "llm__base_url": "http://127.0.0.1:1/v1"},
        **{"llm__seed": 3, "llm__presence_penalty": 1.0, "llm__extra_body": '{"min_p": 0.05}'},
        **{"llm__temperature": 0.5, "llm__top_k": 9},
    }
    writer, critic = models_of(**local)
    assert critic.sampling() == writer.sampling()
    hosted = {"imagination.critic__base_url": "https://host.example/v1"}
    _, critic = models_of(**local, **hosted)
    assert critic.sampling() == {k: v for k, v in writer.sampling().items() if k != "min_p"}
    _, critic = models_of(**local, **hosted, **{"imagination.critic__api": "messages"})
    assert critic.sampling() == {"temperature": 0.5, "top_k": 9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (IMAGINES, r"config\.llm\.model is '', but must be the name of a model"),
        ({"llm__max_in_flight": 0}, r"config\.llm\.max_in_flight is 0"),
        (
            {**IMAGINES, "imagination__model": "m", "imagination__base_url": "here"},
            r"config\.imagination\.base_url is 'here'",
        ),
        (
            {**IMAGINES, "imagination__model": "m", "llm__max_cost": 3.0},
            r"config\.llm\.max_cost is 3\.0",
        ),
        (
            {**IMAGINES, "imagination__model": "m", "llm__temperature": -0.5},
            r"config\.llm\.temperature is -0\.5",
        ),
        (
            {**IMAGINES, "llm__model": "m", "imagination__temperature": -0.5},
            r"config\.imagination\.temperature is -0\.5",
        ),
        ({**IMAGINES, "llm__free": True, "llm__price_input": 1.0, "llm__model": "m"}, "free"),
    ],
)
def test_a_wrong_llm_is_told_in_the_section_that_is_wrong(changes, message):
    with pytest.raises(ConfigError, match=message):
        checked(config(**changes))


OWN_METHOD = """
from ilql_jax.methods import Method, MethodConfig


def loss(model, target, batch, config, *, progress, normalizers):
    return model.policy(batch), {}


METHOD = Method(name="own", title="own", config=MethodConfig(), loss=loss)
"""


def test_a_slip_in_a_method_of_ones_own_is_told_by_the_checks(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN_METHOD)
    settings = config(methods=("bc", str(path)))
    add_method(settings, load_own(str(path)))
    with pytest.raises(
        ConfigError, match=r"config\.methods: own: loss raised Attribute.*own\.py, line 6"
    ):
        checked(settings)
