from __future__ import annotations

import json

import pytest

from margin_ext import measure, robust_accuracy
from margin_ext.integrations.model_card import model_card
from tests.integrations.networks import small_data, small_network


@pytest.fixture(scope="module")
def measured():
    net, data = small_network(), small_data()
    report = measure(net, data, p=(2, "inf"), bounds=["minimum_distance"])
    return report, robust_accuracy(net, data, (0.05, 0.2), data_range=(0, 1))


def card(measured, **settings) -> str:
    report, robust = measured
    return model_card(report, [robust], name="small: net", dataset='Small "data"', **settings)


def test_the_header_holds_the_figures(measured):
    report, robust = measured
    text = card(measured, metadata={"license": "apache-2.0"})
    _, header, body = text.split("---\n", 2)
    entries = dict(line.split(": ", 1) for line in header.splitlines())
    assert json.loads(entries["license"]) == "apache-2.0"
    (index,) = json.loads(entries["model-index"])
    assert index["name"] == "small: net"
    values = {m["type"]: m["value"] for m in index["results"][0]["metrics"]}
    assert values["accuracy"] == pytest.approx(report.accuracy, abs=1e-6)
    assert values["average_margin_linf"] == pytest.approx(report.summary("inf").average, abs=1e-6)
    assert values["robust_accuracy_l2_0.2"] == pytest.approx(robust.curve()[1], abs=1e-6)
    for table in (report, robust):
        for line in str(table).splitlines():
            assert line.rstrip() in body


def test_the_hub_reads_it(measured):
    hub = pytest.importorskip("huggingface_hub", reason="needs transformers: extra transformers")
    read = hub.ModelCard(card(measured, description="A network for tests."))
    results = read.data.eval_results
    assert read.data.model_name == "small: net"
    assert {r.dataset_name for r in results} == {'Small "data"'}
    assert {r.metric_type for r in results} >= {"minimum_margin_l2", "robust_accuracy_l2_0.05"}
    assert "A network for tests." in read.text


def test_without_attacks_nothing_is_said_of_them(measured):
    text = model_card(measured[0], name="net", dataset="data")
    assert "Accuracy under attack" not in text
    assert "robust_accuracy" not in text
