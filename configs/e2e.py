"""A soft prompt that puts a table of facts about a restaurant into words (E2E).

Command: prompt-tuning train --config configs/e2e.py --workdir runs/e2e
  and for BLEU and ROUGE-L: prompt-tuning evaluate --artifact runs/e2e --split 'test[:1000]'
Hardware and time: one CPU core, float32, beside other runs: 6 to 14 minutes of training, then 10
  minutes or more for the losses of the report (less with --config.task.test='test[:1000]').
Expected: 50.1 nats a sentence on the test split (87.0 without the prompt); BLEU 65.5 and ROUGE-L
  0.69 on the 110 facts of test[:1000] (3.7 and 0.19 without it). Seed 0; run here.

The data (Novikova et al. 2017, tokenised as in Li and Liang 2021) are JSON lines. `mr` holds the
facts; `text` holds a text, or `references` several, and each is a record. Give their paths with
`--config.task.files.train=DIR/train.jsonl` and so on.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 150
    config.batch_size = 8
    config.learning_rate = 0.03
    config.evaluate_every = 75
    config.save_every = 75

    config.method = ConfigDict()
    config.method.name = "soft_prompt"
    config.method.num_virtual_tokens = 32
    config.method.init = "text"
    config.method.init_text = (
        "Describe the restaurant in one or two plain sentences that mention each of these facts:"
    )

    config.task = ConfigDict()
    config.task.name = "files"
    config.task.files = ConfigDict()
    config.task.files.train = "data/e2e/train.jsonl"
    config.task.files.validation = "data/e2e/validation.jsonl"
    config.task.files.test = "data/e2e/test.jsonl"
    config.task.columns = ("text=text", "text=references")
    config.task.template = "{soft}{mr}\nDescription:"
    config.task.target = "{text}"
    config.task.metrics = ("bleu", "rouge_l")
    return config
