"""Cost of a layer sweep against five peers, its memory and how it grows: see README.md."""
