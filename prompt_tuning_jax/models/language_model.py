"""A frozen language model with its tokenizer, and `load`, which reads one."""

import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from prompt_tuning_jax import config as configs
from prompt_tuning_jax.config.key import among, string
from prompt_tuning_jax.errors import UserError
from prompt_tuning_jax.memory import device_bytes
from prompt_tuning_jax.models.decoder import REMAT, Decoder, param_shapes
from prompt_tuning_jax.models.files.find import find_model, pin
from prompt_tuning_jax.models.files.tokenizer import VOCABULARIES, Tokenizer, read_tokenizer
from prompt_tuning_jax.models.files.weights import DTYPES, read_spec, read_weights
from prompt_tuning_jax.models.sites import sites
from prompt_tuning_jax.models.spec import Spec, axis_sizes, matrices
from prompt_tuning_jax.quantization import quantize
from prompt_tuning_jax.sharding import WHOLE, Layout, make_layout, shard

KEYS = {
    # A packaged model's name, a GGUF file, a Hugging Face folder with safetensors, or a name on the
    # hub, USER/NAME or USER/NAME@REVISION. A path that exists is preferred.
    "path": string("smollm2-135m-instruct", least=1),
    # 'auto' is float32 on a CPU and bfloat16 elsewhere.
    "dtype": among("auto", ("auto", *DTYPES)),
    # What the backward pass keeps, see `Decoder`.
    "remat": among("named", tuple(REMAT)),
    # 'int8' keeps the frozen matrices in a quarter of float32's bytes.
    "quantize": among("", ("", "int8")),
    # Of matrix products; '' is the platform's default.
    "matmul_precision": among("highest", ("", "default", "high", "highest")),
}


class LanguageModel(NamedTuple):
    """A frozen model as everything else takes it."""

    settings: Mapping[str, str]  # what it was loaded with, by the names in `KEYS`
    spec: Spec
    module: Decoder  # the linen module; `module.apply(sites.bind(spec, params, given), ...)`
    params: Any  # the frozen tree (`models/decoder.py`), on the default device, or in parts
    tokenizer: Tokenizer  # text to ids and back
    fingerprint: str  # hex digest of the source files, whatever the dtype
    config: Mapping[str, Any] = {}  # its `config.json`
    layout: Layout = WHOLE  # how the frozen tree lies over devices

    @property
    def name(self) -> str:
        """The path or name that it was loaded by."""
        return self.settings["path"]

    @property
    def sites(self) -> dict[str, str]:
        """The letters of the axes of every site by its path, see `models.sites`."""
        return sites(self.spec)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the model's axes by their letters."""
        return axis_sizes(self.spec)

    @property
    def dtype(self) -> Any:
        """What it computes in."""
        return jax.tree.leaves(self.params["embed"])[-1].dtype

    def embed(self, ids: Any, prompt: Any = None) -> jax.Array:
        """Returns float32[N, E], what the model reads at int32[N] ids: scaled as the model does.
        Slot j, id -1-j, is row j of `prompt`."""
        variables = {"params": {"embed": self.params["embed"]}}
        if prompt is not None:
            variables["prompt"] = {"vectors": prompt}
        return self.module.apply(variables, jnp.asarray(ids), method="vectors").astype(jnp.float32)


def load(
    model: str | os.PathLike | Mapping[str, str] | ConfigDict = KEYS["path"].default,
    parallel: Mapping[str, Any] | ConfigDict = MappingProxyType({}),
    **changes: str,
) -> LanguageModel:
    """Reads a frozen language model and places it on the default device, once.

    Args:
      model: `config.model`, or the path alone: a packaged model's name, a `.gguf` file, a Hugging
        Face folder with `config.json` and safetensors, or a name on the hub, such as
        'HuggingFaceTB/SmolLM2-360M-Instruct', whose commit the settings then name.
      parallel: `config.parallel` or some of it, as {"model": 4}, with which the weights lie in
        parts over all processes' devices.
      changes: other values than those of `model` or the defaults, by the names in `KEYS`.

    Raises:
      UserError: a path or setting that cannot be used, a model larger than the memory, or a
        tokenizer with more ids than the model has embeddings.
    """
    given = {"path": os.fspath(model)} if isinstance(model, str | os.PathLike) else {**model}
    config = configs.build({"model": given | changes, "parallel": {**parallel}})
    settings, parallel = config.model.to_dict(), config.parallel
    path, dtype = settings["path"], settings["dtype"]
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    shrinks = DTYPES[dtype].itemsize if settings["quantize"] else 1
    most = device_bytes() * parallel["model"] * shrinks
    letters = matrices(spec := read_spec(path)[0])
    layout = make_layout(letters, param_shapes(spec), parallel, jax.device_count())
    # In int8 a row has one scale, for which it is read whole.
    read = read_weights(path, dtype, most or math.inf, WHOLE if settings["quantize"] else layout)
    words = read_tokenizer(path)
    settings["path"] = pin(path)
    if words.highest >= spec.vocabulary:
        # The embedding of such an id would be NaN, and so would every score.
        ids = f"has ids up to {words.highest} and the model has embeddings for {spec.vocabulary}"
        raise UserError(f"the tokenizer of '{path}' {ids}: give the two that belong together.")
    words.embeddings = spec.vocabulary
    module = Decoder(spec, settings["remat"], settings["matmul_precision"] or None)
    params = quantize(read.params, letters) if settings["quantize"] else read.params
    return LanguageModel(
        settings, spec, module, shard(params, layout), words, read.fingerprint, read.config, layout
    )


def outline(config: ConfigDict, devices: int) -> LanguageModel:
    """Returns a model whose weights are shapes, for a plan over so many devices, by the sections
    `model` and `parallel` of a config. A `config.json` is enough, and the tokenizer then None."""
    settings = config.model
    found = find_model(settings["path"], weights=False)
    has_words = not found.is_dir() or any((found / name).exists() for name in VOCABULARIES)
    spec, described = read_spec(str(found))
    words: Any = read_tokenizer(str(found)) if has_words else None
    dtype, letters, shapes = DTYPES[settings["dtype"]], matrices(spec), param_shapes(spec)
    leaves: dict[str, jax.ShapeDtypeStruct] = {}
    for path, shape in shapes.items():
        if settings["quantize"] and path in letters:
            leaves[f"{path}/q"] = jax.ShapeDtypeStruct(shape, jnp.int8)
            path, shape = f"{path}/scale", shape[:-1]
        leaves[path] = jax.ShapeDtypeStruct(shape, dtype)
    params = traverse_util.unflatten_dict(leaves, sep="/")
    layout = make_layout(letters, shapes, config.parallel, devices)
    module = Decoder(spec, settings["remat"], settings["matmul_precision"] or None)
    return LanguageModel(settings, spec, module, params, words, "", described, layout)
