"""A soft prompt that tells whether a sentence of a film review is positive (SST-2).

Command: prompt-tuning train --config configs/sst2.py --workdir runs/sst2
Hardware and time: 5 to 9 minutes of training on one CPU core, beside another run.
Expected: 88.2, 88.3 and 87.8 % on the validation split, 90.0, 89.8 and 89.2 % on the test split
  (seeds 0, 1 and 2; run here). The best of 20 written prompts has 73.8 % there.
  `--config.method.name=prefix --config.learning_rate=0.005` gave 89.5 % on average.
  benchmarks/README.md has the commands.

The data (Stanford Sentiment Treebank, Socher et al. 2013, the common split of 6,920, 872 and 1,821
sentences with a clear label) are three TSV files with a sentence and 0 or 1 on each line. Give
their paths with `--config.task.files.train=DIR/train.tsv` and so on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 150
    config.batch_size = 16
    config.learning_rate = 0.03
    config.evaluate_every = 75
    config.save_every = 75

    config.method = ConfigDict()
    config.method.name = "soft_prompt"
    config.method.num_virtual_tokens = 32
    config.method.init = "text"
    config.method.init_text = (
        "Read the sentence from a film review and say whether the reviewer found the film terrible"
        " or great. Answer with one word."
    )

    config.task = ConfigDict()
    config.task.name = "files"
    config.task.files = ConfigDict()
    config.task.files.train = "data/sst2/train.tsv"
    config.task.files.validation = "data/sst2/dev.tsv"
    config.task.files.test = "data/sst2/test.tsv"
    config.task.files.header = False
    config.task.columns = ("text=1", "label=2")
    config.task.template = "{soft}Review: {text}\nThe film was"
    config.task.labels = ("0=terrible", "1=great")
    config.task.metrics = ("accuracy", "class_accuracy", "matthews")

    # The best of 20 on the validation split.
    config.prompts = ('Film review: "{text}"\nThis critic found the film',)
    return config
