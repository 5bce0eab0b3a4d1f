"""A soft prompt for SmolLM2-135M-Instruct that names the topic of a BBC News headline.

Command: prompt-tuning train --config configs/quickstart.py --workdir runs/quickstart
Hardware and time: 2 CPU cores, float32: 2 min 2 s at 483 GFLOP/s in matrix products, 3 min 35 s at
  208.
Expected: 85.0 % on the validation split, 85.8 % on the 500 test headlines (seed 0, split seed 0;
  run here). With gradients added in another order 85.7 % and 85.0 %, and a mean of 84.7 % on the
  test headlines over seeds 0, 1 and 2. Prompt length, text, steps, batch size and learning rate
  were chosen by the validation loss.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 250
    config.batch_size = 16
    config.learning_rate = 0.03
    config.evaluate_every = 85
    config.save_every = 85

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"
    config.schedule.warmup_steps = 20

    config.model = ConfigDict()
    config.model.path = "smollm2-135m-instruct"

    config.method = ConfigDict()
    config.method.name = "soft_prompt"
    config.method.num_virtual_tokens = 32
    config.method.init = "text"
    config.method.init_text = (
        "Read the news headline and say which section of the BBC website it belongs to: business,"
        " entertainment, politics, sports or technology. Answer with one word."
    )

    config.task = ConfigDict()
    config.task.name = "bbc_news"
    config.task.split_seed = 0
    config.task.train = "train"
    config.task.validation = "validation"
    config.task.test = "test"
    config.task.template = "{soft}Headline: {text}\nTopic:"
    # The data has sport and tech. The model reads and scores the words after =.
    config.task.labels = (
        "business",
        "entertainment",
        "politics",
        "sport=sports",
        "tech=technology",
    )

    # The report compares the trained prompt with the best of these on the validation split. This
    # one was the best of the 45 in benchmarks/headlines_prompts.txt.
    config.prompts = ("BBC News: {text}\nThis story is about",)
    return config
