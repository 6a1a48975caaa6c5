"""torch.compile of an explained model: one graph, the same relevance."""

import models
import pytest
import torch

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite, input_x_gradient
from zennit_attn.rules import Epsilon, Gamma, Identity, Operators

CASES = {
    "llama-attnlrp": (models.llama, AttnLRPComposite, (2, 6, models.WIDTH)),
    "gpt2-cp_lrp": (models.gpt2, CPLRPComposite, (2, 6, models.WIDTH)),
    "bert-attnlrp": (models.bert, AttnLRPComposite, (2, 6, models.WIDTH)),
    "timm_vit-gamma_vit": (models.timm_vit, GammaViTComposite, (2, 3, 32, 32)),
    "torchvision_vit-gamma_vit": (models.torchvision_vit, GammaViTComposite, (2, 3, 32, 32)),
}

pytestmark = [
    pytest.mark.skipif(torch.__version__ < "2.12", reason="older compilers do not trace every function of the rules"),
    # torch's own, of its compiler
    pytest.mark.filterwarnings("ignore"),
]


def assert_equal_compiled(model, composite, x, form):
    """Compare with the relevance of the model before it was compiled, then with the plain gradient."""

    def signal(run):
        leaf = x.clone().requires_grad_()
        logits = models.logits_of(run, leaf)
        # of the relevance form, the relevance of the largest logit; its gradient form starts with 1
        start = (logits == logits.amax(-1, keepdim=True)).to(x.dtype)
        return torch.autograd.grad(logits, leaf, start if form == "gradient" else start * logits.detach())[0]

    with (input_x_gradient(composite) if form == "gradient" else composite).context(model):
        torch._dynamo.reset()
        # the backend runs the traced graphs by the same kernels: what could differ is the trace
        got = signal(torch.compile(model, backend="aot_eager", fullgraph=True))
        expected = signal(model)
    torch._dynamo.reset()
    # the relevance form divides by activations: where one is near zero, another order of a sum shows
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if form == "gradient" else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(got, expected, **tolerance)
    assert not torch.allclose(signal(model), expected)


@pytest.mark.parametrize(
    ("case", "form"),
    [*((case, "gradient") for case in CASES), ("llama-attnlrp", "relevance"), ("timm_vit-gamma_vit", "relevance")],
)
def test_a_compiled_model_gives_the_same_relevance_without_a_graph_break(case, form):
    make, kind, shape = CASES[case]
    assert_equal_compiled(make().eval(), kind(strict=True), torch.randn(shape), form)


class Block(torch.nn.Module):
    """A gated product, which rules of its own may explain in another way than those around it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        hidden = self.linear(x)
        return hidden * torch.sigmoid(hidden) * x


@pytest.mark.parametrize("form", ["gradient", "relevance"])
@pytest.mark.parametrize(
    "rule", [Operators(product="gate"), Identity(), Gamma(0.5), Epsilon(0.1)], ids=lambda rule: type(rule).__name__
)
def test_rules_of_inner_modules_hold_when_compiled(rule, form):
    torch.manual_seed(0)
    name = "1.linear" if isinstance(rule, (Gamma, Epsilon)) else "1"
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Block(), torch.nn.ReLU(inplace=True), torch.nn.Linear(8, 4))
    composite = AttnLRPComposite(name_map=[([name], rule)])
    assert_equal_compiled(model.double().eval(), composite, torch.randn(3, 8, dtype=torch.float64), form)
