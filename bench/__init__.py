"""Side-by-side benchmarks. ``python -m bench.<name>`` runs one; `bench.report` says what each leaves behind."""
