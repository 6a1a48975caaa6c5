"""Rules that are found once for a model: the same as found anew, whatever changed in between."""

import copy
import gc
import weakref

import models
import pytest
import torch

from zennit_attn import AttnLRPComposite, GammaViTComposite, InputXGradient, input_x_gradient, targets
from zennit_attn.composites.assignments import Assignments
from zennit_attn.rules import Epsilon, Gamma


def network():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.GELU(), torch.nn.Linear(6, 6))
    return torch.nn.Sequential(torch.nn.Linear(4, 6), block, torch.nn.Linear(6, 3)).double().eval()


X = torch.linspace(-1, 2, 8, dtype=torch.float64).view(2, 4)


def explained(model, composite):
    return InputXGradient(model, composite)(X, targets.Label(1)).relevance


class Other(torch.nn.Linear):
    """A linear layer of another class, which a map may name."""


def swap(model, composite):
    model[1][0] = torch.nn.Linear(6, 6).double()


def add(model, composite):
    model[1].append(torch.nn.Linear(6, 6).double())


def drop(model, composite):
    del model[1][1]


def exchange(model, composite):
    # the same modules under each other's names
    model[1][0], model[1][2] = model[1][2], model[1][0]


def change_class(model, composite):
    model[1][2].__class__ = Other


def change_parameter(model, composite):
    model[1][2].weight = torch.nn.Parameter(torch.randn(6, 6, dtype=torch.float64))


def train(model, composite):
    model.train()
    model[0].weight.requires_grad_(False)


def change_name_map(model, composite):
    composite.name_map.insert(0, (("1.2",), Epsilon(3.0)))


def change_rule(model, composite):
    composite.name_map[-1][1].gamma = 2.0


def change_parameter_of_the_preset(model, composite):
    composite.epsilon = 0.7


def change_layer_map(model, composite):
    composite.layer_map = [((torch.nn.Linear,), Epsilon(2.0))]


CHANGES = [
    swap,
    add,
    drop,
    exchange,
    change_class,
    change_parameter,
    train,
    change_name_map,
    change_rule,
    change_parameter_of_the_preset,
    change_layer_map,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_changes_between_two_contexts_is_noticed(change):
    model = network()
    layers = [(Other, Epsilon(5.0))] if change is change_class else None
    if layers:
        model.append(Other(3, 3).double())
    composite = AttnLRPComposite(name_map=[(("1.0", "0"), Gamma(0.5))], layer_map=layers)
    before = explained(model, composite)
    torch.testing.assert_close(explained(model, composite), before, rtol=0, atol=0)
    change(model, composite)
    # found anew by a composite of its own
    anew = copy.deepcopy(composite)
    torch.testing.assert_close(explained(model, composite), explained(model, anew), rtol=0, atol=0)
    if change is not train:
        assert not torch.allclose(explained(model, composite), before)


def test_a_map_that_fits_no_module_any_more_is_refused_the_second_time():
    model, composite = network(), AttnLRPComposite(name_map=[("1.2", Gamma(0.5))])
    explained(model, composite)
    del model[1][2]
    with pytest.raises(ValueError, match=r"'1\.2'.*fits no module"):
        explained(model, composite)


def test_a_window_that_moves_otherwise_has_another_role():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, 2), torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    composite = AttnLRPComposite(role_map=[("patch_embedding", Gamma(0.25))])
    with composite.context(model):
        pass
    model[0].stride = (1, 1)
    with pytest.raises(ValueError, match="no module has the role 'patch_embedding'"), composite.context(model):
        pass


def test_rules_are_looked_for_once(monkeypatch):
    model, composite = models.llama().eval(), AttnLRPComposite()
    asked = []
    monkeypatch.setattr(Assignments, "find", noting(asked, Assignments.find))
    batch = {"input_ids": torch.tensor([[3, 1, 4]])}
    for _ in range(2):
        # both forms, by attributors of their own
        InputXGradient(model, composite)(batch, targets.MaxLogit())
    with composite.context(model):
        pass
    with InputXGradient(model, composite) as attributor:
        for _ in range(3):
            attributor(batch, targets.MaxLogit())
    assert asked == ["anew", "kept", "kept", "kept"]


def noting(asked, find):
    def noted(self, model, names, settings, assign):
        made = []

        def anew():
            made.append(True)
            return assign()

        found = find(self, model, names, settings, anew)
        asked.append("anew" if made else "kept")
        return found

    return noted


def test_a_class_with_an_idea_of_its_own_is_asked_each_time():
    class Changing(AttnLRPComposite):
        gamma = 0.1

        def own_layer_rule(self, name, module):
            return Gamma(Changing.gamma) if name == "0" else super().own_layer_rule(name, module)

    model, composite = network(), Changing()
    before = explained(model, composite)
    Changing.gamma = 3.0
    assert not torch.allclose(explained(model, composite), before)


def test_nothing_is_kept_alive_and_composites_are_copied_as_before():
    model, composite = network(), AttnLRPComposite(name_map=[("0", Gamma(0.5))])
    expected = explained(model, composite)
    for twin in (copy.deepcopy(composite), copy.copy(composite)):
        assert twin == composite
        torch.testing.assert_close(explained(model, twin), expected, rtol=0, atol=0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_fused_attentions_are_unfused_in_each_context(monkeypatch):
    asked = []
    monkeypatch.setattr(Assignments, "find", noting(asked, Assignments.find))
    model, x = models.torchvision_vit().eval(), torch.randn(1, 3, 32, 32)
    composite = input_x_gradient(GammaViTComposite())
    first, again, anew = (
        InputXGradient(model, rules)(x, targets.MaxLogit())[1] for rules in (composite, composite, GammaViTComposite())
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first, anew, rtol=0, atol=0)
    # new projections, of the same names and kinds
    assert asked == ["anew", "kept", "anew"]
