"""Every forward is looked at, not the first alone, and nothing that the explained output does not depend on."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import models
import pytest
import torch
import torch.nn.functional as F
import torchvision
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput
from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.errors import (
    CutOffError,
    CutOffWarning,
    NotFiniteError,
    UnknownOperationError,
    UnknownOperationWarning,
)

from .forms import FORMS, PRESETS, attributor_of, in_form, relevance_of


class Square(torch.autograd.Function):
    """A function of which no rule knows what it computes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def without_graph(h):
    with torch.no_grad():
        return F.relu(h)


def disabled(h):
    with torch._C.DisableTorchFunction():
        return h * h


LEARNED = nn.Parameter(torch.ones(8))

#: Branches that a later call takes, each with what is reported of it.
BRANCHES = {
    "autograd function": (Square.apply, "Square"),
    "unknown": (torch.erfinv, "erfinv"),
    "disabled": (disabled, "MulBackward0"),
    "checkpoint": (lambda h: checkpoint(lambda x: x * x.sigmoid(), h, use_reentrant=False), "checkpoint"),
    "reentrant": (lambda h: checkpoint(lambda x: x * x.sigmoid(), h, use_reentrant=True), "CheckpointFunction"),
    "leaf": (lambda h: h * LEARNED, "Parameter"),
    "no graph": (lambda h: h + without_graph(h), "no_grad"),
}


def skip_untold(is_checkpoint):
    """Skip a test of checkpoints that are not reentrant, where torch does not tell that one is running."""
    if is_checkpoint and torch.__version__ < "2.7":
        pytest.skip("torch does not tell that a checkpoint is running")


class Net(nn.Module):
    """A network with a branch that is taken when it is switched on."""

    def __init__(self, branch):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.branch, self.on = nn.Linear(6, 8), nn.Linear(8, 3), [branch], False

    def forward(self, x):
        h = self.a(x)
        return self.b(self.branch[0](h) if self.on else h)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_that_a_later_call_takes_is_refused(name, after, preset, form):
    skip_untold(name == "checkpoint")
    branch, title = BRANCHES[name]
    model, x = Net(branch), torch.rand(2, 6) * 0.1
    with attributor_of(model, PRESETS[preset](strict=True), form) as attributor:
        for _ in range(after):
            attributor(x, targets.Label(1))
        model.on = True
        with pytest.raises((UnknownOperationError, CutOffError), match=title):
            attributor(x, targets.Label(1))
        model.on = False
        attributor(x, targets.Label(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("again", [False, True], ids=["one context", "two contexts"])
@pytest.mark.parametrize("name", sorted(BRANCHES.keys() - {"no graph", "reentrant"}))
def test_a_branch_that_a_later_call_takes_is_warned_of(name, again, form):
    skip_untold(name == "checkpoint")
    branch, title = BRANCHES[name]
    model, x = Net(branch), torch.rand(2, 6) * 0.1
    with ExitStack() as stack:
        attributor = stack.enter_context(attributor_of(model, AttnLRPComposite(), form))
        for _ in range(2):
            attributor(x, targets.Label(1))
        if again:
            stack.pop_all().close()
            attributor = stack.enter_context(attributor_of(model, AttnLRPComposite(), form))
        model.on = True
        with pytest.warns(UnknownOperationWarning, match=title):
            attributor(x, targets.Label(1))
        attributor(x, targets.Label(1))  # a second warning would be an error


class Pool:
    """A thread that lives for longer than a forward."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()

    def __call__(self, h):
        return self.pool.submit(square, h).result()


def square(h):
    return h * h


def in_a_pool_of_its_own(h):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(square, h).result()


def in_a_thread_of_its_own(h):
    found = []
    thread = threading.Thread(target=lambda: found.append(square(h)))
    thread.start()
    thread.join()
    return found[0]


#: Where a branch computes what no rule sees.
ELSEWHERE = {
    "disabled": lambda: disabled,
    "a thread that is there": Pool,
    "a pool of its own": lambda: in_a_pool_of_its_own,
    "a thread of its own": lambda: in_a_thread_of_its_own,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opened", [False, True], ids=["a context each", "one context"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_branch_that_every_other_call_takes_is_warned_of_at_its_first(name, opened, form):
    # with the threads, the forward itself calls as many functions and makes as many nodes as without
    model, x = Net(ELSEWHERE[name]()), torch.rand(2, 6) * 0.1
    with ExitStack() as stack:
        attributor = attributor_of(model, AttnLRPComposite(), form)
        if opened:
            stack.enter_context(attributor)
        attributor(x, targets.Label(1))
        model.on = True
        with pytest.warns(UnknownOperationWarning, match="MulBackward0 that no function made which the rules saw"):
            attributor(x, targets.Label(1))
        for model.on in (False, True, True):
            attributor(x, targets.Label(1))  # a second warning would be an error


@pytest.mark.parametrize("form", FORMS)
def test_what_turns_graphs_off_in_every_other_call_is_warned_of_at_its_second(form):
    def in_inference_mode(h):
        with torch.inference_mode():
            hidden = F.relu(h)
        return h + hidden

    model, x = Net(in_inference_mode), torch.rand(2, 6) * 0.1
    with attributor_of(model, AttnLRPComposite(), form) as attributor:
        for model.on in (False, True, False):
            attributor(x, targets.Label(1))
        model.on = True
        with pytest.warns(CutOffWarning, match="add"):
            attributor(x, targets.Label(1))


@pytest.mark.parametrize("form", FORMS)
def test_other_threads_that_compute_nothing_are_no_reason_for_a_warning(form):
    model, x, pool = Net(lambda h: F.gelu(h)), torch.rand(2, 6), Pool()
    with attributor_of(model, AttnLRPComposite(), form) as attributor:
        expected = attributor(x, targets.Label(1))[1]
        for model.on in (True, False, True, False):
            pool(torch.rand(2, requires_grad=True))
            got = attributor(x, targets.Label(1))[1]
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_that_are_switched_on_later_are_reported_inside_of_modules(reentrant, form):
    skip_untold(not reentrant)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.on = nn.Linear(6, 6), False

        def run(self, h):
            return h + F.gelu(self.layer(h))

        def forward(self, h):
            return checkpoint(self.run, h, use_reentrant=reentrant) if self.on else self.run(h)

    model, x = nn.Sequential(Block(), Block()), torch.rand(2, 6)
    with attributor_of(model, CPLRPComposite(strict=True), form) as attributor:
        attributor(x, targets.Label(1))
        model[1].on = True
        with pytest.raises(UnknownOperationError, match="heckpoint"):
            attributor(x, targets.Label(1))


@pytest.mark.parametrize("form", FORMS)
def test_a_plain_backward_pass_in_a_context_is_looked_at_every_time(form):
    model, x = Net(torch.erfinv), torch.rand(2, 6) * 0.1
    with in_form(AttnLRPComposite(strict=True), form).context(model):
        for _ in range(2):
            model(x.clone().requires_grad_())[:, 1].sum().backward()
        model.on = True
        with pytest.raises(UnknownOperationError, match="erfinv"):
            model(x.clone().requires_grad_())[:, 1].sum().backward()


# what the explained output does not depend on


class Returns(nn.Module):
    """Logits, and beside them something that no rule knows."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.form = nn.Linear(6, 8), nn.Linear(8, 3), form

    def forward(self, x):
        h = torch.relu(self.a(x))
        logits = self.b(h)
        beside = torch.erfinv(h.tanh() * 0.5).sum() + Square.apply(h).sum()
        return self.form(logits, beside)


@dataclass
class Result(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def kept(store):
    def form(logits, beside):
        store.append(beside)
        return logits

    return form


#: How a model returns logits and something beside them.
RESULTS = {
    "model output": lambda logits, beside: Result(loss=beside, logits=logits),
    "dict": lambda logits, beside: {"loss": beside, "logits": logits},
    "kept": kept([]),
    "not at all": lambda logits, beside: logits,
    "detached": lambda logits, beside: logits + beside.detach(),
    "mask": lambda logits, beside: torch.where(beside > 1e9, -logits, logits),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", RESULTS)
def test_what_is_beside_the_explained_output_is_not_refused(name, preset):
    x = torch.rand(2, 6)
    expected = relevance_of(Returns(lambda logits, beside: logits), x, preset=preset)
    if name != "detached":
        torch.testing.assert_close(relevance_of(Returns(RESULTS[name]), x, preset=preset), expected)
    with InputXGradient(Returns(RESULTS[name]), input_x_gradient(PRESETS[preset]())) as attributor:
        attributor(x, targets.Label(1))  # a warning would be an error


@pytest.mark.parametrize("name", ["kept", "not at all", "mask"])
@pytest.mark.parametrize("form", FORMS)
def test_what_no_output_depends_on_is_refused_in_neither_form(name, form):
    assert relevance_of(Returns(RESULTS[name]), torch.rand(2, 6), form).shape == (2, 6)


def test_what_is_explained_by_its_key_is_looked_at():
    x, model = torch.rand(2, 6), Returns(lambda logits, beside: Result(loss=beside[None, None], logits=logits))
    composite = input_x_gradient(CPLRPComposite(strict=True))
    with InputXGradient(model, composite, output_key="logits") as attributor:
        attributor(x, targets.Label(1))
    with (
        InputXGradient(model, composite, output_key="loss") as attributor,
        pytest.raises(UnknownOperationError, match=r"erfinv|Square"),
    ):
        attributor(x, targets.Label(0))


@pytest.mark.skipif(transformers.__version__ < "5", reason="the model itself runs in float32 only")
def test_the_loss_of_a_time_series_model_is_not_refused():
    small = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.TimeSeriesTransformerConfig(
        prediction_length=4,
        context_length=12,
        lags_sequence=[1, 2],
        num_time_features=2,
        d_model=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        **small,
    )
    model = transformers.TimeSeriesTransformerForPrediction(config).double().eval()
    batch = {
        "past_values": torch.rand(2, 14).double() + 1,
        "past_time_features": torch.rand(2, 14, 2).double(),
        "past_observed_mask": torch.ones(2, 14).double(),
        "future_values": torch.rand(2, 4).double(),
        "future_time_features": torch.rand(2, 4, 2).double(),
    }

    class Wrap(nn.Module):
        def __init__(self, loss):
            super().__init__()
            self.model, self.loss = model, loss

        def forward(self, **batch):
            if self.loss:
                return self.model(**batch).params[1]
            return self.model.output_params(self.model.model(**batch).last_hidden_state)[1]

    got = {}
    for loss in (False, True):
        composite = input_x_gradient(CPLRPComposite(strict=True))
        with InputXGradient(Wrap(loss).eval(), composite, argument="past_values") as attributor:
            got[loss] = attributor(batch, lambda output: output)[1]
    torch.testing.assert_close(got[True], got[False])
    assert float(got[True].abs().max()) > 0


# without an attributor nobody says what is explained, but the backward pass begins with it


def in_context(model, x, form, begin, strict=True):
    """Return the signal of x in a plain context, for a sum that a function makes of what the model returns."""
    x = x.clone().requires_grad_()
    with in_form(CPLRPComposite(strict=strict), form).context(model):
        output = model(x)
        begin(output).backward()
    return x.grad


class Holder:
    """An object that nothing knows how to look into."""

    def __init__(self, beside, logits):
        self.parts = {"loss": beside, "logits": logits}

    def __getitem__(self, key):
        return self.parts[key]


SEVERAL = {
    "dict": lambda logits, beside: {"loss": beside, "logits": logits},
    "model output": lambda logits, beside: Result(loss=beside, logits=logits),
    "object": lambda logits, beside: Holder(beside, logits),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SEVERAL)
def test_a_loss_beside_logits_in_a_context_is_not_refused(name, form):
    x, alone = torch.rand(2, 6), Returns(lambda logits, beside: {"logits": logits})
    expected = in_context(alone, x, form, lambda output: output["logits"][:, 1].sum())
    for strict in (True, False):  # a warning would be an error
        got = in_context(Returns(SEVERAL[name]), x, form, lambda output: output["logits"][:, 1].sum(), strict)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize(
    "begin",
    [
        lambda output: output["loss"].sum(),
        lambda output: output["logits"][:, 1].sum() + output["loss"].sum(),
        # written over after the forward
        lambda output: output["logits"].sum(1).add_(output["loss"].sum()).sum(),
    ],
    ids=["loss", "both", "written"],
)
def test_what_a_backward_pass_gets_to_is_refused_before_it_gets_to_the_input(begin, name, form):
    model, x = Returns(SEVERAL[name]), torch.rand(2, 6).requires_grad_()
    with in_form(CPLRPComposite(strict=True), form).context(model):
        for _ in range(2):
            output = model(x)
            with pytest.raises(UnknownOperationError, match=r"erfinv|Square"):
                begin(output).backward()
            assert x.grad is None
            with pytest.raises(UnknownOperationError, match=r"erfinv|Square"):
                torch.autograd.grad(begin(model(x)), x)


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_a_later_backward_pass_explains_is_warned_of_once(form):
    model, x = Returns(SEVERAL["dict"]), torch.rand(2, 6)
    for _ in range(3):
        in_context(model, x, form, lambda output: output["logits"].sum(), strict=False)
    with pytest.warns(UnknownOperationWarning) as caught:
        in_context(model, x, form, lambda output: output["loss"], strict=False)
    assert sorted(str(warning.message).split(" ")[5] for warning in caught) == [
        "Square,",
        "_VariableFunctionsClass.erfinv,",
    ]
    for begin in (lambda output: output["loss"], lambda output: output["logits"].sum()):
        in_context(model, x, form, begin, strict=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(BRANCHES.keys() - {"checkpoint", "reentrant"}))
def test_of_two_heads_the_one_that_is_explained_is_looked_at(name, form):
    class Heads(nn.Module):
        def __init__(self, branch):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.known, self.unknown, self.branch = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3), [branch]

        def forward(self, x):
            h = self.a(x)
            return self.known(h.relu()), self.unknown(self.branch[0](h))

    branch, title = BRANCHES[name]
    model, x = Heads(branch), torch.rand(2, 6) * 0.1
    for _ in range(2):
        assert float(in_context(model, x, form, lambda output: output[0].sum()).abs().max()) > 0
        with pytest.raises((UnknownOperationError, CutOffError), match=title):
            in_context(model, x, form, lambda output: output[1].sum())
    # what both depend on is refused in the forward
    model.a = nn.Sequential(model.a, nn.Module())
    model.a[1].forward = branch
    with (
        in_form(CPLRPComposite(strict=True), form).context(model),
        pytest.raises((UnknownOperationError, CutOffError), match=title),
    ):
        model(x.requires_grad_())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("make", [models.llama, models.bert, models.gpt2, models.t5])
def test_labels_change_nothing_that_is_explained(make, preset, form):
    model, x, got = make().eval(), torch.randn(1, 5, models.WIDTH), {}
    for labels in (None, torch.tensor([[3, 1, 4, 1, 5]]), torch.full((1, 5), -100)):
        rest = {"decoder_input_ids": torch.tensor([[0, 1, 2, 3, 4]])} if make is models.t5 else {}
        if make is models.bert and labels is not None:
            labels = labels[:, 0]
        leaf = x.clone().requires_grad_()
        with in_form(PRESETS[preset](strict=True), form).context(model):
            output = model(inputs_embeds=leaf, labels=labels, **rest)
            output.logits[..., 1].sum().backward()
        got[len(got)] = leaf.grad
    torch.testing.assert_close(got[1], got[0])
    torch.testing.assert_close(got[2], got[0])


def test_a_loss_that_is_not_finite_is_refused_where_it_is_explained():
    model, x = models.bert().eval(), torch.randn(1, 5, models.WIDTH, requires_grad=True)
    with input_x_gradient(CPLRPComposite(strict=True)).context(model):
        loss = model(inputs_embeds=x, labels=torch.tensor([-100])).loss
        assert bool(loss.isnan())
        with pytest.raises((NotFiniteError, UnknownOperationError)):
            loss.backward()
    assert x.grad is None


# no false alarms: strict rules, and warnings are errors


def tiny(kind, config, **settings):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return getattr(transformers, kind)(getattr(transformers, config)(**{**small, **settings})).eval()


TEXT = {
    "bert": lambda: models.bert(),
    "gpt2": lambda: models.gpt2("eager"),
    "llama": lambda: models.llama(),
    "roberta": lambda: tiny("RobertaForSequenceClassification", "RobertaConfig", vocab_size=64, pad_token_id=0),
    "gemma": lambda: tiny("GemmaForCausalLM", "GemmaConfig", vocab_size=64, head_dim=16, num_key_value_heads=1),
    "phi": lambda: tiny("PhiForCausalLM", "PhiConfig", vocab_size=64),
    "neox": lambda: tiny("GPTNeoXForCausalLM", "GPTNeoXConfig", vocab_size=64),
    "albert": lambda: tiny("AlbertForSequenceClassification", "AlbertConfig", vocab_size=64, embedding_size=16),
    "electra": lambda: tiny("ElectraForSequenceClassification", "ElectraConfig", vocab_size=64),
}
IMAGES = {
    "resnet": lambda: torchvision.models.resnet18(num_classes=4).eval(),
    "vit": lambda: models.torchvision_vit().eval(),
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(num_classes=4).eval(),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=4).eval(),
    "hf vit": lambda: models.hf_vit().eval(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TEXT)
def test_ordinary_text_models_raise_no_alarm(name, form):
    model, ids = models.scramble(TEXT[name]()), torch.tensor([[3, 1, 4, 1, 5]])
    model.eval()
    for strict in (False, True):
        composite = AttnLRPComposite(strict=strict)
        if form == "gradient":
            with InputXGradient(model, input_x_gradient(composite)) as attributor:
                for _ in range(2):
                    relevance = attributor({"input_ids": ids}, targets.MaxLogit())[1]
            assert float(relevance.abs().max()) > 0
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        with in_form(composite, form).context(model):
            logits = [model(inputs_embeds=embeddings).logits.flatten(0, -2)[-1] for _ in range(2)]
            # of two forwards, and of several logits
            (logits[0][1] + logits[1][2:4].sum()).backward()
        assert float(embeddings.grad.abs().max()) > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", IMAGES)
def test_ordinary_image_models_raise_no_alarm(name, form):
    model = IMAGES[name]()
    x = torch.randn(1, 3, 64 if name in ("resnet", "mobilenet", "shufflenet") else 32, 64 if "net" in name else 32)
    composite = CPLRPComposite(strict=True)
    with attributor_of(model, composite, form) as attributor:
        if form == "gradient":
            attributor(x, targets.Label(1))
    x.requires_grad_()
    with in_form(composite, form).context(model):
        models.logits_of(model, x)[:, 1].sum().backward()
    assert float(x.grad.abs().max()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_siamese_encoders_within_a_module_raise_no_alarm(form):
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = models.bert().bert, nn.Linear(2 * models.WIDTH, 2)

        def forward(self, x):
            first, second = (self.encoder(inputs_embeds=part).last_hidden_state[:, 0] for part in x.chunk(2, 1))
            return self.head(torch.cat([first * second, (first - second).abs()], -1))

    relevance = relevance_of(Siamese().double().eval(), torch.randn(1, 8, models.WIDTH).double(), form, "attnlrp")
    assert float(relevance.abs().max()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_transformers_raise_no_alarm(form):
    model, x = models.llama().double().eval(), torch.randn(1, 5, models.WIDTH).double()
    expected, _ = models.explain(model, AttnLRPComposite(strict=True), x, form)
    # its name changed in transformers 5
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    for _ in range(2):
        got, _ = models.explain(model, AttnLRPComposite(strict=True), x, form)
        torch.testing.assert_close(got, expected)


def test_generation_within_a_context_raises_no_alarm():
    model, ids = models.llama().eval(), torch.tensor([[3, 1, 4, 1, 5]])
    with input_x_gradient(AttnLRPComposite(strict=True)).context(model):
        expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), expected)
    with InputXGradient(model, input_x_gradient(AttnLRPComposite(strict=True))) as attributor:
        attributor({"input_ids": expected, "use_cache": True}, targets.MaxLogit())


def test_training_after_an_explanation_raises_no_alarm():
    model, x = Net(F.gelu), torch.rand(2, 6)
    model.on = True
    for _ in range(2):
        with Gradient(model, CPLRPComposite(strict=True)) as attributor:
            attributor(x, targets.Label(1))
        F.cross_entropy(model(x), torch.tensor([1, 0])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
