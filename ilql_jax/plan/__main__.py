"""Plans a training on a machine that need not be there.

    python -m ilql_jax.plan --config=experiments/teaching.py --topology=v5e:4x4
    python -m ilql_jax.plan --config=experiments/teaching.py --topology=local

Compiles the real train step ahead of time, for a TPU slice with libtpu's compiler (no TPU needed)
or for the devices of this machine, and prints whether it fits, what fills the memory of a chip,
the work and the communication of a step, how long it would take at the chip's peak figures, and
the largest batch that fits. The config is a file with `get_config()`; its settings are read by the
names of the dataclasses' fields (`ModelConfig`, `TrainConfig`, ...), and each can be set:

    ... --config.model.hidden_size=4096 --config.train.batch_rows=256 --config.mesh.fsdp=256

The largest batch is extrapolated from two compilations; `--compilations=6` searches for it with up
to four more. The data are not read: `--agent_share` and `--utterance_tokens` say how full rows are.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from ilql_jax import sharding
from ilql_jax.batching import PackingConfig
from ilql_jax.errors import UserError
from ilql_jax.methods import METHODS, method_named
from ilql_jax.models.network_config import network_config
from ilql_jax.partition import check_start
from ilql_jax.plan.chips import PlanError, devices_of
from ilql_jax.plan.compile import Compiled, PlannedTraining, make_plan
from ilql_jax.plan.text import describe, size_text
from ilql_jax.sharding import MeshConfig
from ilql_jax.train_step import TrainConfig


def planned_training(
    config: ConfigDict, method: str, agent_share: float, utterance_tokens: int
) -> PlannedTraining:
    """Reads a training from an experiment's config, whose settings have the names of our fields.

    Args:
        config: With sections `model`, `train`, `method.<name>` and `tokenizer.vocab_size`. Of
            `model.pretrained`, where it is given, the `config.json` alone is read.
        method: Name of the method, or a .py file that defines it; its settings are those of the
            config, where it has them.
        agent_share: Fraction of the tokens that are the agent's.
        utterance_tokens: Tokens of an agent's utterance.

    Raises:
        MethodError: There is no such method, or its file cannot be used.
        PretrainedError: Dialogues longer than the pretrained network's context.
        ValueError: Adapters without a pretrained network, or another setting that cannot be.
    """
    pretrained = config.model.get("pretrained")
    # A pretrained network has its own tokens; how many the tokenizer adds is not known here.
    vocab_size = 0 if pretrained else config.tokenizer.vocab_size
    learned = method_named(method)
    own = config.method.get(learned.name, ConfigDict())
    learned = learned.configured(**_fields(own, type(learned.config)))
    model = learned.network_for(network_config(config.model.to_dict(), vocab_size))
    check_start(model, has_start=bool(pretrained))
    length = config.model.max_positions
    actions = max(1, -(-int(length * agent_share) // 8) * 8)
    pairs = -(-actions // (2 * utterance_tokens))
    return PlannedTraining(
        model,
        learned,
        TrainConfig(**_fields(config.train, TrainConfig)),
        PackingConfig(config.train.batch_rows, length, actions, 2 * pairs),
    )


def _fields(section: ConfigDict, kind: type) -> dict[str, Any]:
    return {f.name: section[f.name] for f in dataclasses.fields(kind) if f.name in section}


def mesh_for(config: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Makes the mesh; where the config asks for one device, of all devices along `data`."""
    return sharding.make_mesh(MeshConfig() if config.is_single else config, devices)


def main(arguments: Sequence[str]) -> None:
    """Reads the command line and prints the plan."""
    values = _parse(arguments)
    if values.help:
        print(f"{__doc__}\n{values.get_help()}")
        return
    if values.topology != "local":
        jax.config.update("jax_platforms", "cpu")  # take no accelerator of this machine
    config = values.config
    training = planned_training(config, values.method, values.agent_share, values.utterance_tokens)
    mesh_fields = _fields(config.get("mesh", ConfigDict()), MeshConfig)
    mesh_config = MeshConfig(**{"data": 1, **mesh_fields})
    mesh = mesh_for(mesh_config, devices_of(values.topology))
    if mesh_config.is_single:
        training = _rounded_up(training, mesh.size)

    def print_compiled(compiled: Compiled) -> None:
        print(
            f"compiled for {compiled.rows} rows in {compiled.seconds:.0f} s: "
            f"{size_text(compiled.memory.total)} a chip",
            flush=True,
        )

    plan = make_plan(training, mesh, values.compilations, print_compiled)
    print()
    print(describe(plan, values.topology))


def _parse(arguments: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(arguments))
    flags.DEFINE_string("topology", "local", "A TPU slice such as v5e:4x4, or local.", values)
    names = f"Method that is trained: {', '.join(METHODS)}, or a .py file that defines METHOD."
    flags.DEFINE_string("method", "ilql", names, values)
    flags.DEFINE_float("agent_share", 0.45, "Share of the tokens, the agent's.", 0, 1, values)
    flags.DEFINE_integer("utterance_tokens", 16, "Length of an utterance.", 1, None, values)
    flags.DEFINE_integer("compilations", 2, "Most compilations.", 2, None, values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    try:
        _, *rest = values(list(arguments))
        config = values.config
        _ = config is None or config.keys()  # a file that cannot be read raises only now
    except OSError as error:  # its last line is the reason
        raise PlanError(f"--config: {str(error).splitlines()[-1].strip()}.") from None
    except (AttributeError, KeyError) as error:
        name = re.sub(r"\W", "", str(error))
        raise PlanError(f"--config: there is no setting {name!r} in it.") from None
    if rest and not values.help:
        raise PlanError(f"unexpected argument {rest[0]!r}; see --help.")
    if config is None and not values.help:
        raise PlanError("--config is missing: a file with get_config(), e.g. one of experiments/.")
    return values


def _rounded_up(training: PlannedTraining, chips: int) -> PlannedTraining:
    """Raises the rows to a number that can be split over all chips, and says so."""
    rows, accumulation = training.packing.batch_rows, training.train.gradient_accumulation
    parts = chips * accumulation
    if rows % parts == 0:
        return training
    packing = dataclasses.replace(training.packing, batch_rows=-(-rows // parts) * parts)
    times = f" {accumulation} times" if accumulation > 1 else ""
    print(
        f"{rows} rows cannot be split over {chips} chips{times}: planned with {packing.batch_rows}."
    )
    return dataclasses.replace(training, packing=packing)


if __name__ == "__main__":
    try:
        main(sys.argv)
    except (UserError, ValueError, flags.Error) as error:
        sys.exit(f"Error: {error}")
