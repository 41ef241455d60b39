"""One HTML file that a person reads: what was asked, what was found, in which cases, and how sure it is.

>>> write_html(report, "report.html")
>>> write_folder("runs/qwen3")          # reads a finished run, writes runs/qwen3/report.html

The file needs no network and no other file. Its charts are drawn by plotly.js, which comes with the package
``plotly`` (``pip install "moetrace[report]"``): of the libraries that PyPI serves with their script whole, it
is the one that draws SVG, sharp on paper and text to a screen reader, and has heat maps, error bars and zoom.
Its 4.8 MB are 2 MB in the page, as base64 of their gzip. Bokeh's 1.3 MB draw on a canvas; Vega's script is a
file of its own in no package.
"""

from moetrace.report.page import write_folder, write_html

__all__ = ["write_folder", "write_html"]
