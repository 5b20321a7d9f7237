"""What the two fuzzers share: damaged bytes, a fault that was found, and their command line."""

import argparse
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Fault:
    name: str
    reader: str
    what: str


def damage(data: bytes, generator: np.random.Generator) -> bytes:
    """Cut anywhere, or with 1 to 64 bits turned, a half of the time in the first 512 bytes, or both."""
    kind = generator.integers(3)
    damaged = bytearray(data)
    if kind != 0:
        end = len(data) if generator.integers(2) else min(len(data), 512)
        for place in generator.integers(0, end, 2 ** generator.integers(7)):
            damaged[place] ^= 1 << generator.integers(8)
    if kind != 1:
        del damaged[generator.integers(len(damaged)) :]
    return bytes(damaged)


def parse_args(doc: str, *, num: int, what: str) -> argparse.Namespace:
    """`num` is how many cases there are by default, of `what`; the first line of `doc` says what is done with them."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--num", type=int, default=num, help=what)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where cases that are faults stay; default: deleted")
    return parser.parse_args()


def run_fuzzer(fuzz: Callable[..., tuple], args: argparse.Namespace) -> tuple:
    """What `fuzz` returns for that many cases, made in the folder that was asked for, or in one that is then deleted."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        return fuzz(args.num, folder, args.seed)


def report(counts: Counter[str], faults: Sequence[Fault], summary: str) -> int:
    """Prints what was found, and `summary` last; returns the exit status."""
    for name, count in sorted(counts.items()):
        print(f"{name}: {count}")
    for fault in faults:
        print(f"FAULT {fault.name}, {fault.reader}: {' '.join(fault.what.split())[:300]}")
    print(summary)
    return 1 if faults else 0
