"""Relevance propagation, slowly: every rule as its paper writes it, with loops and dense matrices, in float64.

Each function takes what a forward pass computed and the relevance of its output, and returns the relevance of its
inputs. Nothing here uses autograd, and nothing uses the package under test.

Sources: LRP-0 and ε, Bach et al. 2015; AttnLRP, Achtibat et al. 2024 (prop. 3.1 softmax, 3.2 product, 3.3 matmul,
3.4 normalisation, eq. 9 activation); CP-LRP, Ali et al. 2022.
"""

import itertools
import math

import torch


def share(contributions, total, relevance):
    """Relevance in proportion to contributions; where there is no relevance there is nothing to share."""
    nothing = relevance == 0
    ratio = contributions / torch.where(nothing, torch.ones_like(total), total)
    return torch.where(nothing.expand_as(ratio), torch.zeros_like(ratio), ratio * relevance)


def fit(value, shape):
    """Sum a broadcast value back to the shape that it was broadcast from."""
    while value.dim() > len(shape):
        value = value.sum(0)
    for dim, size in enumerate(shape):
        if size == 1 and value.shape[dim] != 1:
            value = value.sum(dim, keepdim=True)
    return value


# linear maps


def linear(x, weight, bias, relevance, epsilon=0.0):
    """``R_i = Σ_j x_i w_ji / (z_j + ε sign z_j) R_j``, with ``z = W x + b``; ε = 0 is LRP-0."""
    contributions = x.unsqueeze(-2) * weight  # (..., out, in)
    z = contributions.sum(-1) + (0 if bias is None else bias)
    z = torch.where(z < 0, z - epsilon, z + epsilon)
    return share(contributions, z.unsqueeze(-1), relevance.unsqueeze(-1)).sum(-2)


def affine(function, x, relevance):
    """LRP-0 of any affine function of one tensor: its matrix is what it makes of the unit vectors."""
    bias = function(torch.zeros_like(x)).reshape(-1)
    columns = []
    for place in range(x.numel()):
        unit = torch.zeros_like(x)
        unit.view(-1)[place] = 1
        columns.append(function(unit).reshape(-1) - bias)
    return linear(x.reshape(-1), torch.stack(columns, -1), bias, relevance.reshape(-1)).reshape(x.shape)


def addition(terms, relevance):
    """``R_k = t_k / Σ t R`` for each term of a sum."""
    total = sum(terms)
    return [fit(share(term.expand_as(total), total, relevance), term.shape) for term in terms]


# products


def product(a, b, relevance):
    """Each factor of an element-wise product gets one half (AttnLRP, prop. 3.2)."""
    return fit(relevance / 2, a.shape), fit(relevance / 2, b.shape)


def matmul(a, b, relevance, epsilon=0.0):
    """``R_a[j, i] = Σ_k a[j, i] b[i, k] / (2 o[j, k] + ε) R[j, k]``, and so for b (AttnLRP, prop. 3.3)."""
    contributions = a.unsqueeze(-1) * b.unsqueeze(-3)  # (..., j, i, k)
    o = contributions.sum(-2, keepdim=True)
    shared = share(contributions, 2 * o + epsilon, relevance.unsqueeze(-2))
    return fit(shared.sum(-1), a.shape), fit(shared.sum(-3), b.shape)


def einsum(equation, operands, relevance, explained=None):
    """The uniform rule for an einsum, on the whole index space: each of N explained operands gets the N-th part."""
    left, right = equation.replace(" ", "").split("->")
    terms = left.split(",")
    letters = sorted(set(left) - {","})
    explained = range(len(terms)) if explained is None else explained

    def spread(tensor, term):
        order = sorted(range(len(term)), key=lambda axis: letters.index(term[axis]))
        shape = [tensor.shape[term.index(letter)] if letter in term else 1 for letter in letters]
        return tensor.permute(order).reshape(shape)

    def collect(tensor, term):
        gone = [axis for axis, letter in enumerate(letters) if letter not in term]
        kept = [letter for letter in letters if letter in term]
        tensor = tensor.sum(gone) if gone else tensor
        return tensor.permute([kept.index(letter) for letter in term])

    contributions = math.prod(spread(tensor, term) for tensor, term in zip(operands, terms, strict=True))
    summed = [axis for axis, letter in enumerate(letters) if letter not in right]
    o = contributions.sum(summed, keepdim=True) if summed else contributions
    shared = share(contributions, len(explained) * o, spread(relevance, right))
    return [collect(shared, terms[place]) for place in explained]


# attention


def softmax(x, relevance, dim=-1):
    """``R_i = x_i (R_i - s_i Σ_j R_j)`` (AttnLRP, prop. 3.1); a masked score, of minus infinity, has none."""
    s = torch.exp(x - x.amax(dim, keepdim=True))
    s = s / s.sum(dim, keepdim=True)
    inner = relevance - s * relevance.sum(dim, keepdim=True)
    return torch.where(torch.isinf(x), torch.zeros_like(x), x * inner)


def attention_weights(scores):
    """Softmax, row by row; a row in which everything is masked attends to nothing."""
    weights = torch.zeros_like(scores)
    for row in itertools.product(*map(range, scores.shape[:-1])):
        allowed = [key for key in range(scores.shape[-1]) if scores[row][key] != -math.inf]
        top = max((float(scores[row][key]) for key in allowed), default=0.0)
        total = sum(math.exp(float(scores[row][key]) - top) for key in allowed)
        for key in allowed:
            weights[row][key] = math.exp(float(scores[row][key]) - top) / total
    return weights


def repeat_heads(tensor, heads):
    """Repeat each key or value head for its group of query heads: ``(batch, kv heads, ...)``."""
    group = heads // tensor.shape[1]
    return torch.stack([tensor[:, head // group] for head in range(heads)], 1)


def gather_heads(relevance, kv_heads):
    """Add up the relevance of the repeated heads."""
    group = relevance.shape[1] // kv_heads
    parts = [relevance[:, head * group : (head + 1) * group].sum(1) for head in range(kv_heads)]
    return torch.stack(parts, 1)


def attention_forward(q, k, v, mask=None, scale=None):
    """Return output, weights and scores without mask, of ``(batch, heads, length, width)`` tensors, grouped or not."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    scores = scale * (q @ k.transpose(-2, -1))
    weights = attention_weights(scores if mask is None else scores + mask)
    return weights @ v, weights, scores


def attention(q, k, v, relevance, mask=None, scale=None, rule="attnlrp"):
    """Softmax attention: matmul, softmax, additive mask, scale and matmul, one after the other.

    Returns the relevance of q, k, v and of the mask, and what the softmax kept: what came in minus what went out.
    """
    kv_heads, scale = k.shape[1], q.shape[-1] ** -0.5 if scale is None else scale
    repeated_k, repeated_v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    output, weights, scores = attention_forward(q, k, v, mask, scale)
    if rule == "cp":
        contributions = weights.unsqueeze(-1) * repeated_v.unsqueeze(-3)  # (..., query, key, width)
        on_v = share(contributions, output.unsqueeze(-2), relevance.unsqueeze(-2)).sum(-3)
        return torch.zeros_like(q), torch.zeros_like(k), gather_heads(on_v, kv_heads), torch.zeros_like(scores), 0.0
    on_weights, on_v = matmul(weights, repeated_v, relevance)
    masked = scores if mask is None else scores + mask
    on_masked = softmax(masked, on_weights)
    kept = float(on_weights.sum() - on_masked.sum())
    if mask is None:
        on_scores, on_mask = on_masked, torch.zeros_like(scores)
    else:
        finite = torch.where(torch.isinf(mask), torch.zeros_like(mask), mask).expand_as(scores)
        on_scores, on_mask = addition([scores, finite], on_masked)
    # the scale is linear: the relevance passes it as it is
    on_q, on_k = matmul(q, repeated_k.transpose(-2, -1), on_scores)
    on_k = gather_heads(on_k.transpose(-2, -1), kv_heads)
    return on_q, on_k, gather_heads(on_v, kv_heads), on_mask, kept


def causal_mask(length, keys=None):
    """Additive mask: no query sees a later key."""
    keys = length if keys is None else keys
    mask = torch.zeros(length, keys, dtype=torch.float64)
    for query in range(length):
        for key in range(query + 1, keys):
            mask[query, key] = -math.inf
    return mask


def padding_mask(lengths, keys, left=False):
    """Additive mask of shape ``(batch, 1, 1, keys)``: only the first (or last) ``lengths[n]`` keys are seen."""
    mask = torch.full((len(lengths), 1, 1, keys), -math.inf, dtype=torch.float64)
    for sample, length in enumerate(lengths):
        mask[sample, ..., slice(keys - length, None) if left else slice(length)] = 0
    return mask


# normalisation


def normalise(x, weight, bias, relevance, centred, eps):
    """LN rule on vectors ``(..., n)``: identity through the division, LRP-0 through mean and affine (prop. 3.4)."""
    n = x.shape[-1]
    centring = torch.eye(n, dtype=x.dtype) - (torch.ones(n, n, dtype=x.dtype) / n if centred else 0)
    deviation = x @ centring.T
    scale = torch.sqrt((deviation**2).mean(-1, keepdim=True) + eps)
    normal = deviation / scale
    weight = torch.ones(n, dtype=x.dtype) if weight is None else weight
    scaled = weight * normal
    output = scaled if bias is None else scaled + bias
    on_scaled = share(scaled, output, relevance)
    # weight * normal is linear, the division has a constant denominator: the relevance passes both as it is
    return linear(x, centring, None, on_scaled) if centred else on_scaled


def layer_norm(x, shape, weight, bias, relevance, eps=1e-5):
    """LN rule over the last dimensions, of the given shape."""
    size = math.prod(shape)
    flat = [None if value is None else value.reshape(-1) for value in (weight, bias)]
    parts = x.reshape(-1, size), relevance.reshape(-1, size)
    return normalise(parts[0], *flat, parts[1], True, eps).reshape(x.shape)


def rms_norm(x, shape, weight, relevance, eps=1e-5):
    """LN rule without centring."""
    size = math.prod(shape)
    weight = None if weight is None else weight.reshape(-1)
    return normalise(x.reshape(-1, size), weight, None, relevance.reshape(-1, size), False, eps).reshape(x.shape)


def group_norm(x, groups, weight, bias, relevance, eps=1e-5):
    """LN rule for each sample and each group of channels, ``(batch, channels, ...)``."""
    result, channels = torch.zeros_like(x), x.shape[1]
    each = channels // groups
    positions = math.prod(x.shape[2:])

    def of_group(value, group):
        if value is None:
            return None
        return value[group * each : (group + 1) * each].repeat_interleave(positions)

    for sample in range(x.shape[0]):
        for group in range(groups):
            part = slice(group * each, (group + 1) * each)
            affine_of = of_group(weight, group), of_group(bias, group)
            on_part = normalise(x[sample, part].reshape(-1), *affine_of, relevance[sample, part].reshape(-1), True, eps)
            result[sample, part] = on_part.reshape(x[sample, part].shape)
    return result


# element-wise


def activation(relevance):
    """Identity rule (AttnLRP, eq. 9)."""
    return relevance


def gated(gate, up, relevance, rule="attnlrp"):
    """``f(gate) * up``: equal shares, the activation passes its own on; in CP-LRP the gate is a constant."""
    if rule == "cp":
        return torch.zeros_like(gate), relevance
    on_activated, on_up = product(gate, up, relevance)
    return activation(on_activated), on_up


# whole blocks; parameters are dicts of tensors


def silu(x):
    """x / (1 + exp(-x))."""
    return x / (1 + torch.exp(-x))


def gelu_tanh(x):
    """The approximation of GELU that GPT-2 uses."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotations(length, width, base=10000.0):
    """Rotary position embedding as one dense matrix for each position, ``(length, width, width)``."""
    matrices = torch.zeros(length, width, width, dtype=torch.float64)
    half = width // 2
    for position, pair in itertools.product(range(length), range(half)):
        angle = position * base ** (-2 * pair / width)
        first, second = pair, pair + half
        matrices[position, first, first] = matrices[position, second, second] = math.cos(angle)
        matrices[position, first, second] = -math.sin(angle)
        matrices[position, second, first] = math.sin(angle)
    return matrices


def to_heads(x, heads):
    """``(batch, length, heads * width)`` to ``(batch, heads, length, width)``."""
    return torch.stack(x.chunk(heads, -1), 1)


def from_heads(x):
    """``(batch, heads, length, width)`` to ``(batch, length, heads * width)``."""
    return torch.cat([x[:, head] for head in range(x.shape[1])], -1)


def rms(x, weight, eps):
    """RMSNorm, forward."""
    return weight * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def norm(x, weight, bias, eps):
    """LayerNorm, forward."""
    deviation = x - x.mean(-1, keepdim=True)
    return weight * deviation / torch.sqrt((deviation**2).mean(-1, keepdim=True) + eps) + bias


class LlamaBlock:
    """RMSNorm, grouped causal attention with rotary positions, RMSNorm, SwiGLU: no additive constant anywhere.

    Parameters ``norm1 norm2 q k v o gate up down`` are weights, of shape ``(out, in)``.
    """

    def __init__(self, p, heads, kv_heads, eps=1e-5, epsilon=0.0, rule="attnlrp"):
        self.p, self.heads, self.kv_heads, self.eps, self.epsilon, self.rule = p, heads, kv_heads, eps, epsilon, rule

    def forward(self, x):
        p = self.p
        self.x, self.mask = x, causal_mask(x.shape[1])
        self.n1 = rms(x, p["norm1"], self.eps)
        self.flat = [self.n1 @ p[name].T for name in "qkv"]
        heads = self.heads, self.kv_heads, self.kv_heads
        self.q, self.k, self.v = (to_heads(flat, count) for flat, count in zip(self.flat, heads, strict=True))
        self.turn = rotations(x.shape[1], self.q.shape[-1])
        self.rq, self.rk = (torch.einsum("pij,bhpj->bhpi", self.turn, side) for side in (self.q, self.k))
        self.mixed = from_heads(attention_forward(self.rq, self.rk, self.v, self.mask)[0])
        self.attended = self.mixed @ p["o"].T
        self.h = x + self.attended
        self.n2 = rms(self.h, p["norm2"], self.eps)
        self.g, self.u = self.n2 @ p["gate"].T, self.n2 @ p["up"].T
        self.m = silu(self.g) * self.u
        self.fed = self.m @ p["down"].T
        return self.h + self.fed

    def relevance(self, relevance):
        """Return the relevance of the block's input, and what the softmax kept."""
        p, eps = self.p, self.epsilon
        on_h, on_fed = addition([self.h, self.fed], relevance)
        on_m = linear(self.m, p["down"], None, on_fed, eps)
        on_g, on_u = gated(self.g, self.u, on_m, self.rule)
        on_n2 = linear(self.n2, p["gate"], None, on_g, eps) + linear(self.n2, p["up"], None, on_u, eps)
        on_h = on_h + rms_norm(self.h, self.h.shape[-1:], p["norm2"], on_n2, self.eps)
        on_x, on_attended = addition([self.x, self.attended], on_h)
        on_mixed = to_heads(linear(self.mixed, p["o"], None, on_attended, eps), self.heads)
        on_rq, on_rk, on_v, _, kept = attention(self.rq, self.rk, self.v, on_mixed, self.mask, rule=self.rule)
        on_q, on_k = (linear(side, self.turn, None, on) for side, on in ((self.q, on_rq), (self.k, on_rk)))
        on_heads = zip("qkv", (on_q, on_k, on_v), strict=True)
        on_n1 = sum(linear(self.n1, p[name], None, from_heads(on), eps) for name, on in on_heads)
        return on_x + rms_norm(self.x, self.x.shape[-1:], p["norm1"], on_n1, self.eps), kept


class GPTBlock:
    """LayerNorm, causal attention with one packed projection, LayerNorm, GELU MLP, with biases.

    Parameters ``norm1 norm2 qkv o fc down`` are weights of shape ``(out, in)``, each with a ``*_bias``.
    """

    def __init__(self, p, heads, eps=1e-5, epsilon=0.0, rule="attnlrp"):
        self.p, self.heads, self.eps, self.epsilon, self.rule = p, heads, eps, epsilon, rule

    def forward(self, x):
        p = self.p
        self.x, self.mask = x, causal_mask(x.shape[1])
        self.n1 = norm(x, p["norm1"], p["norm1_bias"], self.eps)
        packed = self.n1 @ p["qkv"].T + p["qkv_bias"]
        self.q, self.k, self.v = (to_heads(part, self.heads) for part in packed.chunk(3, -1))
        self.mixed = from_heads(attention_forward(self.q, self.k, self.v, self.mask)[0])
        self.attended = self.mixed @ p["o"].T + p["o_bias"]
        self.h = x + self.attended
        self.n2 = norm(self.h, p["norm2"], p["norm2_bias"], self.eps)
        self.f = self.n2 @ p["fc"].T + p["fc_bias"]
        self.a = gelu_tanh(self.f)
        self.fed = self.a @ p["down"].T + p["down_bias"]
        return self.h + self.fed

    def relevance(self, relevance):
        """Return the relevance of the block's input, and what the softmax kept."""
        p, eps = self.p, self.epsilon
        on_h, on_fed = addition([self.h, self.fed], relevance)
        on_a = linear(self.a, p["down"], p["down_bias"], on_fed, eps)
        on_n2 = linear(self.n2, p["fc"], p["fc_bias"], activation(on_a), eps)
        on_h = on_h + layer_norm(self.h, self.h.shape[-1:], p["norm2"], p["norm2_bias"], on_n2, self.eps)
        on_x, on_attended = addition([self.x, self.attended], on_h)
        on_mixed = to_heads(linear(self.mixed, p["o"], p["o_bias"], on_attended, eps), self.heads)
        *on_heads, _, kept = attention(self.q, self.k, self.v, on_mixed, self.mask, rule=self.rule)
        on_packed = torch.cat([from_heads(on) for on in on_heads], -1)
        on_n1 = linear(self.n1, p["qkv"], p["qkv_bias"], on_packed, eps)
        return on_x + layer_norm(self.x, self.x.shape[-1:], p["norm1"], p["norm1_bias"], on_n1, self.eps), kept
