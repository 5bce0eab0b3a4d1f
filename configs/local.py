r"""Your own CSV, TSV, JSON, JSONL or Parquet file: a soft prompt that finds its labels.

Command: prompt-tuning train --config configs/local.py --workdir runs/mine
  --config.task.files.train=reviews.csv
  --config.task.columns="('text=review','label=stars')"
  --config.task.template='{soft}Review: {text}\nStars:'
Hardware and time: like configs/quickstart.py for texts as long as a headline; longer texts take
  longer.
Expected: depends on the data. The report compares the prompt with the model alone;
  `prompt-tuning evaluate --artifact runs/mine` gives macro-F1 too.

A tenth of the file is the validation split and a tenth is the test split, unless
`task.files.validation` and `task.files.test` name files. The first line names the columns. Without
such a line, give `--config.task.files.header=false` and the columns' numbers, from 1:
`('text=1','label=2')`. The labels are those in the files; one with two records or more is
trained on. Words that say more can stand for them: `--config.task.labels="('0=bad','1=great')"`,
with spaces if a label has = itself, `('<=50K = low','>50K = high')`. To write a text instead, name
its field, and leave out the metrics of labels: `--config.task.target='{summary}'
--config.task.metrics="()"`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.steps = 300
    config.batch_size = 16
    config.learning_rate = 0.03
    config.evaluate_every = 50
    config.save_every = 50

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
    config.method.num_virtual_tokens = 16
    config.method.init = "vocabulary"
    config.method.init_vocabulary = 5000

    config.task = ConfigDict()
    config.task.name = "files"
    config.task.split_seed = 0
    config.task.template = "{soft}{text}\nLabel:"
    config.task.columns = ()
    config.task.labels = ()
    config.task.max_length = 512
    config.task.metrics = ("accuracy", "macro_f1")

    config.task.files = ConfigDict()
    config.task.files.train = "data.csv"
    config.task.files.validation = ""
    config.task.files.test = ""
    config.task.files.validation_part = 0.1
    config.task.files.test_part = 0.1
    config.task.files.delimiter = ""
    config.task.files.header = True
    return config
