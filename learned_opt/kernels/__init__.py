"""Fused numerics, each beside its plain reference."""
