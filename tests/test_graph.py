"""What the graph of a forward holds beside the input and the functions that rules saw."""

import copy
import dataclasses
import threading
import types
import warnings

import models
import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.errors import UnknownOperationError, UnknownOperationWarning

COMPOSITES = [AttnLRPComposite, CPLRPComposite]
FORMS = ["relevance", "gradient"]
#: transformers renames the argument.
CACHES = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")


def explain(model, x, form="gradient", composite=CPLRPComposite, strict=True, **options):
    """Return the relevance of the second logit."""
    rules = composite(strict=strict)
    attributor = (
        Gradient(model, rules) if form == "relevance" else InputXGradient(model, input_x_gradient(rules), **options)
    )
    with attributor:
        return attributor(x, targets.Label(1))[1].detach()


def rand(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """Two linear layers, and what a test puts between them."""

    def __init__(self, between=lambda h: h):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8, bias=False).double(), nn.Linear(8, 3, bias=False).double()
        self.between = between

    def forward(self, x):
        return self.b(self.between(self.a(x)))


# --------------------------------------------------------------------------------------------------------------------
# What counts as input
# --------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Holder:
    scale: torch.Tensor


def in_a_list(net, scale):
    net.kept = [scale]
    net.between = lambda h: h * net.kept[0]


def in_a_dict(net, scale):
    net.kept = {"scale": [scale]}
    net.between = lambda h: h * net.kept["scale"][0]


def in_a_dataclass(net, scale):
    holder = Holder(scale)
    net.between = lambda h: h * holder.scale


def in_a_closure(net, scale):
    net.between = lambda h: torch.mul(h, scale)


def in_a_buffer(net, scale):
    net.register_buffer("kept", scale)
    net.between = lambda h: h * net.kept


def computed_before(net, scale):
    doubled = scale * 2
    net.between = lambda h: h * doubled


def spliced_in(net, scale):
    net.a.register_forward_hook(lambda module, args, output: output * scale)


PLACES = [in_a_list, in_a_dict, in_a_dataclass, in_a_closure, in_a_buffer, computed_before, spliced_in]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_what_requires_grad_and_is_no_input_is_named(place, form):
    x = rand(1, 6)
    net = Net()
    place(net, torch.rand(8, dtype=torch.float64))
    frozen = explain(net, x, form)
    output = net(x)[0, 1].detach()
    # a bilinear net without biases conserves
    torch.testing.assert_close(frozen.sum(), output)
    net = Net()
    place(net, torch.rand(8, dtype=torch.float64).requires_grad_())
    with pytest.raises(UnknownOperationError, match="requires grad and is neither its input nor one of its parameters"):
        explain(net, x, form)
    with pytest.warns(UnknownOperationWarning, match="requires grad"):
        explain(net, x, form, strict=False)


def test_the_name_is_that_of_the_model():
    net = Net()
    in_a_list(net, torch.rand(8, dtype=torch.float64).requires_grad_())
    with pytest.raises(UnknownOperationError, match="ends in 'kept'"):
        explain(net, rand(1, 6))


def test_a_parameter_without_a_module_is_reported_in_a_plain_context():
    net, scale = Net(), nn.Parameter(torch.rand(8, dtype=torch.float64))
    in_a_closure(net, scale)
    x = rand(1, 6).requires_grad_()
    with (
        input_x_gradient(AttnLRPComposite(strict=True)).context(net),
        pytest.raises(UnknownOperationError, match=r"Parameter of shape \(8,\)"),
    ):
        net(x)


def test_a_leaf_that_somebody_puts_inside_is_an_input():
    model, ids = models.bert().eval(), torch.tensor([[3, 1, 4, 1]])
    leaves = []

    def as_input(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[0].clone()

    handle = model.get_input_embeddings().register_forward_hook(as_input)
    with input_x_gradient(AttnLRPComposite(strict=True)).context(model):
        model(ids).logits[0, 1].backward()
    handle.remove()
    relevance = InputXGradient(model, input_x_gradient(AttnLRPComposite()))({"input_ids": ids}, targets.Label(1))[1]
    torch.testing.assert_close((leaves[0] * leaves[0].grad).sum(-1).detach(), relevance)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 8, bias=False).double(), nn.Linear(8, 3, bias=False).double()

    def forward(self, x, mask, extra=None):
        scale = mask["edges"][0] if isinstance(mask, dict) else mask
        return self.b(self.a(x) * scale)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"edges": [w]}, lambda w: w.exp().log()])
def test_other_arguments_of_a_batch_are_constants(wrap):
    x, mask = rand(1, 6), torch.rand(8, dtype=torch.float64)
    model = Masked()
    found = [
        explain(model, {"x": x, "mask": wrap(weight)}, argument="x") for weight in (mask, nn.Parameter(mask.clone()))
    ]
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[0].sum(), model(x, mask)[0, 1].detach())


@pytest.mark.parametrize("composite", COMPOSITES)
def test_encoder_outputs_with_a_graph_are_constants(composite):
    model = models.t5().double().eval()
    ids, decoder = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 7, 8]])
    found = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            encoded = model.encoder(input_ids=ids)
        batch = {"encoder_outputs": encoded, "decoder_input_ids": decoder}
        found.append(explain(model, batch, composite=composite, argument="decoder_input_ids"))
    torch.testing.assert_close(found[1], found[0])


@CACHES
def test_a_cache_with_a_graph_is_a_constant():
    model = models.llama().double().eval()
    found = []
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            cache = model(torch.tensor([[3, 1, 4]]), use_cache=True).past_key_values
        found.append(explain(model, {"input_ids": torch.tensor([[1, 5]]), "past_key_values": cache}))
    torch.testing.assert_close(found[1], found[0])


# --------------------------------------------------------------------------------------------------------------------
# Functions that no rule sees
# --------------------------------------------------------------------------------------------------------------------


def gated(h):
    return h * h.sigmoid()


def in_a_thread(h):
    done = []
    thread = threading.Thread(target=lambda: done.append(gated(h)))
    thread.start()
    thread.join()
    return done[0]


def disabled(h):
    with torch._C.DisableTorchFunction():
        return gated(h)


def scripted(h):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(gated)(h)


def traced(h):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(gated, torch.ones(1, 8, dtype=torch.float64))(h)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unseen", [in_a_thread, disabled, scripted, traced], ids=lambda function: function.__name__)
def test_what_no_function_made_is_reported(unseen, form):
    explain(Net(gated), rand(1, 6), form)
    with pytest.raises(UnknownOperationError, match="that no function made which the rules saw"):
        explain(Net(unseen), rand(1, 6), form)
    with pytest.warns(UnknownOperationWarning, match="that no function made which the rules saw"):
        explain(Net(unseen), rand(1, 6), form, strict=False)


def test_unseen_functions_that_move_values_are_right_as_they_are():
    def moved(h):
        with torch._C.DisableTorchFunction():
            return h.view(1, 8).transpose(0, 1).transpose(0, 1)

    torch.testing.assert_close(explain(Net(moved), rand(1, 6)), explain(Net(), rand(1, 6)))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


BRANCHES = {
    "autograd function": Square.apply,
    "checkpoint": lambda h: checkpoint(gated, h, use_reentrant=False),
    "reentrant checkpoint": lambda h: checkpoint(gated, h, use_reentrant=True),
    "thread": in_a_thread,
    "disabled": disabled,
}


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch does not tell that a checkpoint is running")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_that_only_a_later_forward_takes_is_seen(name, strict):
    branch, net, x = BRANCHES[name], Net(), rand(1, 6)
    if "reentrant" in name and not strict:
        pytest.skip("torch itself refuses reentrant checkpoints with torch.autograd.grad")
    if name == "thread" and not strict:
        pytest.skip("nothing tells of a thread but the graph, which is walked at each forward under strict rules only")
    with InputXGradient(net, input_x_gradient(AttnLRPComposite(strict=strict))) as attributor:
        attributor(x, targets.Label(1))
        net.between = branch
        if strict:
            with pytest.raises(UnknownOperationError):
                attributor(x, targets.Label(1))
            return
        # of a forward that is not followed, what is not in the graph is seen the next time
        with pytest.warns(UnknownOperationWarning):
            _ = [attributor(x, targets.Label(1)) for _ in range(2)]


def test_forwards_of_one_kind_are_looked_at_once(monkeypatch):
    from zennit_attn.engine import survey

    calls = []
    look = survey.look
    monkeypatch.setattr(survey, "look", lambda *args: calls.append(1) or look(*args))
    net = Net(gated)
    for _ in range(3):
        explain(net, rand(1, 6), strict=False)
    assert len(calls) == 1


# --------------------------------------------------------------------------------------------------------------------
# Where rules hold
# --------------------------------------------------------------------------------------------------------------------

HOOKS = {
    "normalised": lambda x: (x - 0.5) / 0.25,
    "gated": gated,
    "divided by its norm": lambda x: x / x.norm(dim=-1, keepdim=True),
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_the_root_are_part_of_it(name, form, composite):
    x = rand(2, 6)

    class Written(Net):
        def forward(self, x):
            return HOOKS[name](super().forward(HOOKS[name](x)))

    hooked = Net()
    hooked.register_forward_pre_hook(lambda module, args: (HOOKS[name](args[0]),))
    hooked.register_forward_hook(lambda module, args, output: HOOKS[name](output))
    expected = explain(Written(), x, form, composite)
    torch.testing.assert_close(explain(hooked, x, form, composite), expected)
    assert "_call_impl" not in vars(hooked)


def test_hooks_that_come_later_are_part_of_it():
    x, net = rand(2, 6), Net()
    with InputXGradient(net, input_x_gradient(AttnLRPComposite(strict=True))) as attributor:
        handle = net.register_forward_pre_hook(lambda module, args: (gated(args[0]),))
        found = attributor(x, targets.Label(1))[1]
        handle.remove()
    net.register_forward_pre_hook(lambda module, args: (gated(args[0]),))
    torch.testing.assert_close(found, explain(net, x, composite=AttnLRPComposite))


OUTSIDE = {
    "cosine": lambda a, b: nn.functional.cosine_similarity(a, b).sum(),
    "distance": lambda a, b: (a - b).norm(),
    "product": lambda a, b: (a * b).sum(),
    "softmax": lambda a, b: a.softmax(-1)[0, 0],
    "cross entropy": lambda a, b: nn.functional.cross_entropy(a, torch.tensor([1])),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_computed_after_the_forward_is_reported(name):
    net, a, b = Net(gated), rand(1, 6).requires_grad_(), rand(1, 6, seed=2).requires_grad_()
    with input_x_gradient(AttnLRPComposite(strict=True)).context(net):
        score = OUTSIDE[name](net(a), net(b))
        with pytest.raises(UnknownOperationError, match="after its forward"):
            score.backward()
    with input_x_gradient(AttnLRPComposite()).context(net):
        score = OUTSIDE[name](net(a), net(b))
        with pytest.warns(UnknownOperationWarning, match="after its forward"):
            score.backward()


@pytest.mark.parametrize(
    "choose",
    [
        lambda a, b: a[0, 1],
        lambda a, b: a.max(-1).values.sum(),
        lambda a, b: a[0, 1] + b[0, 2],
        lambda a, b: (a[0, 1] - a[0].mean()) * 2,
        lambda a, b: torch.stack([a[0, 1], b[0, 1]]).sum(),
    ],
)
def test_logits_and_their_sums_are_no_reason_for_a_report(choose):
    net, a, b = Net(gated), rand(1, 6).requires_grad_(), rand(1, 6, seed=2).requires_grad_()
    with input_x_gradient(AttnLRPComposite(strict=True)).context(net):
        choose(net(a), net(b)).backward()
    assert a.grad is not None


def test_a_backward_pass_in_another_thread_is_none_of_ours():
    net, a = Net(gated), rand(1, 6).requires_grad_()
    other = (rand(3, seed=5).requires_grad_() ** 2).sum()
    with input_x_gradient(AttnLRPComposite(strict=True)).context(net):
        logit = net(a)[0, 1]
        threads = [threading.Thread(target=other.backward)]
        threads[0].start()
        logit.backward()
        threads[0].join()
    assert a.grad is not None


class WithLoss(Net):
    def forward(self, x):
        logits = super().forward(x)
        return {"loss": torch.lgamma(logits.abs()).sum(), "logits": logits}


class Dropped(Net):
    def forward(self, x):
        logits = super().forward(x)
        self.loss = torch.lgamma(logits.abs()).sum()
        return logits


@pytest.mark.parametrize("kind", [WithLoss, Dropped])
def test_a_loss_beside_the_logits_is_not_on_the_path(kind):
    x = rand(2, 6)
    torch.testing.assert_close(explain(kind(gated), x), explain(Net(gated), x))
    with pytest.raises(UnknownOperationError, match="lgamma"):
        explain(Net(lambda h: torch.lgamma(h.abs() + 2)), x)


def test_a_loss_that_is_explained_is_on_the_path():
    attributor = InputXGradient(WithLoss(), input_x_gradient(CPLRPComposite(strict=True)), output_key="loss")
    with attributor, pytest.raises(UnknownOperationError, match="lgamma"):
        attributor(rand(1, 6))


def test_a_loss_of_transformers_is_not_on_the_path():
    model, ids = models.bert().eval(), torch.tensor([[3, 1, 4, 1]])

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, inputs_embeds):
            return self.model(inputs_embeds=inputs_embeds, labels=torch.tensor([1]))

    x = model.get_input_embeddings()(ids).detach()
    torch.testing.assert_close(explain(Labelled(), {"inputs_embeds": x}), explain(model, {"inputs_embeds": x}))


# --------------------------------------------------------------------------------------------------------------------
# Weights that are not there in the backward pass
# --------------------------------------------------------------------------------------------------------------------


def weight_rules():
    import zennit.rules

    from zennit_attn import rules

    return [rules.Gamma(0.25), rules.ZPlus(), rules.AlphaBeta(2, 1), rules.Epsilon(1e-3), zennit.rules.Gamma(0.25),
            zennit.rules.ZPlus(), zennit.rules.Epsilon(1e-3)]  # fmt: skip


class Functional(nn.Module):
    """A net that runs with weights which are put back after its forward."""

    def __init__(self, net, weights):
        super().__init__()
        self.net, self.weights = net, weights

    def forward(self, x):
        return torch.func.functional_call(self.net, self.weights, (x,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(len(weight_rules())))
def test_rules_see_the_weights_of_the_forward(number, form):
    rule, x = weight_rules()[number], rand(2, 6)
    right, other = Net(torch.relu), Net(torch.relu)
    for parameter in other.parameters():
        parameter.data = parameter.data.flip(0) * 1.5
    weights = {name: value.detach() for name, value in right.named_parameters()}

    def composite(strict):
        return AttnLRPComposite(strict=strict, layer_map=[(nn.Linear, rule)])

    found = [explain(model, x, form, composite) for model in (right, Functional(other, weights))]
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(len(weight_rules())))
def test_rules_see_weights_that_accelerate_offloads(number, form):
    accelerate = pytest.importorskip("accelerate")
    rule = weight_rules()[number]

    def composite(strict):
        return AttnLRPComposite(strict=strict, layer_map=[(nn.Linear, rule)])

    right, x = Net(torch.relu), rand(2, 6)
    expected = explain(right, x, form, composite)
    offloaded = accelerate.cpu_offload(copy.deepcopy(right), "cpu")
    for _ in range(2):
        torch.testing.assert_close(explain(offloaded, x, form, composite), expected)
    assert all(parameter.requires_grad for parameter in offloaded.parameters())


def test_second_order_gradients_of_other_weights_are_refused():
    from zennit_attn.rules import Gamma

    right, other = Net(), Net()
    weights = {name: value.detach() * 2 for name, value in right.named_parameters()}
    composite = input_x_gradient(AttnLRPComposite(layer_map=[(nn.Linear, Gamma(0.25))]))
    model = Functional(other, weights).requires_grad_(False)
    attributor = InputXGradient(model, composite, create_graph=True)
    with attributor, pytest.raises(RuntimeError, match="another one than in its forward"):
        attributor(rand(1, 6), targets.Label(1))


# --------------------------------------------------------------------------------------------------------------------
# No false alarms
# --------------------------------------------------------------------------------------------------------------------

MAKERS = [models.llama, models.gpt2, models.bert, models.t5, models.mixtral, models.hf_vit, models.torchvision_vit]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_ordinary_models_are_explained_strictly_and_without_a_word(make):
    model = make().eval()
    if "vit" in make.__name__:
        batch = torch.randn(2, 3, 32, 32)
    else:
        batch = {"input_ids": torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])}
        batch |= {"decoder_input_ids": torch.tensor([[0, 1], [0, 2]])} if make is models.t5 else {}
    options = {"argument": "input_ids"} if make is models.t5 else {}
    for composite in COMPOSITES:
        with InputXGradient(model, input_x_gradient(composite(strict=True)), **options) as attributor:
            for _ in range(2):
                attributor(batch, targets.MaxLogit())


@CACHES
def test_generation_with_a_cache_is_explained_step_by_step():
    model = models.llama().eval()
    cache = transformers.DynamicCache()
    with InputXGradient(model, input_x_gradient(AttnLRPComposite(strict=True))) as attributor:
        for token in (3, 1, 4):
            batch = {"input_ids": torch.tensor([[token]]), "past_key_values": cache, "use_cache": True}
            output, relevance = attributor(types.MappingProxyType(batch), targets.MaxLogit())
            cache = output.past_key_values
            assert relevance.shape == (1, 1)
