"""Losses, gradients and reports are what version 0.1.0 computed, bit for bit.

``values.json`` holds what version 0.1.0 computed in a few hundred small situations; the test
computes them again and compares. The models and data are made by formula, so that nothing else is
stored. Every file has one task:

- ``situations`` lists the situations; ``losses``, ``ops`` and ``reports`` build them, on the models
  and data of ``networks``. They name settings in words of their own.
- ``api`` is the only file that calls the package. When an interface changes, change ``api``.
- ``stored`` writes values as text, compares them and knows the environment that they hold for.
- ``store`` is the program that writes ``values.json``.

The last bits of a sum depend on the processor and on the versions of torch and numpy. Where they
are those of ``values.json`` every bit has to agree, elsewhere the tolerances of ``stored`` apply.
To compare every bit on another machine, store the values of the old version there, with the old
version's own copy of these files, and name the file when the new version is tested::

    (old tree) $ python -m tests.unchanged.store /tmp/values.json
    (new tree) $ UNCHANGED_VALUES=/tmp/values.json python -m pytest tests/unchanged

A change of results that is wanted needs the values to be stored again:
``python -m tests.unchanged.store``, with the reason in the commit message.
"""
