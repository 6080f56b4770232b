"""Loading: from what the user passes as `model` and `processing_class` to a policy and a tokenizer.

It decides class, dtype, adapters, checkpointing and dropout, by TRL's names and rules. It does not place anything on
a device or wrap it (accelerate does), and it does not seed: seed before, since adapters start from random numbers.
"""

from __future__ import annotations

import functools
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import is_peft_available

from gruppo.errors import ModelError, boundary
from gruppo.model_source import loading
from gruppo.policy.head import Float32Head
from gruppo.policy.logprobs import causal_lm

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

_DTYPES = ("bfloat16", "float16", "float32")


def load_policy(
    model: str | PreTrainedModel | Any,
    *,
    model_init_kwargs: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    quantization_config: Any = None,
    peft_config: PeftConfig | None = None,
    gradient_checkpointing: bool = False,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    disable_dropout: bool = False,
    cast_lm_head_to_fp32: bool = False,
) -> PreTrainedModel | Any:
    """The policy, ready to be placed on a device: a PreTrainedModel, or a PeftModel around one.

    Args:
        model: hub id or path (class from `config.architectures[0]`, float32 unless `model_init_kwargs` has another
            dtype), or a model, which is used and changed as it is.
        model_init_kwargs: for `from_pretrained`; ignored with a warning if `model` is a model.
        quantization_config: for `from_pretrained`, likewise.
        peft_config: wraps the model in a fresh adapter; the adapter alone is trained.
        gradient_checkpointing_kwargs: for torch's checkpoint; without them `use_reentrant=False`.
        disable_dropout: sets every dropout probability to 0, in the config too (TRL's field; there the modules' alone).
        cast_lm_head_to_fp32: projects to the vocabulary in float32 (TRL's field).

    Raises:
        ModelError: anything that cannot be loaded or combined.
    """
    kwargs = dict(model_init_kwargs or {})
    if isinstance(model, str):
        policy = _from_pretrained(model, _load_kwargs(kwargs, quantization_config, trust_remote_code))
    else:
        check_model_kind(model)
        _say_ignored(kwargs, quantization_config)
        policy = model
    if peft_config is not None:
        policy = _with_adapter(policy, peft_config)
    if is_peft_model(policy):
        _check_adapter(policy)
    if disable_dropout:
        _disable_dropout(policy)
    if cast_lm_head_to_fp32:
        _cast_head(causal_lm(policy))
    if gradient_checkpointing:
        _enable_checkpointing(policy, gradient_checkpointing_kwargs)
    return policy


def load_tokenizer(
    processing_class: Any, model_id: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The user's tokenizer, or the model's own (padding and truncation on the left); its pad falls back to its EOS.

    Args:
        processing_class: a tokenizer, or None to load that of `model_id`.
        model_id: `model.config._name_or_path` or what the user passed as the model.

    Raises:
        ModelError: a processor (vision-language models), another type, a load that fails, no pad and no EOS token, no
            vocabulary.
    """
    tokenizer = processing_class
    if tokenizer is None:
        with boundary(ModelError, loading("the tokenizer of", model_id)):
            tokenizer = AutoTokenizer.from_pretrained(
                model_id,
                revision=revision,
                trust_remote_code=trust_remote_code,
                padding_side="left",
                truncation_side="left",
            )
    if isinstance(tokenizer, ProcessorMixin):
        raise ModelError(
            f"processing_class is a {type(tokenizer).__name__}: vision-language models are not supported yet. "
            "To train on text only, pass its tokenizer: processing_class=processor.tokenizer."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"processing_class is a {type(tokenizer).__name__}, but must be a transformers tokenizer "
            "(PreTrainedTokenizerBase), or None for the model's own."
        )
    _check_vocabulary(tokenizer, model_id, is_given=processing_class is not None)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                "The tokenizer has neither a pad nor an EOS token, so rows cannot be padded and completions never end. "
                "Set tokenizer.eos_token (and tokenizer.pad_token) before passing it."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_model_kind(model: Any) -> None:
    """Raises ModelError for what can be no policy; nothing is loaded."""
    if isinstance(model, str | PreTrainedModel) or is_peft_model(model):
        return
    kinds = "a hub id or path (str), a transformers PreTrainedModel or a PeftModel"
    if model is None:
        raise ModelError(f"model is None: there is nothing to train. Pass {kinds}.")
    hint = ""
    if isinstance(model, PreTrainedTokenizerBase | ProcessorMixin):
        hint = " A tokenizer is passed as processing_class."
    raise ModelError(f"model is a {type(model).__name__}, but must be {kinds}.{hint}")


def router_aux_loss_coef(model: Any, asked: float | None) -> float:
    """The coefficient of the load-balancing loss, 0 for none (TRL's `router_aux_loss_coef`).

    Args:
        asked: the user's value; None is the model config's own.

    Raises:
        ModelError: a coefficient for a model that returns no router logits.
    """
    text = causal_lm(model).config.get_text_config().to_dict()
    is_mixture = "output_router_logits" in text
    if asked and not is_mixture:
        raise ModelError(
            f"router_aux_loss_coef={asked}, but {type(causal_lm(model)).__name__} is not a mixture of experts that "
            "returns its router logits. Leave it at None."
        )
    coef = text.get("router_aux_loss_coef", 0.0) if asked is None else asked
    return float(coef or 0.0) if is_mixture else 0.0


def has_experts(model: Any) -> bool:
    """Whether the model is a mixture of experts, by its config (`num_experts`, `num_local_experts`, ...)."""
    text = causal_lm(model).config.get_text_config().to_dict()
    return any("experts" in name and isinstance(value, int) and value > 1 for name, value in text.items())


def is_peft_model(model: Any) -> bool:
    """Whether the model is a PeftModel; False where peft is not installed."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _load_kwargs(kwargs: dict[str, Any], quantization_config: Any, trust_remote_code: bool) -> dict[str, Any]:
    if quantization_config is not None and "quantization_config" in kwargs:
        raise ModelError(
            "quantization_config is given both as an argument and in model_init_kwargs. Keep one, preferably the "
            "argument."
        )
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    dtype = kwargs.setdefault("dtype", "float32")
    if isinstance(dtype, str) and dtype in _DTYPES:
        kwargs["dtype"] = getattr(torch, dtype)
    elif not (dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype)):
        raise ModelError(
            f"model_init_kwargs has dtype={dtype!r}, but it must be a torch.dtype, 'auto' or one of "
            f"{', '.join(_DTYPES)}."
        )
    kwargs.setdefault("trust_remote_code", trust_remote_code)
    return kwargs


def _from_pretrained(model_id: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
    with boundary(ModelError, loading("the model", model_id)):
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=kwargs["trust_remote_code"], **hub)
        return _model_class(config).from_pretrained(model_id, **kwargs)


def _model_class(config: PretrainedConfig) -> Any:
    """The class named by the checkpoint; an auto class where that is remote code, or no name is there."""
    names = config.architectures or []
    return getattr(transformers, names[0], AutoModelForCausalLM) if names else AutoModelForCausalLM


def _say_ignored(kwargs: dict[str, Any], quantization_config: Any) -> None:
    for name, value in (("model_init_kwargs", kwargs), ("quantization_config", quantization_config)):
        if value:
            logger.warning("%s is ignored: the model is loaded already.", name)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, model_id: str, *, is_given: bool) -> None:
    """A folder with a config and no tokenizer gives one of a few special tokens, and prompts without tokens."""
    if len(tokenizer) > len(set(tokenizer.all_special_ids)):
        return
    whose = "processing_class" if is_given else f"The tokenizer of {model_id!r}"
    known = ", ".join(map(repr, tokenizer.all_special_tokens)) or "nothing"
    raise ModelError(
        f"{whose} has no vocabulary: it knows {known} alone. This is what transformers makes of a folder without "
        "tokenizer files. Save the model's tokenizer there (tokenizer.save_pretrained), or pass it as processing_class."
    )


def _with_adapter(model: Any, peft_config: Any) -> Any:
    if not is_peft_available():
        raise ModelError("peft_config needs the peft library: pip install 'gruppo[peft]'.")
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ModelError(
            f"peft_config is a {type(peft_config).__name__}, but must be a peft.PeftConfig (LoraConfig, ...)."
        )
    if is_peft_model(model):
        raise ModelError(
            "model is a PeftModel already, and peft_config asks for another adapter. Drop peft_config to train the "
            "adapter that is there, or merge it first: model = model.merge_and_unload()."
        )
    with boundary(ModelError, "adding the adapter of peft_config"):
        return get_peft_model(model, peft_config)


def _check_adapter(model: Any) -> None:
    if model.active_peft_config.is_prompt_learning:
        raise ModelError(
            f"The adapter is of type {model.peft_type}, which learns virtual tokens; these are not supported. Use one "
            "that changes weights, such as LoRA."
        )
    lm = causal_lm(model)
    if getattr(lm, "is_loaded_in_4bit", False) or getattr(lm, "is_loaded_in_8bit", False):
        for name, parameter in model.named_parameters():
            # The QLoRA paper trains in bfloat16; a DoRA magnitude moves by less than bfloat16 can hold.
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)


def _disable_dropout(policy: Any) -> None:
    """Dropout modules, and the numbers that attention and layers give to functions: their own, or their config's."""
    for module in policy.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    for holder in (*policy.modules(), causal_lm(policy).config.get_text_config()):
        for name, value in list(vars(holder).items()):
            if "drop" in name and isinstance(value, float):
                setattr(holder, name, 0.0)


def _cast_head(lm: PreTrainedModel) -> None:
    """Swaps the head for one that projects in float32; tied embeddings go on giving their former dtype."""
    head = lm.get_output_embeddings()
    if isinstance(head, Float32Head):
        return
    if type(head) is not nn.Linear:
        raise ModelError(
            f"cast_lm_head_to_fp32=True needs a plain linear head, but this one is a {type(head).__name__}. Take the "
            "head out of the adapter's target_modules, or set cast_lm_head_to_fp32=False."
        )
    embeddings = lm.get_input_embeddings()
    dtype = head.weight.dtype
    # In place, so that a tied embedding stays tied to it.
    head.weight.data = head.weight.data.float()
    new = Float32Head(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    new.weight = head.weight
    if head.bias is not None:
        head.bias.data = head.bias.data.float()
        new.bias = head.bias
    new.train(head.training)
    lm.set_output_embeddings(new)
    if embeddings.weight is head.weight and dtype != torch.float32:
        embeddings.register_forward_hook(functools.partial(_cast_output, dtype))


def _cast_output(dtype: torch.dtype, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output.to(dtype)


def _enable_checkpointing(model: Any, kwargs: dict[str, Any] | None) -> None:
    lm = causal_lm(model)
    if not lm.supports_gradient_checkpointing:
        raise ModelError(f"{type(lm).__name__} cannot checkpoint activations: set gradient_checkpointing=False.")
    with warnings.catch_warnings():
        # The name works in all of transformers 5; its successor only in the later ones.
        warnings.simplefilter("ignore", FutureWarning)
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs or {"use_reentrant": False})
    if is_peft_model(model):
        # Reentrant checkpointing drops the gradient of blocks whose inputs need none, as behind frozen embeddings.
        model.enable_input_require_grads()
