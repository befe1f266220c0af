"""An address with a secret is refused before anything is printed, and named without it."""

import pytest

from data.addresses import secret_in, shown
from tests.running import run_here

SECRET = "hunter2"


@pytest.mark.parametrize(
    "address",
    [
        "s3://user:hunter2@bucket/set",
        "s3://hunter2@bucket/set",
        "s3://user:hun/hunter2@bucket",
        "simplecache::s3://user:hunter2@bucket/set",
        "zip://a.jpg::https://user:hunter2@host/x.zip",
        "https://host/x.parquet?X-Amz-Signature=hunter2",
        "filecache::https://host/x.parquet?token=hunter2",
        "https://host/x.parquet#hunter2",
        "https://user:hunter2@[::1]/x?hunter2",
        "abfs://container@account:hunter2@host/x",
    ],
)
@pytest.mark.parametrize("flag", ["--dataset", "--model", "--output_dir", "file"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(address, flag, tmp_path, capsys):
    flags = (flag, address)
    if flag == "file":
        (tmp_path / "flags.yaml").write_text(f"dataset: '{address}'\n")
        flags = (tmp_path / "flags.yaml",)
    assert run_here(*flags) == 2
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err and "contains a" in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/set",
        "https://host:8080/x.parquet",
        "hf://datasets/a/b@main/data",
        "C:/images",
        "a@b/c#d?e",
        "gs://b/a@c",
    ],
)
def test_an_address_without_a_secret_is_taken(address):
    assert secret_in(address) is None


def test_an_address_is_shown_by_protocol_and_host():
    assert shown("simplecache::https://host/x?a=1") == "simplecache::https://host..."
