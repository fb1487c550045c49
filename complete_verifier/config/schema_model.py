"""Sections `model` and `data`: which network, and which examples of which data set."""

from __future__ import annotations

from typing import Annotated, Literal

from complete_verifier.config.kinds import (
    CHOICE,
    Bool,
    Count,
    Floats,
    Hook,
    Natural,
    Naturals,
    OptDataset,
    OptHook,
    OptLiteralDict,
    OptText,
    Scales,
    Shape,
    Text,
    Texts,
)
from complete_verifier.config.schema_base import Section, option


class Model(Section):
    """The network to verify and how it is read."""

    name: OptHook = option(None, "--model", "Builder of a torch module: a built-in name or user code.")
    path: OptText = option(None, "--load_model", "Weights for the module that `name` builds.")
    onnx_path: OptText = option(None, "--onnx_path", "ONNX file of the network, plain or gzipped.")
    onnx_path_prefix: Text = option("", "--onnx_path_prefix", "Put in front of the model paths of an instance list.")
    cache_onnx_conversion: Bool = option(
        False, "--cache_onnx_conversion", "Keep the converted network in a file beside the ONNX file."
    )
    debug_onnx: Bool = option(False, "--debug_onnx", "Compare node by node when the conversion disagrees.")
    onnx_quirks: OptLiteralDict = option(
        None, "--onnx_quirks", "Special treatment of operators while reading, as a dict of literals."
    )
    input_shape: Shape = option(None, "--input_shape", "Shape of the input with -1 for the batch, where it is unclear.")
    onnx_loader: Hook = option(
        "default_onnx_and_vnnlib_loader", "--onnx_loader", "User callable that reads both network and property."
    )
    onnx_optimization_flags: Texts = option(
        (), "--onnx_optimization_flags", "Rewrites of the ONNX graph before it is converted."
    )
    onnx_vnnlib_joint_optimization_flags: Annotated[Literal["peel_off_last_softmax_layer", "none"], CHOICE] = option(
        "none",
        "--onnx_vnnlib_joint_optimization_flags",
        "Drop a final softmax or sigmoid and restate the property without it.",
    )
    check_optimized: Bool = option(
        False, "--check_optimized", "Check the conversion against the rewritten ONNX file instead of the original."
    )
    flatten_final_output: Bool = option(False, "--flatten_final_output", "Append a flattening to the network.")
    optimize_graph: OptHook = option(
        None, "--optimize_graph", "User callable that rewrites the graph while bounds are set up."
    )
    with_jacobian: Bool = option(
        False, "--model_with_jacobian", "Say that the network contains a Jacobian, so that attacks use the bound graph."
    )
    bound_opts: OptLiteralDict = option(None, "--bound_opts", "Extra options for BoundedModule, as a dict of literals.")


class Data(Section):
    """Which rows of an instance list or examples of a data set are run."""

    start: Natural = option(0, "--start", "First index to run.")
    end: Natural = option(10000, "--end", "First index that is not run any more.")
    select_instance: Naturals = option(None, "--select_instance", "Run these indices only.")
    num_outputs: Count = option(10, "--num_outputs", "Number of classes of a data set.")
    mean: Floats = option((0.0,), "--mean", "Mean that inputs are normalised with, one number or one per channel.")
    std: Scales = option(
        (1.0,), "--std", "Standard deviation that inputs and radii are divided by, one number or one per channel."
    )
    pkl_path: OptText = option(None, "--pkl_path", "Pickled table of examples, target labels and radii.")
    dataset: OptDataset = option(None, "--dataset", "Name of a data set, or user code that loads one.")
    data_filter_path: OptText = option(None, "--filter_path", "Named by upstream but read nowhere.")
    data_idx_file: OptText = option(None, "--data_idx_file", "Text file with the indices to run.")
