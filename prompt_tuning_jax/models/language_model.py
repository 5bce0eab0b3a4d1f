"""Frozen language models: `load` reads one from a name, a GGUF file or a Hugging Face folder, and
`bake` runs the front of its input once for all."""

import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.models import memory
from prompt_tuning_jax.models.decoder import REMAT, Decoder, bind, unbind_baked
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


def bake(lm: LanguageModel, shared: np.ndarray, collections):
    """The keys and values of int32[S] shared positions, behind those of a prefix if there is one,
    as a prefix; every other collection that rows read is kept."""
    if len(shared) == 0:
        return collections
    baked = _baked(lm.module, lm.params, collections, jnp.asarray(shared))
    return {**collections, "prefix": baked}


@functools.partial(jax.jit, static_argnums=0)
def _baked(module: Decoder, params, collections, shared):
    row = jnp.zeros((1, 1), jnp.int32)
    variables = {"params": params, **bind(module.spec, collections)}
    _, out = module.apply(variables, shared, row, row, row, row, row, mutable=["baked"])
    return unbind_baked(out["baked"])


def prefix_length(collections) -> int:
    """How many positions of the model the collections take in front of every text."""
    return collections["prefix"]["k"].shape[1] if "prefix" in collections else 0
