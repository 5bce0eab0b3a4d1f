"""Fine-tuning of SmolLM2-135M-Instruct on the BBC headlines: all of its weights are trained.

Command: prompt-tuning train --config configs/fine_tuning.py --workdir runs/fine_tuning
  (or make quickstart METHOD=fine_tuning)
Hardware and time: 2 CPU cores, float32, 3 GB of memory beside the model; 22 min beside other work.
Expected: 90.3 % on the validation split, 89.4 % on the 500 test headlines (seed 0). The result is
  chosen by validation accuracy: it rises until the end, but the loss is lowest at step 85. Chosen
  by the loss, the test is 87.4 % at a rate of 0.00003 and 87.6 % at 0.0001. At 0.0001 and with a
  validation every 50 steps, as in configs/compare.py: 91.4, 92.2 and 88.8 % (seeds 0, 1 and 2).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.learning_rate = 0.00005
    config.evaluate_every = 85
    config.best_by = "accuracy"
    config.save_every = 85

    config.method = ConfigDict()
    config.method.name = "fine_tuning"

    config.prompts = ("BBC News: {text}\nThis story is about",)
    return config
