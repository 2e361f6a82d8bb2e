"""Decoding against Hugging Face's `generate`, plain and steered by the values.

    python experiments/benchmarks/decoding.py               # needs the extra `parity` (torch)
    python experiments/benchmarks/decoding.py --heads=tied --json=decoding.json

The same GPT-2 (random weights), the same 8 prompts of 64 tokens, 32 greedy tokens after each, one
thread each, in turn; the tokens must agree. Steered, the values of every token are added to its
scores: on the other side by a module in the place of the output layer, with the papers' heads
(`torch_ilql.Steered`). With another kind of heads ours is another network then, and only the plain
tokens are compared.
"""

from __future__ import annotations

import os

# Before jax starts: as many threads as torch is given below.
os.environ["NPROC"] = os.environ["PJRT_NPROC"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.benchmarks import measuring
from experiments.benchmarks.torch_ilql import Steered, head
from ilql_jax import losses
from ilql_jax.decode import sample
from ilql_jax.models import DecoderConfig, ModelConfig, Params, init_params
from ilql_jax.models.config import VALUE_HEAD_KINDS
from ilql_jax.models.cpu_matmul import decoding_layout
from ilql_jax.models.hugging_face.read import params_from_gpt2

CONVERSATIONS, PROMPT, NEW = 8, 64, 32
STRENGTH = 1.0  # of the steering
SIZES = {
    "small": DecoderConfig(50_257, 768, 12, 12, 3072, 128),
    "tiny": DecoderConfig(101, 32, 2, 2, 128, 128),
}


def run(size: str, heads: str, rounds: int) -> dict:
    """Tokens a second of each, and the ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SIZES[size]
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_positions=shape.max_positions,
        )
    ).eval()
    tensors = {name: tensor.numpy() for name, tensor in gpt2.state_dict().items()}
    config = ModelConfig(shape, 2 * shape.hidden_size, value_heads=heads)
    trunk = jax.tree.map(jnp.asarray, params_from_gpt2(tensors, shape))
    params = init_params(config, 0) | {"trunk": trunk} | random_heads(config)
    prompts = np.random.default_rng(0).integers(1, shape.vocab_size, (CONVERSATIONS, PROMPT))
    prompts = prompts.astype(np.int32)
    theirs = hugging_face(gpt2, config, prompts)
    ours = decoding(config, params, prompts)
    ways = {
        f"{whose} {how}": lambda write=write, how=how: write(how == "steered")
        for how in ("plain", "steered")
        for whose, write in (("Hugging Face", theirs), ("ours", ours))
    }

    written = {name: way() for name, way in ways.items()}
    for how in ("plain", "steered") if heads == "mlp" else ("plain",):
        our_tokens, their_tokens = written[f"ours {how}"], written[f"Hugging Face {how}"]
        agreeing = np.mean(our_tokens[:, :-1] == their_tokens[:, :-1])  # up to the stop token
        if agreeing < 0.99:  # a tie may be broken by rounding
            raise SystemExit(f"the {how} tokens differ: {agreeing:.1%} agree.")
    timed = {name: lambda way=way: measuring.seconds(way) for name, way in ways.items()}
    seconds = measuring.in_turn(timed, rounds)
    return {
        "size": size,
        "heads": heads,
        "rounds": rounds,
        "tokens_per_second": {name: CONVERSATIONS * NEW / each for name, each in seconds.items()},
        "times_faster": {
            how: seconds[f"Hugging Face {how}"] / seconds[f"ours {how}"]
            for how in ("plain", "steered")
        },
    }


def random_heads(config: ModelConfig) -> Params:
    """Value heads with something in them: fresh ones are zero, and would not steer."""
    fresh, rng = init_params(config, 0), np.random.default_rng(1)
    return jax.tree.map(
        lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape, np.float32)),
        {name: fresh[name] for name in ("q", "v")},
    )


def hugging_face(
    model: GPT2LMHeadModel, config: ModelConfig, prompts: np.ndarray
) -> Callable[[bool], np.ndarray]:
    """`generate`, which takes whether the values steer; with heads of kind "mlp"."""
    heads = random_heads(dataclasses.replace(config, value_heads="mlp"))
    q, v = heads["q"], heads["v"]
    width, inner, vocab = (
        config.decoder.hidden_size,
        config.value_inner_size,
        config.decoder.vocab_size,
    )
    layers = [
        (q["inner_kernel"][k].T, q["inner_bias"][k], q["out_kernel"][k], q["out_bias"][k])
        for k in range(2)
    ]
    layers.append(
        (v["inner"]["kernel"].T, v["inner"]["bias"], v["out"]["kernel"].T, v["out"]["bias"])
    )
    modules = [head(width, inner, out) for out in (vocab, vocab, 1)]
    with torch.no_grad():
        for module, tensors in zip(modules, layers, strict=True):
            for parameter, tensor in zip(module.parameters(), tensors, strict=True):
                parameter.copy_(torch.tensor(np.array(tensor)))
    plain = model.lm_head
    steered = Steered(plain, modules[:2], modules[2], STRENGTH)
    tokens = torch.from_numpy(prompts).long()

    @torch.no_grad()
    def write(is_steered: bool) -> np.ndarray:
        model.lm_head = steered if is_steered else plain
        written = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            pad_token_id=0,
        )
        return written[:, PROMPT:].numpy()

    return write


def decoding(
    config: ModelConfig, params: Params, prompts: np.ndarray
) -> Callable[[bool], np.ndarray]:
    """Decodes with `decode.sample`; the function takes whether the values steer."""
    allowed = jnp.arange(config.decoder.vocab_size) > 0  # nobody stops before the end
    config, params = decoding_layout(config, params)  # as `Policy` does, once

    def write(is_steered: bool) -> np.ndarray:
        samples = sample(
            config,
            params,
            prompts,
            np.full(CONVERSATIONS, PROMPT, np.int32),
            jax.vmap(jax.random.key)(np.arange(CONVERSATIONS)),
            allowed,
            jnp.float32(0.0),
            jnp.float32(STRENGTH),
            num_samples=1,
            max_length=NEW,  # the last of them the stop token, with all that is computed for it
            stop_token=0,
            steer=losses.steer_logits if is_steered else None,
        )
        return samples.tokens[:, 0]

    return write


def main() -> None:
    line = measuring.arguments(__doc__, size=tuple(SIZES), heads=VALUE_HEAD_KINDS, rounds=5)
    result = run(line.size, line.heads, line.rounds)
    rates = result["tokens_per_second"]
    measuring.print_table(
        [
            {
                f"tokens a second, ours with {result['heads']} heads": how,
                "Hugging Face": rates[f"Hugging Face {how}"],
                "ours": rates[f"ours {how}"],
                "times faster": times,
            }
            for how, times in result["times_faster"].items()
        ]
    )
    measuring.write_json(line.json, result)


if __name__ == "__main__":
    main()
