"""LoRA for Qwen2.5-1.5B-Instruct in its own chat template, for the BBC headlines.

Command: prompt-tuning train --config configs/qwen_instruct.py --workdir runs/qwen
Hardware and time: one GPU or TPU chip with 12 GB (3.1 GB of weights in bfloat16); time unknown.
Expected: not run here. SmolLM2-135M-Instruct, a tenth of its size, has 89.2 % on
  the 500 test headlines with LoRA (configs/lora.py).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.learning_rate = 0.0003
    config.evaluate_every = 85
    config.save_every = 85

    config.model = ConfigDict()
    config.model.path = "Qwen/Qwen2.5-1.5B-Instruct"

    config.method = ConfigDict()
    config.method.name = "lora"
    config.method.rank = 8
    config.method.alpha = 16.0

    config.task = ConfigDict()
    config.task.as_chat = True
    config.task.template = (
        "Which section of the BBC website is this headline from: business, entertainment, politics,"
        " sports or technology? Answer with one word.\n{text}"
    )
    return config
