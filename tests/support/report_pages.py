"""What the page of a report holds, read from its file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def page_data(page: Path) -> dict[str, Any]:
    """The data of the table, the groups and the training."""
    (text,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page.read_text())
    found: dict[str, Any] = json.loads(text)
    return found


def page_pictures(page: Path) -> dict[int, dict[str, Any]]:
    """The pictures and notes of each row, in the order of the page."""
    blocks = map(json.loads, re.findall('class="pictures">(.*?)</script>', page.read_text()))
    return {block["row"]: block for block in blocks}
