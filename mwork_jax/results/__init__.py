"""What the commands write: typed results, and the only place that knows what results.json looks like.

Every kind of result has a file and a class of its own, an explicit `kind`, and one `Provenance`. A file is checked
against its class as a whole when it is read, so whoever holds a result may use every field of it.
"""

from mwork_jax.results.base import (
    FORMAT,
    FORMATS_OF_0_1,
    HELD_OUT_LOSS,
    OWN_QUESTIONS,
    BeyondRandom,
    Change,
    ConditionKind,
    DataInfo,
    Difference,
    Interval,
    NeuronKind,
    NeuronSetInfo,
    Provenance,
    SetKind,
    task_title,
    versions,
)
from mwork_jax.results.detect import DetectResults, ScoresInfo
from mwork_jax.results.enhance import EnhanceResults, TuningChange, TuningRow, TuningRunInfo
from mwork_jax.results.files import AnyResults, read_results, write_results
from mwork_jax.results.lens import LabelsInfo, LensExample, LensResults, LensShares, LensToken
from mwork_jax.results.lm_eval import LmEvalResults, LmEvalRow, LmEvalScore, LmEvalTask
from mwork_jax.results.neurons import NeuronActivity, NeuronContext, NeuronReading, NeuronResults, TokenWeight
from mwork_jax.results.run import LanguageChange, LossRise, OriginalLoss, RandomChange, RunResults
from mwork_jax.results.steer import SteerChange, SteerResults, SteerRow
from mwork_jax.results.tables import (
    DeltaRow,
    McNemarPair,
    RowChange,
    RowContrast,
    SeedSpread,
    TableResult,
    TablesResults,
    TaskInfo,
)

__all__ = [
    "FORMAT",
    "FORMATS_OF_0_1",
    "HELD_OUT_LOSS",
    "OWN_QUESTIONS",
    "AnyResults",
    "BeyondRandom",
    "Change",
    "ConditionKind",
    "DataInfo",
    "DeltaRow",
    "DetectResults",
    "Difference",
    "EnhanceResults",
    "Interval",
    "LabelsInfo",
    "LanguageChange",
    "LensExample",
    "LensResults",
    "LensShares",
    "LensToken",
    "LmEvalResults",
    "LmEvalRow",
    "LmEvalScore",
    "LmEvalTask",
    "LossRise",
    "McNemarPair",
    "NeuronActivity",
    "NeuronContext",
    "NeuronKind",
    "NeuronReading",
    "NeuronResults",
    "NeuronSetInfo",
    "OriginalLoss",
    "Provenance",
    "RandomChange",
    "RowChange",
    "RowContrast",
    "RunResults",
    "ScoresInfo",
    "SeedSpread",
    "SetKind",
    "SteerChange",
    "SteerResults",
    "SteerRow",
    "TableResult",
    "TablesResults",
    "TaskInfo",
    "TokenWeight",
    "TuningChange",
    "TuningRow",
    "TuningRunInfo",
    "read_results",
    "task_title",
    "versions",
    "write_results",
]
