"""The trained networks of a run: in which order they are worked at."""

from experiments.build import build
from experiments.config import base_config
from experiments.networks import in_turn, units


def test_networks_of_two_kinds_take_turns_and_none_is_lost():
    config = base_config()
    config.task.world, config.methods, config.seeds = "teaching", ("bc", "fbc", "mc", "ilql"), 2
    experiment = build(config)
    todo = units(experiment)[1:]
    names = [unit.name for unit in in_turn(experiment, todo)]
    assert names == [
        "mc-seed0", "fbc-seed0", "ilql-seed0", "bc-seed1", "mc-seed1", "fbc-seed1", "ilql-seed1",
    ]  # fmt: skip
    assert sorted(names) == sorted(unit.name for unit in todo)
    assert in_turn(experiment, []) == []
