"""Write the generated files of this repository, or check that they are current.

`python dashboards/generate.py` writes them; `--check` names those that are stale and exits with 1.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import dashboard
import reference
import rules

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"


def outputs() -> dict[Path, str]:
    """Return what each generated file has to hold."""
    return {
        HERE / "sqlalchemy-pool.json": json.dumps(dashboard.build(), indent=2, ensure_ascii=False) + "\n",
        HERE / "alerts.yml": rules.render(rules.ALERTS),
        README: reference.inserted(README),
    }


def stale(wanted: dict[Path, str]) -> list[Path]:
    """Return the files that are missing or hold something else than *wanted*."""
    return [
        path for path, content in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != content
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit status; a file that is current is not touched."""
    if list(arguments) not in ([], ["--check"]):
        sys.stderr.write("usage: generate.py [--check]\n")
        return 2
    wanted = outputs()
    paths = stale(wanted)
    for path in paths:
        name = path.relative_to(HERE.parent)
        if arguments:
            sys.stderr.write(f"{name} is stale: run python dashboards/generate.py\n")
        else:
            path.write_text(wanted[path], encoding="utf-8")
            sys.stdout.write(f"wrote {name}\n")
    return 1 if arguments and paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
