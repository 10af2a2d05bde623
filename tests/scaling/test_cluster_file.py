from pathlib import Path

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.collective_costs import Link
from fedmef_dist.scaling.cluster_file import load_cluster

CLUSTERS = Path(__file__).parents[2] / "configs" / "clusters"
TEXT = """\
name: small
nodes: 4
ranks_per_node: 2
inside: {latency: 500ns, bandwidth: 50 GB/s}
between: {latency: 2us, bandwidth: 100Gbit/s}
backend: gloo
"""


def written(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_a_cluster_is_read(tmp_path):
    cluster = load_cluster(written(tmp_path, TEXT))
    assert (cluster.most_ranks, cluster.speed, cluster.jitter) == (8, 1.0, None)
    network = cluster.network(6)
    assert (network.nodes, network.local) == (3, 2)
    assert vars(network.inside) == pytest.approx(vars(Link(5e-7, 5e10)))
    assert vars(network.between) == pytest.approx(vars(Link(2e-6, 1.25e10)))


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_described_clusters_are_read(path):
    assert load_cluster(path).most_ranks >= 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("500ns", "500", "inside.latency: 500 is not a number with one of the units s, ms, us, µs, ns, as in 2us"),
        ("500ns", "5", "inside.latency: 5 is not a number with one of the units"),
        ("50 GB/s", "50 GB", "inside.bandwidth: '50 GB' is not a number"),
        ("nodes: 4", "nodes: 0", "nodes: must be 1 or more, got 0"),
        ("backend:", "backends:", r"unknown key backends \(and 1 more keys\)\nwhere: .*\nmend: did you mean backend"),
        ("nodes: 4\n", "", "nodes: is missing"),
        ("latency: 2us, ", "", "between.latency: is missing"),
        (TEXT, "- 1\n", "a cluster file is a mapping of keys, and this is a list"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message):
        load_cluster(written(tmp_path, TEXT.replace(old, new)))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the cluster file: No such file"):
        load_cluster(tmp_path / "none.yaml")
