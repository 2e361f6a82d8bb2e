"""Memory of a step as its batch grows, by the compiler's own figure: nothing is computed.

    python experiments/benchmarks/memory.py --size=small          # to 64 k agent tokens
    python experiments/benchmarks/memory.py --heads=tied --chunk=256

Prints the bytes of the temporaries of one compiled step of ILQL (activations, gradients, scores),
beside what they would be if the scores of all words were kept for all agent tokens: that alone is
tokens × vocabulary × 4 bytes for the policy and twice as much for the twin Q heads.
"""

from __future__ import annotations

import jax
import numpy as np

from experiments.benchmarks import measuring
from ilql_jax import METHODS, DecoderConfig, Method, ModelConfig, TrainConfig
from ilql_jax.batching import PackingConfig, abstract_batch
from ilql_jax.train_step import init_state, make_train_step

ROW_LENGTH, ACTIONS, UTTERANCES = 256, 128, 8
# Narrow networks with GPT-2's vocabulary: what is measured is what grows with both.
SIZES = {
    "small": (DecoderConfig(50_257, 64, 2, 2, 128, ROW_LENGTH), (16, 32, 64, 128, 256, 512)),
    "tiny": (DecoderConfig(5_003, 16, 1, 2, 32, ROW_LENGTH), (8, 16, 32)),
}
METHOD = METHODS["ilql"].configured(credit="token", cql_weight=0.1)
TRAIN = TrainConfig(steps=10, learning_rate=1e-4, optimizer="adamw")


def temporaries(model: ModelConfig, method: Method, rows: int) -> int:
    """Bytes that a compiled step takes beside its state, its batch and its results."""
    state = jax.eval_shape(lambda: init_state(model, method, TRAIN, 0))
    step = make_train_step(model, method, TRAIN)
    batch = abstract_batch(PackingConfig(rows, ROW_LENGTH, ACTIONS, UTTERANCES))
    return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


def run(size: str, heads: str, chunk: int) -> dict:
    """Temporaries for each number of rows, and the bytes that one more agent token costs."""
    decoder, rows_of = SIZES[size]
    model = ModelConfig(decoder, 2 * decoder.hidden_size, utterance_q="last", value_heads=heads)
    method = METHOD.configured(action_chunk=chunk)
    tokens = [rows * ACTIONS for rows in rows_of]
    found = [temporaries(model, method, rows) for rows in rows_of]
    slope, fixed = np.polyfit(tokens, found, 1)
    deviation = max(abs(found - np.polyval([slope, fixed], tokens)) / found)
    return {
        "size": size,
        "heads": heads,
        "action_chunk": chunk,
        "agent_tokens": tokens,
        "temporary_bytes": found,
        "bytes_per_agent_token": float(slope),
        "largest_deviation_from_a_line": float(deviation),
        "bytes_of_all_scores": [3 * 4 * n * decoder.vocab_size for n in tokens],
    }


def main() -> None:
    line = measuring.arguments(
        __doc__, size=tuple(SIZES), heads=("mlp", "linear", "tied"), chunk=1024
    )
    result = run(line.size, line.heads, line.chunk)
    columns = ("agent_tokens", "temporary_bytes", "bytes_of_all_scores")
    measuring.print_table(
        [
            {"agent tokens": n, "temporaries, MB": a / 1e6, "scores if all were kept, MB": b / 1e6}
            for n, a, b in zip(*(result[name] for name in columns), strict=True)
        ]
    )
    print(
        f"{result['bytes_per_agent_token']:,.0f} bytes more for each agent token, at most "
        f"{result['largest_deviation_from_a_line']:.0%} away from a straight line."
    )
    measuring.write_json(line.json, result)


if __name__ == "__main__":
    main()
