"""Renders a chat template with transformers, in its sandbox; `chat.py` runs it as a process.

    python render_chat.py < SETTINGS > TEXTS

Both are JSON. A template that loops or grows ends with the process.
"""

import json
import resource
import sys
from pathlib import Path

SECONDS, BYTES, CHARACTERS = 2, 1 << 30, 1 << 20


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = json.load(sys.stdin)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    taken = Path("/proc/self/statm")
    if taken.exists():
        size = int(taken.read_text().split()[0]) * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    texts = render_jinja_template(**settings, add_generation_prompt=True)[0]
    if max(map(len, texts)) > CHARACTERS:
        raise ValueError(f"it makes over {CHARACTERS:,} characters")
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
