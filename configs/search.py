"""A hard prompt for the BBC headlines, found by gradient-guided swaps of words.

Command: prompt-tuning search --config configs/search.py --workdir runs/search
  (the control: --config.search.name=random)
Hardware and time: one CPU core, float32, beside other work: 26 to 43 min (0.4 to 0.6 prompts a
  second, each on 32 headlines).
Expected: 72.0, 70.7 and 71.0 % on the validation split, 68.4, 66.6 and 69.0 % on the 500 test
  headlines (seeds 0, 1 and 2; run here). Random swaps with as many forwards give 70.0, 70.3 and
  72.3 %, and 69.0, 65.8 and 67.0 %. The start has 59.0 % and 53.6 %, the best written prompt of 45
  has 67.3 % and 62.4 %.
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
