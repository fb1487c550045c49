"""What `abcrown` says when it is called without a word. Imports nothing, so that it comes at once."""

from __future__ import annotations

HELP = """\
abcrown proves or refutes properties of neural networks.

  abcrown --onnx_path net.onnx --vnnlib_path property.vnnlib --timeout 60
      one network and one property; the verdict goes to out.txt
  abcrown --config settings.yaml --save_adv_example
      the same by a YAML file; a counterexample goes to a file of its own
  abcrown --config settings.yaml --root_path benchmark --csv_name instances.csv --results_file results.pkl
      all rows onnx,vnnlib,timeout of benchmark/instances.csv

abcrown --help lists all flags; docs/options.md explains them.
"""
