"""Blocks of documentation pages that programs write: from ``<!-- NAME -->`` to ``<!-- end -->``."""

from __future__ import annotations

import re


def with_block(page: str, name: str, content: str) -> str:
    """The page with the content of one block replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    assert pattern.search(page), f"the page has no block {name}"
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", page)
