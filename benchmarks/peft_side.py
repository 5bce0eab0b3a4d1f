"""PEFT's side on torch: prompt tuning, prefix tuning, P-tuning, LoRA and IA3, and fine-tuning on
torch alone."""

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import torch
from flax import traverse_util
from peft import (
    PeftConfig,
    PeftModel,
    PromptEncoderConfig,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from prompt_tuning_jax.exchange.peft import read_adapter, write_adapter
from prompt_tuning_jax.models.families import spec_from_config
from prompt_tuning_jax.models.files.weights import read_weights
from prompt_tuning_jax.models.sites import NOTHING, PROMPT, Given
from prompt_tuning_jax.models.spec import Spec

# transformers warns of its own future, which does not concern the numbers.
logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def use_threads(threads: int) -> None:
    """Limits the threads of torch."""
    torch.set_num_threads(threads)


def device() -> torch.device:
    """Returns the GPU if torch has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def base(path: str, dtype: str):
    """Loads the frozen model from a Hugging Face folder or a GGUF file, in eval mode."""
    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    if path.endswith(".gguf"):
        folder, name = os.path.split(path)
        where = {"pretrained_model_name_or_path": folder, "gguf_file": name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
    # Its weights are plain numbers here, also from a GGUF file.
    model.config.__dict__.pop("quantization_config", None)
    # Training generates nothing, so a cache would only slow PEFT's side down.
    model.config.use_cache = False
    return model.to(device()).eval()


def save(model, folder: str) -> str:
    """Writes the model as a Hugging Face folder; returns `folder`.

    transformers does not save a model from a GGUF file, so the weights move to another of the same
    shape.
    """
    plain = type(model)(copy.deepcopy(model.config)).to(model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    return folder


def first(model, method: str, num_virtual_tokens: int) -> Given:
    """Returns the first values of both sides: a soft prompt, the keys and values of a prefix, or
    LoRA and IA3 as they begin; nothing for fine-tuning, which begins at the model."""
    if method == "fine_tuning":
        return NOTHING
    if method in ("lora", "ia3"):
        return inputs.adapters(method, _spec(model))
    if method == "prefix":
        return inputs.random_prefix(num_virtual_tokens, _spec(model))
    table = model.get_input_embeddings().weight
    ids = torch.from_numpy(inputs.prompt_ids(num_virtual_tokens, len(table))).to(table.device)
    return Given({PROMPT: table[ids].detach().float().cpu().numpy()})


def tuned(model, given: Given, **options):
    """Wraps `model` with PEFT, starting from what is given, in eval mode; if no sites are given,
    all of its weights are trained.

    `options` take the place of those that PEFT's config has, such as `lora_alpha`.
    """
    if not given.sites:
        return model.requires_grad_(True)
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), _spec(model), given.sites, model.name_or_path)
        config = PeftConfig.from_pretrained(folder)
        for name, value in {**options, "inference_mode": False}.items():
            setattr(config, name, value)
        wrapped = get_peft_model(model, config)
        set_peft_model_state_dict(wrapped, load_peft_weights(folder, device="cpu"))
        return wrapped.eval()


def encoded(model, num_virtual_tokens: int, hidden_size: int, seed: int):
    """Wraps `model` with PEFT's P-tuning, in eval mode: a network of three layers, which can only
    start at random, makes the prompt."""
    torch.manual_seed(seed)
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=num_virtual_tokens,
        encoder_hidden_size=hidden_size,
    )
    return get_peft_model(model, config).eval()


def trained(wrapped) -> Given:
    """Returns a copy of the trained values in the form of our side."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(wrapped, PeftModel):
            wrapped.save_pretrained(folder, save_embedding_layers=False)
            return Given(read_adapter(Path(folder), _spec(wrapped))[1])
        params = read_weights(save(wrapped, folder), "float32").params
        return Given(params=traverse_util.flatten_dict(params, sep="/"))


def _spec(model) -> Spec:
    return spec_from_config(model.config.to_dict(), "PEFT's model")


def batch(cases: Sequence[inputs.Case]) -> dict[str, torch.Tensor]:
    """Pads the cases to the longest of them, on the device."""
    arrays = inputs.padded(cases)
    return {name: torch.from_numpy(array).to(device()) for name, array in arrays.items()}


def trainer(
    wrapped, learning_rate: float | Callable[[int], float], clip_norm: float = 0.0
) -> Callable[[dict[str, torch.Tensor]], float]:
    """Returns a training step with AdamW (no decay), from a batch to its loss.

    `learning_rate` may be a function of the number of updates so far.
    """
    rate = learning_rate if callable(learning_rate) else lambda _: learning_rate
    trained = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate(0), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: rate(done) / max(rate(0), 1e-12)
    )

    def step(tensors: dict[str, torch.Tensor]) -> float:
        loss = wrapped(**tensors).loss
        loss.backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(trained, clip_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        # Reading the number waits for the GPU.
        return loss.item()

    return step


def answer_scores(
    wrapped, cases: Sequence[inputs.Case], answers: Sequence[Sequence[int]], size: int = 16
) -> np.ndarray:
    """Returns the log-probability of each answer for each case, float32[N, C].

    The cases end before the answer. They are sorted by length, so that a batch holds texts of about
    equal length, and padded on the right. Each answer is one token, so one pass scores them all.
    """
    if any(len(answer) != 1 for answer in answers):
        raise ValueError("answers of one token each are expected")
    tokens = torch.tensor([answer[0] for answer in answers], device=device())
    order = np.argsort([len(each.ids) for each in cases], kind="stable")
    scores = np.zeros((len(cases), len(answers)), np.float32)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        tensors = batch([cases[index] for index in chosen])
        with torch.inference_mode():
            mask = tensors["attention_mask"]
            logits = wrapped(input_ids=tensors["input_ids"], attention_mask=mask).logits
            # The virtual tokens' positions come first in the logits too.
            last = logits.shape[1] - mask.shape[1] + mask.sum(dim=1) - 1
            found = logits[torch.arange(len(chosen)), last].float().log_softmax(-1)
        scores[chosen] = found[:, tokens].cpu().numpy()
    return scores


def write(model, cases: Sequence[inputs.Case], tokens: int) -> list[list[int]]:
    """Writes `tokens` ids greedily after each case, which ends before its answer.

    An end of text is ignored. Cases are padded on the left, as transformers requires, and it uses
    its cache.
    """
    longest = max(len(case.ids) for case in cases)
    ids = np.zeros((len(cases), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, case in enumerate(cases):
        ids[row, longest - len(case.ids) :], mask[row, longest - len(case.ids) :] = case.ids, 1
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, use_cache=True, pad_token_id=0
    )
    # Else the model's own would fill the gap in the settings.
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        written = model.generate(
            input_ids=torch.from_numpy(ids).to(device()),
            attention_mask=torch.from_numpy(mask).to(device()),
            generation_config=settings,
        )
    return written[:, -tokens:].tolist()


def mean_loss(wrapped, cases: Sequence[inputs.Case], size: int = 16) -> float:
    """Returns the mean negative log-likelihood of the target tokens, without training."""
    total = count = 0.0
    for start in range(0, len(cases), size):
        chosen = cases[start : start + size]
        targets = sum(each.targets for each in chosen)
        with torch.inference_mode():
            total += wrapped(**batch(chosen)).loss.item() * targets
        count += targets
    return total / count


def peak_device_bytes() -> int | None:
    """Returns the peak of the GPU's memory in torch; None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
