"""Tiny random models of the real libraries, and their explanations in both forms."""

import timm
import torch
import torchvision
import transformers

from zennit_attn import input_x_gradient

VOCABULARY, WIDTH, POSITIONS = 64, 48, 7
SMALL = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 4}
IMAGE = {"image_size": 32, "patch_size": 8, "hidden_size": WIDTH, "intermediate_size": 96, "num_attention_heads": 4}


def llama(attention="sdpa", **changes):
    config = {**SMALL, "num_hidden_layers": 3, "num_key_value_heads": 2, **changes}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, attn_implementation=attention))


def qwen3(attention="sdpa"):
    config = {**SMALL, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 12}
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**config, attn_implementation=attention))


def mixtral(attention="sdpa"):
    config = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**config, attn_implementation=attention))


def gpt2(attention="sdpa"):
    config = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 32}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config, **ids, attn_implementation=attention))


def bert(attention="sdpa"):
    config = transformers.BertConfig(**SMALL, num_hidden_layers=3, num_labels=5, attn_implementation=attention)
    return transformers.BertForSequenceClassification(config)


def t5(attention="eager"):
    config = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**config, decoder_start_token_id=0, attn_implementation=attention)
    return transformers.T5ForConditionalGeneration(config)


def hf_vit(attention="sdpa"):
    config = transformers.ViTConfig(**IMAGE, num_hidden_layers=3, num_labels=10, attn_implementation=attention)
    return transformers.ViTForImageClassification(config)


def torchvision_vit():
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 4, "hidden_dim": WIDTH, "mlp_dim": 96}
    model = torchvision.models.VisionTransformer(**sizes, num_classes=10)
    # torchvision starts its head at zero, which would explain nothing
    torch.nn.init.normal_(model.heads.head.weight, std=0.1)
    return model


def timm_vit():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 3, "num_heads": 4, "mlp_ratio": 2}
    model = timm.models.vision_transformer.VisionTransformer(**sizes, num_classes=10)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


def without_constants(model):
    """Set every additive constant of a model to zero: biases, positions, class and mask tokens."""
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] == "bias" or any(
            word in name for word in ("position", "token_type", "wpe", "cls", "pos_emb")
        ):
            torch.nn.init.zeros_(parameter)
    return model


def scramble(model):
    """Give parameters that start at zero or one random values, so that a rule that forgets one is seen."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.numel() > 1 and float(parameter.detach().std()) == 0:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def logits_of(model, x, **rest):
    """Return the explained logits, shape (batch, classes): those of the last position."""
    output = model(inputs_embeds=x, **rest) if x.dim() == 3 else model(x, **rest)
    logits = getattr(output, "logits", output)
    return logits[:, -1] if logits.dim() == 3 else logits


def explain(model, composite, x, form="gradient", **rest):
    """Return relevance of the largest logit, shape of x, and that logit, shape (batch,)."""
    x = x.detach().clone().requires_grad_()
    composite = input_x_gradient(composite) if form == "gradient" else composite
    with composite.context(model):
        largest = logits_of(model, x, **rest).max(-1)[0]
        start = torch.ones_like(largest) if form == "gradient" else largest.detach()
        (signal,) = torch.autograd.grad(largest, x, start)
    return (x.detach() * signal if form == "gradient" else signal), largest.detach()


def relative_error(got, expected):
    """Return the largest difference, relative to the largest absolute value expected."""
    return float((got - expected).abs().max() / expected.abs().max())
