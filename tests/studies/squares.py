"""A study that needs no training, in a module that other processes can import; some runs kill their process."""

import os
from pathlib import Path

from matplotlib.figure import Figure

from flatminima.studies import Study, trend


def square(config, sources):
    marker = config.get("dies")  # a file: the first process to find it missing dies, all of them if it is "always"
    if marker == "always" or (marker and not Path(marker).exists()):
        if marker != "always":
            Path(marker).touch()
        os._exit(9)
    return {"x": config["x"], "y": config["x"] ** 2, "process": os.getpid()}


def claims(results):
    return [trend("y rises", [r["x"] for r in results], [r["y"] for r in results])]


def study(dies=None, count=6, fatal=2):
    configs = [{"x": x} | ({"dies": dies} if dies and x == fatal else {}) for x in range(count)]
    return Study("squares", "-", "-", (), lambda scale: configs, square, claims, lambda r: Figure(), {"smoke": "-"})
