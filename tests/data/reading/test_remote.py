"""A real S3 server on loopback: the same bits from a bucket as from a folder, and what goes wrong in one line."""

import functools
import http.server
import itertools
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import boto3
import datasets
import pytest

from data import DataError
from data.loading.streaming import batched, shuffled_rows, stream_batches
from data.reading.remote import by_split, connect, parquet_files
from data.reading.tables import DatasetSpec, find_data
from data.sources import load_splits, load_streams
from tests.data.loading.test_loader import FIXED
from tests.data.making_images import png
from tests.data.reading.layouts import expected, random_layout
from tests.data.test_sources import ClassLabel, Features, class_folders, images, write
from tests.reliability.groups import start_group
from tests.reliability.harness import finish, start
from tests.running import ROOT, records, same_tensors, weights

pytestmark = pytest.mark.slow

SECRET = "a-secret-that-must-not-be-seen"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "an-access-key",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SMALL = (
    *("--preset", "trainer", "--model", "builtin:tiny", "--device", "cpu", "--precision", "fp32", "--logging_steps", 1),
    *("--per_device_train_batch_size", 4, "--max_steps", 8, "--eval_steps", 4, "--save_steps", 4, "--output_dir"),
)


class Online:
    """Run in each process: the server is the one thing that tests may reach, and it is on this machine."""

    def __init__(self, **environment):
        self.environment = ENVIRONMENT | {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]} | environment

    def __call__(self):
        import datasets.config

        os.environ.update(self.environment)
        datasets.config.HF_HUB_OFFLINE = False


def train(log, *flags):
    """The exit code of a run, and what it printed."""
    code = finish(start(flags, before=Online(), log=log))
    return code, log.read_text()


@pytest.fixture(scope="module")
def server():
    """moto's server, in a process of its own; AWS_ENDPOINT_URL points all S3 libraries at it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = {name: os.environ.get(name) for name in [*ENVIRONMENT, "AWS_ENDPOINT_URL"]}
    os.environ.update(ENVIRONMENT | {"AWS_ENDPOINT_URL": url})
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield boto3.client("s3")
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def upload(client, bucket, folder):
    client.create_bucket(Bucket=bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"set/{path.relative_to(folder)}")
    return f"s3://{bucket}/set"


@pytest.fixture(scope="module")
def shards(server, tmp_path_factory):
    """(folder, address) of a data set in the Hub's layout, in four shards."""
    folder = tmp_path_factory.mktemp("shards")
    features = Features({"image": datasets.Image(), "labels": ClassLabel(names=["ant", "bee"])})
    columns = {"image": images(24), "labels": [0, 1] * 12}
    (folder / "data").mkdir()
    whole = datasets.Dataset.from_dict(columns, features=features)
    for number in range(4):
        whole.shard(4, number, contiguous=True).to_parquet(folder / "data" / f"train-{number:05}-of-00004.parquet")
    whole.select(range(7)).to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    return folder, upload(server, "shards", folder)


@pytest.fixture(scope="module")
def folders(server, tmp_path_factory):
    """(folder, address) of an image folder."""
    folder = write(tmp_path_factory.mktemp("folders"), class_folders("train/", "validation/"))
    return folder, upload(server, "folders", folder)


@pytest.mark.parametrize("kind", ["shards", "folders"])
def test_training_from_a_bucket_ends_in_the_bits_of_training_from_the_folder(kind, request, tmp_path):
    folder, address = request.getfixturevalue(kind)
    for name, dataset in (("here", folder), ("there", address)):
        code, said = train(tmp_path / "log", *SMALL, tmp_path / name, "--dataset", dataset)
        assert code == 0 and SECRET not in said, said
    assert same_tensors(weights(tmp_path / "here"), weights(tmp_path / "there"))
    assert records(tmp_path / "here") == records(tmp_path / "there")
    for file in (tmp_path / "there").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


STREAM = (*SMALL[:-1], "--streaming", "true", "--shuffle_buffer", 5, "--output_dir")


def test_a_stream_that_is_stopped_and_resumed_ends_in_the_same_bits(shards, tmp_path):
    dataset = ("--dataset", shards[1])
    again = ("--output_dir", tmp_path / "halved", "--resume_from_checkpoint", "auto", "--dataloader_num_workers", 3)
    for flags in (
        (*STREAM, tmp_path / "whole", *dataset),
        (*STREAM, tmp_path / "halved", *dataset, "--stop_after", 3),
        again,
    ):
        code, said = train(tmp_path / "log", *flags)
        assert code == 0, said
    assert same_tensors(weights(tmp_path / "whole"), weights(tmp_path / "halved"))
    assert records(tmp_path / "whole") == records(tmp_path / "halved")


def test_two_processes_stream_and_evaluate_every_image_once(shards, tmp_path):
    flags = (*STREAM, tmp_path / "run", "--dataset", str(shards[0]), "--per_device_train_batch_size", 2)
    log = tmp_path / "log"
    assert finish(start_group(flags, before=Online(), log=log)) == 0, log.read_text()
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_samples"] == 7


def test_splits_are_found_by_name():
    names = [
        "data/train-0.parquet",
        "data/train-1.parquet",
        "data/val-0.parquet",
        "data/test.parquet",
        "README.parquet",
    ]
    found = by_split([f"s3://b/p/{name}" for name in names], "s3://b/p")
    assert {name: len(files) for name, files in found.items()} == {"train": 2, "val": 1, "test": 1}
    assert list(by_split(["s3://b/p/a.parquet"], "s3://b/p")) == ["train"]
    assert list(by_split(["s3://train/p/restrain/a.png"], "s3://train/p")) == ["train"]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("s3://no-such-bucket/x", "no such bucket"),
        ("s3://shards/nothing", "no such bucket or folder"),
        ("s3://user:word@shards/set", "contains a user or password"),
        ("https://h/x.parquet?X-Amz-Signature=1", "contains a signature"),
        ("gs://bucket/x", "gcsfs"),
        ("nonsense://x/y", "cannot be read"),
    ],
)
def test_what_is_wrong_with_an_address_is_one_line_without_its_credentials(address, problem, shards, tmp_path):
    with pytest.raises(DataError) as caught:
        load_splits(DatasetSpec(address, cache_dir=str(tmp_path)))
    assert problem in str(caught.value) and "word" not in str(caught.value).replace("password", "")
    assert "Signature" not in str(caught.value) and "\n" not in str(caught.value)


def test_missing_credentials_are_named(shards, tmp_path):
    log = tmp_path / "log"
    nothing = Online(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_CONFIG_FILE="/none", HOME=str(tmp_path))
    assert finish(start((*SMALL, tmp_path / "run", "--dataset", shards[1]), before=nothing, log=log)) == 2
    assert log.read_text().splitlines()[-1].startswith("error: ") and "AWS_ACCESS_KEY_ID" in log.read_text()


def test_a_stream_needs_a_length_and_declared_classes(shards, tmp_path):
    for flags, problem in (
        (("--streaming", "true", "--dataset", shards[0]), "--max_steps"),
        (("--streaming", "true", "--max_steps", 3), "builtin:leaves is drawn"),
    ):
        code, said = train(tmp_path / "log", "--preset", "leaves", *flags, "--output_dir", tmp_path / "run")
        assert code == 2 and problem in said


def test_an_address_is_listed_by_split(shards):
    files = parquet_files(*connect(shards[1]))
    assert {name: len(found) for name, found in files.items()} == {"train": 4, "validation": 1}


def test_random_layouts_in_a_bucket_are_read_by_the_rules(server, tmp_path):
    server.create_bucket(Bucket="layouts")
    read = 0
    for seed in range(360):
        paths, address = random_layout(seed), f"s3://layouts/{seed}/d [x]"
        if any("\n" in path for path in paths):  # which this server cannot store
            continue
        content = {path: png(seed * 100 + number) for number, path in enumerate(paths)}
        for path, data in content.items():
            server.put_object(Bucket="layouts", Key=f"{seed}/d [x]/{path}", Body=data)
        right = expected(paths)
        if right is None:
            with pytest.raises(DataError, match="--dataset"):
                find_data(DatasetSpec(address, cache_dir=str(tmp_path)))
            continue
        data = find_data(DatasetSpec(address, cache_dir=str(tmp_path)))
        for split in {split for split, _ in right.values()}:
            labelled = data.read(split)
            found = [
                (Path(row["image"]["path"]).read_bytes(), labelled.names[value])
                for row, value in zip(labelled.table, labelled.values, strict=True)
            ]
            assert sorted(found) == sorted(
                (content[path], label) for path, (own, label) in right.items() if own == split
            )
        read += 1
    assert read > 150


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_a_stream_without_overlap_and_shuffle_each_epoch(world, shards):
    train = load_streams(str(shards[0])).train
    epochs = [[], []]
    for rank in range(world):
        rows = shuffled_rows(train, 42, 5, rank, world)
        for epoch in epochs:
            epoch.append([image["path"] for _, image, _ in itertools.islice(rows, 24 // world)])
        rows.close()
    for epoch in epochs if world != 3 else epochs[:1]:  # 3 do not divide 4 shards: their epochs end apart
        assert sorted(path for part in epoch for path in part) == sorted(f"{number}.png" for number in range(24))
    assert epochs[0] != epochs[1]


def test_a_broken_image_of_a_stream_is_named_and_the_threads_end(shards):
    def rows():
        yield 0, {"bytes": b"?", "path": "a/7.png"}, 0

    before = threading.active_count()
    with pytest.raises(DataError, match=r"a/7\.png: cannot be decoded"):
        list(stream_batches(batched(rows(), 1), lambda image: image, 2))
    endless = stream_batches(batched(shuffled_rows(load_streams(str(shards[0])).train, 1, 5, 0, 1), 2), FIXED, 2)
    next(endless)
    endless.close()
    assert threading.active_count() == before


def test_a_parquet_file_of_a_web_server_is_loaded_and_some_of_it_held_out(shards, tmp_path):
    with socketserver.TCPServer(
        ("127.0.0.1", 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=shards[0])
    ) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{web.server_address[1]}/data/train-00000-of-00004.parquet"
        code, said = train(tmp_path / "log", *SMALL, tmp_path / "run", "--dataset", address)
        web.shutdown()
    assert code == 0 and "of 6 training images held out" in said, said


def test_torchrun_itself_starts_a_run_of_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "train.main"]
    flags = ["--preset", "debug", "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DDP over 2 processes") == 1 and done.stdout.count("done: ") == 1
    assert (tmp_path / "run" / "model.safetensors").is_file() and done.stderr == ""
