"""Trains on disks that are really full: `unshare -rm python full_tmpfs.py FOLDER`, FOLDER empty.

Each run has a tmpfs of its own that holds one page, or one file, more than the one before, until
there is room for all. Prints how many runs there were.
"""

import subprocess
import sys
from pathlib import Path

import full_disk

PAGE = 4096


def mounted(folder, option, action):
    subprocess.run([*action, "-o", option, str(folder)], check=True)


def runs(folder, option, unit, whole):
    """Runs on ever larger disks; gives back how many did not hold all."""
    refused = 0
    while True:
        limit = f"{option}={unit * (refused + 2)}"
        mounted(folder, limit, ["mount", "-t", "tmpfs", "tmpfs"])
        found = full_disk.typed(folder / "run")
        told = [line for line in found.out.splitlines() if full_disk.FULL in line]
        assert all(line.startswith("warning: ") for line in told), found
        if found.status:
            assert f"({full_disk.FULL}): " in found.err, found
        if found.status == 2:
            assert "step" not in found.out, found
        made = [(folder / "run" / name).exists() for name in ("artifact", "report.json")]
        assert all(made) == (found.status == 0), found

        def room():
            mounted(folder, f"{option}={unit * 10_000}", ["mount", "-o", "remount"])

        full_disk.goes_on(found, folder / "run", whole, room)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        if not (found.status or told):
            return refused
        refused += 1


def main(folder):
    with full_disk.compiled_once():
        whole_run = folder.with_name("whole")
        assert full_disk.typed(whole_run).status == 0
        whole = full_disk.left(whole_run)
        for option, unit in (("size", PAGE), ("nr_inodes", 1)):
            print(option, runs(folder, option, unit, whole), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
