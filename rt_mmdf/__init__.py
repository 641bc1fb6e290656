"""Real-time EEG+MEG source imaging from the Lab Streaming Layer.

How a sample travels: :mod:`~rt_mmdf.acquisition` -> :mod:`~rt_mmdf.alignment` -> :mod:`~rt_mmdf.preprocessing`
-> :mod:`~rt_mmdf.solvers` -> :mod:`~rt_mmdf.sinks`, wired by :mod:`~rt_mmdf.app`.
"""

__version__ = "0.1.0"
