"""Prefix tuning of GPT-2 medium on E2E, as Li and Liang (2021) ran it.

Command: prompt-tuning train --config configs/gpt2_e2e_prefix.py --workdir runs/gpt2_e2e
  and for BLEU and ROUGE-L: prompt-tuning evaluate --artifact runs/gpt2_e2e
Hardware and time: one GPU or TPU chip with 8 GB (0.7 GB of weights in bfloat16); time unknown.
Expected: not run here. Their BLEU on the test split is 69.7 (arXiv; 70.3 in the ACL version), and
  68.2 with fine-tuning. They decode with 5 beams, and this config takes the likeliest token.

The data are the whole E2E (Novikova et al. 2017), in the form of configs/e2e.py. From their Table 5
and code: prefix, network, batch, epochs, rate, schedule, seed and text. Their network starts at
random and is the prefix; ours starts at zero and is added to random keys and values.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 101
    config.steps = 21030  # 5 epochs of 42,061 texts
    config.batch_size = 10
    config.learning_rate = 8e-5
    config.evaluate_every = 4206
    config.save_every = 4206

    config.schedule = ConfigDict()
    config.schedule.name = "linear"
    config.schedule.warmup_steps = 0

    config.model = ConfigDict()
    config.model.path = "openai-community/gpt2-medium"

    config.method = ConfigDict()
    config.method.name = "prefix"
    config.method.num_virtual_tokens = 5
    config.method.init = "random"
    config.method.init_scale = 0.3
    config.method.hidden_size = 512

    config.task = ConfigDict()
    config.task.name = "files"
    config.task.files = ConfigDict()
    config.task.files.train = "data/e2e/train.jsonl"
    config.task.files.validation = "data/e2e/validation.jsonl"
    config.task.files.test = "data/e2e/test.jsonl"
    config.task.columns = ("text=text", "text=references")
    config.task.template = " {mr} <|endoftext|>"
    config.task.target = "{text}"
    config.task.metrics = ("bleu", "rouge_l")

    config.generation = ConfigDict()
    config.generation.max_new_tokens = 100
    return config
