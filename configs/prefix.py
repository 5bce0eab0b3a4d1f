"""Keys and values in front of every layer of SmolLM2-135M-Instruct, for the BBC headlines.

Command: prompt-tuning train --config configs/prefix.py --workdir runs/prefix
  (or make quickstart METHOD=prefix)
Hardware and time: as configs/quickstart.py, whose task, template, labels, steps and first text it
  has; a step costs about the same.
Expected: 90.0 % on the validation split, 88.0 % on the 500 test headlines (seed 0; run here). The
  learning rate is the one of 0.002, 0.005, 0.01 and 0.02 with the least validation loss.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.learning_rate = 0.01
    config.evaluate_every = 85
    config.save_every = 85

    config.method = ConfigDict()
    config.method.name = "prefix"
    config.method.num_virtual_tokens = 32
    # 'random' and 'zero' need no text; any init of a soft prompt does too.
    config.method.init = "text"
    config.method.init_text = (
        "Read the news headline and say which section of the BBC website it belongs to: business,"
        " entertainment, politics, sports or technology. Answer with one word."
    )
    # 512 trains the network of Li & Liang beside the keys and values; it is gone from the artifact.
    config.method.hidden_size = 0

    config.task = ConfigDict()
    config.task.labels = (
        "business",
        "entertainment",
        "politics",
        "sport=sports",
        "tech=technology",
    )

    config.prompts = ("BBC News: {text}\nThis story is about",)
    return config
