"""Parts of `gpu.py` that PyTorch has a side in: text, and steps of a training."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.benchmarks import measuring
from experiments.benchmarks.gpu_networks import CONVERSATIONS, PROMPT_AND_NEW, SHAPES
from experiments.benchmarks.parts import Absent, Found, Part

# Of the losses of both sides over the first steps, relative where they are above 1.
TOLERANCES = {"float32": 2e-3, "bfloat16": 2e-2}


def generate(size: str) -> Found:
    """Tokens a second of Hugging Face's `generate`, sampled, for each number of conversations."""
    torch, device = _torch(size)
    from transformers import GPT2Config, GPT2LMHeadModel

    vocab, width, layers, heads, _, positions = SHAPES[size]["gpt2-small"][0]
    shape = GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=layers, n_head=heads, n_positions=positions
    )
    model = GPT2LMHeadModel(shape).eval().to(device, torch.bfloat16)
    prompt, new = PROMPT_AND_NEW[size]
    for conversations in CONVERSATIONS[size]:
        prompts = torch.randint(1, vocab, (conversations, prompt), device=device)

        @torch.no_grad()
        def write(prompts=prompts) -> None:
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=0,
            )
            _finish(torch)

        write()
        taken = measuring.seconds(write)
        yield {f"{conversations}_tokens_per_second": conversations * new / taken}


def eager(dtype: str) -> Part:
    """Part that times a training step of PyTorch eager, and ours on the same 8 dialogues.

    Both multiply alike: "float32" is TF32 on the GPUs that have it, as JAX does by itself and
    PyTorch where it is told; "bfloat16" is PyTorch's autocast, and our `compute_dtype`.
    """

    def part(size: str) -> Found:
        torch, device = _torch(size)
        from experiments.benchmarks import train_step

        torch.set_float32_matmul_precision("high")
        name = "gpt2" if size == "full" else "tiny"
        of_torch = train_step.make_torch(name, device, dtype)
        ours = train_step.make_ours(name, "mlp", rows=4, chunk=1024, dtype=dtype)

        def theirs() -> float:
            loss = of_torch()
            _finish(torch)
            return loss

        losses = [(ours(), theirs()) for _ in range(train_step.CHECKED_STEPS)]
        apart = float(np.max([abs(a - b) / max(1.0, abs(b)) for a, b in losses]))
        precision = torch.get_float32_matmul_precision()
        yield {"losses": losses, "losses_apart": apart, "torch_float32_precision": precision}
        taken = measuring.in_turn(
            {"eager": lambda: measuring.seconds(theirs), "ours": lambda: measuring.seconds(ours)},
            10,
        )
        yield {"eager_ms": 1e3 * taken["eager"], "ours_ms": 1e3 * taken["ours"]}
        if not apart <= TOLERANCES[dtype]:
            raise RuntimeError(f"losses differ by {apart:.2g}, more than {TOLERANCES[dtype]}.")
        yield {"times_faster": taken["eager"] / taken["ours"]}

    return part


def _torch(size: str) -> tuple[Any, str]:
    """PyTorch and its device: the accelerator; to rehearse, the CPU.

    Raises:
        Absent: There is none.
    """
    try:
        import torch
    except ImportError:
        raise Absent("torch is not installed") from None
    if torch.cuda.is_available():
        return torch, "cuda"
    if size == "full":
        raise Absent("torch sees no accelerator")
    return torch, "cpu"


def _finish(torch: Any) -> None:
    """Waits until the accelerator has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
