"""How well the solvers do: the held-out suite, tables, statistics, figures and the report."""
