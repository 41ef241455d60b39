"""Cost of a layer sweep against five peers, its memory and how it grows: see README.md.

``demo_model`` is apart from these: it makes the model that ships with the package.
"""
