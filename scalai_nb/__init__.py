"""Notebooks become the system: contracts, a versioned lake, runs, releases and dashboards

Modules:

- `scalai_nb.kernels.clusters`: Which centre is nearest to each row, and the sums by centre
- `scalai_nb.kernels.columns`: Kernels that describe a column
- `scalai_nb.kernels.cuda.clusters`: Sums by nearest centre on the device
- `scalai_nb.kernels.cuda.columns`: Kernels that describe a column, on the device
- `scalai_nb.kernels.cuda.features`: Features from columns on the device
- `scalai_nb.kernels.cuda.groups`: A column described by group on the device
- `scalai_nb.kernels.cuda.linear`: Sums that linear models learn from, on the device
- `scalai_nb.kernels.cuda.scores`: Scores and labels counted on the device
- `scalai_nb.kernels.distinct`: Distinct hashes, counted in a table that is filled by linear probing
- `scalai_nb.kernels.features`: Features from columns
- `scalai_nb.kernels.groups`: A column described by group on the CPU: count, mean, deviations, range
- `scalai_nb.kernels.jit`: Numba's `njit` for kernels: without the lock of the interpreter, cached
- `scalai_nb.kernels.linear`: Sums over rows that linear models learn from
- `scalai_nb.kernels.scores`: Scores and labels counted in one pass"""

from importlib import import_module

from scalai_nb.environment import Environment, environment

__version__ = "0.1.0"

_WHERE = {
    "data.contract": ["Contract"],
    "data.lake.lake": ["Lake", "Version"],
    "data.opening": ["open_file"],
    "data.readers.readers": ["read_source"],
    "data.streams.streams": ["open_stream"],
    "data.sources": ["from_frame", "read_csv", "to_frame"],
    "compute.blocks": ["Blocks"],
    "compute.cluster": ["connect"],
    "describe.grouping": ["GroupBy", "Rolling", "group_by", "rolling"],
    "compute.reduce": ["Mergeable", "reduce"],
    "evaluation.calibration": ["Calibrated", "Calibration", "calibrate"],
    "learn.linear.kmeans": ["KMeans"],
    "evaluation.comparison": ["Confidence", "compare"],
    "learn.linear.pca": ["PCA"],
    "describe.drift": ["Drift", "drift"],
    "evaluation.binary": ["Evaluation"],
    "evaluation.evaluation": ["evaluate"],
    "learn.training.adapter": ["Effort"],
    "learn.training.importance": ["Importance", "importances"],
    "learn.training.leaks": ["check_leaks"],
    "learn.linear.regression": ["LinearRegression", "LogisticRegression", "PoissonRegression"],
    "evaluation.multiclass": ["ClassEvaluation", "evaluate_classes"],
    "learn.networks.networks": ["Network", "NetworkOptions"],
    "evaluation.residuals": ["RegressionEvaluation", "evaluate_regression"],
    "learn.features.rows": ["Rows"],
    "learn.training.splits": ["Folds", "Split", "split"],
    "describe.summary": ["Summary", "summarize"],
    "learn.training.results": ["Training"],
    "learn.training.training": ["Judging", "train"],
    "learn.features.transform": ["Transform"],
    "learn.trees.trees": ["BoostedTrees", "Execution"],
    "models.registry.gate": ["Evidence", "Limits", "judge"],
    "models.registry.verdict": ["Verdict"],
    "models.package.package": ["Model", "package"],
    "models.registry.registry": ["Registry"],
    "models.registry.release": ["examine", "release"],
    "models.search.found": ["Search"],
    "models.search.judged": ["OnRows"],
    "models.search.search": ["search"],
    "models.search.study": ["SearchPolicy"],
    "models.slim.slim": ["Trial", "slim"],
    "models.slim.slimming": ["Slimming"],
    "serving.offline": ["Destination", "score"],
    "client.client": ["Client"],
    "jupyter.explorers.cluster_panel": ["ClusterPanel"],
    "jupyter.explorers.pipeline_board": ["PipelineBoard"],
    "pipeline.showing.lineage": ["lineage", "named_versions"],
    "jupyter.explorers.summary_explorer": ["SummaryExplorer"],
    "jupyter.explorers.threshold_explorer": ["ThresholdExplorer"],
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = ["Environment", "environment", *_MODULE]


def __getattr__(name):
    if name not in _MODULE:
        raise AttributeError(f"module 'scalai_nb' has no attribute {name!r}")
    return getattr(import_module(f"scalai_nb.{_MODULE[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
