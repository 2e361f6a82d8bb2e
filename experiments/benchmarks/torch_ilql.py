"""ILQL in PyTorch on Hugging Face's GPT-2, as everybody writes it: what ours is compared with.

A padded batch, logits at every position, value heads gathered at the agent's tokens (by index
arrays padded to the dialogue that has most of them, as in trlx), the target network's values of
the whole vocabulary, AdamW. The losses are those of `ilql_jax.losses`, with decisions that are
tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from ilql_jax import ModelConfig, TrainConfig, Trajectory
from ilql_jax.methods.ilql import ILQLConfig


def head(width: int, inner: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, out)
    )


class ILQL(nn.Module):
    """Trunk, language-model head, twin Q heads with their targets, and V."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        shape = config.decoder
        width, inner = shape.hidden_size, config.value_inner_size
        self.gpt2 = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=shape.vocab_size,
                n_positions=shape.max_positions,
                n_embd=width,
                n_layer=shape.num_layers,
                n_head=shape.num_heads,
                n_inner=shape.mlp_size,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        )
        self.q = nn.ModuleList([head(width, inner, shape.vocab_size) for _ in range(2)])
        self.v = head(width, inner, 1)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Takes over weights by name; the targets start as copies."""
        given = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        missing, unknown = self.load_state_dict(given, strict=False)
        derived = ("gpt2.lm_head.weight", *(n for n in missing if n.startswith("target_q.")))
        assert not unknown and not {*missing} - {*derived}, (missing, unknown)
        self.target_q.load_state_dict(self.q.state_dict())


class Steered(nn.Module):
    """In the place of a language model's output layer: its scores, steered by the values.

    Args:
        output: That layer.
        q: Twin heads.
        v: V.
        strength: Strength of the steering, β in eq. 6 of ILQL.
    """

    def __init__(self, output: nn.Module, q: Sequence[nn.Module], v: nn.Module, strength: float):
        super().__init__()
        self.output, self.q, self.v, self.strength = output, nn.ModuleList(q), v, strength

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        q = torch.minimum(*(head(hidden) for head in self.q))
        log_prob = F.log_softmax(self.output(hidden), dim=-1)
        return log_prob + self.strength * (q - self.v(hidden))


class Trainer:
    """Takes one step after the other on the same batch.

    Args:
        config: Shape of the network (kind "mlp").
        method: Expectile and weights.
        train: Learning rate, clipping, Polyak rate.
        tensors: Initial weights.
        dialogues: The batch.
        discount: γ.
        device: Device of all of it.
        dtype: Dtype of the products: "float32", or "bfloat16" by autocast.
    """

    def __init__(
        self,
        config: ModelConfig,
        method: ILQLConfig,
        train: TrainConfig,
        tensors: Mapping[str, np.ndarray],
        dialogues: Sequence[Trajectory],
        discount: float,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        self.method, self.train = method, train
        self.model = ILQL(config)
        self.model.load(tensors)
        self.model.to(device)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
        learned = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.learned = learned
        self.optimizer = torch.optim.AdamW(groups, lr=train.learning_rate)
        batch = collate(dialogues, discount)
        self.batch = {name: tensor.to(device) for name, tensor in batch.items()}

    def step(self) -> float:
        """One step; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = self.loss(**self.batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.learned, self.train.max_gradient_norm)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.model.target_q.parameters(), self.model.q.parameters(), strict=True)
            for target, source in pairs:
                target.lerp_(source, self.train.polyak_rate)
        return loss.item()

    def loss(self, tokens, mask, is_action, state, reward, discount, weight) -> torch.Tensor:
        model, method = self.model, self.method
        output = model.gpt2(tokens, attention_mask=mask, output_hidden_states=True)
        hidden = output.hidden_states[-1]
        states = hidden.gather(1, state[..., None].expand(-1, -1, hidden.shape[-1]))
        actions = tokens.gather(1, state + 1)

        q_all = torch.stack([head(states) for head in model.q])
        with torch.no_grad():
            target_all = torch.stack([head(states) for head in model.target_q])
        index = actions[None, ..., None].expand(2, -1, -1, 1)
        q = q_all.gather(-1, index)[..., 0]
        target = target_all.gather(-1, index)[..., 0].min(0).values
        v = model.v(states)[..., 0]
        # The next decision is the next of the agent's tokens; a discount of 0 ends a dialogue.
        next_v = F.pad(v.detach()[:, 1:], (0, 1))

        def mean(values: torch.Tensor) -> torch.Tensor:
            return (values * weight).sum() / weight.sum()

        q_loss = mean((reward + discount * next_v - q).square().sum(0))
        difference = target - v
        slope = torch.where(difference < 0, 1 - method.expectile, method.expectile)
        v_loss = mean(slope * difference.square())
        cql_loss = mean((q_all.logsumexp(-1) - q).sum(0))
        labels = torch.where(is_action, tokens, -100)[:, 1:]
        policy_loss = F.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100
        )
        values = q_loss + v_loss + method.cql_weight * cql_loss
        return policy_loss + method.value_loss_weight * values


def collate(dialogues: Sequence[Trajectory], discount: float) -> dict[str, torch.Tensor]:
    """Dialogues padded to the longest [B, T], decisions to those of the one that has most [B, A].

    The last of the agent's tokens ends a dialogue.
    """
    at = [np.flatnonzero(dialogue.is_action) for dialogue in dialogues]
    shape = (len(dialogues), max(len(dialogue.tokens) for dialogue in dialogues))
    slots = (len(dialogues), max(map(len, at)))
    batch = {
        "tokens": torch.zeros(shape, dtype=torch.long),
        "mask": torch.zeros(shape, dtype=torch.long),
        "is_action": torch.zeros(shape, dtype=torch.bool),
        "state": torch.zeros(slots, dtype=torch.long),
        "reward": torch.zeros(slots),
        "discount": torch.zeros(slots),
        "weight": torch.zeros(slots),
    }
    for row, (dialogue, columns) in enumerate(zip(dialogues, at, strict=True)):
        length, count = len(dialogue.tokens), len(columns)
        batch["tokens"][row, :length] = torch.from_numpy(dialogue.tokens)
        batch["mask"][row, :length] = 1
        batch["is_action"][row, :length] = torch.from_numpy(dialogue.is_action)
        batch["state"][row, :count] = torch.from_numpy(columns) - 1
        batch["reward"][row, :count] = torch.from_numpy(dialogue.rewards[columns])
        batch["discount"][row, : count - 1] = discount
        batch["weight"][row, :count] = 1
    return batch
