"""Renders a chat template with transformers, in its sandbox; `chat.py` runs it as a process.

    python render_chat.py < SETTINGS > TEXTS

Both are JSON. A template that loops or grows ends with the process.
"""

import json
import resource
import sys
from pathlib import Path

SECONDS, BYTES, CHARACTERS = 2, 1 << 28, 1 << 20
# A template that asks for today's date gets Llama 3.2's own: a prompt stays the same every day.
DATE = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro %}\n"


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = json.load(sys.stdin)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + SECONDS)
    taken = Path("/proc/self/statm")
    if taken.exists():
        size = int(taken.read_text().split()[0]) * resource.getpagesize()
        limit(resource.RLIMIT_AS, size + BYTES)
    settings["chat_template"] = DATE + settings["chat_template"]
    texts = render_jinja_template(**settings, add_generation_prompt=True)[0]
    if max(map(len, texts)) > CHARACTERS:
        raise ValueError(f"it makes over {CHARACTERS:,} characters")
    print(json.dumps(texts))


def limit(kind: int, most: int) -> None:
    """Limits this process, within a limit that it was started with."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()
