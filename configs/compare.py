"""Every way to adapt SmolLM2-135M-Instruct to the BBC headlines, in one table.

Command: prompt-tuning compare --config configs/compare.py --workdir runs/compare
Hardware and time: 2 CPU cores at 193 to 219 GFLOP/s, float32: 2 h 11 min in four starts, with
  other work beside a part of it (run here).
Expected: docs/results/headlines/report.md, as it came out. On the test split, means of three seeds:
  soft prompt 84.9 %, prompt encoder 83.7 %, prefix 88.5 %, IA3 87.8 %, LoRA 90.1 %, fine-tuning
  90.9 %; searched prompt 68.4 %, the written prompt 62.4 %, and 67.0 % calibrated.
  The written prompt is the best of benchmarks/headlines_prompts.txt on the validation split, whose
  300 labels its row does not count.
  Each rate is tried for 100 steps, and the best goes on. The same rows with all rates trained to
  the end, on another machine: 84.3, 83.8, 88.5, 87.8, 90.4 and 90.8 %.

With few examples: docs/results/headlines_few/report.md, by the command there (run here, 80 steps).
"""

from ml_collections import ConfigDict

TEXT = (
    "Read the news headline and say which section of the BBC website it belongs to: business,"
    " entertainment, politics, sports or technology. Answer with one word."
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.steps = 250
    config.evaluate_every = 50
    config.save_every = 50

    config.prompts = ("BBC News: {text}\nThis story is about",)

    # As in configs/search.py.
    config.search = ConfigDict()
    config.search.start = (
        "The BBC has five sections: business (companies, shares, the economy), entertainment"
        " (films, music, television), politics (parties, ministers, elections), sports (football,"
        " rugby, tennis) and technology (computers, the internet, games)."
    )
    config.search.template = "{soft}\nBBC News: {text}\nThis story is about"

    config.compare = ConfigDict()
    virtual = f"method.num_virtual_tokens=32 method.init=text method.init_text='{TEXT}'"
    # For the prefix: steps in proportion to the size of the keys, and to that of the values.
    scaled = "optimizer.name=adafactor optimizer.multiply_by_parameter_scale=true"
    config.compare.rows = (
        "no prompt",
        "written prompt",
        "demonstrations",
        "searched prompt: best_by=accuracy",
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
        "lora: 0.001 0.003 0.01",
        "fine tuning: 0.00005 0.0001 0.0002",
    )
    config.compare.unrelated = "bbc_news"
    return config
