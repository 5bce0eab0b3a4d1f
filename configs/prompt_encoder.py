"""A small network makes a soft prompt for SmolLM2-135M-Instruct, for the BBC headlines.

Command: prompt-tuning train --config configs/prompt_encoder.py --workdir runs/prompt_encoder
  (or make quickstart METHOD=prompt_encoder)
Task, template, labels, steps and first text are those of configs/quickstart.py.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.learning_rate = 0.01
    config.evaluate_every = 85
    config.save_every = 85

    config.method = ConfigDict()
    config.method.name = "prompt_encoder"
    config.method.num_virtual_tokens = 32
    config.method.init = "text"
    config.method.init_text = (
        "Read the news headline and say which section of the BBC website it belongs to: business,"
        " entertainment, politics, sports or technology. Answer with one word."
    )
    # Width of the network's hidden layer.
    config.method.hidden_size = 128

    config.prompts = ("BBC News: {text}\nThis story is about",)
    return config
