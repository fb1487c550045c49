"""What `abcrown` says when it is called without a word. Imports nothing, so that it comes at once."""

from __future__ import annotations

HELP = """\
abcrown proves or refutes properties of neural networks.

  abcrown --onnx_path net.onnx --vnnlib_path property.vnnlib --timeout 60
      one network and one property; the verdict goes to out.txt
  abcrown --config settings.yaml --save_adv_example
      the same by a YAML file; a counterexample goes to a file of its own
  abcrown sweep --config settings.yaml --csv benchmark/instances.csv --out results --report
      all rows onnx,vnnlib,timeout of a list, with a table and a report; goes on where it stopped

abcrown --help lists all flags; docs/options.md explains them.
"""
