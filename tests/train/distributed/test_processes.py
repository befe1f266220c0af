"""Several processes over gloo on this machine, beside one."""

import pytest
import torch
from torchmetrics import MetricCollection
from transformers import ViTForImageClassification

from data.loading.loader import InOrder
from data.plan import Plan
from tests.reliability.groups import start_group
from tests.reliability.harness import finish, start
from tests.running import records, run_here, weights
from train.evaluate import _count_metrics

EXACT = (
    *("--preset", "debug", "--max_train_samples", 44, "--max_eval_samples", 23, "--precision", "fp64"),
    *("--logging_steps", 1, "--eval_steps", 10, "--save_steps", 10, "--max_steps", 20, "--output_dir"),
)


def losses(folder):
    return [(line["loss"], line["grad_norm"]) for line in records(folder) if "grad_norm" in line]


def assert_close(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    assert finish(start((*EXACT, out, "--per_device_train_batch_size", 8))) == 0
    return out


# -- which process has which images ------------------------------------------------------------------------


def test_every_image_is_evaluated_exactly_once_for_every_number_world_and_batch():
    for samples in range(1, 65):
        labels = torch.arange(samples) % 3
        predictions = (torch.arange(samples) * 7) % 3
        whole = _count_metrics(3)
        whole.update(predictions, labels)
        for world in range(1, 5):
            for batch in (1, 3, 8):
                shards = [list(InOrder(samples, batch, rank=rank, world=world)) for rank in range(world)]
                assert len({len(shard) for shard in shards}) == 1  # all take part in as many forward passes
                assert all(len(keys) <= batch for shard in shards for keys in shard)
                seen = [index for shard in shards for keys in shard for _, index in keys]
                assert sorted(seen) == list(range(samples)), (samples, world, batch)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_counts_added_up_over_processes_are_those_of_one(world):
    labels, predictions = torch.arange(50) % 3, (torch.arange(50) * 7) % 3
    whole, parts = _count_metrics(3), [_count_metrics(3) for _ in range(world)]
    whole.update(predictions, labels)
    for rank, part in enumerate(parts):
        part.update(predictions[rank::world], labels[rank::world])
    merged = {name: metric.clone() for name, metric in parts[0].items()}
    for part in parts[1:]:
        for name, metric in part.items():
            merged[name].merge_state(metric)
    expected = whole.compute()
    assert isinstance(whole, MetricCollection)
    for name, metric in merged.items():
        assert torch.equal(metric.compute(), expected[name]), name


def test_the_parts_of_all_processes_are_the_images_of_one():
    for samples in (1, 7, 44, 103):
        for world, batch, accumulation in ((2, 4, 1), (2, 4, 3), (4, 2, 2), (3, 2, 2)):
            one = Plan(samples, batch * world, accumulation, 99, seed=5)
            parts = [Plan(samples, batch, accumulation, 99, 5, rank=rank, world=world) for rank in range(world)]
            for update in range(1, 2 * one.updates_per_epoch + 1):
                whole = sorted(key for keys in one.micro_batches(update) for key in keys)
                shared = [part.micro_batches(update) for part in parts]
                assert sorted(key for part in shared for keys in part for key in keys) == whole
                assert one.samples_in(update) == parts[0].samples_in(update) == len(whole)
                assert {len(part) for part in shared} == {one.micro_batch_count(update)}
                sizes = [[len(keys) for keys in part] for part in shared]
                assert all(max(same) - min(same) <= 1 for same in zip(*sizes, strict=True))


def test_images_are_counted_up_to_any_update():
    for drop_last in (False, True):
        plan = Plan(44, 3, 2, 99, 5, drop_last, world=2)
        for update in range(30):
            assert plan.samples_until(update) == sum(plan.samples_in(done) for done in range(1, update + 1))


# -- real processes ----------------------------------------------------------------------------------------


def test_two_processes_with_half_the_batch_train_like_one(alone, tmp_path):
    out = tmp_path / "two"
    assert finish(start_group((*EXACT, out, "--per_device_train_batch_size", 4))) == 0
    assert_close(losses(out), losses(alone))
    evaluations = [[line for line in records(folder) if "eval_loss" in line] for folder in (out, alone)]
    for one, other in zip(*evaluations, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    assert [line["eval_accuracy"] for line in evaluations[0]] == [line["eval_accuracy"] for line in evaluations[1]]
    predictions = [(folder / "predictions.csv").read_text().splitlines() for folder in (out, alone)]
    for one, other in zip(*predictions, strict=True):  # every image once, in the split's order
        assert one.split(",")[:3] == other.split(",")[:3]
        if one != other:
            assert_close(*([list(map(float, line.split(",")[3:]))] for line in (one, other)))
    assert len(predictions[0]) == 24


PER_SAMPLE = (
    *("--augment", "trivial", "--random_resized_crop", 0.5, "--random_erasing", 0.3, "--label_smoothing", 0.1),
    *("--class_weights", "healthy=2", "--ema", 0.9, "--layer_decay", 0.8, "--image_size", 48),
)


@pytest.mark.slow
@pytest.mark.parametrize("rare", [("--logit_adjustment", 1), ("--sampler", "balanced")])
def test_recipes_of_single_images_give_two_processes_what_they_give_one(rare, tmp_path):
    for name, launch, batch in (("one", start, 8), ("two", start_group, 4)):
        flags = (*EXACT, tmp_path / name, *PER_SAMPLE, *rare, "--per_device_train_batch_size", batch)
        assert finish(launch(flags)) == 0
    assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"))
    one, two = (records(tmp_path / name)[-1] for name in ("one", "two"))
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-6)


@pytest.mark.slow
def test_a_process_without_images_takes_part_in_mixing(tmp_path):
    mixed = ("--mixup", 0.3, "--cutmix", 1, "--max_train_samples", 9, "--per_device_train_batch_size", 4)
    assert finish(start_group((*EXACT, tmp_path / "run", *mixed))) == 0  # of nine images the last update has one
    assert len(losses(tmp_path / "run")) == 20 and all(loss > 0 for loss, _ in losses(tmp_path / "run"))


@pytest.mark.slow
def test_three_processes_with_windows_and_a_process_without_images(alone, tmp_path):
    """44 images in windows of 8: the last of an epoch has 4 images, the micro-batches of which some ranks lack."""
    expected, out = tmp_path / "expected", tmp_path / "three"
    flags = ("--max_train_samples", 43, "--max_eval_samples", 7)
    one = (*EXACT, expected, *flags, "--per_device_train_batch_size", 6, "--gradient_accumulation_steps", 2)
    assert finish(start(one)) == 0
    three = (*EXACT, out, *flags, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2)
    assert finish(start_group(three, world=3)) == 0
    assert_close(losses(out), losses(expected))


@pytest.mark.slow
def test_a_resume_with_another_number_of_processes_sees_the_same_samples(alone, tmp_path):
    out = tmp_path / "run"
    assert finish(start_group((*EXACT, out, "--per_device_train_batch_size", 4, "--stop_after", 7))) == 0
    again = ("--output_dir", out, "--resume_from_checkpoint", "auto")
    log = tmp_path / "log"
    assert finish(start(again, log=log)) == 2  # its batch would be half as large
    assert "images_an_update was 8, is now 4" in log.read_text()
    assert finish(start((*again, "--per_device_train_batch_size", 8), log=log)) == 0
    assert "not bit for bit" in log.read_text()
    assert_close(losses(out), losses(alone))


@pytest.mark.slow
def test_a_sharded_network_trains_like_a_whole_one_and_saves_an_ordinary_model(alone, tmp_path):
    out = tmp_path / "fsdp"
    flags = (*EXACT, out, "--per_device_train_batch_size", 4, "--fsdp", "true")
    assert finish(start_group((*flags, "--stop_after", 6))) == 0
    again = ("--output_dir", out, "--resume_from_checkpoint", "auto")
    assert finish(start_group(again)) == 0
    assert_close(losses(out), losses(alone))
    loaded, report = ViTForImageClassification.from_pretrained(out, output_loading_info=True, dtype=torch.float64)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.config.architectures == ["ViTForImageClassification"]
    for name, tensor in weights(out).items():
        assert torch.allclose(tensor, weights(alone)[name], rtol=1e-6, atol=1e-9), name


@pytest.mark.slow
def test_one_file_of_prepared_images_serves_all_processes(alone, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    flags = (*EXACT, out, "--per_device_train_batch_size", 4, "--image_cache", "auto", "--cache_dir", tmp_path / "hub")
    assert finish(start_group(flags, log=log)) == 0
    assert "image cache disk" in log.read_text()
    assert len(list((tmp_path / "hub" / "datasets" / "plainloop").glob("images-*.bin"))) == 1
    assert_close(losses(out), losses(alone))


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_by_one(tmp_path):
    log = tmp_path / "log"
    assert finish(start_group(("--preset", "debug", "--learning_rate", "x"), log=log)) == 1
    assert log.read_text().count("error: ") == 1 and "--learning_rate" in log.read_text()
    log = tmp_path / "other"
    assert finish(start_group((*EXACT, tmp_path / "r", "--fsdp", "true", "--optim", "muon"), log=log)) == 1
    assert "--optim muon" in log.read_text()


def test_shards_need_several_processes(capsys, tmp_path):
    assert run_here(*EXACT, tmp_path / "run", "--fsdp", "true") == 2
    assert "torchrun --nproc-per-node=N" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_restarts_need_a_named_folder(capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert run_here("--preset", "debug") == 2
    assert "--output_dir: name one" in capsys.readouterr().err
