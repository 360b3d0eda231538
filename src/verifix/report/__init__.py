"""What came out, to keep and to show: `result.json`, the report as one HTML file, and a model card."""

from __future__ import annotations

from verifix.report.model_card import model_card, write_card
from verifix.report.page import render, write_report
from verifix.report.result import SCHEMA, as_json, plain, schema, write_result

__all__ = ["SCHEMA", "as_json", "model_card", "plain", "render", "schema", "write_card", "write_report", "write_result"]
