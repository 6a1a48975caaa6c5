"""What functions mean: remainders, softmax in its parts, attention in its parts, linear functions, custom operators."""

import math

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from zennit_attn import register_operator, rules
from zennit_attn.composites import TransformerComposite
from zennit_attn.errors import UnknownOperationError, UnknownOperationWarning

from .forms import FORMS, PRESETS, attributor_of, relevance_of


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function, width=(6, 8, 8, 3)):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(*width[:2], bias=False), nn.Linear(*width[2:], bias=False)
        self.function = function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


# remainders


def written(name, *other):
    return lambda h: getattr(h.clone(), name)(*other)


REMAINDERS = {
    "%": (lambda h: h % 1.0, torch.remainder),
    "remainder": (lambda h: torch.remainder(h, 1.0), torch.remainder),
    "fmod": (lambda h: torch.fmod(h, 1.0), torch.fmod),
    "method": (lambda h: h.fmod(1.0), torch.fmod),
    "%=": (written("__imod__", 1.0), torch.remainder),
    "remainder_": (written("remainder_", 1.0), torch.remainder),
    "fmod_": (written("fmod_", 1.0), torch.fmod),
    "reversed": (lambda h: 5.0 % h, lambda h, _: torch.remainder(torch.full_like(h, 5.0), h)),
    "tensor": (lambda h: h % torch.ones(8).double(), torch.remainder),
    "broadcast": (lambda h: (h[:, None] % torch.ones(2, 1).double())[:, 0], torch.remainder),
    "wrapped angle": (lambda h: (h + math.pi) % (2 * math.pi) - math.pi, None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", REMAINDERS)
def test_a_remainder_is_an_element_wise_function(name, preset, form):
    function, kind = REMAINDERS[name]
    model, x = Between(function).double(), torch.randn(2, 6).double() * 3
    h = (x @ model.a.weight.T).detach()
    value = function(h)
    on_value = oracle.linear(value, model.b.weight, None, one_logit(model.b(value), 1))
    if kind is None:
        # the angle that is wrapped is a sum, and so is what is subtracted from it
        wrapped = (h + math.pi) % (2 * math.pi)
        on_wrapped = oracle.addition([wrapped, torch.full_like(wrapped, -math.pi)], on_value)[0]
        on_h = oracle.addition([h, torch.full_like(h, math.pi)], oracle.activation(on_wrapped))[0]
    else:
        close(value, kind(h, 1.0))
        on_h = oracle.activation(on_value)
    close(relevance_of(model, x, form, preset), oracle.linear(x, model.a.weight, None, on_h).detach())


def one_logit(output, target):
    """Relevance of one logit of each sample."""
    relevance = torch.zeros_like(output)
    relevance[:, target] = output[:, target]
    return relevance.detach()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "function",
    [lambda h: torch.remainder(torch.full_like(h, 5.0), h), lambda h: h % (h + 2), lambda h: h // 1],
    ids=["function", "both", "floor"],
)
def test_a_remainder_of_what_depends_on_the_input_is_reported(function, form):
    with pytest.raises(UnknownOperationError, match=r"no rule is known for \S*(mod|remainder|div)"):
        relevance_of(Between(function), torch.rand(2, 6) + 1, form)


# softmax in its parts


def exponentials(a):
    return (a - a.amax(-1, keepdim=True)).exp()


def scattered(function):
    """The softmax of a library of graphs: of groups of elements, with sums that are scattered."""

    def run(a):
        groups = torch.arange(a.shape[-1]).expand_as(a) * 0
        highest = torch.full_like(a, -math.inf).scatter_reduce(-1, groups, a.detach(), "amax")
        e = (a - highest.gather(-1, groups)).exp()
        return e / (function(torch.zeros_like(a), groups, e).gather(-1, groups) + 1e-300)

    return run


def in_place(a):
    e = a - a.amax(-1, keepdim=True).detach()
    return e.exp_().clone().div_(e.sum(-1, keepdim=True))


def divided(a):
    # a copy: the exponential's own derivative needs its values
    e = exponentials(a).clone()
    e /= e.sum(-1, keepdim=True)
    return e


def summed_in_parts(a):
    e = a.exp()
    return e / (e[..., :2].sum(-1) + e[..., 2:].sum(-1))[..., None]


SOFTMAX = {
    "largest": lambda a: (
        torch.exp(a - a.max(-1)[0][..., None]) / torch.exp(a - a.max(-1)[0][..., None]).sum(-1)[..., None]
    ),
    "plain": lambda a: a.exp() / a.exp().sum(-1, keepdim=True),
    "stable": lambda a: exponentials(a) / exponentials(a).sum(-1, keepdim=True),
    "one exponential": lambda a: (lambda e: e / e.sum(-1, keepdim=True))(exponentials(a)),
    "detached": lambda a: (lambda e: e / e.sum(-1, keepdim=True))((a - a.detach().amax(-1, keepdim=True)).exp()),
    "log": lambda a: a.log_softmax(-1).exp(),
    "functional log": lambda a: torch.exp(F.log_softmax(a, dim=-1)),
    "in place": in_place,
    "divided": divided,
    "parts": summed_in_parts,
    "clamped": lambda a: (lambda e: torch.div(e, e.sum(-1, keepdim=True) + 1e-300))(a.exp()),
    "keyword": lambda a: (lambda e: torch.true_divide(e, other=e.sum(dim=-1).unsqueeze(-1)))(a.exp()),
    "expanded": lambda a: (lambda e: e / e.sum(-1, keepdim=True).expand_as(e))(a.exp()),
    "moved": lambda a: (lambda e: (e.transpose(-1, -2) / e.sum(-1).unsqueeze(-2)).transpose(-1, -2))(a.exp()),
    "scatter_add": scattered(lambda zeros, groups, e: zeros.scatter_add(-1, groups, e)),
    "scatter_reduce": scattered(lambda zeros, groups, e: zeros.scatter_reduce(-1, groups, e, "sum")),
    "masked": lambda a: (lambda e: e / e.sum(-1, keepdim=True))(
        exponentials(a.masked_fill(torch.zeros(5, 5, dtype=torch.bool), -math.inf))
    ),
}


class Attention(nn.Module):
    """One head of attention."""

    def __init__(self, weights, mask=None):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24, bias=False), nn.Linear(8, 2, bias=False)
        self.weights, self.mask = weights, mask

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2)
        return self.out(self.weights(scores if self.mask is None else scores + self.mask) @ v).mean(1)


def explained_attention(x, preset, mask=None):
    """Relevance by the rules of the papers, of one head without a scale."""
    model = Attention(None).double().requires_grad_(False)
    q, k, v = ((x @ part.T).detach()[:, None] for part in model.qkv.weight.chunk(3))
    mixed, _, _ = oracle.attention_forward(q, k, v, mask, 1.0)
    output = mixed[:, 0] @ model.out.weight.T
    mean = output.mean(1)
    on_output = oracle.share(output / output.shape[1], mean[:, None], one_logit(mean, 1)[:, None])
    on_mixed = oracle.linear(mixed[:, 0], model.out.weight, None, on_output)
    sides = oracle.attention(q, k, v, on_mixed[:, None], mask, 1.0, preset)[:3]
    on_qkv = torch.cat([side[:, 0] for side in sides], -1)
    return oracle.linear(x, model.qkv.weight, None, on_qkv).detach()


#: Scores less a constant maximum: the relevance form has none to share where the difference is exactly zero.
SHIFTED = ("detached", "in place", "scatter_add", "scatter_reduce")


def softmax_cases():
    for name in SOFTMAX:
        for preset in PRESETS:
            for form in FORMS:
                yield pytest.param(name, preset, form)


@pytest.mark.parametrize(("name", "preset", "form"), list(softmax_cases()))
def test_weights_written_as_a_quotient_are_the_softmax(name, preset, form):
    x = torch.randn(1, 5, 8).double()
    model = Attention(SOFTMAX[name]).double()
    close(model(x), Attention(lambda a: a.softmax(-1)).double()(x))
    if name in SHIFTED and preset == "attnlrp" and form == "relevance":
        with pytest.raises(UnknownOperationError, match="a maximum that is detached"):
            relevance_of(model, x, form, preset)
        return
    close(relevance_of(model, x, form, preset), explained_attention(x, preset))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "weights",
    [
        lambda a: a.softmax(-1),
        lambda a: (lambda e: e / e.sum(-1, keepdim=True))(exponentials(a)),
        divided,
        lambda a: a.log_softmax(-1).exp(),
    ],
    ids=["softmax", "quotient", "divided", "log"],
)
def test_a_masked_softmax_is_explained_in_every_writing(weights, preset, form):
    x, mask = torch.randn(1, 5, 8).double(), oracle.causal_mask(5)
    close(relevance_of(Attention(weights, mask).double(), x, form, preset), explained_attention(x, preset, mask))


#: Quotients that are none.
NO_SOFTMAX = {
    "other sum": lambda a: a.exp() / (2 * a).exp().sum(-1, keepdim=True),
    "transposed": lambda a: a.exp() / a.mT.exp().sum(-1, keepdim=True),
    "no exponential": lambda a: a.sigmoid() / a.sigmoid().sum(-1, keepdim=True),
    "one term": lambda a: a.exp() / (a.exp()[..., :1] + 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NO_SOFTMAX)
def test_other_quotients_have_a_constant_denominator(name, form):
    x = torch.randn(1, 5, 8).double()

    def numerator(a):
        return a.sigmoid() if name == "no exponential" else a.exp()

    def fixed(a):
        value = NO_SOFTMAX[name](a).detach()
        return numerator(a) * (value / numerator(a).detach())

    got = relevance_of(Attention(NO_SOFTMAX[name]).double(), x, form, "attnlrp")
    close(got, relevance_of(Attention(fixed).double(), x, form, "attnlrp"))


# one policy, whatever the implementation


class Block(nn.Module):
    """Grouped attention with a mask, and a gated unit."""

    def __init__(self, attend):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.attend = attend

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = oracle.causal_mask(x.shape[1])
        h = x + self.out(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return self.down(F.silu(self.gate(h)) * self.up(h)).mean(1)


def fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask)


def capped(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return torch.softmax(scores + mask, -1) @ v


def by_bmm(q, k, v, mask):
    q, k, v = (side.flatten(0, 1) for side in (q, k, v))
    scores = torch.baddbmm(mask, q, k.mT, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, 2))


def scaled_first(q, k, v, mask):
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(2, 3))
    scores = scores.masked_fill(mask < 0, -math.inf)
    return torch.matmul(F.dropout(F.softmax(scores, dim=-1), 0.1, training=False), v)


def by_parts(q, k, v, mask):
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True) @ v


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attend", [capped, by_bmm, scaled_first, by_parts])
@pytest.mark.parametrize("products", ["uniform", "gate", "gradient"])
@pytest.mark.parametrize("attention", ["uniform", "value", "gradient"])
def test_one_policy_means_one_thing_in_eager_and_fused_attention(attention, products, attend, form):
    operators = rules.Operators(attention, products, "constant", "identity", strict=True)
    x = torch.randn(2, 5, 8).double()
    got = {}
    for function in (fused, attend):
        with attributor_of(Block(function).double(), TransformerComposite(operators), form) as attributor:
            output, got[function] = attributor(x, lambda output: output)
    close(got[attend], got[fused])
    assert output.shape == (2, 3)


# linear functions that are not called so


def adjacency():
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(6, 6, generator=generator) > 0.5).double()


A = adjacency()
SPARSE = {
    "operator": lambda h: A.to_sparse() @ h,
    "sparse.mm": lambda h: torch.sparse.mm(A.to_sparse(), h),
    "mm": lambda h: torch.mm(A.to_sparse(), h),
    "csr": lambda h: A.to_sparse_csr() @ h,
    "sparse.addmm": lambda h: torch.sparse.addmm(h, A.to_sparse(), h) - h,
    "index_add": lambda h: torch.zeros_like(h).index_add(0, A.nonzero()[:, 0], h[A.nonzero()[:, 1]]),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SPARSE)
def test_a_product_with_a_sparse_matrix_is_linear(name, preset, form):
    x = torch.randn(6, 4).double()
    model = Between(SPARSE[name], (4, 8, 8, 3)).double()
    got = relevance_of(model, x, form, preset)
    expected = relevance_of(Between(lambda h: A @ h, (4, 8, 8, 3)).double(), x, form, preset)
    # without biases, LRP-0 of a linear network sums to the output
    close(got, expected)
    close(got.sum(), model(x)[:, 1].sum().detach())


BOXES = [torch.tensor([[0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 6.0, 6.0]]).double()]


def unpooled(h):
    value, indices = F.max_pool2d(h, 2, return_indices=True)
    return F.max_unpool2d(value, indices, 2)


def pooled_module(h):
    value, indices = nn.MaxPool2d(2, return_indices=True)(h)
    return nn.MaxUnpool2d(2)(value, indices)


def adaptive(h):
    return F.adaptive_max_pool2d(h, 4, return_indices=True)[0]


#: Functions of images that are linear, or choose among their input, so that input times gradient explains them.
IMAGES = {
    "roi_align": lambda h: torchvision.ops.roi_align(h, BOXES, 2),
    "roi_pool": lambda h: torchvision.ops.roi_pool(h, BOXES, 2),
    "ps_roi_align": lambda h: torchvision.ops.ps_roi_align(h, BOXES, 2),
    "ps_roi_pool": lambda h: torchvision.ops.ps_roi_pool(h, BOXES, 2),
    "roi module": lambda h: torchvision.ops.RoIAlign(2, 1.0, 2)(h, BOXES),
    "unpooled": unpooled,
    "modules": pooled_module,
    "adaptive": adaptive,
    "gathered": lambda h: h.flatten(2).gather(2, F.max_pool2d(h, 2, return_indices=True)[1].flatten(2))[..., None],
    "upsampled": lambda h: F.interpolate(h, scale_factor=2, mode="bilinear"),
    "sampled": lambda h: F.grid_sample(h, torch.linspace(-1, 1, 8).double().reshape(1, 2, 2, 2), align_corners=False),
}


class Image(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.function = nn.Conv2d(3, 8, 3, padding=1, bias=False), function

    def forward(self, x):
        h = self.function(torch.relu(self.a(x)))
        return torch.stack([h.sum((0, 1, 2, 3)), h.mean((0, 1, 2, 3))])[None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", IMAGES)
def test_regions_and_pooled_maxima_are_linear_in_the_features(name, form):
    x, model = torch.randn(1, 3, 8, 8).double(), Image(IMAGES[name]).double()
    point = x.clone().requires_grad_()
    logit = model(point)[0, 1]
    (gradient,) = torch.autograd.grad(logit, point)
    got = relevance_of(model, x, form)
    close(got, (point * gradient).detach())
    close(got.sum(), logit.detach())


@pytest.mark.parametrize("form", FORMS)
def test_boxes_that_depend_on_the_input_are_reported(form):
    def moving(h):
        corner = h.mean((0, 1, 2, 3)).sigmoid()
        box = torch.stack([corner * 0, corner * 0, corner * 5, corner * 5])
        return torchvision.ops.roi_align(h, [box[None]], 2)

    with pytest.raises(UnknownOperationError, match=r"torch\.ops\.torchvision\.roi_align"):
        relevance_of(Image(moving).double(), torch.randn(1, 3, 8, 8).double(), form)


# custom operators


@torch.library.custom_op("zennit_attn_tests::thrice", mutates_args=())
def thrice(x: torch.Tensor) -> torch.Tensor:
    return x * 3


thrice.register_autograd(lambda ctx, gradient: gradient * 3)


def test_a_custom_operator_is_reported_by_a_name_under_which_it_can_be_registered():
    name = "torch.ops.zennit_attn_tests.thrice"
    x = torch.randn(2, 6).double()
    operators = (
        lambda h: torch.ops.zennit_attn_tests.thrice(h),
        lambda h: torch.ops.zennit_attn_tests.thrice.default(h),
        thrice,
    )
    for form in FORMS:
        for operator in operators:
            model = Between(operator).double()
            with pytest.raises(UnknownOperationError, match=name.replace(".", r"\.")):
                relevance_of(model, x, form)
            with pytest.warns(UnknownOperationWarning, match=name.replace(".", r"\.")):
                relevance_of(model, x, form, strict=False)
    # as the report says
    register_operator(eval(name), "linear")
    for form in FORMS:
        expected = relevance_of(Between(lambda h: h * 3).double(), x, form)
        for operator in operators:
            close(relevance_of(Between(operator).double(), x, form), expected)
