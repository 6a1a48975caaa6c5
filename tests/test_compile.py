"""torch.compile of an explained model: one graph, the same relevance."""

import models
import pytest
import torch

from zennit_attn import AttnLRPComposite, CPLRPComposite, GammaViTComposite, input_x_gradient

CASES = {
    "llama-attnlrp": (models.llama, AttnLRPComposite, (2, 6, models.WIDTH)),
    "gpt2-cp_lrp": (models.gpt2, CPLRPComposite, (2, 6, models.WIDTH)),
    "bert-attnlrp": (models.bert, AttnLRPComposite, (2, 6, models.WIDTH)),
    "timm_vit-gamma_vit": (models.timm_vit, GammaViTComposite, (2, 3, 32, 32)),
    "torchvision_vit-gamma_vit": (models.torchvision_vit, GammaViTComposite, (2, 3, 32, 32)),
}


@pytest.mark.skipif(torch.__version__ < "2.12", reason="older compilers do not trace every function of the rules")
# torch's own, of its compiler
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_model_gives_the_same_relevance_without_a_graph_break(case):
    make, kind, shape = CASES[case]
    model = make().eval()
    x = torch.randn(shape)

    def signal(run):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(models.logits_of(run, leaf).max(-1)[0].sum(), leaf)[0]

    with input_x_gradient(kind(strict=True)).context(model):
        torch._dynamo.reset()
        # the backend runs the traced graphs by the same kernels: what could differ is the trace
        got = signal(torch.compile(model, backend="aot_eager", fullgraph=True))
        expected = signal(model)
    torch._dynamo.reset()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)
    plain = signal(model)
    assert not torch.allclose(plain, expected)
