"""Packaging. The lowest versions are the oldest that passed the tests."""

from setuptools import find_packages, setup

setup(
    name="prompt-tuning-jax",
    version="0.1.0",
    description="Adapts a frozen language model to a task, exactly and fast, in JAX and Flax.",
    license="Apache-2.0",
    packages=[
        *find_packages(include=["prompt_tuning_jax", "prompt_tuning_jax.*"]),
        "prompt_tuning_jax.configs",
    ],
    # Installed inside the package, where `list` and `copy` find them.
    package_dir={"prompt_tuning_jax.configs": "configs"},
    python_requires=">=3.11",
    # What the package imports, and two exceptions.
    install_requires=[
        "click>=8.1.8,<9",
        "flax>=0.11.2,<0.13",
        "gguf>=0.17,<0.20",
        "grain>=0.2.15,<0.3",
        "huggingface_hub>=1.20.1,<3",
        # Some versions of etils import it without asking for it.
        "importlib_resources>=6,<8",
        "jax>=0.7.2,<0.13",
        # transformers renders chat templates with it, and does not ask for it.
        "jinja2>=3.1.6,<4",
        "jaxlib>=0.7.2,<0.13",
        "matplotlib>=3.9,<4",
        "ml-collections>=1.0,<2",
        "ml-dtypes>=0.5,<0.7",
        "numpy>=2.0,<3",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.24,<0.13",
        "protobuf>=4.25,<8",
        "rich>=13.9,<16",
        "rouge-score>=0.1.2,<0.2",
        "sacrebleu>=2.4,<3",
        "safetensors>=0.6,<0.9",
        "scipy>=1.14,<2",
        "tensorboardX>=2.6.4,<3",
        "tensorflow-datasets>=4.9.9,<5",
        "tokenizers>=0.22.2,<0.24",
        "transformers>=5.15,<6",
    ],
    extras_require={
        # Runs the notebooks. The model and the data of the quickstart are in requirements/demo.txt.
        "quickstart": ["ipykernel>=6.29"],
        "cuda": ["jax[cuda12]>=0.7.2,<0.13"],
        "tpu": ["jax[tpu]>=0.7.2,<0.13"],
        "test": [
            "hypothesis>=6.130,<7",
            "ipykernel>=6.29",
            "mypy==2.4.1",
            "nbclient>=0.10,<0.12",
            "pytest>=8.3,<10",
            "pytest-xdist>=3.6,<4",
            "ruff==0.17.6",
            # Builds the package in a test.
            "setuptools>=65",
        ],
        "bench": ["accelerate==1.15.0", "peft==0.21.2", "torch==2.13.0", "transformers==5.23.0"],
    },
    entry_points={"console_scripts": ["prompt-tuning=prompt_tuning_jax.cli.main:main"]},
)
