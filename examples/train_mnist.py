"""Train the papers' MNIST network and say how to measure the minimum it reached.

python examples/train_mnist.py --data ylecun/mnist --output runs/mnist
python examples/train_mnist.py --data ../shared/data/mnist --output runs/mnist --limit 10000 --epochs 5
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from flatminima.data import load_tensors
from flatminima.errors import FlatMinimaError, UsageError
from flatminima.models import build
from flatminima.training import TrainConfig, evaluate, save_checkpoint, train


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; defaults train in a minute or two on one core."""
    parser = argparse.ArgumentParser(description="Train the papers' MNIST network (21,840 parameters).")
    parser.add_argument("--data", required=True, help="folder of parquet files, or a name on the hub")
    parser.add_argument("--output", required=True, type=Path, help="folder for mnist_cnn.safetensors")
    parser.add_argument("--limit", type=int, help="train on a fixed random subset of this many samples")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train, save, evaluate; 0 done, 1 failed, 2 a request that cannot be met."""
    options = parse(arguments)
    try:
        # "unit" scaling, pixels in [0, 1], is what `flatminima measure` does too unless told otherwise
        inputs, targets = load_tensors(options.data, "train", limit=options.limit)
        test_inputs, test_targets = load_tensors(options.data, "test")
        model = build("mnist_cnn", seed=options.seed)
        config = TrainConfig(lr=options.lr, batch_size=options.batch_size, epochs=options.epochs, seed=options.seed)
        history = train(model, inputs, targets, config=config, progress=show if sys.stderr.isatty() else None)
        options.output.mkdir(parents=True, exist_ok=True)
        weights = options.output / "mnist_cnn.safetensors"
        save_checkpoint(model, weights, {"scaling": "unit"})
        test = evaluate(model, test_inputs, test_targets)
    except (FlatMinimaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    print(f"train loss {history.final.loss:.4f}, train error {history.final.error:.2%} of {history.final.n}")
    print(f"test loss  {test.loss:.4f}, test error  {test.error:.2%} of {test.n}")
    print(f"wrote {weights}")
    command = ["flatminima", "measure", "--model", "flatminima.models:mnist_cnn"]
    command += ["--checkpoint", str(weights), "--data", options.data, "--split", "train"]
    if options.limit is not None:  # the same subset: `limit` is a function of the data, not of chance
        command += ["--limit", str(options.limit)]
    print(f"next: {shlex.join(command)}")
    return 0


def show(done: int, total: int, text: str) -> None:
    """A line that is overwritten, for a terminal only."""
    if done % 50 == 0 or done == total:
        print(f"\r{done}/{total} steps, {text}", end="\n" if done == total else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
