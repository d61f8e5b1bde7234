"""Follows the channels of a model through all of its operators."""

from __future__ import annotations

from slim_det.graph.channels import ChannelGraph
from slim_det.graph.operators import declared
from slim_det.graph.trace import Trace


def follow_channels(trace: Trace) -> ChannelGraph:
    """Run every operator of a trace through its rule, then freeze the model's outputs."""
    graph = ChannelGraph(trace.shapes, trace.parameters)
    for op in trace.ops:
        declared(op).channels(graph, op)
    for variable in trace.outputs:
        graph.freeze(graph.get(variable), "it is an output of the model")
    return graph
