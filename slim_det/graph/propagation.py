"""Follows the channels of a model through all of its operators."""

from __future__ import annotations

from slim_det.graph.channels import ChannelGraph
from slim_det.graph.operators import declared
from slim_det.graph.trace import Trace


def follow_channels(trace: Trace) -> ChannelGraph:
    """Run every operator of a trace through its rule, then freeze the model's outputs."""
    graph = ChannelGraph(trace.shapes, trace.parameters)
    for op in trace.ops:
        found = declared(op).channels(graph, op)
        outputs = op.outputs.get(declared(op).result, [])
        for variable, tracked in zip(outputs, found if isinstance(found, list) else [found]):
            graph.channels[variable] = tracked
    for variable in trace.outputs:
        graph.freeze(graph.channels.get(variable), "it is an output of the model")
    return graph
