"""A hard prompt for the BBC headlines, found by gradient-guided swaps of words.

Command: prompt-tuning search --config configs/search.py --workdir runs/search
  (the control: --config.search.name=random)
Hardware and time: 2 CPU cores at 150 GFLOP/s, float32, beside tests: 27 min 29 s (seed 0, as a row
  of configs/compare.py). One core beside other work: 28 to 34 min (0.5 to 0.6 prompts a second,
  each on 32 headlines).
Expected: 72.0, 73.0 and 73.0 % on the validation split, 68.2, 69.2 and 68.6 % on the 500 test
  headlines (seeds 0, 1 and 2; run here). Random swaps with as many forwards give 70.7, 72.0 and
  72.3 %, and 64.8, 67.4 and 66.6 %; PEZ (name=pez, seed 0, 22 min) 72.7 and 64.6 %. The start has
  61.7 % and 57.4 %, the best written prompt of 45 has 67.3 % and 62.4 %. All were measured when the
  first word could be a part of one. If the start's words of several tokens may not change, the
  search gives 69.7 and 65.4 % (seed 0), so they may.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.best_by = "accuracy"

    config.search = ConfigDict()
    config.search.name = "gradient"
    config.search.start = (
        "The BBC has five sections: business (companies, shares, the economy), entertainment"
        " (films, music, television), politics (parties, ministers, elections), sports (football,"
        " rugby, tennis) and technology (computers, the internet, games)."
    )
    # The best written prompt of 45, with the searched one in front.
    config.search.template = "{soft}\nBBC News: {text}\nThis story is about"

    return config
