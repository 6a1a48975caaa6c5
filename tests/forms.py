"""What a small network explains in both forms, by the attributors that people use."""

from zennit.attribution import Gradient

from zennit_attn import AttnLRPComposite, CPLRPComposite, InputXGradient, input_x_gradient, targets

FORMS = ["relevance", "gradient"]
PRESETS = {"attnlrp": AttnLRPComposite, "cp": CPLRPComposite}


def in_form(composite, form):
    return input_x_gradient(composite) if form == "gradient" else composite


def attributor_of(model, composite, form):
    """Return the attributor of a form, with the composite on the model."""
    return (InputXGradient if form == "gradient" else Gradient)(model, in_form(composite, form))


def relevance_of(model, x, form="gradient", preset="cp", target=1, **settings):
    """Return the relevance of x for one logit, under strict rules unless told."""
    composite = PRESETS[preset](**{"strict": True, **settings})
    with attributor_of(model, composite, form) as attributor:
        return attributor(x, targets.Label(target))[1]
