"""What is inside of a model: heads, neurons, residual directions and experts, and relevance under conditions on them.

The room is made, and nothing has moved in: ``examples/latent.py`` shows how relevance of latents is read today.
"""
