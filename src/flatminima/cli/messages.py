"""Messages of the library in the words of the command line: options instead of arguments."""

from __future__ import annotations

import re

# words of the library's messages, in those of the command line
_OPTIONS = ("label_column", "image_column", "image_size", "max_pixels", "columns", "classes", "layout", "mode", "limit")


def own_words(text: str) -> str:
    """A message of the library in the words of somebody who typed options.

    Examples:
        >>> own_words("pass mode='RGB', or label_column"), own_words("pass targets='numbers' for regression")
        ('pass --mode RGB, or --label-column', 'pass --loss mse for regression')
    """
    text = text.replace("targets='numbers'", "--loss mse").replace("scaling='none'", "--scaling none")
    for name in _OPTIONS:
        option = "--" + name.replace("_", "-")
        text = re.sub(rf"\b{name}='([^' ;]*)'", rf"{option} \1", text)
        text = re.sub(rf"\b{name}=('[^']*'|\d+)", rf"{option} \1", text)
        if "_" in name:
            text = re.sub(rf"(?<!['\w-]){name}(?!['\w=])", option, text)
        text = re.sub(rf"\bpass {name}\b", f"pass {option}", text)
    return text
