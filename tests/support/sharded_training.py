"""Small trainings on several devices or hosts, as processes of their own (see test_sharding.py).

python tests/support/sharded_training.py meshes FOLDER            eight devices, ILQL
python tests/support/sharded_training.py more_meshes FOLDER       and the other trainings
python tests/support/sharded_training.py host FOLDER PORT ID DIE  one of two; DIE: at this step
"""

import dataclasses
import hashlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from short_training import ILQL

from ilql_jax import PreferencePair, Trajectory, packing_for, sharding
from ilql_jax.chunked_cross_entropy import chunked_cross_entropy
from ilql_jax.decoding_config import DecodingConfig
from ilql_jax.methods import METHODS
from ilql_jax.models import DecoderConfig, ModelConfig, init_params
from ilql_jax.policy import Policy
from ilql_jax.preferences import Preferences, packing_for_pairs
from ilql_jax.scoring import score
from ilql_jax.sharding import HostsConfig, MeshConfig
from ilql_jax.train import train
from ilql_jax.train_step import TrainConfig

VOCAB = 32
DECODER = DecoderConfig(VOCAB, 16, 1, 4, 32, 32, initializer_range=0.08)
MODEL = ModelConfig(DECODER, 16)
SEPARATE = dataclasses.replace(MODEL, value_trunk="separate", value_heads="tied")
MC = METHODS["mc"].configured(value_loss_weight=1.0, awac_temperature=0.0)
SHORT = TrainConfig(
    steps=4,
    learning_rate=1e-2,
    optimizer="adamw",
    warmup_steps=1,
    polyak_rate=0.25,
    checkpoint_every=2,
    log_every=1,
)
# Mesh -> training. The run of ilql is stopped after its third step and goes on on another mesh.
# "lora" is mc with adapters; steps are taken at once on the mesh, one by one on a device alone.
TRAININGS = {(2, 2, 2): "ilql"}
MORE_TRAININGS = {
    (8, 1, 1): "bc, two steps at once",
    (1, 8, 1): "mc",
    (4, 1, 2): "dpo",
    (2, 4, 1): "lora",
    (2, 1, 4): "ilql, a trunk for values",
}
GOES_ON = (1, 2, 4)
LOOKED_UP_ON = ((1, 8, 1), (2, 4, 1), (2, 2, 2))


class Stopped(Exception):
    pass


def dataset(count=24):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        length = int(rng.integers(10, 31))
        is_action = np.zeros(length, bool)
        is_action[3:6] = is_action[length - 3 :] = True
        rewards = np.where(np.arange(length) == length - 1, rng.normal(1, 1), 0)
        tokens = rng.integers(1, VOCAB, length)
        found.append(Trajectory(np.int32(tokens), is_action, np.float32(rewards)))
    return found


def pairs(count=12):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        before = rng.integers(1, VOCAB, 4)
        halves = []
        for said in ([3, 5], [7, 9, 2]):
            tokens = np.int32([*before, *said])
            is_action = np.arange(len(tokens)) >= 4
            halves.append(Trajectory(tokens, is_action, np.zeros(len(tokens), np.float32)))
        found.append(PreferencePair(*halves))
    return found


def run(folder, method, mesh, stop_at=None):
    """Losses by step, and the parameters, None if it was stopped after a step."""
    losses = {}

    def on_metrics(step, metrics):
        losses[step] = metrics["loss"]
        if step == stop_at:
            raise Stopped

    config, model, start_from = SHORT, MODEL, None
    if method == "dpo":
        data = Preferences(pairs(), init_params(MODEL, 1))
        packing, learned = packing_for_pairs(data.pairs, 8, 32), METHODS["dpo"]
    else:
        data = dataset()
        packing = packing_for(data, batch_rows=8, row_length=32)
        learns_by_ilql = method.startswith("ilql")
        model = SEPARATE if method.endswith("values") else MODEL
        if method == "lora":
            model = dataclasses.replace(MODEL, decoder=dataclasses.replace(DECODER, lora_rank=2))
            learned, start_from = MC, lambda: init_params(model, 1)
        else:
            learned = {"ilql": ILQL, "mc": MC}.get(method.split(",")[0], METHODS["bc"])
        config = dataclasses.replace(SHORT, optimizer="muon" if learns_by_ilql else "adamw")
        if method.endswith("at once") and mesh is not None:
            config = dataclasses.replace(config, steps_per_dispatch=2)
    try:
        params = train(
            data,
            model,
            learned,
            config,
            packing,
            0,
            folder,
            on_metrics=on_metrics,
            start_from=start_from,
            mesh=mesh,
            progress=False,
        )
    except Stopped:
        params = None
    return losses, params


def meshes(folder):
    """Losses on one device and on a mesh, of the run that changes its mesh, and what lies where."""
    found = {"devices": jax.device_count()}
    for shape, method in TRAININGS.items():
        losses, alone = trained_twice(folder, shape, method)
        found |= losses
    other = sharding.make_mesh(MeshConfig(*GOES_ON))
    found["goes on"], params = run(folder / str(shape), method, other)
    found["parts"] = {
        name: [array.sharding.shard_shape(array.shape), array.shape]
        for name, array in {
            "q/out_kernel": params["q"]["out_kernel"],
            "mlp_in": params["trunk"]["blocks"][0]["mlp_in"]["kernel"],
        }.items()
    }
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), alone, sharding.on_host(params))
    params = init_params(MODEL, 2)
    kernel = params["q"]["out_kernel"]
    params["q"]["out_kernel"] = jax.random.normal(jax.random.key(0), kernel.shape)
    there = sharding.mesh_to_use(MeshConfig(data=-1, fsdp=2, tensor=4))
    found["used"] = [used(params, mesh) for mesh in (None, there)]
    found["looked_up"] = [looked_up(sharding.make_mesh(MeshConfig(*s))) for s in LOOKED_UP_ON]
    found["odd"] = odd_vocabulary(sharding.make_mesh(MeshConfig(2, 2, 2)))
    found["difference"] = float(max(jax.tree.leaves(difference)))
    return found


def more_meshes(folder):
    """Losses on one device and on a mesh, of the trainings that take longer."""
    found = {"devices": jax.device_count()}
    for shape, method in MORE_TRAININGS.items():
        found |= trained_twice(folder, shape, method)[0]
    return found


def trained_twice(folder, shape, method):
    """Losses on one device and on a mesh, and the parameters of the one device."""
    alone, params = run(folder / method, method, None)
    mesh, stop = sharding.make_mesh(MeshConfig(*shape)), 3 if method == "ilql" else None
    on_mesh, _ = run(folder / str(shape), method, mesh, stop)
    return {f"{method} alone": alone, f"{method} on {shape}": on_mesh}, params


def used(params, mesh):
    """Words of a policy and scores of dialogues, with the parameters laid out on a mesh."""
    if mesh is not None:
        params = jax.device_put(params, sharding.shardings(params, mesh))
    decoding = DecodingConfig(temperature=0.7, steering_strength=2.0, candidates=2)
    config = dataclasses.replace(MODEL, utterance_q="last")  # values of tokens, which can steer
    policy = Policy(config, params, decoding, 0, np.arange(VOCAB) > 0, 6, batch_size=3)
    contexts = [dialogue.tokens[: 5 + i] for i, dialogue in enumerate(dataset(5))]
    written = [(r.tokens.tolist(), r.q) for r in policy.respond(contexts, range(5))]
    packing = packing_for(dataset(), batch_rows=8, row_length=32)
    scores = score(dataset(5), config, params, packing, mesh)
    return {
        "tokens": [tokens for tokens, _ in written],
        "q": [q for _, q in written] + [float(x) for s in scores for x in s.q],
        "devices": len(policy._cache.keys[0].sharding.device_set),
    }


def looked_up(mesh):
    """Error of a lookup's gradient on a mesh, and the table's presence as a whole."""
    rng = np.random.default_rng(0)
    table, index = rng.standard_normal((48, 16), np.float32), rng.integers(0, 48, (8, 5))
    weight = rng.standard_normal((8, 5, 16), np.float32)

    def score(table, index, weight):
        return (weight * sharding.embedding_lookup(table, index) ** 2).sum()

    def score_on_mesh(*arguments):
        with sharding.tracing_for(mesh):
            return score(*arguments)

    name = "trunk/token_embedding/embedding"
    lies = jax.NamedSharding(mesh, sharding.partition_spec(name, table.shape, mesh))
    rows = sharding.batch_sharding(mesh)
    gradient = jax.jit(jax.grad(score_on_mesh), in_shardings=(lies, rows, rows), out_shardings=lies)
    program = gradient.lower(table, index, weight).compile()
    expected = jax.grad(score)(table, index, weight)
    return {
        "error": float(np.abs(program(table, index, weight) - expected).max()),
        "whole": "f32[48,16]" in program.as_text(),
    }


def odd_vocabulary(mesh):
    """Error of a loss over 33 words, and of its gradients, on a mesh; sizes of its products."""
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 33, (8, 3))
    shapes = {"features": (2, 8, 3, 8), "q/out_kernel": (2, 33, 8), "q/out_bias": (2, 33)}
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes.values()]

    def loss(*layer):
        return chunked_cross_entropy(*layer, actions, np.full((8, 3), 1 / 24, np.float32), 100)

    def on_mesh(*layer):
        with sharding.tracing_for(mesh):
            return jax.value_and_grad(loss, (0, 1, 2))(*layer)

    lies = [
        jax.NamedSharding(mesh, jax.P(None, sharding.ROWS))
        if name == "features"
        else jax.NamedSharding(mesh, sharding.partition_spec(name, shape, mesh))
        for name, shape in shapes.items()
    ]
    program = jax.jit(on_mesh, in_shardings=lies).lower(*arrays).compile()
    expected = jax.value_and_grad(loss, (0, 1, 2))(*arrays)
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max(), program(*arrays), expected)
    sizes = re.findall(r"f32\[([\d,]+)\]\S* dot\(", program.as_text())
    return {
        "error": float(max(jax.tree.leaves(errors))),
        "sizes": sorted({int(size) for each in sizes for size in each.split(",")}),
    }


def host(folder, port, number, die_at):
    """Losses, and a digest of the parameters."""
    sharding.start_hosts(HostsConfig(f"localhost:{port}", processes=2, id=number))
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1))
    losses, params = run(folder, "mc", mesh, stop_at=die_at)
    if params is None:
        os.kill(os.getpid(), signal.SIGKILL)
    whole = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(sharding.on_host(params)))
    return {"losses": losses, "params": hashlib.sha256(whole).hexdigest()}


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what != "host":
        result = {"meshes": meshes, "more_meshes": more_meshes}[what](Path(where))
    else:
        port, number, die_at = map(int, rest)
        result = host(Path(where), port, number, die_at or None)
    print(json.dumps(result))
