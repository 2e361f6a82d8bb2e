"""A step of ILQL against plain PyTorch on Hugging Face's GPT-2: agent tokens a second, memory.

    python experiments/benchmarks/train_step.py                   # with the papers' value heads
    python experiments/benchmarks/train_step.py --heads=tied      # ours with tied ones

The shape of GPT-2 small in float32, a batch of 8 dialogues of 60 to 256 tokens of which 45 % are
the agent's, each side in a process of its own on one core with one thread. Both start from the
same weights; their losses have to agree to 1e-3 over three steps before anything is timed. With
another kind of heads ours is another network, so what is compared first is still the papers'.
Needs the extra `parity` and, at full size, some 14 GB of memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from experiments.benchmarks import measuring
from experiments.benchmarks.measuring import Side
from ilql_jax import METHODS, DecoderConfig, ModelConfig, TrainConfig, Trajectory, batching

DISCOUNT, CHECKED_STEPS, TOLERANCE = 0.99, 3, 1e-3


@dataclasses.dataclass(frozen=True)
class Size:
    """Network and dialogues of a benchmark."""

    decoder: DecoderConfig
    dialogues: int
    shortest: int
    longest: int
    action_share: float = 0.45

    def model(self, heads: str) -> ModelConfig:
        inner = 2 * self.decoder.hidden_size
        return ModelConfig(self.decoder, inner, utterance_q="last", value_heads=heads)


SIZES = {
    "gpt2": Size(DecoderConfig(50_257, 768, 12, 12, 3072, 1024), 8, 60, 256),
    "tiny": Size(DecoderConfig(97, 32, 2, 2, 64, 64), 4, 20, 60),
}
# The settings of the papers: values of every token, a conservative term.
METHOD = METHODS["ilql"].configured(
    credit="token",
    expectile=0.7,
    cql_weight=0.1,
    value_loss_weight=1.0,
    trace_fade=(0.0, 0.0),
    awac_temperature=0.0,
)
# The learning rate hardly moves in the few steps of a benchmark, as in the other side's.
TRAIN = TrainConfig(steps=100_000, learning_rate=1e-4, optimizer="adamw", warmup_steps=0)


def make_dialogues(size: Size, seed: int = 0) -> list[Trajectory]:
    """Dialogues of evenly spread lengths, with utterances of some 5 to 30 tokens in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for length in np.linspace(size.shortest, size.longest, size.dialogues).astype(int):
        turns = max(1, length // 35)
        spoken = round(length * size.action_share)
        cuts = [np.linspace(0, n, turns + 1).astype(int) for n in (length - spoken, spoken)]
        is_action = np.concatenate(
            [np.repeat([False, True], [cuts[0][t + 1] - cuts[0][t], cuts[1][t + 1] - cuts[1][t]])
             for t in range(turns)]
        )  # fmt: skip
        rewards = np.zeros(length, np.float32)
        rewards[np.flatnonzero(is_action)[-1]] = rng.normal()
        tokens = rng.integers(size.decoder.vocab_size, size=length).astype(np.int32)
        found.append(Trajectory(tokens, is_action, rewards).validate())
    return found


def make_weights(size: Size, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the names of `torch_ilql.ILQL`, Q heads of kind "mlp"."""
    shape, rng = size.decoder, np.random.default_rng(seed)
    width, inner, vocab = shape.hidden_size, size.model("mlp").value_inner_size, shape.vocab_size
    sizes = {"wte.weight": (vocab, width), "wpe.weight": (shape.max_positions, width)}
    for i in range(shape.num_layers):
        for norm in ("ln_1", "ln_2"):
            sizes |= {f"h.{i}.{norm}.weight": (width,), f"h.{i}.{norm}.bias": (width,)}
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, shape.mlp_size),
            ("mlp.c_proj", shape.mlp_size, width),
        ):
            sizes |= {f"h.{i}.{name}.weight": (rows, columns), f"h.{i}.{name}.bias": (columns,)}
    sizes |= {"ln_f.weight": (width,), "ln_f.bias": (width,)}
    sizes = {f"gpt2.transformer.{name}": each for name, each in sizes.items()}
    for name, out in (("q.0", vocab), ("q.1", vocab), ("v", 1)):
        sizes |= {f"{name}.0.weight": (inner, width), f"{name}.0.bias": (inner,)}
        sizes |= {f"{name}.2.weight": (out, inner), f"{name}.2.bias": (out,)}

    def draw(name: str, each: tuple[int, ...]) -> np.ndarray:
        values = shape.initializer_range * rng.standard_normal(each, np.float32)
        return values + 1 if ".ln_" in name and name.endswith("weight") else values

    return {name: draw(name, each) for name, each in sizes.items()}


def pack(dialogues: Sequence[Trajectory], rows: int) -> batching.Batch:
    """All dialogues in so many rows, evenly: as full as a long stream of dialogues fills them."""
    members: list[list[Trajectory]] = [[] for _ in range(rows)]
    for dialogue in sorted(dialogues, key=lambda d: -len(d.tokens)):
        min(members, key=lambda row: sum(len(d.tokens) for d in row)).append(dialogue)

    def most(count: Callable[[Trajectory], int]) -> int:
        return max(sum(map(count, row)) for row in members)

    packing = batching.PackingConfig(
        batch_rows=rows,
        row_length=most(lambda d: len(d.tokens)),
        actions_per_row=most(lambda d: int(d.is_action.sum())),
        utterances_per_row=most(lambda d: len(batching.utterance_transitions(d, 1.0).state)),
        token_discount=DISCOUNT,
    )
    assembled = [batching.assemble_row(_packed(row, packing)) for row in members]
    return batching.assemble_batch(
        {name: np.stack([row[name] for row in assembled]) for name in assembled[0]}
    )


def _packed(
    dialogues: Sequence[Trajectory], packing: batching.PackingConfig
) -> dict[str, np.ndarray]:
    """A row as the packer of `batching` gives it."""
    elements = [batching.to_element(dialogue, packing) for dialogue in dialogues]
    row = {}
    for name, room in batching.element_lengths(packing).items():
        arrays = [element[name] for element in elements]
        filled = np.concatenate(arrays)
        padding = [(0, room - len(filled)), *[(0, 0)] * (filled.ndim - 1)]
        row[name] = np.pad(filled, padding)
        lengths = [len(array) for array in arrays]
        segments = np.repeat(np.arange(1, len(arrays) + 1), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        row[f"{name}_segment_ids"] = np.pad(segments, padding[:1])
        row[f"{name}_positions"] = np.pad(positions, padding[:1])
    return row


def make_ours(
    name: str, heads: str, rows: int, chunk: int, dtype: str = "float32"
) -> Callable[[], float]:
    """A step of ours with arithmetic in a dtype; returns the loss before it."""
    import jax

    from ilql_jax.models import init_params
    from ilql_jax.models.hugging_face.read import params_from_gpt2
    from ilql_jax.train_step import init_state, make_train_step

    size = SIZES[name]
    decoder = dataclasses.replace(size.decoder, compute_dtype=dtype)
    config = dataclasses.replace(size.model(heads), decoder=decoder)

    def start():
        tensors = make_weights(size)
        prefix = "gpt2.transformer."
        trunk = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        params = {"trunk": params_from_gpt2(trunk, size.decoder)}
        values = _value_heads(tensors) if heads == "mlp" else init_params(config, 0)
        params |= {name: values[name] for name in ("q", "v")}
        return init_state(config, METHOD, TRAIN, 0, params)

    state = start()
    step_function = make_train_step(config, METHOD.configured(action_chunk=chunk), TRAIN)
    batch = jax.device_put(pack(make_dialogues(size), rows))

    def step() -> float:
        nonlocal state
        state, metrics = step_function(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def _value_heads(tensors: dict[str, np.ndarray]) -> dict[str, dict]:
    """Torch keeps matrices as [out, in]; our Q heads' last one too."""
    q = [[tensors[f"q.{k}.{i}.{n}"] for k in (0, 1)] for i, n in
         ((0, "weight"), (0, "bias"), (2, "weight"), (2, "bias"))]  # fmt: skip
    return {
        "q": {
            "inner_kernel": np.stack([x.T for x in q[0]]),
            "inner_bias": np.stack(q[1]),
            "out_kernel": np.stack(q[2]),
            "out_bias": np.stack(q[3]),
        },
        "v": {
            name: {"kernel": tensors[f"v.{i}.weight"].T, "bias": tensors[f"v.{i}.bias"]}
            for name, i in (("inner", 0), ("out", 2))
        },
    }


def make_torch(name: str, device: str = "cpu", dtype: str = "float32") -> Callable[[], float]:
    """A step of the other side's on a device, in a dtype; returns the loss before it."""
    import torch

    from experiments.benchmarks.torch_ilql import Trainer

    torch.set_num_threads(1)
    size = SIZES[name]
    trainer = Trainer(
        size.model("mlp"),
        METHOD.config,
        TRAIN,
        make_weights(size),
        make_dialogues(size),
        DISCOUNT,
        device,
        dtype,
    )
    return trainer.step


def compare_losses(ours: Side, theirs: Side) -> list[tuple[float, float]]:
    """Losses of both over the first steps.

    Raises:
        RuntimeError: They do not agree.
    """
    losses = [(ours.step()[1], theirs.step()[1]) for _ in range(CHECKED_STEPS)]
    for step, (a, b) in enumerate(losses):
        if not abs(a - b) <= TOLERANCE * max(1.0, abs(b)):
            raise RuntimeError(f"step {step}: our loss is {a}, PyTorch's {b}; nothing was timed.")
    return losses


def run(size: str, heads: str, rounds: int, rows: int, chunk: int) -> dict:
    """Losses, then seconds and peak memory of both sides."""
    theirs = Side(make_torch, size)
    ours = Side(make_ours, size, "mlp", rows, chunk)
    losses = compare_losses(ours, theirs)
    if heads != "mlp":
        ours.close()
        ours = Side(make_ours, size, heads, rows, chunk)
    sides = {"ours": ours, "torch": theirs}
    for side in sides.values():
        side.step()  # compiles, where that is not done yet
        side.forget_peak()
    times = measuring.in_turn({name: side.seconds for name, side in sides.items()}, rounds)
    memory = {name: side.peak_memory() for name, side in sides.items()}
    for side in sides.values():
        side.close()
    tokens = sum(int(d.is_action.sum()) for d in make_dialogues(SIZES[size]))
    return {
        "size": size,
        "heads": heads,
        "agent_tokens": tokens,
        "losses": losses,
        "seconds": times,
        "agent_tokens_per_second": {name: tokens / each for name, each in times.items()},
        "peak_bytes": memory,
        "speed_ratio": times["torch"] / times["ours"],
        "memory_ratio": memory["ours"] / memory["torch"],
    }


def main() -> None:
    line = measuring.arguments(
        __doc__, size=tuple(SIZES), heads=("mlp", "linear", "tied"), rounds=3, rows=4, chunk=1024
    )
    result = run(line.size, line.heads, line.rounds, line.rows, line.chunk)
    print(f"losses over {CHECKED_STEPS} steps, ours and PyTorch's: {result['losses']}")
    measuring.print_table(
        [
            {
                "": name,
                "core seconds a step": result["seconds"][name],
                "agent tokens a second": result["agent_tokens_per_second"][name],
                "peak memory, MB": result["peak_bytes"][name] / 1e6,
            }
            for name in ("ours", "torch")
        ]
    )
    print(f"agent tokens a second, ours / PyTorch: {result['speed_ratio']:.2f}")
    print(f"peak memory, ours / PyTorch: {result['memory_ratio']:.2f}")
    measuring.write_json(line.json, result)


if __name__ == "__main__":
    main()
