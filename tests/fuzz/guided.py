"""Coverage-guided fuzzing of one target by atheris: `python guided.py TARGET SECONDS FOLDER`.

FOLDER takes what it finds: new inputs, and `crash-…` for an input that fails. Only Python's branches guide it: those
of `fabric`, of the models and scripts here, and of the readers that it is compared with. The compiled modules are
reached through them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 2000  # bytes of an input


def main(name: str, seconds: str, folder: str) -> None:
    with atheris.instrument_imports(include=["fabric", "fuzz", "support.other_readers", "websockets"]):
        from fuzz.targets import TARGETS
    found = Path(folder) / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-artifact_prefix={folder}/{name}-"]
    atheris.Setup([sys.argv[0], *options, str(found), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
