"""Keys by the names that transformers, PEFT and other programs have for them."""

from collections.abc import Iterable

EPOCHS = (
    "write config.steps = epochs x examples / batch_size (--dry_run shows the number of examples)"
)
# The other name, and ours; with a value where theirs is another.
_PAIRS = """
lr:learning_rate max_steps:steps num_steps:steps num_training_steps:steps iterations:steps
per_device_train_batch_size:batch_size train_batch_size:batch_size random_seed:seed data_seed:seed
gradient_accumulation_steps:microbatches eval_steps:evaluate_every save_steps:save_every
logging_steps:log_every early_stopping_patience:early_stopping patience:early_stopping
metric_for_best_model:best_by report_to:tracker model:model.path model_name:model.path
model_name_or_path:model.path base_model_name_or_path:model.path torch_dtype:model.dtype
bf16:model.dtype=bfloat16 fp16:model.dtype=float16 gradient_checkpointing:model.remat=full
task:task.name dataset_name:task.name train_file:task.files.train
validation_file:task.files.validation
test_file:task.files.test max_seq_length:task.max_length max_seq_len:task.max_length
max_source_length:task.max_length model_max_length:task.max_length method:method.name
peft_type:method.name prompt_tuning_init:method.init prompt_tuning_init_text:method.init_text
encoder_hidden_size:method.hidden_size prefix_projection:method.hidden_size=SIZE
optimizer:optimizer.name optim:optimizer.name adam_beta1:optimizer.b1 adam_beta2:optimizer.b2
adam_epsilon:optimizer.eps max_grad_norm:optimizer.clip_norm schedule:schedule.name
lr_scheduler_type:schedule.name num_warmup_steps:schedule.warmup_steps
warmup_ratio:schedule.warmup_steps=STEPS max_target_length:generation.max_new_tokens
"""
OTHERS = dict(pair.split(":") for pair in _PAIRS.split())


def known_as(name: str, keys: Iterable[str]) -> list[str]:
    """Returns the keys that a name may mean, ours or another program's; some with `=VALUE`."""
    name = name.replace("-", "_")
    last = name.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    for one in (name, last):
        if one in same or one in OTHERS:
            return [OTHERS.get(one, one)]
    return same if len(same) == 1 or "." not in name else []
