"""Ways to adapt a frozen model: a file each, and a line each in `METHODS`."""

from types import ModuleType

from prompt_tuning_jax.methods import fine_tuning, ia3, lora, prefix, prompt_encoder, soft_prompt

# Each has `KEYS`, the keys of `config.method` beside its name, and `make(config.method, start)`. It
# may have `HAS_SLOTS`, if its virtual tokens stand in the template's slots, and `DEFAULTS`, its own
# defaults for other keys of a config, such as `learning_rate`, and `TRAINS_WEIGHTS`.
METHODS: dict[str, ModuleType] = {
    "soft_prompt": soft_prompt,
    "prompt_encoder": prompt_encoder,
    "prefix": prefix,
    "lora": lora,
    "ia3": ia3,
    "fine_tuning": fine_tuning,
}
