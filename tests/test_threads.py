"""Many threads and one model: every call is explained, and as it would be alone."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import models
import pytest
import torch
import zennit.rules
from torch import nn

from zennit_attn import AttnLRPComposite, CPLRPComposite, Explainer, InputXGradient, input_x_gradient, targets
from zennit_attn.composites import claims
from zennit_attn.engine.threads import StartsHandle
from zennit_attn.rules import Gamma

EXAMPLE = "examples/models/agreement"
TEXTS = ["the keys to the old cabinet", "the dog near the trees", "the books", "the man with the keys"]


def close(got, expected):
    # the same computation, whatever runs beside it
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def composites(strict=False):
    return [
        AttnLRPComposite(strict=strict),
        CPLRPComposite(strict=strict),
        AttnLRPComposite(layer_map=[("Linear", Gamma(0.1))], strict=strict),
        # its backward pass puts other weights into the modules for a while
        AttnLRPComposite(layer_map=[("Linear", zennit.rules.Gamma(0.1))], strict=strict),
    ]


@pytest.fixture(scope="module")
def model():
    return models.llama().double().eval()


def batches(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 30, (1, 4 + number % 3), generator=generator) for number in range(count)]


class Predicting:
    """A thread that predicts all the time, and sees what it should."""

    def __init__(self, model, on):
        self.model, self.on, self.stop, self.wrong, self.count = model, on, False, [], 0

    def __enter__(self):
        self.given = batches(1)[0]
        with torch.no_grad():
            self.expected = self.model(self.given).logits
        self.thread = threading.Thread(target=self.run)
        if self.on:
            self.thread.start()
        return self

    def run(self):
        while not self.stop:
            try:
                with torch.no_grad():
                    close(self.model(self.given).logits, self.expected)
            except BaseException as error:  # whatever it is
                self.wrong.append(error)
            self.count += 1

    def __exit__(self, *error):
        self.stop = True
        if self.on:
            self.thread.join()
            assert self.count > 0
        assert not self.wrong


@pytest.mark.parametrize(("strict", "predicting"), [(False, True), (True, False), (True, True)])
def test_composites_of_their_own(model, strict, predicting):
    def explain(job):
        number, batch = job
        with InputXGradient(model, composites(strict)[number % 4], modules="model.layers.0") as attributor:
            _, relevance, inner = attributor(batch, targets.Label(number % 5))
        return relevance, inner["model.layers.0"]

    jobs = list(enumerate(batches(12)))
    expected = [explain(job) for job in jobs]
    with Predicting(model, predicting), ThreadPoolExecutor(8) as pool:
        got = list(pool.map(explain, jobs))
    for pair, wanted in zip(got, expected, strict=True):
        close(pair, wanted)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("strict", "opened", "predicting"), [(False, False, True), (True, True, True), (False, True, False)]
)
def test_one_attributor(model, strict, opened, predicting):
    attributor = InputXGradient(
        model, composites(strict)[3], modules=("model.layers.*", "lm_head"), latents="model.layers.0.neuron"
    )

    def explain(job):
        number, batch = job
        if number % 5 == 4:
            return attributor.ledger(batch, targets.Label(number % 3)).to_dict()
        _, relevance, inner = attributor(batch, targets.Label(number % 3))
        return relevance, inner

    jobs = list(enumerate(batches(12)))
    expected = [explain(job) for job in jobs]
    with Predicting(model, predicting), ThreadPoolExecutor(8) as pool:
        if opened:
            with attributor:
                got = list(pool.map(explain, jobs))
        else:
            got = list(pool.map(explain, jobs))
    for found, wanted in zip(got, expected, strict=True):
        close(found, wanted)


def test_a_plain_gradient_beside_rules(model):
    rules, plain = (
        InputXGradient(model, composites()[2], targets.Label(1)),
        InputXGradient(model, None, targets.Label(1)),
    )
    batch = batches(1)[0]
    expected = rules(batch)[1], plain(batch)[1]
    assert not torch.allclose(*expected)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda number: (rules, plain)[number % 2](batch)[1], range(20)))
    for number, found in enumerate(got):
        close(found, expected[number % 2])


def test_explainers_keep_their_warnings_apart():
    explainer = Explainer(EXAMPLE)
    texts = [*TEXTS, "the zzz of the keys"]
    expected = [explainer(text) for text in texts]
    assert [bool(found.warnings) for found in expected] == [False] * 4 + [True]
    shown = warnings.showwarning, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda number: explainer(texts[number % 5]), range(20)))
    for number, found in enumerate(got):
        assert found.warnings == expected[number % 5].warnings
        close(torch.as_tensor(found.parts[0].relevance), torch.as_tensor(expected[number % 5].parts[0].relevance))
    assert (warnings.showwarning, warnings.filters) == shown


def test_a_context_that_is_left_waits_for_calls_of_other_threads():
    begun, go = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x):
            begun.set()
            go.wait(10)
            return self.layer(x)

    model, x = Slow(), torch.ones(1, 3, dtype=torch.float64)
    attributor = InputXGradient(model, input_x_gradient(AttnLRPComposite(strict=True)), targets.Label(0))
    with ThreadPoolExecutor(1) as pool:
        with attributor:
            later = pool.submit(attributor, x)
            begun.wait(10)
            threading.Timer(0.1, go.set).start()
        assert later.done()
        assert "forward" not in vars(model)
        close(later.result()[1][0], model.layer.weight[0].detach())


def test_who_waits_in_vain_is_told(monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE", 0.3)
    model, composite = nn.Sequential(nn.Linear(3, 2)), AttnLRPComposite()

    def enter():
        context = AttnLRPComposite().context(model)
        context.__enter__()
        return context

    with composite.context(model), ThreadPoolExecutor(1) as pool:
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="by another thread, for 0 s, unused"):
            pool.submit(enter).result()
        assert time.monotonic() - start < 5
    with ThreadPoolExecutor(1) as pool:
        context = pool.submit(enter).result()
    with pytest.raises(RuntimeError, match=r"which has ended.*zennit_attn\.release"):
        composite.register(model)
    context.__exit__(None, None, None)
    composite.register(model)
    composite.remove()


def test_starts_of_threads_are_counted_inside_of_a_context_and_nowhere_else(model):
    start, count = threading.Thread.start, StartsHandle.count
    with AttnLRPComposite().context(model), CPLRPComposite().context(nn.Sequential(nn.ReLU())):
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        assert StartsHandle.count == count + 1
    assert threading.Thread.start is start


def test_what_somebody_else_put_around_the_start_of_threads_meanwhile_stays(model, monkeypatch):
    # to have it back at the end
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)
    started = []
    with AttnLRPComposite().context(model):
        counted = threading.Thread.start

        def theirs(thread):
            started.append(thread)
            counted(thread)

        monkeypatch.setattr(threading.Thread, "start", theirs)
    assert threading.Thread.start is theirs
    with AttnLRPComposite().context(model):
        assert threading.Thread.start is not theirs
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(int).result() == 0
    assert threading.Thread.start is theirs
    assert len(started) == 1
