"""A program that takes the commands `train` and `embed` and does in no time what the real one does in minutes.

It takes one step after another and can be killed between them; `schedule.warmup_steps = 13` makes it fail, and TCM
makes classes tighter.
"""

import argparse
import csv
import json
import sys
import time
from pathlib import Path

STEP_S = 0.02


def train(run: Path, config: dict) -> None:
    run.mkdir(parents=True, exist_ok=True)
    checkpoint, steps = run / "checkpoint.pt", run / "steps.txt"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    if config["schedule"]["warmup_steps"] == 13 and first == 0:
        sys.stderr.write("error: the loss is NaN at step 3:\nlower the learning rate\n")
        sys.exit(3)
    for step in range(first, config["schedule"]["steps"]):
        time.sleep(STEP_S)
        with steps.open("a") as file:
            file.write(f"{step}\n")
        staging = checkpoint.with_suffix(".part")
        staging.write_text(str(step + 1))
        staging.replace(checkpoint)
    tightness = 1.0 + config["loss"]["tcm"]["positive_weight"]
    (run / "evaluation.json").write_text(json.dumps({"tightness": tightness, "seed": config["seed"]}))


def embed(run: Path, parts: dict[str, str], out: Path) -> None:
    import numpy as np  # `train` starts faster without

    made = json.loads((run / "evaluation.json").read_text())
    arrays = {}
    for name, source in parts.items():
        with Path(source).open() as file:
            items = list(csv.DictReader(file))
        rows = []
        for number, item in enumerate(items):
            direction = np.random.default_rng([1, int(item["label"][-3:])]).normal(size=16)
            noise = np.random.default_rng([2, made["seed"], number]).normal(size=16)
            spread = 1.0 + int(item["label"][-3:]) % 3  # some classes are wide, so that OPIS is not 0
            rows.append(direction + spread / made["tightness"] * noise)
        embeddings = np.array(rows, dtype=np.float32)
        arrays[f"{name}.embeddings"] = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        arrays[f"{name}.labels"] = np.array([item["label"] for item in items])
        arrays[f"{name}.ids"] = np.array([item["id"] for item in items])
    np.savez(out, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--data", action="append")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--config", type=Path)
    for ignored in ("--validation", "--device"):
        parser.add_argument(ignored)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    if options.command == "train":
        train(options.out, json.loads(options.config.read_text()))
    else:
        embed(options.run, dict(part.split("=") for part in options.data), options.out)


if __name__ == "__main__":
    main()
