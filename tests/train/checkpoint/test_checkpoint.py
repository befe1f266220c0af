import json
import os
import random
import shutil

import pytest
import torch
from transformers import ViTForImageClassification

from data import files
from models.loading import load_model
from tests.making import make_optimizer, make_schedule
from tests.running import same_tensors
from tests.train.test_optim import NEEDED, OPTIMIZERS
from train.checkpoint.folder import CheckpointFolder, beyond_limit, list_checkpoints, newest_sound
from train.checkpoint.manifest import MANIFEST, CheckpointError, _sealed, verify
from train.checkpoint.resume import check_identity
from train.checkpoint.snapshot import restore
from train.errors import ConfigError
from train.precision import Precision
from train.state import Best, TrainState

NAMES = ["a", "b", "c"]


def make_state(optimizer="adamw", scheduler="linear", seed=0):
    torch.manual_seed(seed)
    network = load_model("builtin:tiny", NAMES).model
    built = make_optimizer(network, optimizer, None, 1e-3, 0.0)
    schedule = make_schedule(built, scheduler, NEEDED.get(scheduler), 0, 50)
    return TrainState(network, built, schedule, Precision("fp32", torch.device("cpu")), Best("loss", False))


def train(state, updates):
    for _ in range(updates):
        torch.manual_seed(state.step)
        loss = state.model(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)).square().mean()
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.count_update(loss.detach(), True)
        state.schedule.step()
        state.schedule.step_on_metric(loss.item())


def change_manifest(checkpoint, change):
    """As someone who knows the format would: with a digest that fits."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())["manifest"]
    change(manifest)
    (checkpoint / MANIFEST).write_text(_sealed(manifest))


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path, "run1", {"seed": 42}, keep=2)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_state_goes_on_bit_for_bit(optimizer, folder):
    scheduler = {"SGD": "reduce_lr_on_plateau", "nadam": "CosineAnnealingLR", "radam": "StepLR"}.get(
        optimizer, "linear"
    )
    unbroken = make_state(optimizer, scheduler)
    train(unbroken, 3)
    unbroken.best.value, unbroken.best.step = 0.25, 3
    path = folder.save(unbroken, log_bytes=17)
    train(unbroken, 4)
    resumed = make_state(optimizer, scheduler, seed=9)
    assert restore(resumed, path) == 17
    assert (resumed.step, resumed.best.value, resumed.best.step) == (3, 0.25, 3)
    train(resumed, 4)
    assert same_tensors(resumed.model.state_dict(), unbroken.model.state_dict())
    assert resumed.learning_rate == unbroken.learning_rate
    assert resumed.take_logged_loss() == unbroken.take_logged_loss()


def test_the_scaler_comes_back(folder):
    state = make_state()
    state.precision.scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=True)
    state.precision.scaler.scale(torch.ones(()))  # creates the scale lazily
    path = folder.save(state, 0)
    fresh = make_state()
    fresh.precision.scaler = torch.amp.GradScaler("cpu", enabled=True)
    restore(fresh, path)
    assert fresh.precision.scaler.get_scale() == 128.0


def test_a_checkpoint_is_a_model_folder_that_anyone_may_read(folder):
    state = make_state()
    path = folder.save(state, 0)
    loaded, report = ViTForImageClassification.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert same_tensors(loaded.state_dict(), state.raw_model.vit.state_dict())
    umask = os.umask(0)
    os.umask(umask)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~umask}


def test_nothing_in_a_checkpoint_is_a_pickle(folder):
    for file in folder.save(make_state(), 0).iterdir():
        head = file.read_bytes()[:2]
        assert file.suffix in (".json", ".safetensors") and head != b"PK" and not head.startswith(b"\x80")


def test_best_always_names_the_best_and_can_be_loaded(folder):
    state = make_state()
    for value in (0.5, 0.3, 0.4, 0.6):
        train(state, 1)
        if state.best.improved_by(value):
            state.best.value, state.best.step = value, state.step
        folder.save(state, 0)
        assert (folder.folder / "best").readlink().name == f"checkpoint-{state.best.step}"
        ViTForImageClassification.from_pretrained(folder.folder / "best")
    assert [step for step, _ in list_checkpoints(folder.folder)] == [4, 2]  # the newest and the best


@pytest.mark.parametrize(
    ("steps", "keep", "best", "deleted"),
    [
        ([1, 2, 3], None, 1, []),
        ([1, 2, 3], 2, 1, [2]),
        ([1, 2, 3], 2, 3, [1]),
        ([1, 2, 3], 1, 1, [2]),
        ([1, 2, 3], 1, 3, [1, 2]),
        ([1, 2, 3, 4], 3, 1, [2]),
        ([5], 1, None, []),
        ([], 1, None, []),
    ],
)
def test_retention(steps, keep, best, deleted):
    assert beyond_limit(steps, keep, best) == deleted


def test_retention_never_takes_the_best_or_the_newest():
    draw = random.Random(5)
    for _ in range(300):
        steps = draw.sample(range(100), draw.randint(1, 12))
        keep, best = draw.randint(1, 6), draw.choice([None, *steps])
        deleted = beyond_limit(steps, keep, best)
        assert not {best, max(steps)} & set(deleted) and len(set(steps) - set(deleted)) <= max(keep, 2)


def test_what_another_run_wrote_is_never_deleted(folder):
    state = make_state()
    train(state, 1)
    path = folder.save(state, 0)
    theirs = folder.folder / "checkpoint-0"
    shutil.copytree(path, theirs)
    change_manifest(theirs, lambda manifest: manifest.update(run_id="another"))
    (folder.folder / "checkpoint-7").mkdir()  # no manifest: nobody knows whose
    for _ in range(3):
        train(state, 1)
        folder.save(state, 0)
    assert [step for step, _ in list_checkpoints(folder.folder)] == [7, 4, 3, 0]


def test_a_checkpoint_that_is_not_what_was_saved_is_noticed(folder):
    path = folder.save(make_state(), 0)
    verify(path)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        for damaged in (bytes(flipped), content[:-1], content + b"x", b""):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=file.name):
                verify(path)
        file.write_bytes(content)
        file.rename(path / "away")
        with pytest.raises(CheckpointError, match=file.name):
            verify(path)
        (path / "away").rename(file)
    verify(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"].pop("model.safetensors"),
        lambda manifest: manifest["files"].__setitem__("../escape", {"size": 0, "sha256": ""}),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.pop("run_id"),
    ],
)
def test_a_changed_manifest_is_noticed(folder, change):
    path = folder.save(make_state(), 0)
    change_manifest(path, change)
    with pytest.raises(CheckpointError):
        verify(path)


def test_the_newest_sound_one_is_taken_and_a_bad_one_set_aside_not_deleted(folder):
    state = make_state()
    paths = []
    for _ in range(2):
        train(state, 1)
        paths.append(folder.save(state, 0))
    weights = paths[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    found, notes = newest_sound(folder.folder)
    assert found == paths[0]
    assert len(notes) == 1 and "model.safetensors differs from what was saved" in notes[0]
    assert (folder.folder / "checkpoint-2.bad" / "model.safetensors").exists()


def test_another_identity_is_refused_with_the_difference(folder):
    path = folder.save(make_state(), 0)
    check_identity(path, {"seed": 42})
    with pytest.raises(ConfigError, match="seed was 42, is now 43"):
        check_identity(path, {"seed": 43})


def test_a_state_of_another_optimizer_is_refused(folder):
    path = folder.save(make_state("adamw"), 0)
    with pytest.raises(CheckpointError, match="AdamW, not SGD"):
        restore(make_state("SGD"), path)


def test_a_save_that_fails_leaves_nothing_behind_and_the_earlier_one_whole(folder, monkeypatch):
    state = make_state()
    train(state, 1)
    first = folder.save(state, 0)
    train(state, 1)
    monkeypatch.setattr(
        "train.checkpoint.folder.write_manifest", lambda *_: (_ for _ in ()).throw(OSError(28, "No space"))
    )
    with pytest.raises(OSError, match="No space"):
        folder.save(state, 0)
    assert {path.name for path in folder.folder.iterdir()} == {"checkpoint-1"}
    verify(first)


def test_in_the_background_what_is_saved_is_the_state_as_it_was(folder):
    folder.in_background = True
    state = make_state()
    train(state, 3)
    before = {name: tensor.clone() for name, tensor in state.raw_model.state_dict().items()}
    path = folder.save(state, 0)
    train(state, 5)  # at once, while it is being written
    folder.wait()
    fresh = make_state(seed=9)
    restore(fresh, path)
    assert fresh.step == 3 and same_tensors(fresh.raw_model.state_dict(), before)
    train(fresh, 5)
    assert same_tensors(fresh.raw_model.state_dict(), state.raw_model.state_dict())


def test_what_goes_wrong_in_the_background_is_raised_by_the_next_save_and_at_the_end(folder):
    folder.in_background = True
    state = make_state()
    train(state, 1)
    files.beside(folder.folder / "checkpoint-1").write_bytes(b"a file where the folder is to be made")
    folder.save(state, 0)
    train(state, 1)
    with pytest.raises(FileExistsError):
        folder.save(state, 0)
    folder.save(state, 0)
    folder.wait()
    assert [step for step, _ in list_checkpoints(folder.folder)] == [2]
    train(state, 1)
    files.beside(folder.folder / "checkpoint-3").write_bytes(b"again")
    folder.save(state, 0)
    with pytest.raises(FileExistsError):
        folder.wait()
