"""A written prompt with 16 demonstrations becomes 16 virtual tokens, without labels: distillation.

Command: prompt-tuning train --config configs/distill.py --workdir runs/distill
Hardware and time: 2 CPU cores, float32, at 57 GFLOP/s in matrix products beside other work: 1 min
  for the teacher's answers to 1,580 headlines and 2 min 54 s of training.
Expected: 61.7 % on the validation split, 58.6 % on the 500 test headlines; its teacher has 54.2 %
  there, and no prompt 53.6 % (seed 0; run here). Of six written prompts with 16 demonstrations
  this one was the best on the validation split (58.7 %).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 150
    config.learning_rate = 0.03
    config.evaluate_every = 50
    config.save_every = 50

    # The labels of the headlines are not read, but for those of the 16 demonstrations.
    config.teacher = ConfigDict()
    config.teacher.prompt = "Title: {text}\nCategory:"
    config.teacher.demonstrations = 16

    config.method = ConfigDict()
    config.method.name = "soft_prompt"
    config.method.num_virtual_tokens = 16
    config.method.init = "text"
    config.method.init_text = (
        "The section of the BBC website for a headline: business, entertainment, politics, sports"
        " or technology."
    )
    return config
