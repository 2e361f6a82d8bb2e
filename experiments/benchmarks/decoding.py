"""Decoding against Hugging Face's `generate`, and conversations a second.

    python experiments/benchmarks/decoding.py               # needs the extra `parity` (torch)
    python experiments/benchmarks/decoding.py --heads=tied --json=decoding.json

The same GPT-2 (random weights), the same 8 prompts of 64 tokens, 32 greedy tokens after each, one
thread each, in turn; the tokens must agree. Ours writes plainly, which is the same work, and
steered by the values of every token, which adds a value head as wide as the vocabulary, twice; or
with tied heads two more rows a conversation in the product with the output matrix.
"""

from __future__ import annotations

import os

# Before jax starts: as many threads as torch is given below.
os.environ["NPROC"] = os.environ["PJRT_NPROC"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ilql_jax.decode import generate
from ilql_jax.models import DecoderConfig, ModelConfig, init_params
from ilql_jax.models.few_rows import for_decoding
from ilql_jax.models.heads import KINDS
from ilql_jax.models.pretrained import params_from_gpt2

CONVERSATIONS, PROMPT, NEW = 8, 64, 32
SIZES = {  # hidden size, layers, heads, vocabulary
    "small": (768, 12, 12, 50_257),
    "tiny": (32, 2, 2, 101),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--heads", choices=KINDS, default="mlp", help="kind of the value heads")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    given = parser.parse_args()
    found = run(given.size, given.heads, given.rounds)
    for name, value in found.items():
        print(f"{name.replace('_', ' ')}: {value:.2f}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def run(size: str, heads: str, rounds: int) -> dict[str, float]:
    """Tokens a second of each, and the ratios."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, layers, num_heads, vocab = SIZES[size]
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab, n_embd=width, n_layer=layers, n_head=num_heads, n_positions=128
        )
    ).eval()
    decoder = DecoderConfig(vocab, width, layers, num_heads, 4 * width, 128)
    config = ModelConfig(decoder, width, value_heads=heads)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params = init_params(config, 0)
    params["trunk"] = jax.tree.map(jnp.asarray, params_from_gpt2(tensors, config.decoder))
    del tensors
    config, params = for_decoding(config, params)  # as `Policy` does, once
    prompts = np.random.default_rng(0).integers(1, vocab, (CONVERSATIONS, PROMPT)).astype(np.int32)

    def hugging_face() -> np.ndarray:
        with torch.no_grad():
            tokens = theirs.generate(
                torch.from_numpy(prompts).long(),
                attention_mask=torch.ones(prompts.shape, dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                pad_token_id=0,
            )
        return tokens[:, PROMPT:].numpy()

    def ours(steering_strength: float) -> np.ndarray:
        samples = generate(
            config,
            params,
            prompts,
            np.full(CONVERSATIONS, PROMPT, np.int32),
            jax.vmap(jax.random.key)(np.arange(CONVERSATIONS)),
            allowed,
            jnp.float32(0.0),
            jnp.float32(steering_strength),
            num_samples=1,
            max_length=NEW + 1,  # the last one is the stop token
            stop_token=0,
            steered=steering_strength > 0,
        )
        return samples.tokens[:, 0, :NEW]

    allowed = jnp.arange(vocab) > 0  # nobody stops before the end
    ways = {
        "hugging_face": hugging_face,
        "plain": lambda: ours(0.0),
        "steered": lambda: ours(1.0),
    }
    written = {name: way() for name, way in ways.items()}
    agreeing = np.mean(written["plain"] == written["hugging_face"])
    if agreeing < 0.99:  # a tie may be broken by rounding
        raise SystemExit(f"the tokens differ: {agreeing:.1%} agree.")
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: CONVERSATIONS * NEW / statistics.median(each) for name, each in seconds.items()}
    found = {f"{name}_tokens_per_second": rate for name, rate in rates.items()}
    for name in ("plain", "steered"):
        found[f"{name}_over_hugging_face"] = rates[name] / rates["hugging_face"]
    return found


if __name__ == "__main__":
    main()
