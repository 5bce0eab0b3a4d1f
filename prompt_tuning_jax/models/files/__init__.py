"""Readers of model files: GGUF, safetensors, tokenizers."""
