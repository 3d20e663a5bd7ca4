"""Fuzzes the decoder and a running server for as long as asked: `python -m tests.bench.fuzz --minutes 10`.

The same tests run a fixed number of cases in `make test`. A failure shows the seed of its case.
"""

from __future__ import annotations

import argparse
import os
import sys

import pytest

from tests.fuzzing import MINUTES

TESTS = ["tests/contract/test_fuzz.py", "tests/edge/server/test_fuzz.py"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="for the images and the requests together")
    arguments = parser.parse_args()
    os.environ[MINUTES] = str(arguments.minutes / len(TESTS))
    return int(pytest.main(["-q", "-o", "timeout=0", "-p", "no:cacheprovider", *TESTS]))


if __name__ == "__main__":
    sys.exit(main())
