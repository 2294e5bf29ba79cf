"""The tables of a report, each with its data for CSV, JSON, Markdown and LaTeX."""
