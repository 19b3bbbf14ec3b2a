"""What the tables of the comparisons share."""

import statistics


def look_up(report, path):
    for key in path.split("."):
        report = report[key]
    return report


def cell(values, decimals):
    """The median, with (lowest..highest) where there are several; what is not there is left out."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    median = f"{statistics.median(values):,.{decimals}f}"
    low, high = (f"{f(values):,.{decimals}f}" for f in (min, max))
    return median if len(values) == 1 else f"{median} ({low}..{high})"
