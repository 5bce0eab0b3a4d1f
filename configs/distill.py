"""Distillation: 16 virtual tokens learn the answers of a long prompt with 16 demonstrations.

Command: prompt-tuning train --config configs/distill.py --workdir runs/distill
Hardware and time: 2 CPU cores, float32, at 191 GFLOP/s in matrix products: 4 min 56 s, of which
  the teacher's answers to 1,580 headlines take 25 s and training 2 min 45 s.
Expected: 61.7 % on the validation split, 59.2 % on the 500 test headlines, in 0.0187 s for each;
  its teacher has 54.2 % in 0.0232 s, and no prompt 53.6 % in 0.0202 s (seed 0; run here). Of six
  written prompts with 16 demonstrations this one was the best on the validation split (58.7 %).
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
