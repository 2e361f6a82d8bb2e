"""Checkpoints out: what `transformers` loads, what loads back, and whole runs that end in it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import warm_start
import yaml
from chat_templates import CHATML, raw_tokenizer
from hugging_face import GEMMA, LLAMA, OURS, ROW, SCANNED, pack, torch_logits, transformers_model
from small_networks import logits, outputs, random_params

from ilql_jax.models import ModelConfig, init_params
from ilql_jax.models.hugging_face.read import PretrainedError
from ilql_jax.models.hugging_face.write import load_network, save_pretrained
from imagination.dialogue import Turn
from imagination.tokenization import DialogueTokenizer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "config",
    [OURS, *(pytest.param(each, marks=pytest.mark.slow) for each in (LLAMA, SCANNED))],
    ids=["ours", "llama", "scanned"],
)
def test_transformers_computes_the_same_logits_and_loading_back_the_same_values(config, tmp_path):
    params = random_params(config, 0.1)
    save_pretrained(tmp_path, config, params, card="# Card", about={"a": [1, 2.5]})
    found, loaded, about = load_network(tmp_path, scan_layers=config.decoder.scan_layers)
    assert dataclasses.replace(found.decoder, num_kv_heads=0, head_dim=0) == dataclasses.replace(
        config.decoder, num_kv_heads=0, head_dim=0
    )
    assert found.value_inner_size == config.value_inner_size
    assert found.utterance_q == config.utterance_q and about == {"a": [1, 2.5]}
    expected = outputs(config, params, ROW)
    assert all(each.std() > 0.01 for each in expected)
    for a, b in zip(outputs(found, loaded, ROW), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "README.md").read_text() == "# Card"

    model = transformers_model(tmp_path)
    for dialogue in (slice(0, 17), slice(17, 26)):
        theirs = torch_logits(model, ROW[0][0, dialogue].astype(np.int64))
        np.testing.assert_allclose(theirs, expected[0][0, dialogue], atol=1e-4)


def test_gemma_whose_layers_differ_is_written_and_loaded_back_though_they_are_stacked(tmp_path):
    params = random_params(GEMMA, 0.1)
    save_pretrained(tmp_path, GEMMA, params, card="")
    found, loaded, _ = load_network(tmp_path, scan_layers=True)
    assert found == GEMMA
    # Their norms keep another number, one less.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loaded, params)
    expected = logits(GEMMA, params, ROW)
    theirs = torch_logits(transformers_model(tmp_path), ROW[0][0, :17].astype(np.int64))
    np.testing.assert_allclose(theirs, expected[0, :17], atol=1e-4)


def test_bfloat16_files_are_half_as_large_and_load_close(tmp_path):
    params = random_params(LLAMA, 0.1)
    save_pretrained(tmp_path, LLAMA, params, card="", dtype="bfloat16")
    found, loaded, _ = load_network(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 0.6 * sum(leaf.nbytes for leaf in jax.tree.leaves(params["trunk"]))
    rounded, expected = (logits(c, p, ROW) for c, p in ((found, loaded), (LLAMA, params)))
    np.testing.assert_allclose(rounded, expected, atol=0.05 * np.abs(expected).max())
    jax.tree.map(np.testing.assert_array_equal, loaded["q"], params["q"])


def test_what_cannot_be_written_or_read_back_is_said(tmp_path):
    odd = dataclasses.replace(OURS.decoder, norm="rms_norm")
    with pytest.raises(PretrainedError, match=r"none of GPT2LMHeadModel, .* has the shape"):
        save_pretrained(
            tmp_path / "odd", ModelConfig(odd, 8), init_params(ModelConfig(odd, 8), 0), card=""
        )
    assert not (tmp_path / "odd").exists()
    save_pretrained(tmp_path, LLAMA, random_params(LLAMA, 0.1), card="")
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | {"vocab_size": 310}))
    with pytest.raises(PretrainedError, match=r"\(300, 16\), but \(310, 16\) is needed"):
        load_network(tmp_path)
    (tmp_path / "config.json").write_text(config)
    wider = dataclasses.replace(LLAMA, decoder=dataclasses.replace(LLAMA.decoder, vocab_size=310))
    save_pretrained(tmp_path / "wider", wider, random_params(wider, 0.1), card="")
    shutil.copy(tmp_path / "wider" / "value_heads.safetensors", tmp_path)
    with pytest.raises(PretrainedError, match=r"q/out_bias has shape \(2, 310\), but \(2, 300\)"):
        load_network(tmp_path)
    (tmp_path / "value_heads.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"holds no value_heads\.safetensors"):
        load_network(tmp_path)


# --- whole runs ---------------------------------------------------------------------------------

TINY = (
    "--config.imagination.dialogues=40",
    "--config.train.steps=2",
    "--config.train.batch_rows=2",
    "--config.train.optimizer=adamw",
    "--config.model.value_inner_size=8",
    "--config.methods=ilql",
    "--config.workers=1",
)


def launch(*arguments):
    return warm_start.run(
        [sys.executable, str(ROOT / "experiments" / "teaching.py"), *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1"},
        timeout=600,
    )


def run(*arguments):
    result = launch(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small chat model: its tokenizer pads with what ends a turn; more rows than tokens."""
    folder = tmp_path_factory.mktemp("base")
    raw = raw_tokenizer(CHATML)
    sizes = {"vocab_size": len(raw) + 6, "max_positions": 1024, "num_layers": 1}
    decoder = dataclasses.replace(LLAMA.decoder, **sizes)
    config = dataclasses.replace(LLAMA, decoder=decoder)
    save_pretrained(folder, config, random_params(config, 0.1), card="")
    raw.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def from_base(base, tmp_path_factory):
    """A run that started from it, exported when it was not there any more."""
    folder = tmp_path_factory.mktemp("runs") / "from_base"
    pretrained = (f"--config.model.pretrained={base}", "--config.model.max_positions=1000")
    slowly = "--config.train.learning_rate=1e-9", "--config.train.muon_learning_rate=1e-9"
    run(f"--workdir={folder}", "--stage=train", *TINY, *pretrained, *slowly)
    elsewhere = base.rename(base.with_name("elsewhere"))
    try:
        output = run(f"--workdir={folder}", "--stage=export")
    finally:
        elsewhere.rename(base)
    assert f"Exported: {folder}/export/ilql-seed0" in output
    return folder


def test_a_run_starts_from_a_pretrained_model_with_its_tokenizer(base, from_base):
    before, after = (
        load_network(each)[1]["trunk"] for each in (base, from_base / "export" / "ilql-seed0")
    )
    # Two steps of 1e-9 moved it by no more.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), after, before)
    tokenizer = DialogueTokenizer.load(from_base / "tokenizer")
    expected = DialogueTokenizer(raw_tokenizer(CHATML))
    turns = [Turn("human", "Hello there")]
    np.testing.assert_array_equal(tokenizer.context(turns), expected.context(turns))


@pytest.mark.slow
def test_adapters_that_a_run_has_learned_are_merged_into_what_it_exports(base, tmp_path):
    folder = tmp_path / "adapted"
    arguments = (
        f"--config.model.pretrained={base}",
        "--config.model.max_positions=1000",
        "--config.model.lora_rank=2",
        "--config.train.warmup_steps=0",
    )
    run(f"--workdir={folder}", "--stage=train", *TINY, *arguments)
    run(f"--workdir={folder}", "--stage=export")
    (_, before, _), (config, after, _) = (
        load_network(each) for each in (base, folder / "export" / "ilql-seed0")
    )
    assert config.decoder.lora_rank == 0
    matrices = 0
    for path, now in jax.tree_util.tree_leaves_with_path(after["trunk"]):
        gap = now - dict(jax.tree_util.tree_leaves_with_path(before["trunk"]))[path]
        if path[-1].key == "kernel":
            singular = np.linalg.svd(gap, compute_uv=False)
            assert singular[1] > 1e-4 and singular[2] < 1e-6, path
            matrices += 1
        else:
            assert not gap.any(), path
    assert matrices == 7


def test_an_export_talks_in_transformers_as_in_this_project(from_base):
    torch = pytest.importorskip("torch", reason="parity with torch needs the extra 'parity'")
    from transformers import AutoTokenizer

    folder = from_base / "export" / "ilql-seed0"
    model, raw = transformers_model(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer = DialogueTokenizer.load(folder)
    inputs = raw.apply_chat_template(
        [{"role": "user", "content": "Hello there"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    context = tokenizer.context([Turn("human", "Hello there")])
    assert inputs["input_ids"][0].tolist() == context.tolist()
    assert model.generation_config.eos_token_id == tokenizer.end
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, len(context) :]
    config, params, about = load_network(folder)
    for count in range(len(written)):
        row = pack([np.concatenate([context, written[:count].numpy()])], len(context) + 8)
        scores = logits(config, params, row)[0, len(context) + count - 1]
        assert int(np.argmax(scores)) == int(written[count])
    assert about["method"] == "ilql" and about["reward_scale"] > 0
    assert torch.isfinite(model(**inputs).logits).all()


@pytest.mark.slow
def test_the_model_card_says_what_it_is_and_its_code_runs(base, from_base):
    folder = from_base / "export" / "ilql-seed0"
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and "base_model" not in front  # not on the hub
    assert f"starting from `{base}`" in card and "on 40 dialogues" in card
    _, ours = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", ours],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--config.model.max_positions=2000",),
            "config.model: max_positions is 2000, but {base} reads at most 1024 tokens.",
        ),
        (
            ("--config.model.hidden_size=32",),
            "config.model.hidden_size is given, but the network has the shape of "
            "config.model.pretrained, '{base}'.",
        ),
        (
            ("--config.model.pretrained=/no/such/place",),
            "config.model: no checkpoint '/no/such/place': give a folder with config.json",
        ),
    ],
)
def test_a_start_that_cannot_be_is_told_before_anything_is_imagined(
    base, tmp_path, arguments, message
):
    result = launch(f"--workdir={tmp_path}/r", f"--config.model.pretrained={base}", *arguments)
    assert result.returncode == 1
    assert message.format(base=base) in " ".join(result.stdout.split())
    assert not (tmp_path / "r" / "dialogues.jsonl").exists()


def test_nothing_is_exported_that_was_not_trained(from_base):
    result = launch(f"--workdir={from_base}", "--stage=export", "--config.export.method=bc")
    assert result.returncode == 1
    assert "holds no trained bc-seed0" in " ".join(result.stdout.split())
