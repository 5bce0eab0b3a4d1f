"""Keys by the names that transformers, PEFT and other programs have for them."""

from collections.abc import Iterable

# By ours; a value stands behind those that are not given with the same value elsewhere.
_ELSEWHERE = {
    "steps": "max_steps num_steps train_steps total_steps num_training_steps iterations",
    "batch_size": "per_device_train_batch_size train_batch_size per_device_batch_size bs",
    "microbatches": "gradient_accumulation_steps accumulate_grad_batches accumulation_steps",
    "learning_rate": "lr",
    "seed": "random_seed data_seed",
    "evaluate_every": "eval_steps eval_every eval_interval",
    "save_every": "save_steps save_interval checkpoint_every",
    "log_every": "logging_steps log_interval",
    "early_stopping": "early_stopping_patience patience",
    "tracker": "report_to",
    "model.path": "model model_name model_name_or_path base_model base_model_name_or_path",
    "model.dtype": "torch_dtype precision",
    "model.dtype=bfloat16": "bf16",
    "model.dtype=float16": "fp16",
    "model.remat=full": "gradient_checkpointing",
    "task.name": "task dataset dataset_name",
    "task.files.train": "train_file data_files train_data",
    "task.files.validation": "validation_file eval_file dev_file",
    "task.files.test": "test_file",
    "task.max_length": "max_seq_length max_seq_len max_len seq_length seq_len model_max_length"
    " max_source_length cutoff_len block_size",
    "task.template": "prompt_template",
    "method.name": "method peft_type",
    "method.num_virtual_tokens": "prompt_length prefix_length num_tokens",
    "method.init": "prompt_tuning_init",
    "method.init_text": "prompt_tuning_init_text",
    "method.hidden_size": "encoder_hidden_size prefix_projection",
    "optimizer.name": "optimizer optim",
    "optimizer.b1": "adam_beta1 beta1",
    "optimizer.b2": "adam_beta2 beta2",
    "optimizer.eps": "adam_epsilon epsilon",
    "optimizer.clip_norm": "max_grad_norm gradient_clip_val grad_clip",
    "schedule.name": "schedule lr_scheduler_type lr_scheduler scheduler",
    "schedule.warmup_steps": "warmup_ratio warmup num_warmup_steps",
    "generation.max_new_tokens": "max_target_length generation_max_length",
}
_OURS = {other: key for key, others in _ELSEWHERE.items() for other in others.split()}
_EPOCHS = ("epochs", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs")


def known_as(name: str, keys: Iterable[str]) -> list[str]:
    """Returns what somebody may mean by a name: keys, or one with its value, `KEY=VALUE`.

    It is found in any section, by our name or another program's.
    """
    name = name.replace("-", "_")
    last = name.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    for one in (name, last):
        if one in same or one in _OURS:
            return [_OURS.get(one, one)]
    return same if len(same) == 1 or "." not in name else []


def is_epochs(name: str) -> bool:
    """Tells whether a name stands for a number of epochs, which are counted in steps here."""
    return name.replace("-", "_").rpartition(".")[2] in _EPOCHS


def hint(names: Iterable[str]) -> str:
    """Returns " (did you mean 'steps'?)" for what `known_as` found, or "" for nothing."""
    found = " or ".join(map(repr, names))
    parts = ", the parts of a batch_size" if found == "'microbatches'" else ""
    return f" (did you mean {found}{parts}?)" if found else ""
