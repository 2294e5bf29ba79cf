"""What every page begins with, and text within HTML."""

from __future__ import annotations

from html import escape
from importlib import resources

from mwork_jax.report.names import one_line


def safe(text: object) -> str:
    """Any value as one line of text that stays text within HTML."""
    return escape(one_line(str(text)))


def packaged(name: str) -> str:
    """A style sheet or a script of this package."""
    return (resources.files("mwork_jax.report") / name).read_text(encoding="utf-8")


def html_head(title: str, policy: str, css: str) -> str:
    """The beginning of a page, up to its body. title: any text; policy: what it may load and run; css: a sheet."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="mwork-jax">
<title>{safe(title)}</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>"""
