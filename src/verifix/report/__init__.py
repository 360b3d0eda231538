"""What came out, to keep and to show: `result.json`, the report as one HTML file, and a model card."""

from __future__ import annotations

from verifix.report.files import as_json, plain, read_result, schema, write_result
from verifix.report.model_card import model_card, write_card
from verifix.report.page import render, write_report
from verifix.report.result import SCHEMA, Result, result_of

__all__ = [
    "SCHEMA",
    "Result",
    "as_json",
    "model_card",
    "plain",
    "read_result",
    "render",
    "result_of",
    "schema",
    "write_card",
    "write_report",
    "write_result",
]
