"""Training error of Table 1's plain networks at half scale by the number of images: how many of them do they fit?

Jia and Su's sentences on their regularizer are about networks that fit, so half scale has as many images as its
networks do. One seed, minutes a network:

    python benchmarks/table_1_fits.py --data DATA --images 2000 --images 5000
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from flatminima.studies import _jia_table
from flatminima.studies.images import find

CNN = {"name": "six_layer_cnn", "image_size": 16, "width": 16}  # a quarter of the paper's widths


def plain() -> list[dict[str, Any]]:
    """The first seed's runs without the regularizer, and that of the CNN, which half scale leaves out."""
    found = [c for c in _jia_table.configurations("half") if c["seed"] == 0 and c.get("beta") == 0.0]
    cnn = {key: value for key, value in found[0].items() if key != "nesterov"}
    return [cnn | {"name": "CNN", "network": CNN} | _jia_table._ORIGINAL["CNN"], *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, action="append", required=True)
    parser.add_argument("--name", action="append", help="only these networks")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "table_1_fits.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sources = find(["cifar10"], given.data)
    rows = json.loads(given.output.read_text()) if given.output.is_file() else []
    for images in given.images:
        for config in plain():
            if given.name and config["name"] not in given.name:
                continue
            r = _jia_table.run(config | {"limit": images, "trials": 1}, sources)
            row = {"name": config["name"], "network": config["network"], "images": images}
            row |= {key: r[key] for key in ("train_error", "train_loss", "test_error")}
            rows = [old for old in rows if (old["name"], old["images"]) != (row["name"], images)] + [row]
            print(f"{row['name']:9} {images:6,} images: training error {row['train_error']:.4f}", flush=True)
            given.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
