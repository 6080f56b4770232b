"""GRPOConfig: everything a user can choose, under TRL's names, with TRL's defaults, grouped by step of the loop.

The sentence under a field is its documentation, and the only one: command-line help and docs/config.md are generated
from it. A pydantic dataclass: still a real dataclass (`fields`, `replace`, `HfArgumentParser`), checked as a whole at
construction; all mistakes come as one `ConfigError`.

No field is changed after construction. What follows from the fields is in `BatchPlan` and `config_derived.py`; how a
config is written out is in `config_data.py`. Which TRL names are not fields here, and why, is in `trl_names.py`; rules
across fields are in `config_checks.py`, and the types of fields in `config_types.py`. This file does not import torch
or transformers.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from gruppo import config_coerce as coerce
from gruppo.config_checks import report_all_mistakes
from gruppo.config_data import AsData, default_of, field_groups
from gruppo.config_derived import DerivedValues
from gruppo.config_types import (
    CorrectionMode,
    Count,
    Interval,
    JsonDict,
    LossType,
    NonNegative,
    OptimizerName,
    OptionalPath,
    PadMultiple,
    Path,
    Positive,
    Resume,
    SaveInterval,
    ScaleRewards,
    SchedulerName,
    Share,
    StaticSpace,
    Steps,
    StepsOrZero,
    Targets,
    TokenBudget,
    TopK,
    Trackers,
)


@report_all_mistakes
@dataclass(repr=False, config=ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=False))
class GRPOConfig(DerivedValues, AsData):
    """What the user chose for a run. See docs/config.md for the fields by group."""

    # -- run
    output_dir: Path = "trainer_output"
    """Folder that everything is written to: checkpoints, metrics, rollouts; nothing is written elsewhere."""
    run_name: str | None = None
    """Name of the run in trackers; None leaves it to the tracker."""
    seed: int = 42
    """Seed of everything random: data order, sampling, dropout."""
    resume_from_checkpoint: Resume = None
    """Checkpoint that `train()` continues from: its folder, or true for the newest; an argument of it comes first."""
    use_cpu: bool = False
    """Stay on the CPU even where there is an accelerator."""
    bf16: bool | None = None
    """Compute in bfloat16 where the device can; None means yes unless `fp16` is set."""
    fp16: bool = False
    """Compute in float16 with loss scaling; for GPUs without bfloat16."""
    tf32: bool | None = None
    """Allow (or forbid) TF32 matrix products on NVIDIA GPUs; None leaves PyTorch's setting."""
    log_level: Literal["debug", "info", "warning", "error", "critical", "passive"] = "passive"
    """Level of gruppo's own log messages; `passive` leaves the level as the program has set it."""
    disable_tqdm: bool | None = None
    """Hide the progress display; None shows it where there is a terminal or notebook."""
    allow_unusual: list[str] = dataclasses.field(default_factory=list)
    """Names of fields whose value is meant, though it is far from what usually works (for example learning_rate)."""

    # -- model
    model_init_kwargs: JsonDict | None = None
    """Arguments for `from_pretrained` if the model is given by name (dtype, revision, attn_implementation, ...)."""
    trust_remote_code: bool = False
    """Allow models and tokenizers that bring their own Python code."""
    disable_dropout: bool = False
    """Set every dropout probability of the model to 0, in training too; rollouts never use dropout."""
    cast_lm_head_to_fp32: bool = False
    """Compute the output layer in float32; it must be a plain linear layer, and may be tied to the embeddings."""
    router_aux_loss_coef: float | None = None
    """Weight of the load-balancing loss of mixture-of-experts models; None takes the model's own, 0 switches it off."""

    # -- data
    max_prompt_length: Count | None = None
    """Longest prompt in tokens; None accepts any length."""
    overlong_prompts: Literal["truncate", "filter"] = "truncate"
    """What happens to prompts over `max_prompt_length`: keep their last tokens, or leave the rows out."""
    shuffle_dataset: bool = True
    """New order of the training prompts in each epoch."""
    data_seed: int | None = None
    """Seed of the data order; None takes `seed`."""
    remove_unused_columns: bool = False
    """Keep only the prompt column, so that reward functions receive no other columns."""
    chat_template_kwargs: JsonDict | None = None
    """Arguments for the tokenizer's chat template (for example enable_thinking)."""
    num_train_epochs: Positive = 3.0
    """Passes over the training prompts; may be a fraction; `max_steps` comes first."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Optimizer steps of the run; -1 leaves it to `num_train_epochs`."""

    # -- rollout
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions per prompt (G); a group's answers are compared with each other, so at least 2."""
    max_completion_length: Count = 512
    """Longest completion in tokens; longer ones are cut and count as truncated."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probs of policy and reference are of the same tempered distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample only from the most likely tokens whose probabilities add up to this; 1 takes all."""
    top_k: TopK = 0
    """Sample only from this many most likely tokens; 0 takes all."""
    min_p: Share | None = None
    """Sample only tokens at least this likely, relative to the most likely one."""
    repetition_penalty: Positive = 1.0
    """Divide the logits of tokens already present; above 1 discourages repetition."""
    generation_kwargs: JsonDict | None = None
    """Fields of transformers' GenerationConfig (stop_strings, suppress_tokens, ...); they have the last word."""
    cache_implementation: str | None = None
    """Kind of key-value cache for `generate` (for example static); None takes the model's."""
    rollout_engine: Literal["embedded", "hf"] = "embedded"
    """What samples the completions: gruppo's engine in this process, or the model's own `generate`."""
    rollout_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the embedded engine's matrix products; None takes that of training."""
    rollout_cuda_graphs: bool = True
    """Replay decoding steps as CUDA graphs on a CUDA device (not yet measured on one); elsewhere no effect."""
    steps_per_generation: Count | None = None
    """Slices of `per_device_train_batch_size` that are sampled together; None takes `gradient_accumulation_steps`."""
    generation_batch_size: Count | None = None
    """Completions sampled together over all processes; another way to say `steps_per_generation`."""

    # -- reward
    reward_weights: list[Annotated[float, Field(allow_inf_nan=False)]] | None = None
    """Weight of each reward function in the sum, in their order; None weighs all 1."""
    reward_timeout: Positive | None = None
    """Seconds that an async reward function may take for one batch; None waits for ever."""

    # -- advantage
    scale_rewards: ScaleRewards = "group"
    """What advantages are divided by: the group's std (`group`), the whole batch's (`batch`), or nothing (`none`)."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Add up the reward functions before normalising (GRPO), or normalise each within its group first (GDPO)."""

    # -- loss
    loss_type: LossType = "dapo"
    """How token losses are formed and averaged; see docs/losses."""
    beta: NonNegative = 0.0
    """Weight of the KL divergence from the reference; 0 needs no reference at all."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence: log-ratio, half its square, or the non-negative unbiased one (TRL's)."""
    use_bias_correction_kl: bool = True
    """Multiply the KL term by the importance ratio, which makes its gradient unbiased."""
    num_iterations: Count = 1
    """Passes over each batch of completions (μ)."""
    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The importance ratio is clipped below 1 - epsilon, and above 1 + epsilon unless `epsilon_high` is set."""
    epsilon_high: NonNegative | None = None
    """Upper clip range; None takes `epsilon`; for loss_type cispo it is the cap on the ratio itself, usually 5."""
    delta: Positive | None = None
    """Cap on the ratio of bad tokens too (two-sided clipping); should be above 1 + epsilon."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """One importance ratio for each token, or their geometric mean for each completion (GSPO)."""
    mask_truncated_completions: bool = False
    """Leave completions that were cut at the length limit out of the loss."""
    off_policy_mask_threshold: NonNegative | None = None
    """Leave out bad completions whose mean log-ratio is beyond this; None keeps all."""
    top_entropy_quantile: Share = 1.0
    """Share of tokens, those of the highest entropy, that the loss is taken over; 1 takes all."""
    entropy_coef: NonNegative = 0.0
    """Weight of an entropy bonus; with `use_adaptive_entropy`, the weight to begin with."""
    use_adaptive_entropy: bool = False
    """Raise `entropy_coef` while entropy is below `entropy_target`, and lower it otherwise."""
    entropy_coef_min: NonNegative = 0.0
    """Lowest weight of the adaptive entropy bonus."""
    entropy_coef_max: NonNegative = 1.0
    """Highest weight of the adaptive entropy bonus."""
    entropy_coef_delta: NonNegative = 0.005
    """How much the weight of the adaptive entropy bonus moves in one optimizer step."""
    entropy_target: NonNegative = 0.2
    """Mean entropy per token, in nats, that the adaptive bonus keeps up."""
    sapo_temperature_neg: Positive = 1.05
    """Steepness of SAPO's gate for tokens of non-positive advantage."""
    sapo_temperature_pos: Positive = 1.0
    """Steepness of SAPO's gate for tokens of positive advantage."""
    vespo_k_pos: NonNegative = 2.0
    """Exponent of VESPO's weight for non-negative advantages."""
    vespo_lambda_pos: NonNegative = 3.0
    """Decay of VESPO's weight for non-negative advantages."""
    vespo_k_neg: NonNegative = 3.0
    """Exponent of VESPO's weight for negative advantages."""
    vespo_lambda_neg: NonNegative = 2.0
    """Decay of VESPO's weight for negative advantages."""
    old_logprobs: Literal["trainer", "sampler"] = "trainer"
    """Who says how likely a completion was when it was made: a forward of the trainer's, or the sampler itself."""
    vllm_importance_sampling_correction: bool | None = None
    """Weigh tokens by trainer/sampler probability, whatever sampled them; None does not (TRL does for vLLM alone)."""
    vllm_importance_sampling_mode: CorrectionMode = "sequence_mask"
    """Whether that weight is per token or completion, and whether it is clamped or dropped beyond its bounds."""
    vllm_importance_sampling_clip_max: NonNegative | None = 3.0
    """Upper bound of the trainer/sampler weight; None is unbounded."""
    vllm_importance_sampling_clip_min: NonNegative | None = None
    """Lower bound of the trainer/sampler weight; None is unbounded."""
    sync_ref_model: bool = False
    """Move the reference towards the policy every `ref_model_sync_steps` steps."""
    ref_model_mixup_alpha: Share = 0.6
    """Share of the policy in the new reference when it moves."""
    ref_model_sync_steps: Count = 512
    """Optimizer steps between two moves of the reference."""

    # -- optimisation
    per_device_train_batch_size: Count = 8
    """Completions (not prompts) of one slice on one device."""
    gradient_accumulation_steps: Count = 1
    """Slices whose gradients are added up for one optimizer step."""
    policy_forward: Literal["packed", "padded"] = "packed"
    """How log-probs are computed: each prompt once for its group and no padding, or one padded row per completion."""
    max_tokens_per_forward: Count | None = None
    """Most tokens in one forward; None: those of a padded micro-batch, or as many as help (CPU: 1,024) if fewer."""
    learning_rate: NonNegative = 1e-6
    """Peak learning rate; usual are 1e-7 to 5e-6 for all weights and up to 2e-5 for LoRA."""
    lr_scheduler_type: SchedulerName = "linear"
    """Shape of the learning rate over the run, by transformers' names."""
    lr_scheduler_kwargs: JsonDict | None = None
    """Further arguments of the schedule (for example min_lr_rate)."""
    warmup_steps: StepsOrZero = 0
    """Optimizer steps of linear warm-up; below 1 it is a share of all steps."""
    optim: OptimizerName = "adamw_torch_fused"
    """Optimizer, by transformers' names."""
    optim_args: str | None = None
    """Further arguments of the optimizer, as key=value,key=value."""
    optim_target_modules: Targets = None
    """Modules that GaLore and APOLLO act on, by name or pattern."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Adam's decay of the mean gradient."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Adam's decay of the mean squared gradient."""
    adam_epsilon: NonNegative = 1e-8
    """Adam's guard against division by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on all weights but biases and norms."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gradient_checkpointing_kwargs: JsonDict | None = None
    """Arguments for gradient checkpointing (for example use_reentrant)."""
    pad_to_multiple_of: PadMultiple = "auto"
    """Pad the rows of padded forwards to a multiple of this many tokens; `auto` and None do not."""

    # -- logging
    logging_strategy: Interval = "steps"
    """When metrics are logged: every `logging_steps`, every epoch, or never."""
    logging_steps: Steps = 10
    """Optimizer steps between two log lines; below 1 it is a share of all steps."""
    logging_first_step: bool = False
    """Log the first step too."""
    logging_dir: OptionalPath = None
    """Folder of TensorBoard's files; None takes a new one under output_dir/runs."""
    log_completions: bool = False
    """Show a table of completions with every log line, and keep them as Parquet files as TRL does."""
    num_completions_to_print: Count | None = None
    """Rows of that table; None prints all."""
    log_unique_prompts: bool = False
    """Only one row for each prompt in that table."""
    log_completions_hub_repo: str | None = None
    """Dataset repository on the hub that completions are uploaded to."""
    report_to: Trackers = "none"
    """Trackers to report to, by transformers' names (tensorboard, wandb, ...), `all` or `none`."""
    project: str = "huggingface"
    """Project that the run belongs to in Trackio."""
    trackio_space_id: str | None = None
    """Space on the hub that Trackio reports to; None reports locally."""
    trackio_bucket_id: str | None = None
    """Bucket on the hub that Trackio keeps its data in."""
    trackio_static_space_id: StaticSpace = None
    """Space for Trackio's static copy of the run; False makes none."""

    monitor: Literal["off", "web"] | None = None
    """Set `web` to serve this run's page on 127.0.0.1 and print its address; `off` and None serve none."""
    monitor_tokens: TokenBudget = 8192
    """Tokens per generation round whose log-probs, entropies and ratios are recorded (whole groups); 0 records none."""

    # -- health
    health_thresholds: JsonDict | None = None
    """Limits of health checks, {"D05": {"alert": 0.7}}, or "off" for one of them; see docs/health."""
    health_actions: JsonDict | None = None
    """What a finding leads to, by severity or check: log, checkpoint, pause or stop ({"ALERT": "checkpoint"})."""
    health_patterns: list[str] = dataclasses.field(default_factory=list)
    """Regular expressions of text that must not be sampled (leaked answers, file paths, ...)."""
    health_gold_rewards: list[str] = dataclasses.field(default_factory=list)
    """Names of reward functions that are the real goal: the others rising without them is a sign of hacking."""

    # -- evaluation
    eval_strategy: Interval = "no"
    """When the held-out prompts are evaluated: every `eval_steps`, every epoch, or never."""
    eval_steps: Steps | None = None
    """Optimizer steps between two evaluations; below 1 a share of all steps; None takes `logging_steps`."""
    eval_delay: StepsOrZero = 0
    """Steps (or epochs) before the first evaluation."""
    eval_on_start: bool = False
    """Evaluate before the first step."""
    per_device_eval_batch_size: Count = 8
    """Completions of one evaluation batch on one device."""
    num_generations_eval: Count | None = None
    """Completions per prompt in evaluation; None takes `num_generations`."""
    eval_temperature: NonNegative | None = None
    """Temperature in evaluation; 0 takes the most likely token; None takes `temperature`."""
    eval_top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """As top_p, in evaluation; None takes `top_p`."""
    eval_top_k: Annotated[int, Field(ge=0)] | None = None
    """As top_k, in evaluation; None takes `top_k`."""
    eval_max_completion_length: Count | None = None
    """Longest completion in evaluation; None takes `max_completion_length`."""

    # -- saving
    save_strategy: SaveInterval = "steps"
    """When checkpoints are saved: every `save_steps`, every epoch, at every best evaluation, or never."""
    save_steps: StepsOrZero = 500
    """Optimizer steps between two checkpoints; below 1 it is a share of all steps."""
    save_total_limit: Count | None = None
    """Checkpoints to keep; the oldest go first, the best stays; None keeps all."""
    save_only_model: bool = False
    """Save the model without what is needed to resume."""
    load_best_model_at_end: bool = False
    """Load the best checkpoint when training ends."""
    metric_for_best_model: str | None = None
    """Evaluation metric that decides which checkpoint is best, with or without eval_; None takes reward."""
    greater_is_better: bool | None = None
    """Whether that metric should rise; None says yes unless its name ends in loss."""

    # -- hub
    push_to_hub: bool = False
    """Upload checkpoints to the Hugging Face hub."""
    hub_model_id: str | None = None
    """Repository to upload to; None takes the name of output_dir."""
    hub_strategy: Annotated[
        Literal["end", "every_save", "checkpoint", "all_checkpoints"], BeforeValidator(coerce.choice)
    ] = "every_save"
    """What is uploaded when: the model at the end or at every save, or checkpoints too."""
    hub_token: str | None = None
    """Token for the hub; None takes the one that is logged in; never written or shown."""
    hub_private_repo: bool | None = None
    """Make the repository private; None takes the default of its owner."""


FIELD_GROUPS: dict[str, str] = field_groups(field.name for field in dataclasses.fields(GRPOConfig))
"""Field name -> step of the loop, in the order of the class."""

FIELD_DOCS: dict[str, str] = {
    name: info.description or ""
    for name, info in GRPOConfig.__pydantic_fields__.items()  # type: ignore[attr-defined]
}
"""Field name -> its sentence."""


def field_default(name: str) -> Any:
    """The default of a field."""
    return default_of(GRPOConfig.__dataclass_fields__[name])
