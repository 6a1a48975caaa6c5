"""The sweep over the architectures of transformers, torchvision and timm: see sweep.py."""
