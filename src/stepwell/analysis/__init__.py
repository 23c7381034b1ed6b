"""Analyses of trained models: states gathered and replaced, probes, causal tracing."""
