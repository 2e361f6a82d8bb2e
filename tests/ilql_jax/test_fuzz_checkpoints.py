"""Checkpoints that were damaged, renamed, or written into odd folders; inputs drawn from seeds."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import COUNTS, held

from ilql_jax.checkpoint import (
    ASIDE,
    CHECKSUMS,
    CheckpointError,
    Checkpoints,
    CheckpointWarning,
    latest_step,
    read_metadata,
    set_aside_damaged,
)
from ilql_jax.disk import DiskError
from ilql_jax.models import DecoderConfig, ModelConfig, init_params
from ilql_jax.policy_folder import PolicyDescription, load_policy, save_policy

DAMAGES = 120


def state(step: int):
    return {"x": jnp.arange(40.0) * step, "y": jnp.full((3, 5), step)}


SHAPES = jax.eval_shape(lambda: state(1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of two steps, as a training leaves them."""
    folder = tmp_path_factory.mktemp("written") / "bc"
    checkpoints = Checkpoints(folder, {"method": "bc"})
    for step in (4, 8):
        checkpoints.save(step, state(step), {"place": step})
    checkpoints.close()
    return folder


def restored(folder: Path):
    checkpoints = Checkpoints(folder, {"method": "bc"})
    try:
        return checkpoints.restore(SHAPES)
    finally:
        checkpoints.close()


def damage(rng: random.Random, path: Path) -> str:
    """Spoils one file or folder of a checkpoint; says how."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    folders = sorted(each for each in path.rglob("*") if each.is_dir())
    kind = rng.choice(["flip", "cut", "empty", "append", "gone", "folder", "rename", "text"])
    file = rng.choice(files)
    content = file.read_bytes()
    if kind == "flip":
        place = rng.randrange(max(1, len(content)))
        flipped = bytes([(content[place] if content else 0) ^ (1 << rng.randrange(8))])
        file.write_bytes(content[:place] + flipped + content[place + 1 :])
    elif kind == "cut":
        file.write_bytes(content[: rng.randrange(max(1, len(content)))])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "append":
        file.write_bytes(content + rng.randbytes(9))
    elif kind == "gone":
        file.unlink()
    elif kind == "folder":
        shutil.rmtree(rng.choice(folders))
    elif kind == "rename":
        file.rename(file.with_name(file.name + "x"))
    else:
        file.write_text(rng.choice(["null", "[]", "{", "7", '"a"', "\x00", '{"state": 1}']))
    return f"{kind} {file.relative_to(path)}"


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_is_used(
    written: Path, tmp_path: Path, seed: int
):
    rng = random.Random(seed)
    for number in range(DAMAGES // 4):
        folder = shutil.copytree(written, tmp_path / str(number) / "bc")
        how = damage(rng, folder / "8")
        told = set_aside_damaged(folder)
        COUNTS["checkpoints", "told" if told else "accepted"] += 1
        if told:
            assert [str(folder / "8") in each for each in told] == [True], how
            assert f"set aside as {ASIDE}8" in told[0] and "step 4 is used" in told[0]
            assert (folder / f"{ASIDE}8").exists() and latest_step(folder) == 4
        else:  # the checksums are gone, or one of an empty file was emptied
            assert CHECKSUMS in how or "flip" not in how, how
        if number % 10 == 0:
            with warnings.catch_warnings(action="ignore"):
                found, position = restored(folder)
            expected = 4 if told else 8
            assert position == {"place": expected}, how
            np.testing.assert_array_equal(found["x"], state(expected)["x"])


def test_what_is_read_for_other_uses_is_compared_too(written: Path, tmp_path: Path):
    folder = shutil.copytree(written, tmp_path / "bc")
    file = next(iter(sorted((folder / "8" / "state").rglob("d/*"))))
    file.write_bytes(b"\x00" + file.read_bytes()[1:])
    with pytest.warns(CheckpointWarning, match="is not as it was written.*step 4 is used"):
        assert read_metadata(folder) == {"method": "bc"}
    shutil.rmtree(folder / "4" / "metadata")
    with (
        pytest.warns(CheckpointWarning, match="there is none before it"),
        pytest.raises(CheckpointError, match="holds no complete checkpoint"),
    ):
        read_metadata(folder)


def test_a_training_goes_on_over_what_was_set_aside(written: Path, tmp_path: Path):
    folder = shutil.copytree(written, tmp_path / "bc")
    for _ in range(2):
        (folder / "8" / "_CHECKPOINT_METADATA").unlink()
        with pytest.warns(CheckpointWarning):
            checkpoints = Checkpoints(folder, {"method": "bc"})
        assert checkpoints.restore(SHAPES)[1] == {"place": 4}
        checkpoints.save(8, state(8), {"place": 8})
        checkpoints.close()
    assert restored(folder)[1] == {"place": 8}
    assert sorted(path.name for path in folder.iterdir()) == ["4", "8", "damaged-8", "damaged-8-2"]


def test_a_checkpoint_without_checksums_that_cannot_be_read_is_named(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "bc")
    (folder / "8" / CHECKSUMS).unlink()
    (folder / "8" / "metadata" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"bc/8 cannot be read.*goes on from the checkpoint"):
        restored(folder)


@pytest.mark.parametrize(
    "name",
    ["{x}", "50%", "%41", "two words", "ünïcödé 漢字", "dot.", "x" * 200, "-lead", "a:b", "'", "~"],
)
def test_folders_of_odd_names_can_be_read_back(tmp_path: Path, name: str):
    folder = tmp_path / name / "bc"
    checkpoints = Checkpoints(folder, {"method": "bc"})
    checkpoints.save(1, state(1), {"place": 1})
    checkpoints.close()
    assert restored(folder)[1] == {"place": 1}


@pytest.mark.parametrize(
    "name", ["lr[1e-3]", "a*", "what?", "back\\slash", "a\nb", "gs:", "\udcff"]
)
def test_folders_that_could_not_be_read_back_are_refused_at_once(tmp_path: Path, name: str):
    with pytest.raises(CheckpointError, match="cannot be read back"):
        Checkpoints(tmp_path / name / "bc", {})
    assert not (tmp_path / name).exists()


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a file stands where a folder is needed"):
        Checkpoints(tmp_path / "file" / "bc", {})


# --- policies in folders -----------------------------------------------------------------------

SMALL = ModelConfig(DecoderConfig(30, 8, 2, 2, 16, 32, position_encoding="rotary"), 8)
ODD = (
    *(None, [], {}, "text", -1, True, 0, 1.5, 10**30, 2**31, 1e308, float("nan"), 7),
    *([[1]], {"a": 1}, "\ud800", "../x", "/etc/hostname", "config.json"),
)


def changed(rng: random.Random, fields: dict) -> dict:
    """The fields with one of them odd or gone."""
    place = fields
    while isinstance(place[name := rng.choice(sorted(place))], dict) and place[name]:
        place = place[name]
    if rng.random() < 0.15:
        del place[name]
    else:
        place[name] = rng.choice(ODD)
    return fields


def spoil(rng: random.Random, folder: Path) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(changed(rng, json.loads(path.read_text()))))
        return
    content = path.read_bytes()
    place = rng.randrange(max(1, min(len(content), 3000)))
    flipped = content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]
    path.write_bytes(rng.choice([content[:place], b"", flipped, rng.randbytes(50), b"[" * 9999]))


def test_a_damaged_policy_folder_is_told_or_read(tmp_path):
    policy = PolicyDescription(
        model=SMALL,
        decoding={"kind": "greedy"},
        stop_token=1,
        allowed=(1, 2, 3),
        max_utterance=4,
        reward_scale=1.0,
        baseline=0.0,
        steered_by="",
        training={"method": "bc"},
    )
    save_policy(tmp_path / "whole", init_params(SMALL, 3), policy)
    for seed in range(60):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(seed))
        spoil(random.Random(f"policy/{seed}"), folder)
        with held("policy folders", seed):
            load_policy(folder)
