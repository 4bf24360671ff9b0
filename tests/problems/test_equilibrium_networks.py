"""The paper's two networks against the formulas written out."""

from __future__ import annotations

import pytest
import torch
from systems import (
    small_graph,
    small_graph_net,
    small_graph_network,
    small_memory,
    small_memory_network,
)
from torch import Tensor, nn

from hyperrbp import hypergradient
from hyperrbp.exceptions import UsageError
from hyperrbp.hypergradients import METHODS
from hyperrbp.hypergradients.implicit_layer import steady_state
from hyperrbp.problems.graph_net import GraphNet, Messages
from hyperrbp.problems.hopfield import Hopfield

ALL = sorted(METHODS)
EXACT = {"rtol": 1e-12, "atol": 1e-14}
FORMS = [
    {"a": 1.0, "b": 0.5, "readout": "state", "init_std": 0.5},
    {"a": 1.0, "b": 0.5, "readout": "activation", "init_std": 0.5},
    {"a": 2.0, "b": 1.5, "readout": "state", "init_std": 0.15},
    {"a": 0.8, "b": 0.7, "readout": "activation", "init_std": 0.3},
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Hopfield -------------------------------------------------------------------------------------


def naive_states(network: Hopfield, weight: Tensor, image: Tensor, updates: int) -> list[Tensor]:
    """All neurons in one vector, all weights in one matrix; one image at a time."""
    observed, neurons = network.observed, len(weight)
    couplings = (weight + weight.T) * (1 - torch.eye(neurons, dtype=weight.dtype))
    h = torch.cat([image, torch.zeros(neurons - observed, dtype=weight.dtype)])
    states = []
    for _ in range(updates):
        sent = 1 / (1 + torch.exp(-network.b * h))
        change = -h / network.a + couplings @ sent
        h = torch.cat([image, (h + change)[observed:]])  # the clamped ones are what they were
        states.append(h)
    return states


def naive_output(network: Hopfield, h: Tensor) -> Tensor:
    shown = h[-network.observed :]
    return shown if network.readout == "state" else 1 / (1 + torch.exp(-network.b * shown))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_memory_moves_as_all_its_neurons_would(form):
    network, images = small_memory_network(**form)
    problem = network.problem(images, updates=7)
    theta = problem.initial_theta()
    states = [
        problem.shaped(h).clone() for h in problem.states(theta, 0, 7, problem.initial_state())
    ]
    assert states[0].shape == (5 + 6, 3)
    with torch.no_grad():
        for row, image in enumerate(images):
            naive = naive_states(network, network.weight, image, 7)
            for h, truth in zip(states, naive, strict=True):
                torch.testing.assert_close(h[:, row], truth[6:], **EXACT)
            torch.testing.assert_close(
                network.output(states[-1])[row], naive_output(network, naive[-1]), **EXACT
            )
    assert states[-1].std() > 0.1
    assert not torch.equal(states[-1][:, 0], states[-1][:, 1])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_weights_get_the_gradient_that_all_neurons_would_give(form):
    network, images = small_memory_network(**form)
    clean = 3 * images - 1.2
    h = steady_state(*network.recurrence(images), "bptt", updates=6)
    (network.output(h) - clean).abs().mean().backward()
    weight = network.weight.detach().clone().requires_grad_()
    shown = torch.stack(
        [naive_output(network, naive_states(network, weight, image, 6)[-1]) for image in images]
    )
    (shown - clean).abs().mean().backward()
    assert weight.grad.norm() > 0.05
    torch.testing.assert_close(network.weight.grad, weight.grad, **EXACT)
    assert not network.weight.grad.diagonal().any()
    assert not network.weight.grad[:6, :6].any(), "weights among clamped neurons do nothing"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_at_rest_every_method_gives_the_weights_that_gradient(form):
    network, images = small_memory_network(**form)
    weight = network.weight.detach().clone().requires_grad_()
    shown = torch.stack(
        [naive_output(network, naive_states(network, weight, image, 120)[-1]) for image in images]
    )
    shown.square().mean().backward()
    for method in ALL:
        h = steady_state(*network.recurrence(images), method, 120, updates=120)
        (found,) = torch.autograd.grad(network.output(h).square().mean(), network.weight)
        torch.testing.assert_close(found, weight.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("form", "method"),
    [*((FORMS[1], method) for method in ALL), *((FORMS[2], name) for name in ("bptt", "neumann"))],
    ids=str,
)
def test_a_batch_trains_as_its_images_one_by_one(form, method):
    network, images = small_memory_network(**form)
    clean = 3 * images - 1.2

    def gradient(rows: slice) -> Tensor:
        h = steady_state(*network.recurrence(images[rows]), method, 150, updates=150)
        loss = (network.output(h) - clean[rows]).abs().mean()
        return torch.autograd.grad(loss, network.weight)[0]

    singles = torch.stack([gradient(slice(i, i + 1)) for i in range(3)])
    assert (singles[0] - singles[1]).norm() > 0.01
    torch.testing.assert_close(gradient(slice(None)), singles.mean(0), rtol=1e-8, atol=1e-11)


def full_energy(network: Hopfield, h: Tensor, image: Tensor) -> float:
    """Hopfield 1984, eq. 7, over all neurons, the integral of the inverse done numerically."""
    weight = network.weight.detach()
    couplings = weight + weight.T
    couplings.fill_diagonal_(0)
    x = torch.sigmoid(network.b * torch.cat([image, h]))
    pairs = sum(float(couplings[i, j] * x[i] * x[j]) for i in range(len(x)) for j in range(len(x)))
    nodes = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    leak = 0.0
    for end in x[len(image) :]:  # the clamped ones have no dynamics of their own
        # From ½, where the inverse vanishes; the constant is the same for every state.
        at = 0.5 + (end - 0.5) * nodes
        inverse = torch.log(at / (1 - at)) / network.b
        leak += float(inverse.mean() * (end - 0.5)) / network.a
    return -0.5 * pairs + leak


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_energy_is_the_formula_up_to_a_constant(form):
    network, images = small_memory_network(**form)
    states = normal(4, 11, 3, seed=3)
    found = torch.stack([network.energy(h, images) for h in states])
    assert found.shape == (4, 3)
    assert not found.requires_grad
    truth = torch.tensor(
        [[full_energy(network, h[:, i], images[i]) for i in range(3)] for h in states],
        dtype=torch.float64,
    )
    gap = found - truth
    assert found.std(0).min() > 0.04
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=0, atol=1e-5)
    # At rest x = ½ the entropy is −ln 2 a neuron, in place of an integral from ½ that is 0.
    expected = -11 * torch.log(torch.tensor(2.0)) / (network.a * network.b)
    among = torch.sigmoid(network.b * images)
    weight = network.weight.detach()
    couplings = (weight + weight.T).fill_diagonal_(0)[:6, :6]
    constant = expected + 0.5 * ((among @ couplings) * among).sum(1)
    torch.testing.assert_close(gap[0], constant.double(), rtol=0, atol=1e-5)


def test_the_energy_is_finite_where_neurons_saturate():
    network, images = small_memory_network()
    states = torch.full((11, 3), 5000.0, dtype=torch.float64)
    for h in (states, -states):
        assert network.energy(h, images).isfinite().all()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_energy_falls_along_the_differential_equation(form):
    """Along small Euler steps, and as fast as the chain rule says."""
    network, images = small_memory_network(**form)
    problem = network.problem(images, updates=1)
    theta = problem.initial_theta()
    h = 2 * normal(11, 3, seed=4)
    energies = [network.energy(h, images)]
    for t in range(300):
        # dh/dt, since an Euler step has length 1.
        velocity = (
            problem.shaped(problem.step(h.reshape(-1), theta, None)) - h
        )  # dh/dt: a unit step
        if t == 0:
            x = torch.sigmoid(network.b * h)
            rate = -(network.b * x * (1 - x) * velocity.square()).sum(0)
            ends = [network.energy(h + s * 1e-4 * velocity, images) for s in (1, -1)]
            torch.testing.assert_close((ends[0] - ends[1]) / 2e-4, rate, rtol=1e-6, atol=0)
            assert (rate < -0.01).all()
        h = h + 0.01 * velocity
        energies.append(network.energy(h, images))
    falls = torch.stack(energies).diff(dim=0)
    assert (falls < 0).all()


def test_an_unknown_readout_is_refused():
    with pytest.raises(UsageError, match="unknown readout 'spin'; there are state, activation"):
        Hopfield(2, 2, readout="spin")


def test_a_memory_begins_with_the_papers_weights():
    network = Hopfield(40, 30, generator=torch.Generator().manual_seed(0))
    assert network.weight.shape == (110, 110)
    assert float(network.weight.detach().std()) == pytest.approx(1e-3, rel=0.05)
    assert (network.a, network.b, network.readout) == (1.0, 0.5, "state")
    again = Hopfield(40, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.weight, again.weight)
    images = torch.ones(2, 40)
    _, h0, _, _ = network.recurrence(images)
    assert h0.shape == (70, 2)
    assert not h0.any()
    assert not h0.requires_grad


def test_a_memory_learns_what_it_is_shown():
    network, images = small_memory_network(init_std=0.01)
    corrupted = images * torch.tensor([1, 0, 1, 1, 0, 1])
    adam = torch.optim.Adam(network.parameters(), 0.05)
    losses = []
    for _ in range(60):
        h = steady_state(*network.recurrence(corrupted), steps=20, updates=50, settled=1e-8)
        loss = (network.output(h) - images).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# --- messages -------------------------------------------------------------------------------------

# Directed, with two edges into one node, a loop, and nodes 4 and 5 that nothing reaches.
DIRECTED = torch.tensor([[0, 1, 2, 3, 4, 2], [1, 2, 1, 0, 3, 2]])


def dense(edges: Tensor, nodes: int, aggregation: str) -> Tensor:
    matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
    for source, target in edges.T.tolist():
        matrix[target, source] += 1
    if aggregation == "mean":
        for row in matrix:
            row /= max(1, row.sum())
    return matrix


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize(
    ("edges", "nodes"), [(DIRECTED, 6), (small_graph(), 8), (torch.zeros(2, 0).long(), 3)]
)
def test_messages_are_a_matrix(edges, nodes, aggregation):
    messages = Messages(edges, nodes, aggregation, torch.float64)
    matrix = dense(edges, nodes, aggregation)
    h = normal(nodes, 3).requires_grad_()
    torch.testing.assert_close(messages(h), matrix @ h, **EXACT)
    u = normal(nodes, 3, seed=1)
    (gradient,) = torch.autograd.grad(messages(h), h, u)
    torch.testing.assert_close(gradient, matrix.T @ u, **EXACT)
    assert torch.autograd.gradcheck(messages, h)
    assert torch.autograd.gradgradcheck(messages, h)

    def curved(h):  # whose second derivative is not zero
        return messages(torch.tanh(messages(h)))

    assert torch.autograd.gradcheck(curved, h)
    assert torch.autograd.gradgradcheck(curved, h)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_messages_do_not_depend_on_the_order_of_edges(aggregation):
    h = normal(8, 3)
    edges = small_graph()
    shuffled = edges[:, torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(0))]
    one, other = (Messages(e, 8, aggregation, torch.float64) for e in (edges, shuffled))
    assert torch.equal(one(h), other(h))


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_an_edge_given_twice_counts_twice(aggregation):
    twice = torch.cat([DIRECTED, DIRECTED[:, :1]], 1)
    h = normal(6, 2)
    messages = Messages(twice, 6, aggregation, torch.float64)
    torch.testing.assert_close(messages(h), dense(twice, 6, aggregation) @ h, **EXACT)


def test_an_unknown_aggregation_is_refused():
    with pytest.raises(UsageError, match="unknown aggregation 'max'; there are sum, mean"):
        Messages(DIRECTED, 6, "max")


@pytest.mark.parametrize("edges", [[[0, 9], [1, 0]], [[0, 1], [1, 6]], [[0, -1], [1, 0]]])
def test_edges_to_nodes_that_are_not_there_are_refused(edges):
    with pytest.raises(UsageError, match="node"):
        Messages(torch.tensor(edges), 6)


# --- the graph network ----------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_the_graph_network_is_a_gru_cell_of_its_neighbours(aggregation):
    network, features = small_graph_network(DIRECTED, 6, aggregation=aggregation)
    problem = network.problem(features, updates=4)
    matrix, h = dense(DIRECTED, 6, aggregation), features
    for found in problem.states(problem.initial_theta(), 0, 4, problem.initial_state()):
        h = network.cell(matrix @ h, h)
        torch.testing.assert_close(problem.shaped(found), h.detach(), **EXACT)
    logits = network.output(h)
    weight, bias = network.classifier.weight, network.classifier.bias
    torch.testing.assert_close(logits, h @ weight.T + bias, **EXACT)
    assert logits.shape == (6, 3)
    # From the last state back to all weights.
    wanted = list(network.parameters())
    truth = torch.autograd.grad(logits.square().sum(), wanted)
    h = steady_state(*network.recurrence(features), "bptt", updates=4)
    found = torch.autograd.grad(network.output(h).square().sum(), wanted)
    for one, other in zip(found, truth, strict=True):
        assert other.norm() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_the_parameters_of_the_graph_problem_are_those_of_the_cell():
    network, features = small_graph_network(small_graph())
    problem = network.problem(features, updates=2)
    cell = nn.utils.parameters_to_vector(network.cell.parameters()).detach()
    assert torch.equal(problem.initial_theta(), cell)
    assert list(problem.describe(cell)["norm"]) == [
        "weight_ih", "weight_hh", "bias_ih", "bias_hh",
    ]  # fmt: skip
    assert torch.equal(problem.shaped(problem.initial_state()), features)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_a_node_without_neighbours_hears_nothing_and_stays_finite(aggregation):
    network, features = small_graph_network(DIRECTED, 6, aggregation=aggregation)
    problem = network.problem(features, updates=50, loss=lambda logits: logits.square().mean())
    theta = problem.initial_theta()
    h = problem.shaped(problem.run(theta, 0, 50, problem.initial_state()))
    alone = features[4:]
    with torch.no_grad():
        for _ in range(50):
            alone = network.cell(torch.zeros_like(alone), alone)
    torch.testing.assert_close(h[4:], alone, **EXACT)
    for method in ALL:
        found = hypergradient(problem, theta, method, trunc=20)
        assert found.gradient.isfinite().all()
        assert found.gradient.norm() > 1e-4


def test_a_graph_network_begins_as_the_authors_release():
    source, before = torch.Generator().manual_seed(0), torch.get_rng_state()
    network = GraphNet(small_graph(), 8, 64, 7, generator=source)
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in network.named_parameters():
        if tensor.ndim == 1:
            assert not tensor.any(), name
        else:
            assert float(tensor.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=0.1), name
    source = torch.Generator().manual_seed(0)
    again = GraphNet(small_graph(), 8, 64, 7, generator=source)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_graph_network_may_begin_as_pytorchs_own_modules():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GraphNet(small_graph(), 8, 64, 7, init="uniform")
    for name, tensor in network.named_parameters():
        assert float(tensor.detach().abs().max()) <= 1 / 8, name
        assert tensor.detach().std() > 0.5 / 8 / 3**0.5, name
    with pytest.raises(UsageError, match="unknown init 'zeros'; there are normal, uniform"):
        GraphNet(small_graph(), 8, 64, 7, init="zeros")


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_a_graph_network_in_single_precision(aggregation):
    network = GraphNet(small_graph(), 8, 4, 3, aggregation=aggregation)
    h = steady_state(*network.recurrence(normal(8, 4).float()), "cg", updates=10)
    network.output(h).square().sum().backward()
    assert h.dtype == torch.float32
    for tensor in network.parameters():
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize("scale", [0.2, 0.7])
def test_cg_works_on_a_graph_network_and_says_how_well(scale):
    problem, theta = small_graph_net(steps=400, scale=scale)
    h = problem.run(theta, 0, 400, problem.initial_state())
    jacobian, along_theta = torch.autograd.functional.jacobian(
        lambda h, theta: problem.step(h, theta, None), (h, theta)
    )
    _, g = problem.loss_and_gradient(h)
    eye = torch.eye(len(h), dtype=torch.float64)
    truth = along_theta.T @ torch.linalg.solve((eye - jacobian).T, g)
    found = hypergradient(problem, theta, "cg", trunc=200)
    assert found.status == "converged"
    assert found.residual < 1e-9
    torch.testing.assert_close(found.gradient, truth, rtol=1e-6, atol=1e-9)


def test_a_graph_network_learns_its_labels():
    network, features = small_graph_network(small_graph())
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    adam = torch.optim.Adam(network.parameters(), 0.03)
    losses = []
    for _ in range(40):
        h = steady_state(*network.recurrence(features), steps=5, updates=30)
        loss = nn.functional.cross_entropy(network.output(h), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


# --- as problems ----------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [small_memory, small_graph_net])
def test_the_loss_of_a_problem_is_of_its_output(build):
    problem, theta = build()
    found = hypergradient(problem, theta, "bptt")
    assert found.loss > 0.1
    assert found.steady_state_residual < 1e-10


def test_a_problem_keeps_the_values_that_its_weights_had():
    network, images = small_memory_network()
    problem = network.problem(images, updates=3, loss=lambda shown: shown.square().mean())
    theta = problem.initial_theta().clone()
    before = problem.run(theta, 0, 3, problem.initial_state())
    with torch.no_grad():
        network.weight.mul_(2)
    assert torch.equal(problem.initial_theta(), theta)
    assert torch.equal(problem.run(theta, 0, 3, problem.initial_state()), before)
