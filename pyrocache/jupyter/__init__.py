"""The IPython extension ``%load_ext pyrocache``: the magics ``%%cached`` and ``%cache``, and their completion.

`extension.py` is what IPython loads. Only this package imports IPython.
"""
