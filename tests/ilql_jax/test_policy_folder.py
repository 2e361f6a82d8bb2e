"""A saved policy plays the same to the bit in another process, or says what is missing."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_networks import random_params

from ilql_jax import DecoderConfig, DecodingConfig, ModelConfig, Policy, losses
from ilql_jax.policy_folder import (
    DESCRIPTION,
    PARAMETERS,
    PolicyDescription,
    PolicyFolderError,
    load_policy,
    save_policy,
)

MODEL = ModelConfig(DecoderConfig(10, 16, 2, 2, 32, 24, initializer_range=0.3), 16)
PARAMS = random_params(MODEL, 0.3)
SAVED = PolicyDescription(
    model=MODEL,
    decoding={"temperature": 0.7, "steering_strength": 0.0, "candidates": 4},
    stop_token=9,
    allowed=(2, 3, 4, 9),
    max_utterance=5,
    reward_scale=0.5,
    baseline=-3.0,
    steered_by="",
    training={"method": "ilql"},
)
CONTEXTS = [np.int32([1, 2]), np.int32([3, 4, 5])]

PLAY = """
import sys, numpy as np
from ilql_jax import Policy
policy = Policy.load(sys.argv[1])
for each in policy.respond([np.int32([1, 2]), np.int32([3, 4, 5])], seeds=[5, 6]):
    print(each.tokens.tolist(), each.q.hex(), each.v.hex(), each.log_prob.hex())
"""


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path, PARAMS, SAVED)
    return tmp_path


def original(**fields):
    decoding = DecodingConfig(**SAVED.decoding)
    return Policy(MODEL, PARAMS, decoding, 9, SAVED.allowed_mask, 5, **fields)


def test_another_process_plays_the_same_to_the_bit(folder):
    policy = original(reward_scale=0.5, baseline=-3.0)
    expected = [
        f"{each.tokens.tolist()} {each.q.hex()} {each.v.hex()} {each.log_prob.hex()}"
        for each in policy.respond(CONTEXTS, seeds=[5, 6])
    ]
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", PLAY, folder], capture_output=True, text=True, cwd=root, check=True
    )
    assert run.stdout.splitlines() == expected


def test_values_are_told_in_the_rewards_own_unit(folder):
    loaded = Policy.load(folder).respond(CONTEXTS, seeds=[5, 6])
    for one, raw in zip(loaded, original().respond(CONTEXTS, seeds=[5, 6]), strict=True):
        assert one.q == raw.q / 0.5 - 3 and one.v == raw.v / 0.5 - 3
        assert [q for _, q, _ in one.candidates] == [q / 0.5 - 3 for _, q, _ in raw.candidates]
        assert set(one.tokens) <= set(SAVED.allowed)


def test_everything_that_was_said_is_read_again(folder):
    description, _ = load_policy(folder)
    assert description == SAVED
    assert str(Policy.load(folder, decoding="greedy").decoding) == "greedy"


def _without(folder, name):
    fields = json.loads((folder / DESCRIPTION).read_text())
    del fields[name]
    (folder / DESCRIPTION).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / DESCRIPTION).unlink(), r"policy.json: not found.*folder="),
        (lambda folder: (folder / PARAMETERS).unlink(), "policy.safetensors: not found"),
        (lambda folder: (folder / PARAMETERS).write_bytes(b"no"), "policy.safetensors: .*again"),
        (lambda folder: (folder / DESCRIPTION).write_text("{"), r"policy.json: .*again"),
        (lambda folder: _without(folder, "stop_token"), "policy.json: has no stop_token"),
        (
            lambda folder: save_policy(
                folder,
                PARAMS,
                dataclasses.replace(SAVED, model=dataclasses.replace(MODEL, value_inner_size=8)),
            ),
            r"q/.* has shape .*belong to different policies",
        ),
    ],
)
def test_what_is_missing_is_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(PolicyFolderError, match=message):
        Policy.load(folder)


def test_a_steering_rule_that_files_cannot_hold_has_to_be_given(folder):
    steered = dataclasses.replace(
        SAVED,
        model=dataclasses.replace(MODEL, utterance_q="last"),
        decoding={"temperature": 1.0, "steering_strength": 4.0, "candidates": 1},
        steered_by="mine",
    )
    save_policy(folder, PARAMS, steered)
    with pytest.raises(PolicyFolderError, match=r"of the method 'mine', .*load_method\(FILE\)"):
        Policy.load(folder)
    assert Policy.load(folder, steer=losses.steer_logits).decoding.steering_strength == 4
    assert not Policy.load(folder, decoding="sampled").decoding.steering_strength


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PolicyFolderError, match="nowhere: not found"):
        Policy.load(tmp_path / "nowhere")
