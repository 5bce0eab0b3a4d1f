"""A hard prompt for the BBC headlines, found by gradient-guided swaps of words.

Command: prompt-tuning search --config configs/search.py --workdir runs/search
  (the control: --config.search.name=random)
Hardware and time: 2 CPU cores at 140 GFLOP/s, float32, nothing else running: 23 min 15 s (seed 2;
  0.7 prompts a second, each on 32 headlines). At 219 GFLOP/s 14 min 31 s (seed 0, 1.1 a second).
Expected: 74.3, 70.7 and 73.3 % on the validation split, 68.4, 65.8 and 68.4 % on the 500 test
  headlines (seeds 0, 1 and 2; run here). The start has 61.7 % and 57.4 %, the best written prompt,
  of benchmarks/headlines_prompts.txt, 67.3 % and 62.4 %.
  Random swaps with as many forwards: 72.3, 72.0 and 70.3 %, and 68.8, 68.4 and 64.4 % (run here).
  On average that is 71.5 % against 72.8 % on validation, and 67.2 % against 67.5 % on test.
  Their cross-entropy among the labels, on test, is 0.927, 0.912 and 0.935 nats, and that of the
  gradient's prompts 0.884, 0.914 and 0.873: lower by 0.034 [0.020, 0.048], and 0.3 points more of
  the answers are right [-1.4, +2.0] (api.label_scores, metrics.paired_difference).
If the start's words of several tokens may not change, it gives 69.7 and 65.4 % (seed 0), so they
  may. A start of words of one token alone gives 73.7 and 72.3 %, and 67.4 and 66.6 % (seeds 0
  and 1), and with random swaps 72.3 and 66.2 % (seed 0): --config.search.start="The BBC has five
  sections: business about companies, shares and the economy, entertainment about films, music and
  television, politics about parties, ministers and elections, sports about football, rugby and
  tennis, and technology about computers, the internet and games."
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
    # The best written prompt, with the searched one in front.
    config.search.template = "{soft}\nBBC News: {text}\nThis story is about"
    return config
