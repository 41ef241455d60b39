"""The paper's protocol from records to tables.

>>> report = mt.run_protocol(model, tokenizer, records, preset="paper", out="runs/qwen3")
>>> report.tables["1"], report.figure(), report.compare("qwen3-30b-a3b")

:mod:`settings` says what is asked, :mod:`stages` traces it, :mod:`folder` keeps it on disk, :mod:`report`
holds what was found, :mod:`tables` and :mod:`figure` show it as the paper does.
"""
