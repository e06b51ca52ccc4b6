"""The report: one self-contained HTML page that shows how good a run is, with the pictures."""

from __future__ import annotations

from gaiadask.report.inputs import ReportInputs
from gaiadask.report.page import render

__all__ = ["ReportInputs", "render"]
