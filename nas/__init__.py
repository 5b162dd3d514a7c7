"""Hardware-aware search for quantized vision networks: the face of the package.

Importing this package loads nothing heavy; each name is imported at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.calibrate import calibration_text, run_calibration
    from nas.cost_text import comparison_text, cost_lines, costing, ops_csv, plot_one, report_text
    from nas.dashboard import show_dashboard
    from nas.describe import (
        describe_spaces,
        describe_studies,
        describe_target,
        describe_targets,
        target_lines,
        version,
    )
    from nas.errors import Interrupted, NasError, NothingFeasible, UsageError
    from nas.export_study import export_trials
    from nas.files import write_whole
    from nas.finalists import run_finalists
    from nas.finalists_report import finalists_rows, finalists_table
    from nas.fit import fit_summary, fit_target_file, fit_text
    from nas.kept_targets import say_edited
    from nas.measure.ask import run_measuring
    from nas.measure.gap import gap_text, measure_gap
    from nas.measure.plan import write_plan
    from nas.measure.table import drop_measurements, export_measurements, import_measurements
    from nas.measure.text import measured_text
    from nas.measure.verify import verification_text, verify_board, verify_study
    from nas.objectives import OBJECTIVES
    from nas.picture import picture_form, write_picture
    from nas.problem import check_images, find_target, load_targets
    from nas.progress import Narrator
    from nas.rank import run_rank
    from nas.rank_report import rank_picture, rank_text
    from nas.report import front_csv, front_table, networks, study_summary
    from nas.search import run_search, run_training
    from nas.spec import StudySpec, load_spec, override, parse_setting
    from nas.study import Study, open_study
    from nas.suggest import suggest_measurements, suggestion_csv, suggestion_text
    from nas.survey import run_survey, survey_text
    from nas.workers import leads

_HOME = {
    "Interrupted": "nas.errors",
    "Narrator": "nas.progress",
    "NasError": "nas.errors",
    "NothingFeasible": "nas.errors",
    "OBJECTIVES": "nas.objectives",
    "Study": "nas.study",
    "StudySpec": "nas.spec",
    "UsageError": "nas.errors",
    "calibration_text": "nas.calibrate",
    "check_images": "nas.problem",
    "comparison_text": "nas.cost_text",
    "cost_lines": "nas.cost_text",
    "costing": "nas.cost_text",
    "describe_spaces": "nas.describe",
    "describe_studies": "nas.describe",
    "describe_target": "nas.describe",
    "describe_targets": "nas.describe",
    "drop_measurements": "nas.measure.table",
    "export_measurements": "nas.measure.table",
    "export_trials": "nas.export_study",
    "finalists_rows": "nas.finalists_report",
    "finalists_table": "nas.finalists_report",
    "find_target": "nas.problem",
    "fit_summary": "nas.fit",
    "fit_target_file": "nas.fit",
    "fit_text": "nas.fit",
    "front_csv": "nas.report",
    "front_table": "nas.report",
    "gap_text": "nas.measure.gap",
    "import_measurements": "nas.measure.table",
    "leads": "nas.workers",
    "load_spec": "nas.spec",
    "load_targets": "nas.problem",
    "measure_gap": "nas.measure.gap",
    "measured_text": "nas.measure.text",
    "networks": "nas.report",
    "open_study": "nas.study",
    "ops_csv": "nas.cost_text",
    "override": "nas.spec",
    "parse_setting": "nas.spec",
    "picture_form": "nas.picture",
    "plot_one": "nas.cost_text",
    "rank_picture": "nas.rank_report",
    "rank_text": "nas.rank_report",
    "report_text": "nas.cost_text",
    "run_calibration": "nas.calibrate",
    "run_finalists": "nas.finalists",
    "run_measuring": "nas.measure.ask",
    "run_rank": "nas.rank",
    "run_search": "nas.search",
    "run_survey": "nas.survey",
    "run_training": "nas.search",
    "say_edited": "nas.kept_targets",
    "show_dashboard": "nas.dashboard",
    "study_summary": "nas.report",
    "suggest_measurements": "nas.suggest",
    "suggestion_csv": "nas.suggest",
    "suggestion_text": "nas.suggest",
    "survey_text": "nas.survey",
    "target_lines": "nas.describe",
    "verification_text": "nas.measure.verify",
    "verify_board": "nas.measure.verify",
    "verify_study": "nas.measure.verify",
    "version": "nas.describe",
    "write_picture": "nas.picture",
    "write_plan": "nas.measure.plan",
    "write_whole": "nas.files",
}

__all__ = [
    "OBJECTIVES",
    "Interrupted",
    "Narrator",
    "NasError",
    "NothingFeasible",
    "Study",
    "StudySpec",
    "UsageError",
    "calibration_text",
    "check_images",
    "comparison_text",
    "cost_lines",
    "costing",
    "describe_spaces",
    "describe_studies",
    "describe_target",
    "describe_targets",
    "drop_measurements",
    "export_measurements",
    "export_trials",
    "finalists_rows",
    "finalists_table",
    "find_target",
    "fit_summary",
    "fit_target_file",
    "fit_text",
    "front_csv",
    "front_table",
    "gap_text",
    "import_measurements",
    "leads",
    "load_spec",
    "load_targets",
    "measure_gap",
    "measured_text",
    "networks",
    "open_study",
    "ops_csv",
    "override",
    "parse_setting",
    "picture_form",
    "plot_one",
    "rank_picture",
    "rank_text",
    "report_text",
    "run_calibration",
    "run_finalists",
    "run_measuring",
    "run_rank",
    "run_search",
    "run_survey",
    "run_training",
    "say_edited",
    "show_dashboard",
    "study_summary",
    "suggest_measurements",
    "suggestion_csv",
    "suggestion_text",
    "survey_text",
    "target_lines",
    "verification_text",
    "verify_board",
    "verify_study",
    "version",
    "write_picture",
    "write_plan",
    "write_whole",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
