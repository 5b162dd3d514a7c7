"""ONNX files as workloads of the cost model."""

from nas.onnx_trace.network import trace_onnx

__all__ = ["trace_onnx"]
