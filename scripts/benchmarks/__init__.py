"""One module per benchmark: `rows(rounds)` measures, `line(row)` says it to people."""
