"""A frozen language model with its tokenizer, and `load`, which reads one."""

import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models import memory
from prompt_tuning_jax.models.decoder import REMAT, Decoder
from prompt_tuning_jax.models.files import tokenizer, weights
from prompt_tuning_jax.models.files.tokenizer import Tokenizer
from prompt_tuning_jax.models.spec import Spec

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class LanguageModel(NamedTuple):
    """A frozen model as everything else takes it.

    Attributes:
      name: the path or name that it was loaded by.
      spec: sizes and options.
      module: the linen module; `module.apply({"params": params, **collections}, ...)`.
      params: the frozen tree (`models/decoder.py`), on the default device.
      tokenizer: text to ids and back.
      fingerprint: hex digest of the source files, whatever the dtype.
    """

    name: str
    spec: Spec
    module: Decoder
    params: Any
    tokenizer: Tokenizer
    fingerprint: str


def load(
    path: str | os.PathLike = "smollm2-135m-instruct",
    *,
    dtype: str = "auto",
    remat: str = "named",
    matmul_precision: str = "",
) -> LanguageModel:
    """Reads a frozen language model and places it on the default device, once.

    Args:
      path: the embedded model's name, a `.gguf` file, or a Hugging Face folder with `config.json`
        and safetensors.
      dtype: 'auto' (float32 on CPU, bfloat16 elsewhere), or a dtype's name.
      remat: what the backward pass keeps, see `Decoder`.
      matmul_precision: '' for the platform's default, or 'default', 'high', 'highest'.

    Raises:
      UserError: a path, dtype or setting that cannot be used, a model larger than the memory, or
        a tokenizer with more ids than the model has embeddings.
    """
    path = os.fspath(path)
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    for name, value, known in (("dtype", dtype, DTYPES), ("remat", remat, REMAT)):
        if value not in known:
            raise UserError(f"model.{name} is '{value}'; it can be auto or {', '.join(known)}.")
    source = weights.read(path, dtype, memory.device() or math.inf)
    words = tokenizer.read(path)
    if words.highest >= source.spec.vocabulary:
        # The embedding of such an id would be NaN, and so would every score be.
        raise UserError(
            f"the tokenizer of '{path}' has ids up to {words.highest} and the model "
            f"embeddings for {source.spec.vocabulary}: give the two that belong together."
        )
    words.embeddings = source.spec.vocabulary
    module = Decoder(source.spec, remat=remat, precision=matmul_precision or None)
    params = jax.device_put(source.params)
    return LanguageModel(path, source.spec, module, params, words, source.fingerprint)
