"""Number formats: what a spreadsheet program shows for a value."""

from __future__ import annotations

import datetime as dt

import pytest

from retrieval.parsing.office.number_format import Value, shown

DAY = dt.datetime(2024, 3, 5, 14, 7, 9)


@pytest.mark.parametrize(
    ("value", "number_format", "said"),
    [
        (1001, "General", "1001"),
        (123456789012345678, "General", "123456789012345678"),
        (1.234567890123457e17, "General", "123456789012345700"),
        (0.1 + 0.2, "General", "0.3"),
        (-2.5, "General", "-2.5"),
        (1e-7, "General", "0.0000001"),
        (True, "General", "TRUE"),
        (False, "0.00", "FALSE"),
        (None, "0.00", ""),
        ("007", "@", "007"),
        ("NA", "0.00", "NA"),
        (7, "000", "007"),
        (1234567.891, "#,##0.00", "1,234,567.89"),
        (12, "#,##0", "12"),
        (0, "#,##0", "0"),
        (0.5, "#.##", ".5"),
        (0.1234, "0%", "12%"),
        (0.1235, "0.0%", "12.4%"),
        (1234.5, "0.00E+00", "1.23E+03"),
        (1234.5, '"$"#,##0.00', "$1,234.50"),
        (1234.5, "[$€-407] #,##0.00", "€ 1,234.50"),
        (1234.5, '#,##0.00\\ "kg"', "1,234.50 kg"),
        (-1234.5, "#,##0.00;[Red](#,##0.00)", "(1,234.50)"),
        (-1234.5, "#,##0.00", "-1,234.50"),
        (0, '_-* #,##0_-;-* #,##0_-;_-* "-"??_-;_-@_-', "-"),
        (1234567, "#,##0,", "1,235"),
        (1234567, '0.0,,"M"', "1.2M"),
        (123456789, "000-00-0000", "123-45-6789"),
        (2.5, "0", "3"),
        (1e42, "#,##0.00", "1" + ",000" * 14 + ".00"),
        (123456789012345678, "#,##0", "123,456,789,012,345,678"),
        (0.25, "# ?/?", "0.25"),
        (DAY, "yyyy-mm-dd", "2024-03-05"),
        (DAY, "dd/mm/yyyy hh:mm", "05/03/2024 14:07"),
        (DAY, "d. mmmm yyyy", "5. March 2024"),
        (DAY, "ddd d mmm yy", "Tue 5 Mar 24"),
        (DAY, "h:mm AM/PM", "2:07 PM"),
        (DAY, "mm:ss", "07:09"),
        (dt.datetime(2024, 3, 5), "mm-dd-yy", "2024-03-05"),
        (dt.time(9, 30), "h:mm", "9:30"),
        (dt.timedelta(hours=30, minutes=5), "[h]:mm:ss", "30:05:00"),
    ],
)
def test_a_value_is_shown_as_its_format_says(value: Value, number_format: str, said: str) -> None:
    assert shown(value, number_format) == said
