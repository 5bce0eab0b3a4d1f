"""IA3 for SmolLM2-135M-Instruct and the BBC headlines: scales of keys, values and activations.

Command: prompt-tuning train --config configs/ia3.py --workdir runs/ia3
  (or make quickstart METHOD=ia3)
Hardware and time: 2 CPU cores, float32: 3 min 24 s.
Expected: 89.3 % on the validation split, 88.0 % on the 500 test headlines (seed 0). With a
  validation every 50 steps, as in configs/compare.py: 88.6, 86.6 and 88.2 %; rates of 0.003 and
  0.03 have higher validation losses.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.learning_rate = 0.01
    config.evaluate_every = 85
    config.save_every = 85

    config.method = ConfigDict()
    config.method.name = "ia3"

    config.prompts = ("BBC News: {text}\nThis story is about",)
    return config
