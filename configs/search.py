"""A hard prompt for the BBC headlines, found by gradient-guided swaps of words.

Command: prompt-tuning search --config configs/search.py --workdir runs/search
  (the control: --config.search.name=random)
Hardware and time: 2 CPU cores, float32, beside other work that took most of them (0.4 prompts a
  second, each on 32 headlines): 43 min.
Expected: 72.0 % on the validation split, 68.4 % on the 500 test headlines (seed 0; run here). The
  start has 59.0 % and 53.6 %, the best written prompt of 45 has 67.3 % and 62.4 %. Random swaps
  with as many forwards (seed 0, 26 min on one core) give 70.0 % and 69.0 %. After 16 of the 40
  rounds the gradient had 71.0 % and 66.4 %, and random swaps 69.3 % and 62.8 %.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.best_by = "accuracy"

    config.search = ConfigDict()
    config.search.name = "gradient"
    config.search.start = (
        "Say which section of the BBC this belongs to: business, entertainment, politics, sports or"
        " technology."
    )
    # The best written prompt of 45, with the searched one in front.
    config.search.template = "{soft}\nBBC News: {text}\nThis story is about"

    config.task = ConfigDict()
    config.task.labels = (
        "business",
        "entertainment",
        "politics",
        "sport=sports",
        "tech=technology",
    )
    return config
