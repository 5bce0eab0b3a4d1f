"""Turns text into ids and back: the model's own tokenizer, from GGUF or a Hugging Face folder."""

import contextlib
import hashlib
import itertools
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

REBUILT = ("LlamaTokenizer", "LlamaTokenizerFast")  # by transformers 5, from their vocabulary
SPACE = "\u2581"  # how SentencePiece writes a space


class Splitting(NamedTuple):
    """How a byte-level vocabulary cuts text before merging, whether a word in the vocabulary is
    taken whole, and whether BOS is added if the file does not say."""

    steps: list[dict[str, Any]]  # as `tokenizer.json` spells them
    whole_words: bool = False
    add_bos: bool = False


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OFF = dict.fromkeys(("add_prefix_space", "trim_offsets"), False)
BYTE_LEVEL = {"type": "ByteLevel", **OFF, "use_regex": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
LLAMA3_SPLIT = {**SPLIT, "pattern": {"Regex": LLAMA3_PATTERN}}
SPLITTINGS = {  # by `tokenizer.ggml.pre`
    "smollm": Splitting([{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]),
    "gpt-2": Splitting([BYTE_LEVEL]),
    "llama-bpe": Splitting([LLAMA3_SPLIT, {**BYTE_LEVEL, "use_regex": False}], True, True),
}


class Facts(NamedTuple):
    """What a tokenizer's files say beside its vocabulary; `add_bos` None: its processor decides."""

    bos: str | int | None
    eos: str | int | None
    pad: str | int | None
    add_bos: bool | None
    chat_template: Any
    ends: tuple[Any, ...] = ()  # further ids that end a text, or lists of them


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
      text_ids: the ids that are not special, in order.
      bos_id, eos_id, pad_id: None if the model has none.
      more_ends: further ids that end a text which the model writes.
      add_bos: whether the model's own tokenizer puts BOS in front of a text.
      chat_template: the jinja source, if any.
      vocabulary: as a `tokenizer.json` has it.
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
        self.vocabulary = vocabulary
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
        template = facts.chat_template
        self.chat_template = template if isinstance(template, str) else None
        added = self.library.get_added_tokens_decoder().items()
        self.specials = {token.content: number for number, token in added if token.special}
        self.particular = {
            token.content: token
            for _, token in added
            if token.special and (token.lstrip or token.rstrip or token.single_word)
        }
        self.embeddings: int | None = None
        spelled = self.library.get_vocab().items()
        self.text_ids = sorted(number for token, number in spelled if token not in self.specials)
        self.highest = max([0, self.bos_id or 0, self.eos_id or 0, *self.text_ids[-1:]])
        listed = (each if isinstance(each, list) else [each] for each in facts.ends)
        ends = {each for each in itertools.chain(*listed) if type(each) is int and each >= 0}
        self.more_ends = sorted(ends)
        # A processor that adds nothing: others add BOS, or trim the space off a token's offsets.
        self.library.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
        decisive = [vocabulary, self.bos_id, self.eos_id, self.pad_id, self.add_bos]
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self.inside = self.library
        steps = json.dumps(vocabulary.get("pre_tokenizer"))
        # No step puts a space in front of a text that continues another.
        changed = steps.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        if changed != steps:
            whole = {**json.loads(self.library.to_str()), "pre_tokenizer": json.loads(changed)}
            self.inside = tokenizers.Tokenizer.from_str(json.dumps(whole))
            self.inside.encode_special_tokens = True

    @property
    def end_ids(self) -> list[int]:
        """The ids that end a text which the model writes."""
        return sorted({*self.more_ends, *([] if self.eos_id is None else [self.eos_id])})

    def encode(
        self, text: str, *, continues: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of a text, and where each begins and ends in it, in characters.

        If several tokens make one character, each has that character's offsets. `continues` says
        whether the text follows another one or a special token: some tokenizers put a space in
        front of the first text alone.
        """
        library = self.inside if continues else self.library
        with _panics(f"a text of {len(text)} characters cannot be cut by the tokenizer.json"):
            encoding = library.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def write(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, as transformers reads them."""
        library = tokenizers.Tokenizer.from_str(json.dumps(self.vocabulary))
        tokens = {
            f"{name}_token": library.id_to_token(number)
            for name in ("bos", "eos", "pad")
            if (number := getattr(self, f"{name}_id")) is not None
        }
        if self.add_bos and self.bos_id not in library.encode("a").ids:
            bos = tokens["bos_token"]
            library.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, self.bos_id)]
            )
        library.save(str(folder / "tokenizer.json"))
        named = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
        if self.chat_template:
            named["chat_template"] = self.chat_template
        text = json.dumps(named, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, special ones too; bytes that are not UTF-8 become U+FFFD."""
        with _panics(f"{len(ids)} tokens cannot be turned into text by the tokenizer.json"):
            return self.library.decode(list(ids), skip_special_tokens=False)


@contextlib.contextmanager
def _panics(what: str, known: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turns `known` errors and what the library raises into a UserError: a plain Exception, or a
    panic, as when a pattern takes too long."""
    try:
        yield
    except BaseException as error:  # the class of a panic cannot be imported
        library = type(error).__name__ in ("Exception", "PanicException")
        if not library and not isinstance(error, known):
            raise
        # Cut: the library may quote all of a damaged file.
        raise UserError(f"{what}: {repr(str(error)[:200])[1:-1]}.") from error


def _front(library: tokenizers.Tokenizer) -> list[int]:
    """Returns what a tokenizer's processor puts in front of a text."""
    encoding = library.encode("a")
    added = encoding.special_tokens_mask
    return encoding.ids[: added.index(0)] if 0 in added else []


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
    """Reads the tokenizer of a model; `path` is as for `read_weights`. Raises a UserError if the
    tokenizer is missing, damaged or not supported."""
    found = find_model(path)
    vocabulary, facts = _read_folder(found) if found.is_dir() else _read_gguf(found)
    with _panics(f"the tokenizer of '{path}' cannot be read", Exception):
        return Tokenizer(vocabulary, facts)


def _read_folder(folder: Path) -> tuple[dict[str, Any], Facts]:
    """Reads `tokenizer.json`, `tokenizer_config.json`, `config.json`, `generation_config.json`, and
    what earlier versions wrote, `special_tokens_map.json`."""
    vocabulary = read_json(folder / "tokenizer.json")
    files = "tokenizer_config", "config", "special_tokens_map", "generation_config"
    paths = (folder / f"{name}.json" for name in files)
    named, model, earlier, written = (read_json(path) if path.exists() else {} for path in paths)
    if "added_tokens_decoder" not in named:
        named = {**named, **earlier}
    kind = named.get("tokenizer_class") or model.get("tokenizer_class")
    words = vocabulary.get("model")
    merged = kind in REBUILT and isinstance(words, dict) and {"vocab", "merges"} <= words.keys()
    if merged and b'"ByteLevel"' not in (folder / "tokenizer.json").read_bytes():
        vocabulary = _as_llama(vocabulary, named)
    bos, eos, pad = (_special(named, model, kind) for kind in ("bos", "eos", "pad"))
    ends = model.get("eos_token_id"), written.get("eos_token_id")
    # transformers ignores what tokenizer_config.json says of adding BOS.
    return vocabulary, Facts(bos, eos, pad, None, _read_chat_template(folder, named), ends)


def _as_llama(vocabulary: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a `tokenizer.json` the steps of transformers' LlamaTokenizer: it puts a space in front
    of a text, and if it is `legacy`, of what follows a special token too."""
    spaced = named.get("add_prefix_space")
    scheme = "always" if named.get("legacy") else "first"
    scheme = scheme if spaced or spaced is None else "never"
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
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


def _read_chat_template(folder: Path, named: Mapping[str, Any]) -> Any:
    """Reads it from its own file, or takes the config's: a string, or 'default' in a list."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    template = named.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        defaults = [entry for entry in entries if entry.get("name") == "default"]
        template = defaults[-1].get("template") if defaults else None
    return template


def _read_gguf(path: Path) -> tuple[dict[str, Any], Facts]:
    """Makes a `tokenizer.json` of a GGUF file's fields."""
    fields = read_gguf(path).fields
    model, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    splitting = SPLITTINGS.get(cut) if isinstance(cut, str) else None
    if model != "gpt2" or splitting is None:
        raise UserError(
            f"{path} has a tokenizer {short(model)} that splits as {short(cut)}; supported: 'gpt2' "
            f"that splits as {', '.join(SPLITTINGS)}; use the Hugging Face folder."
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
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitting.steps},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "ignore_merges": splitting.whole_words,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    bos, eos, pad = (
        _special({}, fields, f"tokenizer.ggml.{kind}") for kind in ("bos", "eos", "padding")
    )
    add_bos = bool(fields.get("tokenizer.ggml.add_bos_token", splitting.add_bos))
    # The ends of a turn and of a message, for models that were tuned for chats.
    ends = tuple(fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eot", "eom"))
    return vocabulary, Facts(bos, eos, pad, add_bos, fields.get("tokenizer.chat_template"), ends)
