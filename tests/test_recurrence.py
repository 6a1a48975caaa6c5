"""Recurrent networks, by the rules of the functions that a step is written in (gates as factors, Arras et al. 2019)."""

import oracle
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from zennit.attribution import Gradient

from zennit_attn import CPLRPComposite, InputXGradient, input_x_gradient, targets

from .forms import FORMS, PRESETS, relevance_of

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN, "relu": nn.RNN}


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-11)


def made(kind, inputs=5, size=4, **settings):
    more = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
    return KINDS[kind](inputs, size, **more, **settings)


class Last(nn.Module):
    """A recurrent network, and a layer of its last output."""

    def __init__(self, rnn, width):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(width, 3)

    def forward(self, x):
        outputs = self.rnn(x)[0]
        if isinstance(outputs, PackedSequence):
            outputs = pad_packed_sequence(outputs)[0]
        return self.out(outputs[:, -1] if self.rnn.batch_first else outputs[-1])


# by hand: forward and relevance of one direction of one layer, step by step


def gated(gate, value, relevance, preset):
    """Relevance of ``sigmoid(gate) * value``: of the gate's input, and of the value."""
    if preset == "cp":
        return torch.zeros_like(gate), relevance
    return oracle.product(gate, value, relevance)


def sum_of_layers(sides, relevance):
    """Relevance of each input of ``W x + b + U h + c``."""
    terms = [x @ w.T + b for x, w, b in sides]
    shares = oracle.addition(terms, relevance)
    return [oracle.linear(x, w, b, share) for (x, w, b), share in zip(sides, shares, strict=True)]


class ByHand:
    """One layer in one direction, forward and backward, with parameters (W, U, b, c)."""

    def __init__(self, kind, parameters, preset):
        self.kind, self.preset = kind, preset
        self.w, self.u, self.b, self.c = parameters

    def parts(self):
        count = {"lstm": 4, "gru": 3}.get(self.kind, 1)
        return list(zip(*(value.chunk(count) for value in (self.w, self.u, self.b, self.c)), strict=True))

    def forward(self, inputs):
        h = c = torch.zeros(len(inputs[0]), self.u.shape[1], dtype=torch.float64)
        self.steps, outputs = [], []
        for x in inputs:
            z = [x @ w.T + b + h @ u.T + d for w, u, b, d in self.parts()]
            step = {"x": x, "h": h, "c": c, "z": z}
            if self.kind == "lstm":
                enter, forget, value, leave = z
                step["kept"], step["new"] = forget.sigmoid() * c, enter.sigmoid() * value.tanh()
                c = step["kept"] + step["new"]
                h = leave.sigmoid() * c.tanh()
                step["after"] = c
            elif self.kind == "gru":
                reset, update, _ = z
                w, u, b, d = self.parts()[2]
                step["of_x"], step["of_h"] = x @ w.T + b, h @ u.T + d
                step["reset"] = reset.sigmoid() * step["of_h"]
                value = (step["of_x"] + step["reset"]).tanh()
                gate = update.sigmoid()
                step["new"], step["kept"], step["gate"] = (1 - gate) * value, gate * h, gate
                h = step["new"] + step["kept"]
            else:
                h = z[0].tanh() if self.kind == "tanh" else z[0].relu()
            self.steps.append(step)
            outputs.append(h)
        return outputs

    def relevance(self, on_outputs):
        on_h, on_c = torch.zeros_like(on_outputs[0]), torch.zeros_like(on_outputs[0])
        found = []
        for step, on_output in zip(reversed(self.steps), reversed(on_outputs), strict=True):
            on_h = on_h + on_output
            on_x, on_h, on_c = getattr(self, self.kind if self.kind in ("lstm", "gru") else "plain")(step, on_h, on_c)
            found.append(on_x)
        return found[::-1]

    def layers(self, step, relevances):
        """Relevance of input and hidden state, through the linear maps of each gate that has some."""
        on_x, on_h = torch.zeros_like(step["x"]), torch.zeros_like(step["h"])
        for (w, u, b, d), relevance in zip(self.parts(), relevances, strict=True):
            if relevance is not None:
                more_x, more_h = sum_of_layers([(step["x"], w, b), (step["h"], u, d)], relevance)
                on_x, on_h = on_x + more_x, on_h + more_h
        return on_x, on_h

    def lstm(self, step, on_h, on_c):
        enter, forget, value, leave = step["z"]
        on_leave, on_cell = gated(leave, step["after"], on_h, self.preset)
        on_kept, on_new = oracle.addition([step["kept"], step["new"]], on_cell + on_c)
        on_forget, on_c = gated(forget, step["c"], on_kept, self.preset)
        on_enter, on_value = gated(enter, value, on_new, self.preset)
        return *self.layers(step, [on_enter, on_forget, on_value, on_leave]), on_c

    def gru(self, step, on_h, on_c):
        reset, update, _ = step["z"]
        on_new, on_kept = oracle.addition([step["new"], step["kept"]], on_h)
        on_update, on_before = gated(update, step["h"], on_kept, self.preset)
        on_complement, on_value = gated(update, step["of_x"], on_new, self.preset)
        # 1 - z is a sum with a constant
        gate = step["gate"]
        on_gate = oracle.addition([torch.ones_like(gate), -gate], on_complement)[1]
        on_update = on_update + on_gate
        on_of_x, on_reset = oracle.addition([step["of_x"], step["reset"]], on_value)
        # the first state is a constant, and what it is weighted by the only factor that is none
        first = step is self.steps[0]
        on_gate, on_of_h = (on_reset, 0 * on_reset) if first else gated(reset, step["of_h"], on_reset, self.preset)
        on_x, on_layers = self.layers(step, [on_gate, on_update, None])
        w, u, b, d = self.parts()[2]
        on_x = on_x + oracle.linear(step["x"], w, b, on_of_x)
        return on_x, on_before + on_layers + oracle.linear(step["h"], u, d, on_of_h), on_c

    def plain(self, step, on_h, on_c):
        return *self.layers(step, [on_h]), on_c


def one_logit(output, target=1):
    relevance = torch.zeros_like(output)
    relevance[:, target] = output[:, target]
    return relevance


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_layer_equals_its_steps_by_hand(kind, preset, form):
    model, x = Last(made(kind, batch_first=True), 4).double().requires_grad_(False), torch.randn(2, 4, 5).double()
    hand = ByHand(kind, list(model.rnn._parameters.values()), preset)
    outputs = hand.forward(list(x.unbind(1)))
    logits = outputs[-1] @ model.out.weight.T + model.out.bias
    torch.testing.assert_close(logits, model(x))
    on_last = oracle.linear(outputs[-1], model.out.weight, model.out.bias, one_logit(logits))
    expected = hand.relevance([torch.zeros_like(value) for value in outputs[:-1]] + [on_last])
    close(relevance_of(model, x, form, preset), torch.stack(expected, 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_layers_in_two_directions_equal_their_steps_by_hand(kind, preset, form):
    model = Last(made(kind, num_layers=2, bidirectional=True), 8).double().requires_grad_(False)
    x = torch.randn(4, 2, 5).double()
    parameters = list(model.rnn._parameters.values())
    layers = [ByHand(kind, parameters[4 * place : 4 * place + 4], preset) for place in range(4)]
    inputs = list(x)
    for ahead, back in (layers[:2], layers[2:]):
        sides = ahead.forward(inputs), back.forward(inputs[::-1])[::-1]
        inputs = [torch.cat(pair, -1) for pair in zip(*sides, strict=True)]
    logits = inputs[-1] @ model.out.weight.T + model.out.bias
    torch.testing.assert_close(logits, model(x))
    on_last = oracle.linear(inputs[-1], model.out.weight, model.out.bias, one_logit(logits))
    relevances = [torch.zeros_like(value) for value in inputs[:-1]] + [on_last]
    for ahead, back in (layers[2:], layers[:2]):
        on_ahead, on_back = zip(*(value.chunk(2, -1) for value in relevances), strict=True)
        sides = ahead.relevance(list(on_ahead)), back.relevance(list(on_back)[::-1])[::-1]
        relevances = [one + other for one, other in zip(*sides, strict=True)]
    close(relevance_of(model, x, form, preset), torch.stack(relevances))


class Cells(nn.Module):
    """A cell that is called step by step."""

    def __init__(self, kind):
        super().__init__()
        more = {"nonlinearity": kind} if kind in ("tanh", "relu") else {}
        self.cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(kind, nn.RNNCell)(5, 4, **more)
        self.out, self.batch_first = nn.Linear(4, 3), True

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_a_layer_step_by_step(kind, preset, form):
    cells, x = Cells(kind).double(), torch.randn(2, 4, 5).double()
    layer = Last(made(kind, batch_first=True), 4).double()
    layer.rnn.load_state_dict({f"{name}_l0": value for name, value in cells.cell.state_dict().items()})
    layer.out.load_state_dict(cells.out.state_dict())
    close(relevance_of(cells, x, form, preset), relevance_of(layer, x, form, preset))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{"bias": False}, {"num_layers": 3}, {"dropout": 0.5, "num_layers": 2}])
@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
def test_cp_lrp_conserves_in_networks_without_biases(kind, settings, form):
    model = Last(made(kind, batch_first=True, **settings), 4).double().eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
    x = torch.randn(2, 4, 5).double()
    close(relevance_of(model, x, form).sum((1, 2)), model(x)[:, 1].detach())


class Packed(nn.Module):
    """Sequences of several lengths, packed inside of the model."""

    def __init__(self, lengths, sort, **settings):
        super().__init__()
        self.rnn, self.lengths, self.sort = nn.LSTM(5, 4, batch_first=True, **settings), lengths, sort
        width = (settings.get("proj_size") or 4) * (2 if settings.get("bidirectional") else 1)
        self.out = nn.Linear(width * settings.get("num_layers", 1), 3)

    def forward(self, x):
        if self.sort is None:
            packed = pack_sequence([row[:length] for row, length in zip(x, self.lengths, strict=True)], False)
        else:
            packed = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=self.sort)
        _, (hidden, _) = self.rnn(packed)
        return self.out(hidden.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 3}])
@pytest.mark.parametrize(("lengths", "sort"), [([4, 2, 1], True), ([1, 4, 2], False), ([2, 1, 4], None)])
def test_each_packed_sequence_is_explained_as_if_it_were_alone(lengths, sort, settings, preset, form):
    torch.manual_seed(1)
    packed, x = Packed(lengths, sort, **settings).double(), torch.randn(3, 4, 5).double()
    got = relevance_of(packed, x, form, preset)
    for row, length in enumerate(lengths):
        alone = Packed([length], True, **settings).double()
        alone.load_state_dict(packed.state_dict())
        close(got[row, :length], relevance_of(alone, x[row : row + 1, :length], form, preset)[0])
        assert not got[row, length:].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_sequence_without_a_batch_is_one_row(kind, form):
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = made(kind), nn.Linear(4, 3)

        def forward(self, x):
            hidden = self.rnn(x if self.rows else x[0])[0]
            return self.out(hidden[:, -1] if self.rows else hidden[-1][None])

    model, x = One().double(), torch.randn(1, 4, 5).double()
    model.rows = False
    got = relevance_of(model, x, form)
    model.rows, model.rnn.batch_first = True, True
    close(got, relevance_of(model, x, form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_first_state_that_depends_on_the_input_has_its_share(preset, form):
    """A decoder that begins with the state of an encoder."""

    class Decoder(nn.Module):
        def __init__(self, cells):
            super().__init__()
            torch.manual_seed(0)
            self.start, self.rnn, self.out = nn.Linear(5, 4), nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)
            self.cells = cells

        def forward(self, x):
            state = self.start(x[:, 0]).tanh()
            if not self.cells:
                return self.out(self.rnn(x, (state[None], state[None] * 0.5))[0][:, -1])
            hidden, cell = state, state * 0.5
            for step in x.unbind(1):
                hidden, cell = torch.lstm_cell(step, (hidden, cell), *self.rnn._parameters.values())
            return self.out(hidden)

    x = torch.randn(2, 3, 5).double()
    got = [relevance_of(Decoder(cells).double(), x, form, preset) for cells in (False, True)]
    close(*got)
    for value in got:
        assert float(value.abs().max()) > 0


def test_the_output_of_the_model_is_that_of_the_kernel():
    for settings in ({}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 2}):
        width = settings.get("proj_size", 4) * (2 if "bidirectional" in settings else 1)
        model, x = Last(made("lstm", batch_first=True, **settings), width).double(), torch.randn(2, 4, 5).double()
        with InputXGradient(model, input_x_gradient(CPLRPComposite(strict=True))) as attributor:
            torch.testing.assert_close(attributor(x, targets.Label(1))[0].detach(), model(x).detach())
        with Gradient(model, CPLRPComposite(strict=True)) as attributor:
            torch.testing.assert_close(attributor(x, targets.Label(1))[0].detach(), model(x).detach())


def test_the_ledger_of_a_recurrent_network_leaves_no_remainder():
    for kind in KINDS:
        model, x = Last(made(kind, batch_first=True), 4).double(), torch.randn(2, 4, 5).double()
        ledger = InputXGradient(model, input_x_gradient(CPLRPComposite(strict=True))).ledger(x, targets.Label(1))
        assert abs(ledger.remainder) < 1e-10
