"""One self-contained HTML page: opens offline, in light and dark, on a phone and on paper."""

from flatminima.report.page import write_measures, write_report

__all__ = ["write_measures", "write_report"]
