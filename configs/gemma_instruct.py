"""A prefix for Gemma 3 1B (instruct) in its own chat template, for the BBC headlines.

Command: prompt-tuning train --config configs/gemma_instruct.py --workdir runs/gemma
Hardware and time: one GPU or TPU chip with 12 GB (2.0 GB of weights in bfloat16); time unknown.
Expected: not run here. SmolLM2-135M-Instruct, a seventh of its size, has 89.6 %
  on the 500 test headlines with a prefix (configs/prefix.py).

The model is gated: accept Google's terms on the hub, then `hf auth login`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    # PEFT's comparison of methods takes this rate for a prefix from a text (Llama-3.2-3B).
    config.learning_rate = 0.005
    config.evaluate_every = 85
    config.save_every = 85

    config.model = ConfigDict()
    config.model.path = "google/gemma-3-1b-it"

    config.method = ConfigDict()
    config.method.name = "prefix"
    config.method.num_virtual_tokens = 32
    config.method.init = "text"
    config.method.init_text = (
        "Read the news headline and say which section of the BBC website it belongs to: business,"
        " entertainment, politics, sports or technology. Answer with one word."
    )

    config.task = ConfigDict()
    config.task.as_chat = True
    config.task.template = (
        "Which section of the BBC website is this headline from: business, entertainment, politics,"
        " sports or technology? Answer with one word.\n{text}"
    )
    return config
