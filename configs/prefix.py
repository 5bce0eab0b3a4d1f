"""Keys and values in front of every layer of SmolLM2-135M-Instruct, for the BBC headlines.

Command: prompt-tuning train --config configs/prefix.py --workdir runs/prefix
  (or make quickstart METHOD=prefix)
Hardware and time: like configs/quickstart.py. The task, steps and first text are the same, and a
  step takes about as long.
Expected: 90.7 % on the validation split, 89.6 % on the 500 test headlines (seed 0; run here). Of
  the learning rates 0.005, 0.01 and 0.02, the last two have about the same validation loss: which
  is lower depends on how a processor rounds. AdamW at 0.01, the best of four rates, has 90.0 and
  88.0 %, and fine-tuning 90.9 % (mean of three seeds on test).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.learning_rate = 0.01
    config.evaluate_every = 85
    config.save_every = 85

    config.optimizer = ConfigDict()
    # Steps in proportion to the size of the keys, and to that of the values.
    config.optimizer.name = "adafactor"
    config.optimizer.multiply_by_parameter_scale = True

    config.method = ConfigDict()
    config.method.name = "prefix"
    config.method.num_virtual_tokens = 32
    # The inits of a soft prompt, 'random' and 'zero' can be used too.
    config.method.init = "text"
    config.method.init_text = (
        "Read the news headline and say which section of the BBC website it belongs to: business,"
        " entertainment, politics, sports or technology. Answer with one word."
    )
    # 512 trains the network of Li & Liang too. The artifact does not hold it.
    config.method.hidden_size = 0

    config.prompts = ("BBC News: {text}\nThis story is about",)
    return config
