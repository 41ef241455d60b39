"""How the model that ships with the package was made: its facts, its tokenizer, its training.

The package holds the outcome (``moetrace.demo``) and never imports this. From a checkout:
``python -m benchmarks.demo_model.train --out DIR``.
"""
