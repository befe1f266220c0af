"""A secret in an address or in the environment is in no file and no stream of a run, tracebacks of --debug included."""

import os
import traceback
from urllib.parse import quote

import pytest

from data.addresses import secret_in, without_secrets
from tests.running import run_here, run_process
from train.commands.inspect import main as inspect
from train.main import main

SECRETS = ("hunter2", "AKIASECRET", "hf_secretsecret")
ADDRESSES = [
    "s3://AKIASECRET:hunter2@bucket/set",
    "S3://AKIASECRET:hunter2@bucket/set",
    "s3://hunter2@bucket/set",
    "s3://user:hun/hunter2@bucket",
    "s3://user%3Ahunter2%40bucket/set",
    "s3://user%253Ahunter2%2540bucket/set",
    f"s3://{quote('user:hun/hunter2@', safe='')}bucket/set",
    "s3:/user:hunter2@bucket/set",
    "s3:///user:hunter2@bucket/set",
    "https:\\\\user:hunter2@host\\set",
    "https://host/x.parquet?X-Amz-Credential=AKIASECRET&X-Amz-Signature=hunter2",
    "HTTPS://HOST/x.parquet?token=hunter2",
    "https://host/x.parquet%3Ftoken=hunter2",
    "https://host/x.parquet#hunter2",
    "https://host/x.parquet#access_token=hunter2",
    "https://account.blob.core.windows.net/c/x?sv=2024&sig=hunter2",
    "https://storage.googleapis.com/b/x?GoogleAccessId=a&Signature=hunter2",
    "simplecache::s3://user:hunter2@bucket/set",
    "filecache::https://host/x.parquet?token=hunter2",
    "zip://a.jpg::https://user:hunter2@host/x.zip",
    "hf://user:hunter2@datasets/a/b",
    "abfs://container@account:hunter2@host/x",
    "https://user:hunter2@[::1]/x",
    "gs://b/x?token=hunter2::simplecache",
]
FLAGS = [
    "--dataset",
    "--model",
    "--output_dir",
    "--cache_dir",
    "--resume_from_checkpoint",
    "--datset",
    "file",
    "key",
    "bad",
]


def flags_for(address, where, folder):
    """A command line, or a file of flags, that holds the address in one place."""
    file = folder / "flags.yaml"
    if where.startswith("--"):
        return ("--preset", "debug", where, address)
    contents = {"file": f"dataset: '{address}'\n", "key": f"'{address}': 1\n", "bad": f"dataset: {address}: [\n"}
    file.write_text(contents[where])
    return (file, "--preset", "debug")


def said_and_written(flags, folder, capsys):
    """Everything that a command says, also as a traceback, and that it writes below a folder."""
    texts = []
    for more in ((), ("--debug",)):
        capsys.readouterr()
        try:
            assert run_here(*flags, *more) == 2
        except Exception as error:
            texts.append(without_secrets("".join(traceback.format_exception(error))))  # as the hook prints it
        printed = capsys.readouterr()
        texts += [printed.out, printed.err]
        if not more:
            assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    written = [path for path in folder.rglob("*") if path.name != "flags.yaml"]
    texts += [str(path) for path in written] + [path.read_text() for path in written if path.is_file()]
    return "\n".join(texts)


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_secret_is_said_or_written(address, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in FLAGS:
        if address.startswith("https:\\") and where in ("file", "key", "bad"):
            continue  # YAML has a meaning of its own for backslashes
        everything = said_and_written(flags_for(address, where, tmp_path), tmp_path, capsys)
        assert not [secret for secret in SECRETS if secret in everything], where


@pytest.mark.parametrize("flags", [(ADDRESSES[0],), ("--dataset", ADDRESSES[4]), ("--datset", ADDRESSES[4])], ids=str)
def test_no_secret_is_said_by_inspect(flags, capsys):
    for command in (inspect, main):
        assert command(list(flags)) == 2
        printed = capsys.readouterr()
        assert not [secret for secret in SECRETS if secret in printed.out + printed.err] and "contains a" in printed.err


def test_the_same_as_a_real_process_with_a_traceback(tmp_path):
    (tmp_path / "flags.yaml").write_text(f"dataset: {ADDRESSES[0]}: [\n")
    for flags in (("--dataset", ADDRESSES[0]), (tmp_path / "flags.yaml",)):
        done = run_process(*flags, "--debug", cwd=tmp_path, env={"HF_TOKEN": SECRETS[2]})
        assert done.returncode == 1 and "Traceback" in done.stderr and "ConfigError" in done.stderr
        assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]


def test_a_token_in_the_environment_is_in_no_file_of_a_run(tmp_path):
    environment = {"HF_TOKEN": SECRETS[2], "AWS_SECRET_ACCESS_KEY": SECRETS[0], "AWS_ACCESS_KEY_ID": SECRETS[1]}
    done = run_process("--preset", "debug", "--max_steps", 2, "--output_dir", "run", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    texts = [done.stdout, done.stderr, *(path.read_bytes().decode("latin-1") for path in files)]
    assert not [secret for secret in SECRETS if any(secret in text for text in texts)]


def test_a_signed_address_in_the_text_of_a_library_is_shown_without_its_signature():
    text = "403, message='Forbidden', url='https://cdn.host/x?X-Amz-Signature=hunter2' (https://host/docs)"
    assert without_secrets(text) == "403, message='Forbidden', url='https://cdn.host...' (https://host/docs)"


@pytest.mark.parametrize("address", ["s3://bucket/a%23b%20c", "/a@b/c#d?e", "C:/images", "a:b", f"{os.sep}x:/y"])
def test_what_only_looks_like_one_is_taken(address):
    assert secret_in(address) is None
