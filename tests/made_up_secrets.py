"""Secrets for the environment of a command, none of which may be shown or written."""

SECRET = "hf_NobodyMaySeeThisAnywhere"
URL = f"https://user:{SECRET[3:]}@example.org/model.gguf"
NAMES = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"]
# Recorded with a run, because of how their names begin.
RECORDED = ["JAX_API_KEY", "TPU_TOKEN", "XLA_PASSWORD", "PROMPT_TUNING_CREDENTIALS", "CUDA_SECRET"]
VARIABLES = {
    **dict.fromkeys([*NAMES, *RECORDED], SECRET[3:]),
    # Their names do not say that they are secret.
    "JAX_NOTE": SECRET,
    "TPU_PROXY": URL,
}
