"""`plainloop push`, by the real client to a stand-in for the Hub."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import constants

from data.addresses import without_secrets
from data.reading.leaves import table
from tests.hub import READ_TOKEN, TOKEN, standing_in
from tests.running import ROOT, run_here
from train.commands.plainloop import main
from train.errors import RunError
from train.output.model_card import public_name

MODEL = {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"}
PLAINLOOP = "import sys; from train.commands.plainloop import main; sys.exit(main())"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("push") / "leaves-run"
    assert run_here("--preset", "debug", "--output_dir", out) == 0
    return out


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


@pytest.fixture
def hub(monkeypatch):
    """A stand-in that the clients in this process take for the Hub, and a login for it."""
    with standing_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def push(capsys, *words):
    """Exit code, standard output, standard error."""
    capsys.readouterr()
    return (main(["push", *map(str, words)]), *capsys.readouterr())


def refused(capsys, *words, code=2):
    """The one line of an error."""
    got, _, error = push(capsys, *words)
    assert got == code and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def listed(printed):
    """path -> (size, hash) in a listing."""
    rows = [line.split() for line in printed.splitlines() if " sha256 " in line]
    return {row[0]: (int(row[1].replace(",", "")), row[-1]) for row in rows}


@pytest.mark.slow
def test_a_push_as_a_process_brings_model_and_card_in_one_commit(finished):
    with standing_in() as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PLAINLOOP, "push", str(finished), "leaves", "--message", "first"],
            env=os.environ | env | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    repo = hub.repos["models", "me/leaves"]
    assert repo.files.keys() == MODEL | {".gitattributes"} and repo.commits == ["first"] and not repo.private
    shown = listed(done.stdout)
    assert shown == {n: (len(repo.files[n]), hashlib.sha256(repo.files[n]).hexdigest()) for n in MODEL}
    for name in MODEL - {"README.md"}:
        assert repo.files[name] == (finished / name).read_bytes()
    card = repo.files["README.md"].decode()
    assert 'pipeline("image-classification", "me/leaves")' in card and "PATH_OF_THIS_FOLDER" not in card
    assert "PATH_OF_THIS_FOLDER" in (finished / "README.md").read_text()
    assert done.stdout.splitlines()[-1] == f"done: {hub.url}/me/leaves/commit/{repo.sha}"
    assert [line for line in hub.asked if "/lfs/" in line]  # the weights went by LFS


def test_a_dry_run_lists_the_same_and_asks_nobody(finished, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, dry, _ = push(capsys, finished, "me/x", "--dry_run", "--with_logs")
    assert code == 0 and not hub.asked
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, wet, _ = push(capsys, finished, "me/x", "--with_logs")
    assert code == 0 and listed(dry) == listed(wet)
    files = hub.repos["models", "me/x"].files
    assert listed(wet) == {
        n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in files.items() if n != ".gitattributes"
    }


def test_logs_go_if_asked_and_nothing_else_ever(finished, capsys):
    code, printed, _ = push(capsys, finished, "me/x", "--dry_run", "--with_logs")
    assert code == 0
    extra = listed(printed).keys() - MODEL
    events = {name for name in extra if name.startswith("tensorboard/")}
    results = {"eval_results.json", "train_results.json", "all_results.json", "trainer_state.json", "metrics.jsonl"}
    results.add("report.html")
    assert events and extra - events == results
    (warning,) = [line for line in printed.splitlines() if line.startswith("warning: ")]
    assert "trainer_state.json" in warning and "name folders of this machine" in warning
    assert listed(push(capsys, finished, "me/x", "--dry_run")[1]).keys() == MODEL


def test_a_second_push_sends_only_what_is_new(copy, hub, capsys):
    assert push(capsys, copy, "x", "--private")[0] == 0
    assert hub.repos["models", "me/x"].private
    (copy / "README.md").write_text((copy / "README.md").read_text() + "\nMore.\n")
    asked = len(hub.asked)
    assert push(capsys, copy, "me/x", "--revision", "tried", "--private")[0] == 0
    repo = hub.repos["models", "me/x"]
    assert repo.branches["tried"]["README.md"].endswith(b"More.\n") and not repo.files["README.md"].endswith(b"More.\n")
    assert not [line for line in hub.asked[asked:] if line.startswith("PUT ")]  # the weights are there


def test_a_public_repository_is_not_pushed_to_in_private(finished, hub, capsys):
    assert push(capsys, finished, "x")[0] == 0
    assert "--private: me/x is there already, and public" in refused(capsys, finished, "x", "--private")
    assert len(hub.repos["models", "me/x"].commits) == 1


def test_what_is_no_finished_run_is_refused(finished, tmp_path, capsys):
    for checkpoint in (finished / "checkpoint-6", finished / "best"):
        assert f"is a checkpoint, with its optimizer and no card; name the run, {finished}" in refused(
            capsys, checkpoint, "x", "--dry_run"
        )
    assert "there is no such folder" in refused(capsys, tmp_path / "nothing", "x")
    assert "there is no such folder" in refused(capsys, "google/vit-base-patch16-224", "x")
    assert run_here("--preset", "debug", "--output_dir", tmp_path / "half", "--stop_after", 6) == 0
    assert "is not finished" in refused(capsys, tmp_path / "half", "x", "--dry_run")
    (tmp_path / "empty").mkdir()
    assert "holds no model (config.json)" in refused(capsys, tmp_path / "empty", "x", "--dry_run")


@pytest.mark.parametrize("name", ["../x", "a/b/c", "/x", "x--y", "-x", "", "me/", "a b", "x.git", "ä", "x\ny"])
def test_names_of_repositories(name, finished, capsys):
    assert "REPO" in refused(capsys, "--dry_run", "--", finished, name)


def test_a_damaged_or_untrained_model_is_refused_before_anything_is_sent(copy, hub, capsys):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded" in refused(capsys, copy, "x")
    weights.write_bytes(whole)
    config = json.loads((copy / "config.json").read_text())
    wider = config | {"id2label": config["id2label"] | {"3": "x"}, "label2id": config["label2id"] | {"x": 3}}
    without = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    for changed, said in ((wider, "weights missing or of another shape"), (without, "is no trained classifier")):
        (copy / "config.json").write_text(json.dumps(changed))
        assert said in refused(capsys, copy, "x")
    assert not hub.asked


def test_links_are_refused(copy, tmp_path, capsys):
    secret = tmp_path / "id_rsa"
    secret.write_text("private")
    for name in ("tensorboard/events.out.tfevents.1", "metrics.jsonl", "README.md"):
        kept = (copy / name).read_bytes() if (copy / name).exists() else None
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(secret)
        assert "is a link" in refused(capsys, copy, "x", "--dry_run", "--with_logs")
        (copy / name).unlink()
        if kept is not None:
            (copy / name).write_bytes(kept)
    shutil.rmtree(copy / "tensorboard")
    (copy / "tensorboard").symlink_to(tmp_path)
    assert "is a link" in refused(capsys, copy, "x", "--dry_run", "--with_logs")
    assert push(capsys, copy, "x", "--dry_run")[0] == 0


CARDS = {
    "no head": ("# A model\n", "no pipeline_tag"),
    "no library": ("---\npipeline_tag: image-classification\n---\n", "no library_name"),
    "broken": ("---\nlibrary_name: [\n---\n", "is no model card"),
    "list": ("---\n- a\n---\n", "is no model card"),
    "path": ("---\npipeline_tag: x\nlibrary_name: y\n---\n\nOn {home}/images.\n", "line 6 names {home}, a path"),
    "bytes": (b"\xff\xfe", "is no model card"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_cannot_be_published_is_refused(name, copy, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text, said = CARDS[name]
    card = text if isinstance(text, bytes) else text.replace("{home}", str(tmp_path / "home")).encode()
    (copy / "README.md").write_bytes(card)
    assert said.replace("{home}", str(tmp_path / "home")) in refused(capsys, copy, "x", "--dry_run")


def test_a_card_that_the_hub_refuses_makes_no_repository(copy, hub, capsys):
    card = (copy / "README.md").read_text().replace("---\n", "---\nlicense: 42\n", 1)
    (copy / "README.md").write_text(card)
    assert "README.md: the Hub refuses it" in refused(capsys, copy, "x") and not hub.repos


def test_a_folder_of_this_machine_is_not_named_in_a_card():
    assert public_name("/home/me/images/") == "images" and public_name("../shared/beans") == "beans"
    assert public_name("C:\\Users\\me\\images") == "images" and public_name("file:///home/me/images") == "images"
    for name in ("AI-Lab-Makerere/beans", "builtin:leaves", "s3://bucket/set"):
        assert public_name(name) == name


def test_a_run_on_folders_of_this_machine_can_be_pushed_without_naming_them(finished, tmp_path, capsys):
    data, out = tmp_path / "photos" / "data", tmp_path / "run"
    data.mkdir(parents=True)
    for split in ("train", "validation"):
        table(split, 42, 12).to_parquet(data / f"{split}-00000-of-00001.parquet")
    flags = ("--preset", "debug", "--dataset", data.parent, "--model", finished, "--max_steps", 2, "--output_dir", out)
    assert run_here(*flags) == 0
    card = (out / "README.md").read_text()
    assert "`leaves-run`, fine-tuned on `photos`" in card and str(tmp_path) not in card
    assert push(capsys, out, "x", "--dry_run")[0] == 0
    (out / "README.md").write_text(card.replace("`photos`", f"`{data.parent}`"))  # as an earlier version wrote it
    assert f"names {data.parent}, a path of this machine" in refused(capsys, out, "x", "--dry_run")


def test_logins_and_answers_of_the_hub_in_one_line(finished, hub, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN")
    assert "log in with `hf auth login`, or set HF_TOKEN" in refused(capsys, finished, "x")
    for token, said in (("hf_wrongwrongwrong", "does not take this token"), (READ_TOKEN, "may not write there")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert said in (error := refused(capsys, finished, "x")) and token not in error
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "may not write there" in refused(capsys, finished, "somebody/x")
    for path in ("/api/repos/create", "/lfs/", "/api/models/me/x/commit"):
        hub.fails = {path: 418}
        assert "the Hub answered 418" in refused(capsys, finished, "x", code=1)
    assert hub.repos["models", "me/x"].files.keys() == {".gitattributes"}  # no commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(capsys, finished, "x")


def test_no_network_is_one_line(finished, hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached" in refused(capsys, finished, "x", code=1)


# As they are now, as they were, and one that fits into no header.
@pytest.mark.parametrize("token", [TOKEN, "s3cret0123", "s3cret\N{SNOWMAN}token"])
def test_a_token_is_in_no_traceback(token, finished, hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which --debug replaces
    hub.fails = {"/api/whoami": 400}
    with pytest.raises(RunError) as raised:
        main(["push", str(finished), "x", "--debug"])
    sys.excepthook(raised.type, raised.value, raised.tb)
    out, error = capsys.readouterr()
    assert "Traceback" in error and token not in out + error


def test_tokens_are_left_out_of_any_text():
    assert without_secrets(f"Illegal header value b'Bearer {TOKEN}'") == "Illegal header value b'Bearer ...'"
    assert without_secrets(f"token={TOKEN}, hf_oauth_abcdefghijkl") == "token=..., ..."
    plain = "hf_hub_download and hf_xet of my_hf_abcdefghijklmnop"
    assert without_secrets(plain) == plain
