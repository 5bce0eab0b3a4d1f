"""Every way to adapt SmolLM2-135M-Instruct to SST-2, sentences of film reviews, in one table.

Command: prompt-tuning compare --config configs/compare_sst2.py --workdir runs/compare_sst2
Hardware and time: 2 CPU cores, float32: 8 h in training, in parts beside other work (run here).
  `--dry_run` says how long it takes on your machine.
Expected: docs/results/sst2/report.md, as it came out. On the test split, means of three seeds: soft
  prompt 89.5 %, prompt encoder 89.3 %, prefix 90.4 %, IA3 89.6 %, LoRA 89.8 %, fine-tuning 90.8 %;
  no prompt 60.4 % and 76.4 % calibrated, the written prompt 73.8 % and 75.2 %.
  In that report all rates were trained to the end; this config tries each for 75 steps.

The data are those of configs/sst2.py.
"""

from ml_collections import ConfigDict

TEXT = (
    "Read the sentence from a film review and say whether the reviewer found the film terrible or"
    " great. Answer with one word."
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 150
    config.evaluate_every = 75
    config.save_every = 75

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

    # The best of 20 on the validation split.
    config.prompts = ('Film review: "{text}"\nThis critic found the film',)

    config.compare = ConfigDict()
    virtual = f"method.num_virtual_tokens=32 method.init=text method.init_text='{TEXT}'"
    # For the prefix: steps in proportion to the size of the keys, and to that of the values.
    scaled = "optimizer.name=adafactor optimizer.multiply_by_parameter_scale=true"
    config.compare.rows = (
        "no prompt",
        "written prompt",
        "demonstrations",
        f"soft prompt: {virtual}",
        f"prompt encoder: method.hidden_size=128 {virtual}",
        f"prefix: {scaled} {virtual}",
        "ia3",
        "lora",
        "fine tuning: best_by=accuracy",
    )
    config.compare.learning_rates = (
        "soft prompt: 0.01 0.03 0.1",
        "prompt encoder: 0.001 0.003 0.01",
        "prefix: 0.005 0.01 0.02",
        "ia3: 0.003 0.01 0.03",
        "lora: 0.0003 0.001 0.003",
        "fine tuning: 0.00002 0.00005 0.0001",
    )
    config.compare.unrelated = "bbc_news"
    return config
