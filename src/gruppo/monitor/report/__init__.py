"""The report: a run as one HTML file that needs nothing else, and as a picture; and two runs in numbers.

    numbers.py      the few numbers that sum a run up, for the report and for `gruppo compare`
    contents.py     everything that a report says, read from a run's folder
    curves.py       the eight curves, as data; svg.py draws one of them
    page.py         the HTML; report.css its looks
    samples.py      the best and worst completions of the last step
    picture.py      the PNG (matplotlib)
    untrusted.py    text of models and datasets made safe to show

It reads a run and writes nothing into it. No scripts, no requests: a report may be mailed.
"""
