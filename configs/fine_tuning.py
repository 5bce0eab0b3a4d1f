"""Fine-tuning of SmolLM2-135M-Instruct on the BBC headlines: all of its weights are trained.

Command: prompt-tuning train --config configs/fine_tuning.py --workdir runs/fine_tuning
  (or make quickstart METHOD=fine_tuning)
Hardware and time: 2 CPU cores, float32, 3 GB of memory beside the model; a step takes longer than
  one of configs/lora.py.
Expected: 88.0 % on the validation split, 87.4 % on the 500 test headlines (seed 0; run here at this
  learning rate alone). The weights of step 85 have the lowest validation loss: it overfits then.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.learning_rate = 0.00003
    config.evaluate_every = 85
    config.save_every = 85

    config.method = ConfigDict()
    config.method.name = "fine_tuning"

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
