"""Uploads to the Hugging Face hub: the model card, a run's model and checkpoints, logged completions.

Only where the user asks. The model goes up without the records of the run and, unless `hub_strategy` says so, without
what resuming needs. Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from huggingface_hub import CommitScheduler, HfApi, ModelCard, ModelCardData

from gruppo.errors import GruppoError, boundary
from gruppo.plan_checks import count

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig

RECORDS = [
    ".*",
    "rollouts/*",
    "tokens/*",
    "completions/*",
    "superseded/*",
    "runs/*",
    "run.json",
    "heartbeat.json",
    "metrics.jsonl",
    "events*.jsonl",
    "checkpoint-*",
]
"""What of output_dir stays at home; checkpoints are uploaded when they are saved."""

RESUME_FILES = [
    "optimizer.*",
    "scheduler.json",
    "gruppo.json",
    "manifest.json",
    "trainer_state.json",
    "random-*.safetensors",
    "rollouts-*.safetensors",
    "reference.safetensors",
]
"""Files of a checkpoint that only resuming needs."""


@final
class Uploads:
    """Uploads of one run's folders to `hub_model_id`, one after the other. For the main process."""

    def __init__(self, config: GRPOConfig) -> None:
        self._config = config
        self._api = HfApi(token=config.hub_token)
        self._pending: list[tuple[str, Future[None]]] = []

    def checkpoint(self, folder: Path, step: int) -> None:
        """In the background: the model to the top; by `hub_strategy` the whole checkpoint to a folder of its own."""
        self._pending.append((folder.name, self._api.run_as_future(self._upload_checkpoint, folder, step)))

    def wait(self) -> list[str]:
        """Until all is uploaded or has failed: files must not change or go before. Says what failed, once."""
        pending, self._pending = self._pending, []
        errors = [(name, upload.exception()) for name, upload in pending]
        return [f"Uploading {name} failed: {type(error).__name__}: {error}" for name, error in errors if error]

    def run(self, folder: Path, commit_message: str) -> str:
        """The model in `folder`; returns the repository's address. Raises GruppoError with the hub's answer."""
        with boundary(GruppoError, "pushing to the hub"):
            repository = self._repository()
            self._upload(repository, folder, commit_message, ignore_patterns=RECORDS)
        return str(repository)

    def _upload_checkpoint(self, folder: Path, step: int) -> None:
        message = f"Training in progress, step {step}"
        repository = self._repository()
        self._upload(repository, folder, message, ignore_patterns=RESUME_FILES)
        place = {"checkpoint": "last-checkpoint", "all_checkpoints": folder.name}.get(self._config.hub_strategy)
        if place is not None:
            self._upload(repository, folder, f"{message}, checkpoint", path_in_repo=place)

    def _repository(self) -> Any:
        """Created if it does not exist."""
        name = self._config.hub_model_id or Path(self._config.output_dir).resolve().name
        return self._api.create_repo(name, private=self._config.hub_private_repo, exist_ok=True)

    def _upload(self, repository: Any, folder: Path, commit_message: str, **what: Any) -> None:
        self._api.upload_folder(
            repo_id=str(repository.repo_id), folder_path=folder, commit_message=commit_message, **what
        )


@final
class CompletionsUpload:
    """TRL's `log_completions_hub_repo`: the completions files of a run, every few minutes. For the main process.

    Raises GruppoError if the dataset repository cannot be made.
    """

    MINUTES = 2

    def __init__(self, config: GRPOConfig) -> None:
        assert config.log_completions_hub_repo is not None
        self._repo_id = config.log_completions_hub_repo
        with boundary(GruppoError, f"creating the dataset repository {self._repo_id}"):
            self._scheduler = CommitScheduler(
                repo_id=self._repo_id,
                repo_type="dataset",
                folder_path=Path(config.output_dir) / "completions",
                every=self.MINUTES,
                path_in_repo="completions",
                private=config.hub_private_repo,
                token=config.hub_token,
                allow_patterns=["*.parquet"],
            )

    def close(self, *, is_complete: bool) -> None:
        """No more uploads; before that, if the files are complete, a last one (GruppoError if it fails)."""
        try:
            if is_complete:
                with boundary(GruppoError, f"uploading completions to {self._repo_id}"):
                    self._scheduler.trigger().result()
        finally:
            self._scheduler.stop()


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What only the user can say of a model, for its card."""

    model_name: str | None = None
    """None takes the name of the folder."""
    datasets: tuple[str, ...] = ()
    """Ids on the hub."""
    tags: tuple[str, ...] = ()

    def with_given(
        self, model_name: str | None, dataset_name: str | Sequence[str] | None, tags: str | Sequence[str] | None
    ) -> CardFacts:
        """These facts, and in their place what is not None."""
        return CardFacts(
            self.model_name if model_name is None else model_name,
            self.datasets if dataset_name is None else _names(dataset_name),
            self.tags if tags is None else _names(tags),
        )


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


_MARK = "<!-- Written by gruppo, and anew at every save. Take this line out, and the file is yours: it stays. -->"
_PACKAGES = ("gruppo", "transformers", "torch")


def persons_readme(folder: Path) -> bytes | None:
    """README.md as it is, if there is one without the line that says it is gruppo's."""
    path = folder / "README.md"
    if not path.exists():
        return None
    content = path.read_bytes()
    return None if _MARK.encode() in content else content


def write_model_card(folder: Path, *, base_model: str, config: GRPOConfig, facts: CardFacts, num_steps: int) -> None:
    """README.md with the hub's metadata: what was trained, from what, with which objective and which versions."""
    is_on_hub = base_model.count("/") <= 1 and not Path(base_model).exists()
    name = facts.model_name or folder.resolve().name
    metadata = ModelCardData(
        base_model=base_model if is_on_hub else None,
        datasets=list(facts.datasets) or None,
        library_name="transformers",
        tags=["gruppo", "grpo", "reinforcement-learning", *facts.tags],
        model_name=name,
    )
    source = f"[{base_model}](https://huggingface.co/{base_model})" if is_on_hub else "A local model"
    data = ", ".join(f"[{one}](https://huggingface.co/datasets/{one})" for one in facts.datasets)
    text = (
        f"---\n{metadata.to_yaml()}\n---\n{_MARK}\n\n# {name}\n\n"
        f"{source} after {count(num_steps, 'step')} of GRPO post-training{f' on {data}' if data else ''} "
        "([DeepSeekMath](https://huggingface.co/papers/2402.03300)) with gruppo.\n\n"
        f"Objective: `loss_type={config.loss_type}`, `beta={config.beta}`, `scale_rewards={config.scale_rewards}`, "
        f"`num_generations={config.num_generations}`, `learning_rate={config.learning_rate}`.\n\n"
        f"Versions: {', '.join(f'{package} {version(package)}' for package in _PACKAGES)}.\n"
    )
    ModelCard(text).save(folder / "README.md")
