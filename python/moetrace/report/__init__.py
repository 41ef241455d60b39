"""One HTML file that a person reads: what was asked, what was found, in which cases, and how sure it is.

>>> write_html(report, "report.html")
>>> write_folder("runs/qwen3")          # reads a finished run, writes runs/qwen3/report.html

The file needs no network and no other file. Its charts are drawn by plotly.js, which comes with the package
``plotly`` (``pip install "moetrace[report]"``): of the libraries that PyPI serves with their script whole, it
is the one that draws SVG, which stays sharp on paper, and that has heat maps, error bars and zoom.
"""

from moetrace.report.page import write_folder, write_html

__all__ = ["write_folder", "write_html"]
