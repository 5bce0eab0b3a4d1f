"""Turns text into ids and back: the model's own tokenizer, from GGUF or a Hugging Face folder."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import processors

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.files.find import find_model, read_json
from prompt_tuning_jax.models.files.gguf import read_gguf

MOST_GROWTH = 1000  # characters that a file's replacements may make of one
CONTROL, USER_DEFINED = 3, 4  # GGUF's types of tokens that are matched whole in a text

LLAMA_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
SPACE = "\u2581"  # how SentencePiece writes a space


class Splitting(NamedTuple):
    """How a byte-level vocabulary cuts text before merging, whether a word in the vocabulary is
    taken whole, and whether BOS is added if the file does not say."""

    pattern: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    add_bos: bool = False


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": True,
}
SPLITTINGS = {  # by `tokenizer.ggml.pre`
    "smollm": Splitting(single_digits=True),
    "gpt-2": Splitting(),
    "llama-bpe": Splitting(LLAMA3_PATTERN, whole_words=True, add_bos=True),
}


class Facts(NamedTuple):
    """What a tokenizer's files say beside its vocabulary; `add_bos` None: its processor decides."""

    bos: str | int | None
    eos: str | int | None
    pad: str | int | None
    add_bos: bool | None
    chat_template: str | None


class Tokenizer:
    """A model's tokenizer. Text never becomes a special token, whatever it spells.

    Attributes:
      size: how many ids there are; a model may have embeddings for more.
      highest: the largest id that a text, its beginning or its end can have.
      embeddings: how many the model has, or None if no model is known: a template may name a
        special token without one.
      specials: markup to id, e.g. '<|im_start|>': 1.
      particular: the specials, by markup, that take the white space beside them (`lstrip`,
        `rstrip`) or are special only as a separate word (`single_word`).
      bos_id, eos_id, pad_id: None if the model has none.
      add_bos: whether the model's own tokenizer puts BOS in front of a text.
      chat_template: the jinja source, if any.
      fingerprint: SHA-256 of all that decides about ids, the same on every version of the library.
    """

    def __init__(self, vocabulary: Mapping[str, Any], facts: Facts):
        """Takes a parsed `tokenizer.json` and the facts beside it."""
        for step in ("normalizer", "decoder"):
            if _growth(vocabulary.get(step)) > MOST_GROWTH:
                raise ValueError(f"its {step} makes over {MOST_GROWTH} characters of one")
        words = vocabulary.get("model")
        if isinstance(words, dict) and words.get("dropout") is not None:
            # Left from the tokenizer's training: merges are skipped at random.
            vocabulary = {**vocabulary, "model": {**words, "dropout": None}}
        self.library = tokenizers.Tokenizer.from_str(json.dumps(vocabulary))
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = True
        self.size = self.library.get_vocab_size()
        self.bos_id, self.eos_id, self.pad_id = (
            self.library.token_to_id(token) if isinstance(token, str) else token
            for token in (facts.bos, facts.eos, facts.pad)
        )
        front = _front(self.library) if facts.add_bos is None else []
        if len(front) == 1 and (self.bos_id is None or isinstance(facts.bos, int)):
            self.bos_id = front[0]  # transformers ignores config.json here too
        if front not in ([], [self.bos_id]):
            raise ValueError(
                f"its post_processor puts {short(front)} in front of a text, expected at most the "
                f"BOS token, {self.bos_id}: change one of them"
            )
        for number in (self.bos_id, self.eos_id, self.pad_id):
            if number is not None and number >= self.size:
                raise ValueError(f"it names id {number} and has {self.size}")
        add_bos = bool(front) if facts.add_bos is None else facts.add_bos
        self.add_bos: bool = add_bos and self.bos_id is not None
        self.chat_template = facts.chat_template
        added = self.library.get_added_tokens_decoder().items()
        self.specials = {token.content: number for number, token in added if token.special}
        self.particular = {
            token.content: token
            for _, token in added
            if token.special and (token.lstrip or token.rstrip or token.single_word)
        }
        self.embeddings: int | None = None
        spelled = self.library.get_vocab().items()
        ids = [number for token, number in spelled if token not in self.specials]
        self.highest = max([0, self.bos_id or 0, self.eos_id or 0, *ids])
        # A processor that adds nothing: others add BOS, or trim the space off a token's offsets.
        self.library.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
        decisive = [vocabulary, self.bos_id, self.eos_id, self.pad_id, self.add_bos]
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self.inside = self.library
        steps = vocabulary.get("pre_tokenizer")
        if _without_first(steps) != steps:
            changed = {**json.loads(self.library.to_str()), "pre_tokenizer": _without_first(steps)}
            self.inside = tokenizers.Tokenizer.from_str(json.dumps(changed))
            self.inside.encode_special_tokens = True

    def encode(
        self, text: str, *, continues: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of a text, and where each begins and ends in it, in characters.

        If several tokens make one character, each has that character's offsets.

        Args:
          text: what to cut.
          continues: whether it follows another text or a special token: some tokenizers put a space
            in front of the first text alone.
        """
        library = self.inside if continues else self.library
        with _panics(f"a text of {len(text)} characters cannot be cut into tokens"):
            encoding = library.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, special ones too; bytes that are not UTF-8 become U+FFFD."""
        with _panics(f"{len(ids)} tokens cannot be turned into text"):
            return self.library.decode(list(ids), skip_special_tokens=False)


@contextlib.contextmanager
def _panics(what: str) -> Iterator[None]:
    """Turns what the library raises into a UserError: a plain Exception, or a panic, as when a
    pattern takes too long."""
    try:
        yield
    except BaseException as error:  # the class of a panic cannot be imported
        if type(error).__name__ not in ("Exception", "PanicException"):
            raise
        raise UserError(
            f"{what}: the model's tokenizer.json is at fault ({_reason(error)})."
        ) from error


def _reason(error: BaseException) -> str:
    """Returns what the library says, cut: it may quote all of a damaged file."""
    return repr(str(error)[:200])[1:-1]


def _front(library: tokenizers.Tokenizer) -> list[int]:
    """Returns what a tokenizer's processor puts in front of a text."""
    encoding = library.encode("a")
    added = encoding.special_tokens_mask
    return encoding.ids[: added.index(0)] if 0 in added else []


def _without_first(part: Any) -> Any:
    """Changes a part of a `tokenizer.json` so that no step puts a space in front of a text."""
    if isinstance(part, list):
        return [_without_first(inside) for inside in part]
    if not isinstance(part, dict):
        return part
    never = {"prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else {}
    return {key: _without_first(inside) for key, inside in part.items()} | never


def _growth(part: Any) -> int:
    """Returns how many characters the replacements in a part of a `tokenizer.json`, one after
    another, make of one; counted up to `MOST_GROWTH`."""
    made = 1
    if isinstance(part, dict):
        content = part.get("content")
        made = max(len(content), 1) if isinstance(content, str) else 1
        part = list(part.values())
    for inside in part if isinstance(part, list) else ():
        made = min(made * _growth(inside), MOST_GROWTH + 1)
    return made


def read_tokenizer(path: str) -> Tokenizer:
    """Reads the tokenizer of a model.

    Args:
      path: as for `read_weights`.

    Raises:
      UserError: the model is missing, or its tokenizer is missing, damaged or not supported.
    """
    found = find_model(path)
    vocabulary, facts = _read_folder(found) if found.is_dir() else _read_gguf(found)
    wrong = f"the tokenizer of '{path}' cannot be read"
    try:
        with _panics(wrong):
            return Tokenizer(vocabulary, facts)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{wrong}: {_reason(error)}.") from error


def _read_folder(folder: Path) -> tuple[dict[str, Any], Facts]:
    """Reads `tokenizer.json`, `tokenizer_config.json`, `config.json`, and what earlier versions
    wrote, `special_tokens_map.json`."""
    vocabulary = read_json(folder / "tokenizer.json")
    named, model, earlier = (
        read_json(folder / file) if (folder / file).exists() else {}
        for file in ("tokenizer_config.json", "config.json", "special_tokens_map.json")
    )
    if "added_tokens_decoder" not in named:
        named = {**named, **earlier}
    if _is_rebuilt_as_llama(folder, vocabulary, named, model):
        vocabulary = _as_llama(vocabulary, named)
    return vocabulary, Facts(
        bos=_special(named, model, "bos"),
        eos=_special(named, model, "eos"),
        pad=_special(named, model, "pad"),
        add_bos=None,  # transformers ignores what tokenizer_config.json says of it
        chat_template=_read_chat_template(folder, named),
    )


def _is_rebuilt_as_llama(
    folder: Path, vocabulary: Mapping[str, Any], named: Mapping[str, Any], model: Mapping[str, Any]
) -> bool:
    """Tells whether transformers 5 takes only the vocabulary from this `tokenizer.json`."""
    kind = named.get("tokenizer_class") or model.get("tokenizer_class")
    words = vocabulary.get("model")
    if kind not in LLAMA_CLASSES or not isinstance(words, dict):
        return False
    merged = {"vocab", "merges"} <= words.keys()
    return merged and b'"ByteLevel"' not in (folder / "tokenizer.json").read_bytes()


def _as_llama(vocabulary: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a `tokenizer.json` the steps of transformers' LlamaTokenizer: it puts a space in front
    of a text, and if it is `legacy`, of what follows a special token too."""
    spaced = named.get("add_prefix_space")
    scheme = "always" if named.get("legacy") else "first"
    scheme = scheme if spaced or spaced is None else "never"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if scheme != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    words = {key: vocabulary["model"][key] for key in ("vocab", "merges")}
    return {
        **vocabulary,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": scheme,
            "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "fuse_unk": True, "byte_fallback": True, **words},
    }


def _special(named: Mapping[str, Any], model: Mapping[str, Any], kind: str) -> str | int | None:
    """Returns BOS, EOS or padding: the token in the tokenizer's config, or the model's id."""
    token = named.get(f"{kind}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
        return token
    number = model.get(f"{kind}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if type(number) is int and number >= 0 else None


def _read_chat_template(folder: Path, named: Mapping[str, Any]) -> str | None:
    """Reads it from its own file, or takes the config's: a string, or 'default' in a list."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    template = named.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        defaults = [entry for entry in entries if entry.get("name") == "default"]
        template = defaults[-1].get("template") if defaults else None
    return template if isinstance(template, str) else None


def _read_gguf(path: Path) -> tuple[dict[str, Any], Facts]:
    """Makes a `tokenizer.json` of a GGUF file's fields."""
    fields = read_gguf(path).fields
    model, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    splitting = SPLITTINGS.get(cut) if isinstance(cut, str) else None
    if model != "gpt2" or splitting is None:
        raise UserError(
            f"{path} has a tokenizer of model {short(model)} that splits text as {short(cut)}; "
            f"supported: model 'gpt2' that splits as {', '.join(SPLITTINGS)}; use the Hugging Face "
            "folder."
        )
    tokens, merges, kinds = (
        fields.get(f"tokenizer.ggml.{key}", []) for key in ("tokens", "merges", "token_type")
    )
    if not all(isinstance(part, list) for part in (tokens, merges, kinds)) or not tokens:
        raise UserError(f"{path} has a tokenizer without a list of tokens, merges or token types.")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": bool(kind == CONTROL)}
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _splitting_steps(splitting)},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": splitting.whole_words,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    prefix, template = "tokenizer.ggml.", fields.get("tokenizer.chat_template")
    named = {key.removeprefix(prefix): value for key, value in fields.items()}
    return vocabulary, Facts(
        bos=_special({}, named, "bos"),
        eos=_special({}, named, "eos"),
        pad=_special({}, named, "padding"),
        add_bos=bool(fields.get("tokenizer.ggml.add_bos_token", splitting.add_bos)),
        chat_template=template if isinstance(template, str) else None,
    )


def _splitting_steps(splitting: Splitting) -> list[dict[str, Any]]:
    """Returns the pre-tokenizers as `tokenizer.json` spells them."""
    steps: list[dict[str, Any]] = []
    if splitting.single_digits:
        steps.append({"type": "Digits", "individual_digits": True})
    if splitting.pattern:
        pattern = {"Regex": splitting.pattern}
        steps.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    return [*steps, {**BYTE_LEVEL, "use_regex": splitting.pattern is None}]
