"""ONNX files as workloads of the cost model."""

from nas.onnx_trace.network import trace_onnx, trace_with_notes

__all__ = ["trace_onnx", "trace_with_notes"]
