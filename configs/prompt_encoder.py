"""A small network makes a soft prompt for SmolLM2-135M-Instruct, for the BBC headlines.

Command: prompt-tuning train --config configs/prompt_encoder.py --workdir runs/prompt_encoder
  (or make quickstart METHOD=prompt_encoder)
Hardware and time: like configs/quickstart.py. The task, steps and first text are the same, and a
  step takes as long.
Expected: 85.0, 84.7 and 86.3 % on the validation split, 84.2, 83.8 and 84.0 % on the 500 test
  headlines (seeds 0, 1 and 2; run here by benchmarks/accuracy.py --threads 1). Of the learning
  rates 0.001, 0.003 and 0.01 this one has the lowest validation loss.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    # The network has many weights that act together, so the rate is a fraction of a soft prompt's.
    config.learning_rate = 0.003
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
