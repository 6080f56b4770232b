"""What goes to the hub and what stays at home. The hub itself is a fake; nothing leaves this machine."""

import json
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest

from fakes import config, trainer
from gruppo import hub
from gruppo.errors import ConfigError, GruppoError
from gruppo.hub import CardFacts, Uploads, write_model_card

NAME = "me/run"


class FakeHub:
    """Stands for HfApi: keeps what was uploaded, file by file. `is_down` makes every upload fail."""

    def __init__(self):
        self.repos = []
        self.uploads = []
        self.token = "unset"
        self.is_down = False

    def __call__(self, token=None):
        self.token = token
        return self

    def create_repo(self, name, private=None, exist_ok=False):
        self.repos.append((name, private))
        return Address(f"https://huggingface.co/{name}", name)

    def upload_folder(self, *, repo_id, folder_path, commit_message, path_in_repo=None, ignore_patterns=()):
        if self.is_down:
            raise ConnectionError("the hub is down")
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        kept = {file for file in files if not any(fnmatch(file, pattern) for pattern in ignore_patterns)}
        self.uploads.append(SimpleNamespace(repo=repo_id, message=commit_message, place=path_in_repo, files=kept))

    def run_as_future(self, function, *args, **kwargs):
        future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except ConnectionError as error:
            future.set_exception(error)
        return future


class Address(str):
    """RepoUrl's shape: a string that knows its repository."""

    def __new__(cls, url, name):
        address = super().__new__(cls, url)
        address.repo_id = name
        return address


@pytest.fixture
def the_hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", fake)
    return fake


def test_push_to_hub_uploads_the_model_and_no_records(tmp_path, the_hub):
    made = trainer(tmp_path / "run", {"max_steps": 1, "hub_token": "secret", "hub_private_repo": True})
    made.train()
    assert the_hub.uploads == []
    assert made.push_to_hub("Done") == "https://huggingface.co/run"
    assert the_hub.repos == [("run", True)]
    assert the_hub.token == "secret"
    (upload,) = the_hub.uploads
    assert upload.message == "Done"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} < upload.files
    assert upload.files <= {
        *("model.safetensors", "config.json", "generation_config.json", "README.md"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("end", ["End of training"]),
        ("every_save", ["Training in progress, step 1", "End of training"]),
        ("checkpoint", ["Training in progress, step 1", "Training in progress, step 1, checkpoint", "End of training"]),
        (
            "all_checkpoints",
            ["Training in progress, step 1", "Training in progress, step 1, checkpoint", "End of training"],
        ),
    ],
)
def test_hub_strategy_says_what_goes_up_when(tmp_path, the_hub, strategy, expected):
    fields = {"push_to_hub": True, "hub_model_id": NAME, "hub_strategy": strategy, "max_steps": 1}
    trainer(tmp_path, {**fields, "save_strategy": "steps", "save_steps": 1}).train()
    assert [upload.message for upload in the_hub.uploads] == expected
    assert {upload.repo for upload in the_hub.uploads} == {NAME}
    model_only = [upload for upload in the_hub.uploads if upload.place is None]
    assert not [file for upload in model_only for file in upload.files if "optimizer" in file or "random" in file]
    places = [upload.place for upload in the_hub.uploads if upload.place is not None]
    assert places == {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-1"]}.get(strategy, [])
    for upload in the_hub.uploads:
        if upload.place is not None:
            assert {"optimizer.safetensors", "gruppo.json", "manifest.json"} < upload.files


def test_what_failed_in_the_background_is_told_once(tmp_path, the_hub):
    the_hub.is_down = True
    uploads = Uploads(config(tmp_path, hub_model_id=NAME))
    (tmp_path / "checkpoint-1").mkdir()
    uploads.checkpoint(tmp_path / "checkpoint-1", 1)
    assert uploads.wait() == ["Uploading checkpoint-1 failed: ConnectionError: the hub is down"]
    assert uploads.wait() == []


UPLOADING = {"push_to_hub": True, "hub_model_id": NAME, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}


@pytest.mark.parametrize("broken", ["upload_folder", "create_repo"])
def test_an_upload_that_fails_does_not_end_the_run(tmp_path, the_hub, monkeypatch, caplog, broken):
    works = getattr(the_hub, broken)

    def once(*arguments, **named):
        monkeypatch.setattr(the_hub, broken, works)
        raise ConnectionError("503")

    monkeypatch.setattr(the_hub, broken, once)
    made = trainer(tmp_path, UPLOADING)
    made.train()
    assert made.state.global_step == 3
    steps = [f"Training in progress, step {step}" for step in (2, 3)]
    assert [upload.message for upload in the_hub.uploads] == [*steps, "End of training"]
    assert "Uploading checkpoint-1 failed: ConnectionError: 503" in caplog.text
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (failure,) = [event for event in events if event["kind"] == "upload_failure"]
    assert failure["error"] == "Uploading checkpoint-1 failed: ConnectionError: 503"


def test_the_last_push_must_succeed(tmp_path, the_hub):
    the_hub.is_down = True
    made = trainer(tmp_path, UPLOADING)
    with pytest.raises(GruppoError, match="pushing to the hub failed: ConnectionError: the hub is down"):
        made.train()
    assert made.state.global_step == 3


def test_push_begin_is_an_event(tmp_path, the_hub):
    from fakes import Recording

    recording = Recording()
    trainer(tmp_path, {"push_to_hub": True, "hub_strategy": "end", "max_steps": 1}, callbacks=[recording]).train()
    assert recording.names()[-1] == "on_push_begin"


# -- completions


class FakeScheduler:
    made: list["FakeScheduler"]

    def __init__(self, **arguments):
        self.arguments, self.calls = arguments, []
        self.files = set()
        FakeScheduler.made.append(self)

    def trigger(self):
        self.calls.append("trigger")
        self.files = {path.name for path in Path(self.arguments["folder_path"]).glob("*.parquet")}
        future = Future()
        future.set_result(None)
        return future

    def stop(self):
        self.calls.append("stop")


@pytest.fixture
def schedulers(monkeypatch):
    FakeScheduler.made = []
    monkeypatch.setattr(hub, "CommitScheduler", FakeScheduler)
    return FakeScheduler.made


COMPLETIONS = {
    "log_completions": True,
    "num_completions_to_print": 1,
    "log_completions_hub_repo": "me/log",
    "max_steps": 2,
}


def test_completions_are_uploaded_to_a_dataset_repository(tmp_path, schedulers):
    trainer(tmp_path, COMPLETIONS).train()
    (scheduler,) = schedulers
    assert scheduler.arguments["repo_id"] == "me/log"
    assert scheduler.arguments["repo_type"] == "dataset"
    assert scheduler.arguments["folder_path"] == tmp_path / "completions"
    assert scheduler.arguments["allow_patterns"] == ["*.parquet"]
    assert scheduler.calls == ["trigger", "stop"]
    assert scheduler.files == {"completions_00001.parquet", "completions_00002.parquet"}


def test_a_run_that_breaks_off_stops_the_uploads(tmp_path, schedulers):
    def reward(completions, **kwargs):
        raise RuntimeError("broken")

    with pytest.raises(ValueError, match="broken"):
        trainer(tmp_path, COMPLETIONS, reward_funcs=reward).train()
    assert schedulers[0].calls == ["stop"]


def test_a_repository_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def refuse(**arguments):
        raise PermissionError("no token")

    monkeypatch.setattr(hub, "CommitScheduler", refuse)
    with pytest.raises(GruppoError, match="creating the dataset repository me/log failed: PermissionError: no token"):
        trainer(tmp_path, COMPLETIONS).train()


def test_nothing_is_uploaded_unless_asked(tmp_path, the_hub, schedulers):
    trainer(tmp_path, {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "log_completions": True}).train()
    assert (the_hub.uploads, the_hub.repos, schedulers) == ([], [], [])


def test_a_completions_repository_without_log_completions_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="log_completions"):
        config(tmp_path, log_completions_hub_repo="me/log")


# -- the card


def test_pushing_takes_what_the_card_should_say(tmp_path, the_hub):
    made = trainer(tmp_path)
    made.push_to_hub(dataset_name="me/words")
    assert "- me/words\n" in (tmp_path / "README.md").read_text()
    assert "README.md" in the_hub.uploads[0].files


def test_the_model_card_names_its_base_and_objective(tmp_path):
    facts = CardFacts(datasets=("a/b",))
    chosen = config(tmp_path, beta=0.25)
    write_model_card(tmp_path, base_model="Qwen/Qwen2.5-0.5B", config=chosen, facts=facts, num_steps=3)
    card = (tmp_path / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-0.5B" in card
    assert "- a/b" in card
    assert "(https://huggingface.co/Qwen/Qwen2.5-0.5B)" in card
    assert "`beta=0.25`" in card


def test_a_local_model_is_no_link(tmp_path):
    write_model_card(tmp_path, base_model=str(tmp_path), config=config(tmp_path), facts=CardFacts(), num_steps=3)
    card = (tmp_path / "README.md").read_text()
    assert "base_model" not in card
    assert str(tmp_path) not in card
