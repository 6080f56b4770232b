"""Uploads to the Hugging Face hub: the model card, and the folder of a model or a run. Only where the user asks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, ModelCard, ModelCardData

from gruppo.errors import GruppoError, boundary

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig


def write_model_card(folder: Path, *, base_model: str, dataset: str | None, config: GRPOConfig) -> None:
    """README.md with the hub's metadata: what was trained, from what, with which objective."""
    data = ModelCardData(
        base_model=base_model,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        tags=["gruppo", "grpo", "reinforcement-learning"],
        model_name=folder.name,
    )
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {folder.name}\n\n"
        f"[{base_model}](https://huggingface.co/{base_model}) after GRPO post-training "
        "([DeepSeekMath](https://huggingface.co/papers/2402.03300)) with gruppo.\n\n"
        f"Objective: `loss_type={config.loss_type}`, `beta={config.beta}`, `scale_rewards={config.scale_rewards}`, "
        f"`num_generations={config.num_generations}`, `learning_rate={config.learning_rate}`.\n"
    )
    ModelCard(text).save(folder / "README.md")


def push_to_hub(
    config: GRPOConfig, folder: Path, commit_message: str, *, is_main: bool = True, in_background: bool = False
) -> str:
    """Upload `folder` to `hub_model_id` (created if it does not exist); returns its address, "" on other ranks.

    Checkpoints inside it travel only with `hub_strategy` "checkpoint" or "all_checkpoints"; records never do.
    Raises GruppoError with the hub's answer.
    """
    if not is_main:
        return ""
    ignored = [".*", "rollouts/*", "tokens/*", "completions/*", "metrics.jsonl", "events*.jsonl", "runs/*"]
    if config.hub_strategy not in ("checkpoint", "all_checkpoints"):
        ignored.append("checkpoint-*")
    with boundary(GruppoError, f"pushing {folder} to the hub"):
        api = HfApi(token=config.hub_token)
        repo = api.create_repo(config.hub_model_id or folder.name, private=config.hub_private_repo, exist_ok=True)
        upload = partial(
            api.upload_folder,
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message=commit_message,
            ignore_patterns=ignored,
        )
        if in_background:
            api.run_as_future(upload)
        else:
            upload()
    return str(repo)
