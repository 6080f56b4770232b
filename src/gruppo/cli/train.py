"""`gruppo train`: a run from settings files and flags. What it does is what the five-line script does."""

from __future__ import annotations

from gruppo.cli.resolved import write_resolved
from gruppo.cli.settings import read_settings


def run(argv: list[str]) -> int:
    """Train, save the model to output_dir, and upload it if asked. Returns the exit code."""
    settings = read_settings(argv, "train")
    from gruppo import GRPOTrainer
    from gruppo.cli import objects

    config = objects.training_config(settings)
    rewards = objects.resolve_rewards(settings.options)
    trainer = GRPOTrainer(
        model=settings.options.model,
        reward_funcs=rewards,
        args=config,
        train_dataset=objects.load_train_dataset(settings.options),
        eval_dataset=objects.load_eval_dataset(settings),
        peft_config=objects.adapter(settings.options),
    )
    if config.should_save:
        write_resolved(settings)
    trainer.train()
    trainer.save_model(config.output_dir)
    trainer.create_model_card(dataset_name=objects.hub_dataset(settings.options))
    if config.push_to_hub:
        trainer.push_to_hub()
    if config.should_save:
        print(f"The model and the records of this run are in {config.output_dir}")
    return 0
