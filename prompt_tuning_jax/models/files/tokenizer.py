"""Turns text into ids and back: the model's own tokenizer, from GGUF or a Hugging Face folder."""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import processors

from prompt_tuning_jax.errors import UserError, short
from prompt_tuning_jax.models.files.find import find_model, read_json
from prompt_tuning_jax.models.files.gguf import read_gguf

MOST_GROWTH = 1000  # characters that a file's replacements may make of one
MOST_BYTES = 1 << 28  # in a file
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # GGUF's types; the last two are matched whole in a text
LONGEST = 1000  # characters in front of a split of SentencePiece's tokens
HIGHEST = 1 << 22  # id

# What transformers gets of a folder; one of the first is needed.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
SETTINGS = ("tokenizer_config.json", "config.json", "special_tokens_map.json")
FILES = (*VOCABULARIES, *SETTINGS, "added_tokens.json", "merges.txt", "chat_template.jinja")
SAFE = ("model_type", "transformers_version", "chat_template", "added_tokens_decoder")
SPACE = "\u2581"  # how SentencePiece writes a space

OFF = dict.fromkeys(("add_prefix_space", "trim_offsets"), False)
BYTE_LEVEL = {"type": "ByteLevel", **OFF, "use_regex": True}


def _split_words(digits: str) -> list[dict[str, Any]]:
    """Returns the steps that split text as Llama 3 does, and numbers by the pattern `digits`."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    others = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    pattern = {"Regex": f"{words}|{digits}|{others}"}
    return [{**split, "pattern": pattern}, {**BYTE_LEVEL, "use_regex": False}]


LLAMA3, QWEN2 = "llama-bpe", "qwen2"
# How a byte-level vocabulary splits text before merging, by `tokenizer.ggml.pre`.
SPLITTINGS = {
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    "gpt-2": [BYTE_LEVEL],
    LLAMA3: _split_words(r"\p{N}{1,3}"),
    QWEN2: _split_words(r"\p{N}"),
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
    """A model's tokenizer. Text never becomes a special token, whatever it spells."""

    def __init__(self, vocabulary: Mapping[str, Any], facts: Facts):
        """Takes a parsed `tokenizer.json` and the facts beside it."""
        words = vocabulary.get("model")
        if isinstance(words, dict) and words.get("dropout") is not None:
            # Left from the tokenizer's training: merges are skipped at random.
            vocabulary = {**vocabulary, "model": {**words, "dropout": None}}
        self.vocabulary = vocabulary  # as a `tokenizer.json` has it
        self.library = tokenizers.Tokenizer.from_str(json.dumps(vocabulary))
        self.library.no_truncation()
        self.library.no_padding()
        self.library.encode_special_tokens = True
        self.size = self.library.get_vocab_size()  # a model may have embeddings for more
        self.bos_id, self.eos_id, self.pad_id = (  # None if the model has none
            self.library.token_to_id(token) if isinstance(token, str) else token
            for token in (facts.bos, facts.eos, facts.pad)
        )
        # What it puts in front of a text and, unless that is a prompt, behind it.
        front, self.behind = _added(self.library) if facts.add_bos is None else ([], [])
        if len(front) == 1 and (self.bos_id is None or isinstance(facts.bos, int)):
            self.bos_id = front[0]  # transformers ignores config.json here too
        if front not in ([], [self.bos_id]):
            problem = f"its post_processor puts {short(front)} in front of a text"
            expected = f"expected at most the BOS token, {self.bos_id}"
            raise ValueError(f"{problem}, {expected}: change one of them")
        for number in (self.bos_id, self.eos_id, self.pad_id):
            if number is not None and number >= self.size:
                raise ValueError(f"it names id {number} (BOS, EOS or padding) and has {self.size}")
        self.add_bos = bool(front) or (bool(facts.add_bos) and self.bos_id is not None)
        template = facts.chat_template
        self.chat_template = template if isinstance(template, str) else None
        added = self.library.get_added_tokens_decoder().items()
        # Markup to id, e.g. '<|im_start|>': 1.
        self.specials = {token.content: number for number, token in added if token.special}
        self.special_ids = {*self.specials.values()}
        # Those that take the white space beside them, or are special only as a separate word.
        self.particular = {
            token.content: token
            for _, token in added
            if token.special and (token.lstrip or token.rstrip or token.single_word)
        }
        # How many the model has, or None: a template may name a special token without one.
        self.embeddings: int | None = None
        spelled = self.library.get_vocab().items()
        self.text_ids = sorted(number for token, number in spelled if token not in self.specials)
        # The largest id that a text, its beginning or its end can have.
        self.highest = max([0, self.bos_id or 0, self.eos_id or 0, *self.text_ids[-1:]])
        listed = (each if isinstance(each, list) else [each] for each in (*facts.ends, self.eos_id))
        ends = {n for n in itertools.chain(*listed) if type(n) is int and 0 <= n <= HIGHEST}
        self.end_ids = sorted(ends)  # those that end a text which the model writes
        # A processor that adds nothing: others add BOS, or trim the space off a token's offsets.
        self.library.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
        decisive = [vocabulary, self.bos_id, self.eos_id, self.pad_id, self.add_bos]
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        # Of all that decides about ids, the same on every version of the library.
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self.inside = self.library
        steps = json.dumps(vocabulary.get("pre_tokenizer"))
        # No step puts a space in front of a text that continues another.
        changed = steps.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        if changed != steps:
            whole = {**json.loads(self.library.to_str()), "pre_tokenizer": json.loads(changed)}
            self.inside = tokenizers.Tokenizer.from_str(json.dumps(whole))
            self.inside.encode_special_tokens = True

    def encode(
        self, text: str, *, continues: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of a text, and where each begins and ends in it, in characters; tokens
        that make one character all have its offsets. `continues`: the text follows another one or a
        special token; some tokenizers put a space in front of the first text alone."""
        library = self.inside if continues else self.library
        with _panics(f"a text of {len(text)} characters cannot be cut by the tokenizer.json"):
            encoding = library.encode(text, add_special_tokens=False)
        for number in self.special_ids.intersection(encoding.ids):
            markup = str(library.id_to_token(number))
            if markup in text:  # and not for an unknown character
                problem = f"a text has {markup!r}, which the model reads as a special token"
                raise UserError(f"{problem}: remove it.")
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, special ones too; bytes that are not UTF-8 become U+FFFD."""
        with _panics(f"{len(ids)} tokens cannot be turned into text by the tokenizer.json"):
            return self.library.decode(list(ids), skip_special_tokens=False)


@contextlib.contextmanager
def _panics(what: str, known: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turns `known` errors, and plain Exceptions and panics of the library, into a UserError."""
    try:
        yield
    except BaseException as error:  # the class of a panic cannot be imported
        library = type(error).__name__ in ("Exception", "PanicException")
        if isinstance(error, UserError) or not (library or isinstance(error, known)):
            raise
        # Cut: the library may quote all of a damaged file.
        raise UserError(f"{what}: {repr(str(error)[:200])[1:-1]}.") from error


def _added(library: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Returns what a tokenizer's processor puts in front of a text and behind it."""
    encoding = library.encode("a")
    added = encoding.special_tokens_mask
    if 0 not in added:
        return [], []
    return encoding.ids[: added.index(0)], encoding.ids[len(added) - added[::-1].index(0) :]


def _growth(part: Any) -> float:
    """Returns the log of how many characters a part of a `tokenizer.json` makes of one."""
    if isinstance(part, dict):
        content = part.get("content")
        own = math.log(len(content)) if isinstance(content, str) and content else 0.0
        return own + sum(map(_growth, part.values()))
    return sum(map(_growth, part)) if isinstance(part, list) else 0.0


def read_tokenizer(path: str) -> Tokenizer:
    """Reads the tokenizer of a model; a UserError if it is missing, damaged or not supported."""
    found = find_model(path)
    with _panics(f"the tokenizer of '{path}' cannot be read", Exception):
        return Tokenizer(*(_read_folder(found) if found.is_dir() else _read_gguf(found)))


def _read_folder(folder: Path) -> tuple[dict[str, Any], Facts]:
    """Reads a tokenizer as transformers does, from checked copies of its files."""
    files: dict[str, Any] = {}  # JSON objects, or bytes
    for name in (*FILES, "generation_config.json"):
        path = folder / name
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES:,} bytes.")
        if path.is_file():
            files[name] = read_json(path) if path.suffix == ".json" else path.read_bytes()
    if not files.keys() & {*VOCABULARIES}:
        read_json(folder / VOCABULARIES[0])  # which raises
    named, model = files.get("tokenizer_config.json", {}), files["config.json"]
    if "auto_map" in named or "AutoTokenizer" in dict(model.get("auto_map") or {}):
        raise UserError(
            f"{folder} names code for its tokenizer (auto_map), which is never run: save it as a"
            " tokenizer.json, and remove auto_map."
        )
    whole = files.get("tokenizer.json")
    # The library writes a vocabulary with a place for each id up to the highest.
    for words in (dict(whole or {}).get("model"), files.get("vocab.json")):
        ids = words.get("vocab", words) if isinstance(words, dict) else {}
        if isinstance(ids, dict) and any(isinstance(n, int) and n > HIGHEST for n in ids.values()):
            raise ValueError(f"it has an id above {HIGHEST}")
    for step in ("normalizer", "decoder"):
        if whole and _growth(whole.get(step)) > math.log(MOST_GROWTH):
            raise ValueError(f"its {step} makes over {MOST_GROWTH} characters of one")
    made = _ask_transformers({name: files[name] for name in files.keys() & {*FILES}})
    template = made.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    bos, eos, pad = (
        getattr(made, f"{kind}_token") or _first_id(model, kind) for kind in ("bos", "eos", "pad")
    )
    ends = model.get("eos_token_id"), files.get("generation_config.json", {}).get("eos_token_id")
    return _changed(whole, made.backend_tokenizer), Facts(bos, eos, pad, None, template, ends)


def _ask_transformers(files: Mapping[str, Any]) -> Any:
    """Returns the tokenizer that transformers makes of files."""
    off = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of libraries that are missing, and of old settings
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as copy:
            warnings.simplefilter("ignore")  # in a notebook without widgets
            from transformers.models.auto import tokenization_auto as auto

            names = auto.TOKENIZER_MAPPING_NAMES.values()
            known = {str(name).removesuffix("Fast") for name in names}
            for name, content in files.items():
                content = _safe(name, content, known) if name in SETTINGS else content
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                Path(copy, name).write_bytes(raw)
            return auto.AutoTokenizer.from_pretrained(
                copy, local_files_only=True, trust_remote_code=False
            )
    finally:
        logging.disable(off)


def _safe(name: str, content: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Returns the settings that name no path: numbers, tokens, and names that are known."""
    given = {key: value for key, value in content.items() if key in SAFE}
    for key, value in content.items() if name != "config.json" else ():
        if key.endswith(("_token", "_tokens")) or isinstance(value, int | float):
            given[key] = value
    if kind := content.get("tokenizer_class"):
        # Its name for one that it does not know.
        own = isinstance(kind, str) and kind.removesuffix("Fast") in known
        given["tokenizer_class"] = kind if own else "TokenizersBackend"
    return given


def _changed(whole: Mapping[str, Any] | None, made: tokenizers.Tokenizer) -> dict[str, Any]:
    """Returns a `tokenizer.json` with what transformers changed, and all else as it stands there,
    the same on every version of the libraries. A byte-level file keeps its own steps: transformers
    5 would split SmolLM2's text as GPT-2's."""
    plain = tokenizers.Tokenizer.from_str(json.dumps(whole)) if whole else made
    for library in (plain, made):
        library.no_truncation()
        library.no_padding()
    if _added(plain) == _added(made):
        made.post_processor = plain.post_processor
    before, after = json.loads(plain.to_str()), json.loads(made.to_str())
    whole = whole or after
    own = whole is not after and '"ByteLevel"' in json.dumps(whole.get("pre_tokenizer"))
    keys = ("added_tokens", "post_processor") if own else after
    changed = {key: after[key] for key in keys if before[key] != after[key]}
    if "model" in changed:
        old, words = before["model"], whole["model"]
        changed["model"] = {
            key: words.get(key, value) if old.get(key) == value else value
            for key, value in after["model"].items()
            if value is not None and value is not False
        }
    return {**whole, **changed}


def _first_id(fields: Mapping[str, Any], kind: str) -> int | None:
    """Returns the model's own id of BOS, EOS or padding, the first of several."""
    number = fields.get(f"{kind}_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if type(number) is int and number >= 0 else None


def _read_gguf(path: Path) -> tuple[dict[str, Any], Facts]:
    """Makes a `tokenizer.json` of a GGUF file's fields."""
    fields = read_gguf(path).fields
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    lists = ("tokens", "token_type", "merges", "scores")
    tokens, kinds, merges, scores = (fields.get(key, []) for key in lists)
    if not all(isinstance(part, list) for part in (tokens, kinds, merges, scores)) or not tokens:
        raise UserError(f"{path} has a tokenizer without a list of tokens, merges or token types.")
    model, cut = fields.get("model"), fields.get("pre")
    words: dict[str, Any] = {"ignore_merges": cut == LLAMA3}
    if model == "llama":
        if not len(tokens) == len(kinds) == len(scores):
            counts = f"{len(tokens)} tokens, {len(kinds)} types and {len(scores)} scores"
            raise UserError(f"{path} has a tokenizer of {counts}: use the Hugging Face folder.")
        merges = _make_merges(tokens, kinds, scores)
        steps = _write_spaces(int(bool(fields.get("add_space_prefix", True))))
        words = {"fuse_unk": True, "byte_fallback": True}
    elif model != "gpt2" or not isinstance(cut, str) or cut not in SPLITTINGS:
        raise UserError(
            f"{path} has a tokenizer {short(model)} that splits as {short(cut)}; supported: 'gpt2'"
            f" that splits as {', '.join(SPLITTINGS)}, and 'llama'; use the Hugging Face folder."
        )
    else:
        pieces = {"type": "Sequence", "pretokenizers": SPLITTINGS[cut]}
        steps = {"normalizer": {"type": "NFC"}} if cut == QWEN2 else {}
        steps |= {"pre_tokenizer": pieces, "decoder": BYTE_LEVEL}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": kind == CONTROL}
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind in (CONTROL, USER_DEFINED)
        ],
        **steps,
        "model": {
            "type": "BPE",
            **words,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    bos, eos, pad = (_first_id(fields, kind) for kind in ("bos", "eos", "padding"))
    add_bos = bool(fields.get("add_bos_token", model == "llama" or cut == LLAMA3))
    # The ends of a turn and of a message, for models that were tuned for chats.
    ends = fields.get("eot_token_id"), fields.get("eom_token_id")
    return vocabulary, Facts(bos, eos, pad, add_bos, fields.get("tokenizer.chat_template"), ends)


def _write_spaces(more: int) -> dict[str, Any]:
    """Returns the steps that write a space as a sign, with `more` of them in front of a text."""
    written = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    read = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": more, "stop": 0}
    normalizers = [*[{"type": "Prepend", "prepend": SPACE}] * more, written]
    decoders = [read, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _make_merges(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]
) -> list[list[str]]:
    """Returns each split of a token in two, best score first. Special tokens are no parts."""
    usual = {
        token: float(score)
        for token, kind, score in zip(tokens, kinds, scores, strict=True)
        if kind in (NORMAL, USER_DEFINED)
    }
    splits = sorted(
        (-score, -place, token)
        for token, score in usual.items()
        for place in range(1, min(len(token), LONGEST))
        if token[:place] in usual and token[place:] in usual
    )
    return [[token[:-place], token[-place:]] for _, place, token in splits]
