"""Results as people read them: text, tables for papers, figures, and one page that shows it all.

Everything is made from files (results.json, lens.json, scores, neuron sets), never from a model. The plot functions
take a matplotlib axis.
"""

from mwork_jax.report.citation import bibtex
from mwork_jax.report.figures import (
    plot_deltas,
    plot_enhancement,
    plot_forcing_matrix,
    plot_grid,
    plot_importance,
    plot_layer_languages,
    plot_losses,
    plot_matrix,
    plot_neurons,
    plot_overlap,
    plot_steering,
    plot_thresholds,
)
from mwork_jax.report.language_names import NAMES
from mwork_jax.report.loaded_results import LoadedResults, load_results
from mwork_jax.report.sections import tuning_figure
from mwork_jax.report.table import FORMATS, Table
from mwork_jax.report.text import enhance_report, lens_report, printable, run_report, steer_report, table_report
from mwork_jax.report.write import Report, read_report, tables_as

__all__ = [
    "FORMATS",
    "NAMES",
    "LoadedResults",
    "Report",
    "Table",
    "bibtex",
    "enhance_report",
    "lens_report",
    "load_results",
    "plot_deltas",
    "plot_enhancement",
    "plot_forcing_matrix",
    "plot_grid",
    "plot_importance",
    "plot_layer_languages",
    "plot_losses",
    "plot_matrix",
    "plot_neurons",
    "plot_overlap",
    "plot_steering",
    "plot_thresholds",
    "printable",
    "read_report",
    "run_report",
    "steer_report",
    "table_report",
    "tables_as",
    "tuning_figure",
]
