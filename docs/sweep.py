"""Searches settings with Optuna on many machines at once: `pip install optuna`, then on each, at
the top of a checkout,

    python docs/sweep.py /shared/sweep.journal

The journal is a file that all machines can write, on NFS for example.
"""

import sys

import optuna

from prompt_tuning_jax import config, load, tune
from prompt_tuning_jax.data.task import make_task
from prompt_tuning_jax.errors import RunError

FILE = "configs/quickstart.py"
LM = load(config.load(FILE).model)


def objective(trial: optuna.Trial) -> float:
    """Returns the best validation loss of a run with the trial's settings."""
    rate = trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
    tokens = trial.suggest_categorical("num_virtual_tokens", [8, 16, 32, 64])
    words = f"--config.learning_rate={rate}", f"--config.method.num_virtual_tokens={tokens}"
    settings = config.load(FILE, words)
    result = tune(LM, make_task(settings.task), settings)
    return result.artifact.manifest["metrics"]["validation_loss"]


backend = optuna.storages.journal.JournalFileBackend(sys.argv[1])
study = optuna.create_study(
    storage=optuna.storages.JournalStorage(backend), study_name="sweep", load_if_exists=True
)
study.optimize(objective, n_trials=10, catch=(RunError,))  # of a rate that is too high
print(study.best_params, study.best_value)
