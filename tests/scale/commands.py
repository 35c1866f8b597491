"""What commands cost on a store of many trials: CPU seconds and peak memory, as a table.

    python -m tests.scale.commands 1000 10000 100000 [--folder DIR] [--packed]

A store that is in the folder is used again. `first look` is the first command that reads the trials, with nothing remembered of
them. This process stays small: the peak of a child begins with that of the process that starts it.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "first look (status)": ["status"],
    "status": ["status"],
    "run --dry-run": ["run", "--suite", "{suite}", "--dry-run", "--device", "cpu"],
    "run, finished": ["run", "--suite", "{suite}", "--device", "cpu"],
    "report --no-tests": ["report", "--suite", "many", "--no-tests", "--reports", "{reports}"],
}


def measured(words: list[str], root: Path) -> tuple[float, float]:
    """CPU seconds and peak MB of `python -m` with these words, which must succeed."""
    log = root.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: {log.read_text()[-800:]}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trials", type=int, nargs="+")
    parser.add_argument("--folder", type=Path, default=Path("many-trials"))
    parser.add_argument("--packed", action="store_true", help="pack the trials first")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'trials':>9}  {'command':24}{'CPU s':>8}{'peak MB':>9}")
    for trials in asked.trials:
        root = asked.folder / str(trials)
        results = root / "results"
        measured(["tests.scale.many", str(root), str(trials)], root)
        commands = {"results pack": ["results", "pack"], **COMMANDS} if asked.packed else COMMANDS
        (results / "index.jsonl").unlink(missing_ok=True)
        for name, words in commands.items():
            filled = [word.format(suite=root / "many.toml", reports=root / "reports") for word in words]
            seconds, peak = measured(["milbench", *filled, "--results", str(results)], root)
            print(f"{trials:9,}  {name:24}{seconds:8.1f}{peak:9.0f}", flush=True)


if __name__ == "__main__":
    main()
