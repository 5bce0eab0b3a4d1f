"""Context tuning: a prefix that starts from demonstrations, with 16 headlines of each topic.

Command: prompt-tuning train --config configs/context_tuning.py --workdir runs/context_tuning
Hardware and time: 2 CPU cores, float32, at 92 GFLOP/s in matrix products beside other work: 2 min.
Expected: 19 demonstrations fit. 78.0 % on the validation split, 78.2 % on the 500 test headlines
  (seed 0; run here).
  Three seeds, each way at the best of three rates: docs/results/context_tuning/report.md, by the
  command there (run here, 35 min on one core). This way gives 78.7 % of the test headlines, a
  prefix of 32 virtual tokens that begins as a text and has no dropout 76.8 % (-1.9 points, paired
  by example [-4.9, +1.1]), 16 demonstrations in context 28.6 %, and 56.8 % calibrated.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 100
    config.learning_rate = 0.003
    config.evaluate_every = 25
    config.save_every = 50

    config.method = ConfigDict()
    config.method.name = "prefix"
    # Whole demonstrations that fit. At most half of each topic's records are taken, and they are
    # not trained on.
    config.method.init = "demonstrations"
    config.method.num_virtual_tokens = 320
    config.method.dropout = 0.05

    config.task = ConfigDict()
    config.task.examples_per_class = 16
    config.task.validation_per_class = 16
    return config
