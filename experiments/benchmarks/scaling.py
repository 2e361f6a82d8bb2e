"""Growth of a step's time with model, context, batch and vocabulary.

    python experiments/benchmarks/scaling.py

One thing is varied at a time, all settings of it timed in turn. The exponent is that of the power
law fitted to them: 1 where time grows in proportion, less where part of it does not grow at all.
That of the last two alone, where such a part counts least, stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from experiments.benchmarks import measuring
from experiments.benchmarks.pipeline import make_dialogues
from ilql_jax import (
    METHODS,
    DecoderConfig,
    ModelConfig,
    TrainConfig,
    make_batches,
    packing_for,
)
from ilql_jax.train_step import init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of one timed step; a network's width is a fourth of its MLP's."""

    width: int
    layers: int
    context: int
    rows: int
    vocab: int

    def parameters(self) -> int:
        """Parameters of the trunk's blocks, which the work for a token grows with."""
        return 12 * self.layers * self.width**2


SIZES = {
    "default": (
        Setting(128, 4, 256, 8, 4096),
        {
            "model size": [{"width": w} for w in (128, 256, 384, 512)],
            "context": [{"context": c, "rows": 2048 // c} for c in (128, 256, 512, 1024)],
            "batch": [{"rows": r} for r in (4, 8, 16, 32)],
            "vocabulary": [{"vocab": v} for v in (4096, 8192, 16384, 32768)],
        },
    ),
    "tiny": (
        Setting(16, 1, 32, 2, 97),
        {
            "model size": [{"width": w} for w in (16, 32)],
            "context": [{"context": c, "rows": 128 // c} for c in (32, 64)],
            "batch": [{"rows": r} for r in (2, 4)],
            "vocabulary": [{"vocab": v} for v in (97, 193)],
        },
    ),
}
GROWS = {  # what stands on the horizontal axis
    "model size": Setting.parameters,
    "context": lambda setting: setting.context,
    "batch": lambda setting: setting.rows,
    "vocabulary": lambda setting: setting.vocab,
}
METHOD = METHODS["ilql"].configured(credit="token", cql_weight=0.1)
TRAIN = TrainConfig(steps=1000, learning_rate=1e-4, optimizer="adamw")


def make_step(setting: Setting, heads: str):
    """A function that takes a step and waits for it; compiled already."""
    decoder = DecoderConfig(
        setting.vocab,
        setting.width,
        setting.layers,
        num_heads=max(2, setting.width // 64),
        mlp_size=4 * setting.width,
        max_positions=setting.context,
    )
    model = ModelConfig(decoder, 2 * setting.width, utterance_q="last", value_heads=heads)
    dialogues = make_dialogues(40 * setting.rows, setting.context, setting.vocab)
    batch = next(make_batches(dialogues, packing_for(dialogues, setting.rows, setting.context), 0))
    step_function = make_train_step(model, METHOD, TRAIN)
    state = init_state(model, METHOD, TRAIN, 0)

    def step() -> None:
        nonlocal state
        state, _ = step_function(state, batch)
        jax.block_until_ready(state)

    step()
    return step


def run(size: str, heads: str, rounds: int) -> dict:
    """Seconds of a step for each setting, and the fitted exponents."""
    base, varied = SIZES[size]
    found = {}
    for name, changes in varied.items():
        settings = [dataclasses.replace(base, **change) for change in changes]
        steps = {str(i): make_step(setting, heads) for i, setting in enumerate(settings)}
        timed = {key: lambda step=step: measuring.seconds(step) for key, step in steps.items()}
        times = list(measuring.in_turn(timed, rounds).values())
        sizes = [GROWS[name](setting) for setting in settings]
        found[name] = {
            "settings": [dataclasses.asdict(setting) for setting in settings],
            "sizes": sizes,
            "seconds": times,
            "exponent": _exponent(sizes, times),
            "last_exponent": _exponent(sizes[-2:], times[-2:]),
        }
    return {"size": size, "heads": heads, "rounds": rounds, "scaling": found}


def _exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Slope of the line through the logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(times), 1)
    return float(slope)


def main() -> None:
    line = measuring.arguments(
        __doc__, size=tuple(SIZES), heads=("mlp", "linear", "tied"), rounds=5
    )
    result = run(line.size, line.heads, line.rounds)
    measuring.print_table(
        [
            {
                "grows": name,
                "from, to": f"{each['sizes'][0]:,} to {each['sizes'][-1]:,}",
                "milliseconds a step": ", ".join(f"{1e3 * t:.3g}" for t in each["seconds"]),
                "exponent": each["exponent"],
                "of the last two": each["last_exponent"],
            }
            for name, each in result["scaling"].items()
        ]
    )
    measuring.write_json(line.json, result)


if __name__ == "__main__":
    main()
