"""Formats of tools that are not read: what they are, and the way out."""

from __future__ import annotations

from typing import Any

WAY_OUT = "export the annotations as COCO there, and convert that .json"


def tool_of(content: Any) -> str | None:
    """Whose own format a .json is; None where nobody knows."""
    if isinstance(content, list):
        rows = [row for row in content[:1] if isinstance(row, dict)]
        if any({"data", "annotations"} <= set(row) or "annotator" in row for row in rows):
            return "Label Studio"
        return None
    if not isinstance(content, dict):
        return None
    if "_via_img_metadata" in content:
        return "VIA"
    entries = [value for value in list(content.values())[:1] if isinstance(value, dict)]
    if any({"filename", "regions"} <= set(entry) for entry in entries):
        return "VIA"
    if {"objects", "tags"} <= set(content):
        return "Supervisely"
    if {"items", "categories"} <= set(content):
        return "Datumaro"
    if {"item", "annotations"} <= set(content):
        return "Darwin (V7)"
    return None
