"""Models of batches of graphs, one output row a graph: every form of inputs, beside autograd one graph at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import alignver as av

geometric = pytest.importorskip("torch_geometric")


def graph(number, nodes=None):
    nodes = nodes or 3 + number % 3
    pairs = [[a, b] for a in range(nodes) for b in range(nodes) if a != b and (a + b + number) % 3]
    x = torch.randn(nodes, 4, generator=torch.Generator().manual_seed(number))
    return geometric.data.Data(x=x, edge_index=torch.tensor(pairs).T, y=torch.tensor([number % 2]))


class OfTensors(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (geometric.nn.GCNConv(size, 8) for size in (4, 8))
        self.out = nn.Linear(8, 2)

    def forward(self, x, edge_index, batch):
        hidden = torch.tanh(self.second(torch.tanh(self.first(x, edge_index)), edge_index))
        return self.out(geometric.nn.global_mean_pool(hidden, batch))


class OfBatch(OfTensors):
    def forward(self, data):
        return {"logits": super().forward(data.x, data.edge_index, data.batch)}


GRAPHS = [graph(k) for k in range(5)]
FORMS = {
    "a batch": lambda: geometric.data.Batch.from_data_list(GRAPHS),
    "a list": lambda: GRAPHS,
    "a loader": lambda: geometric.loader.DataLoader(GRAPHS, batch_size=2),
}


@pytest.mark.parametrize("kind", [OfTensors, OfBatch])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_graphs(form, kind):
    torch.manual_seed(0)
    model = kind().eval()
    select = "logits" if kind is OfBatch else None
    adapted, x, y = av.adapted(model, FORMS[form](), select=select)
    assert x.tolist() == [[0], [1], [2], [3], [4]]
    assert y.tolist() == [0, 1, 0, 1, 0]
    J = av.jacobian(adapted, x)
    double = kind().eval().double()
    double.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    single = [geometric.data.Batch.from_data_list([one.clone()]) for one in GRAPHS]
    for batch in single:
        batch.x = batch.x.double()
    rows = []
    for output in range(2):
        for batch in single:
            whole = double(batch)["logits"] if kind is OfBatch else double(batch.x, batch.edge_index, batch.batch)
            parts = torch.autograd.grad(whole[0, output], list(double.parameters()))
            rows.append(torch.cat([part.reshape(-1) for part in parts]))
    torch.testing.assert_close(J, torch.stack(rows))
    torch.testing.assert_close(av.gram(adapted, x), J @ J.T)
    result = av.check_alignment(model, FORMS[form](), loss="cross_entropy", Y=None, select=select)
    assert str(result.verdict) == "HOLDS"


def test_equal_graphs_are_equal_inputs():
    model = OfTensors().eval()
    twice = [*GRAPHS, GRAPHS[1].clone()]
    assert av.adapted(model, twice)[1].ravel().tolist() == [0, 1, 2, 3, 4, 1]
    other = GRAPHS[1].clone()
    other.y = 1 - other.y
    result = av.check_alignment(model, [*GRAPHS, other], Y=None, loss="cross_entropy")
    assert (result.verdict, result.subject) == ("FAILS", "DATA")


def test_what_is_refused():
    model = OfTensors().eval()
    spoiled = GRAPHS[2].clone()
    spoiled.x[0, 0] = torch.nan
    shuffled = geometric.loader.DataLoader(GRAPHS, batch_size=2, shuffle=True)
    batch = FORMS["a batch"]()
    cases = {
        "NaN or Inf in 'x' of graph 1": [GRAPHS[0], spoiled],
        "shuffles": shuffled,
        "X=batch": {"x": batch.x, "edge_index": batch.edge_index, "batch": batch.batch},
    }
    for words, X in cases.items():
        with pytest.raises(av.InvalidInput, match=words):
            av.check_alignment(model, X, torch.arange(5) % 2, loss="cross_entropy")
    nodes = geometric.nn.GCNConv(4, 2)
    with pytest.raises(av.InvalidInput, match="outputs of shape"):
        av.check_alignment(nodes.eval(), GRAPHS, Y=None, loss="cross_entropy")
