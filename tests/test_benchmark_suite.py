"""The benchmark suite runs, refuses wrong results, renders its report and finds regressions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
# Behind everything else, so that an installed package is not hidden by the one in the checkout.
sys.path.append(str(ROOT))

from benchmarks import (  # noqa: E402
    __main__ as suite,
)
from benchmarks import (  # noqa: E402
    agreement,
    call_overhead,
    compare,
    environment,
    goals,
    jobs,
    kernels,
    models,
    profiling,
    report,
    results,
    samples,
    scaling,
    shapes,
    steps,
    timing,
    training_step,
)
from benchmarks.gpu import every_kernel, full_sizes  # noqa: E402
from benchmarks.gpu.launches import kernel_launches  # noqa: E402
from benchmarks.inputs import random_inputs  # noqa: E402
from margin_ext._extension import cpu_library  # noqa: E402

pytestmark = pytest.mark.skipif(
    not cpu_library.loaded, reason="the benchmarks time the compiled library, and there is none"
)

# One thread: on a busy machine tiny parallel regions wait for cores that others use.
QUICK = ["--quick", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of every part of the suite, on tiny sizes."""
    where = tmp_path_factory.mktemp("results")
    kernel_cases = "forward and backward|scaling|logit_gap|dual_direction"
    kernels.main([*QUICK, "--no-compile", "--only", kernel_cases, "--out", named(where, "kernels")])
    training_step.main([*QUICK, "--only", "vit", "--out", named(where, "training_step")])
    scaling.main([*QUICK, "--out", named(where, "scaling")])
    call_overhead.main(["--quick", "--out", named(where, "call_overhead")])
    return where


def named(where, part):
    return str(where / f"machine_2000-01-01_{part}.json")


def read(where, part):
    return json.loads(Path(named(where, part)).read_text())


@pytest.mark.parametrize("part", ["kernels", "training_step", "scaling", "call_overhead"])
def test_every_part_writes_what_was_measured_and_on_what(folder, part):
    content = read(folder, part)
    assert content["part"] == part
    assert content["quick"]
    assert bool(content["finished"]) == (part in ("scaling", "call_overhead"))  # no --only
    told = content["environment"]
    assert told["torch"] == torch.__version__
    assert told["cores"] == environment.usable_cores()
    names = [case["name"] for case in content["cases"]]
    assert names
    assert len(set(names)) == len(names)
    for case in content["cases"]:
        timed = {name for name, one in case["contenders"].items() if one["times"]}
        assert {*case["subject"], case["yardstick"]} <= timed
        assert all(case["over_yardstick"][name]["median"] > 0 for name in case["subject"])


def test_the_kernels_are_timed_in_kept_and_in_fresh_memory(folder):
    for case in read(folder, "kernels")["cases"]:
        assert case["yardstick"] == "copy"
        assert case["over_yardstick"]["fused"]["median"] > 0
        if read(folder, "kernels")["settings"]["keeps_freed_memory"]:  # glibc
            assert set(case["fresh_memory"]) == {"clone", "fused"}
            assert case["fresh_over_clone"]["fused"]["median"] > 0


def test_every_gradient_mode_of_the_package_is_trained(folder):
    for case in read(folder, "training_step")["cases"]:
        assert set(steps.LOSSES) <= set(case["contenders"])
        shares = case["kernel_share"]
        assert shares["plain"] == 0
        assert 0 < shares["detached"] < 1


def test_results_are_continued_and_not_measured_again(folder, tmp_path, capsys, monkeypatch):
    half = read(folder, "scaling")
    same = half["environment"]["fingerprint"]
    monkeypatch.setattr(environment, "fingerprint", lambda: same)  # a source may be edited now
    kept = half["cases"][:-1]
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps({**half, "cases": kept, "finished": None}))
    capsys.readouterr()
    scaling.main([*QUICK, "--out", str(path)])
    continued = json.loads(path.read_text())
    assert continued["cases"][:-1] == kept
    assert continued["cases"][-1]["name"] == half["cases"][-1]["name"]
    assert len(capsys.readouterr().out.splitlines()) == 2  # one case, and where it was written


def test_results_of_other_code_are_not_continued(folder, tmp_path):
    other = read(folder, "call_overhead")
    other["environment"]["fingerprint"] = "other code"
    path = tmp_path / "call_overhead.json"
    path.write_text(json.dumps(other))
    begun = results.Results(path, "call_overhead", "cpu", other["settings"], quick=True)
    assert not any(begun.has(case["name"]) for case in other["cases"])


def test_report_names_the_hardware_judges_goals_and_draws(folder, tmp_path):
    page = report.render(folder, tmp_path).read_text()
    assert environment.processor_name() in page
    assert "not measured: no GPU was at hand" in page
    assert "these figures mean nothing" in page
    assert "reached" in page
    assert "`finite_difference`" in page or "finite_difference" not in steps.gradient_mode_names()
    images = list((tmp_path / "images").glob("*.png"))
    assert len(images) == 2
    assert all(f"images/{image.name}" in page for image in images)


def test_goals_are_judged_by_the_worst_case(folder):
    content = read(folder, "kernels")
    for times, case in enumerate(content["cases"], start=4):
        case["over_fused"]["reference"]["median"] = float(times)
    verdicts = {verdict.goal: verdict for verdict in goals.cpu_verdicts({"kernels": content})}
    eager = verdicts["loss, forward and backward, fp32: at least 5 x eager at every size"]
    assert eager.reached is False
    assert eager.figure == "4 x"
    large = verdicts["loss, forward and backward, fp32: at most 1.3 x a copy from 10 MB"]
    assert large.reached is None  # nothing of that size was measured


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (3.0, 1), (1 / 3, 0)])
def test_compare_flags_a_planted_regression(folder, tmp_path, capsys, factor, status):
    old, new = read(folder, "kernels"), read(folder, "kernels")
    for content in (old, new):
        for case in content["cases"]:
            middle = case["over_yardstick"]["fused"]["median"]
            case["over_yardstick"]["fused"].update(low=0.9 * middle, high=1.1 * middle)
    planted = new["cases"][0]
    for key in ("median", "low", "high"):
        planted["over_yardstick"]["fused"][key] *= factor
    for name, content in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert compare.main([str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == status
    told = capsys.readouterr().out
    assert ("slower x 3.00" in told) == (factor == 3.0)
    assert ("faster x 0.33" in told) == (factor < 1)
    assert (planted["name"] in told) == (factor != 1)


def test_compare_says_that_there_is_nothing_to_compare(folder, tmp_path):
    assert compare.main([named(folder, "kernels"), named(folder, "scaling")]) == 2
    assert compare.main([named(folder, "kernels"), str(tmp_path / "missing.json")]) == 2
    (tmp_path / "other.json").write_text("{}")
    assert compare.main([named(folder, "kernels"), str(tmp_path / "other.json")]) == 2


def test_noise_is_no_regression():
    noisy = compare.Change("case", "fused", *({"median": m, "low": 1, "high": 9} for m in (2, 3)))
    assert not noisy.slower(1.1)


def test_a_wrong_result_is_not_timed():
    shape = shapes.QUICK_TRAINING[0]
    inputs = random_inputs(shape, "cpu", 64)
    rivals = jobs.contenders(jobs.TRAINING_JOB, shape, compiled=False)
    honest = rivals["fused"]

    def slightly_off(x):
        logits, grad = honest.call(x)
        return logits, 1.001 * grad

    rivals["fused"] = timing.Contender(slightly_off)
    with pytest.raises(AssertionError, match=r"fused is off by .* nothing was timed"):
        agreement.assert_agreement(jobs.TRAINING_JOB, shape, rivals, inputs)


def test_a_failing_case_is_told_and_does_not_stop_the_rest(tmp_path, monkeypatch, capsys):
    measure = scaling.measure

    def wrong_for_one(grows, value, *rest):
        assert (grows, value) != ("B", 1), "wrong by a mile"
        return measure(grows, value, *rest)

    monkeypatch.setattr(scaling, "measure", wrong_for_one)
    out = tmp_path / "scaling.json"
    with pytest.raises(SystemExit, match="1 cases failed: B = 1"):
        scaling.main([*QUICK, "--only", "B", "--out", str(out)])
    assert "FAILED: wrong by a mile" in capsys.readouterr().out
    assert [case["name"] for case in json.loads(out.read_text())["cases"]] == ["B = 4"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_shape_is_measured_twice_and_each_has_a_reason(device):
    for chosen in (
        shapes.training_shapes,
        shapes.part_shapes,
        shapes.attack_shapes,
        shapes.logits_shapes,
    ):
        listed = chosen(device, quick=False)
        assert len({shape.name for shape in listed}) == len(listed)
        assert all(shape.reason for shape in listed)


@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_no_sample_of_the_inputs_is_on_a_flat_part_of_the_ramp(p):
    shape = shapes.Shape(16, (3, 32, 32), 10, "test", p=p)
    inputs = random_inputs(shape, "cpu", 64)
    _, grad = jobs.contenders(jobs.TRAINING_JOB, shape, compiled=False)["fused"].call(inputs)
    assert bool((grad.flatten(1) != 0).any(dim=1).all())


def test_peak_memory_counts_what_is_held_at_once():
    def two_then_one():
        first = torch.ones(1000)
        second = first + 1
        del first
        return second.sum()

    assert 8000 <= profiling.peak_bytes(two_then_one, "cpu") < 8200


def test_ratios_are_taken_between_times_of_one_method():
    captured = samples.Measured({"graph": [1.0, 2.0], "events": [8.0]})
    issued = samples.Measured({"events": [16.0]})
    assert samples.ratio(issued, captured)["method"] == "events"
    assert samples.ratio(issued, captured)["median"] == 2.0
    assert samples.ratio(issued, samples.Measured(failure="could not")) is None


def test_networks_of_the_gpu_run_have_their_known_sizes():
    with torch.device("meta"):
        built = {task.name: task.build() for task in models.CUDA_TASKS if task.name != "cnn"}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in built.items()}
    # 25,557,032 parameters are those of torchvision's resnet50.
    assert sizes["resnet50"] == 25_557_032
    assert 21e6 < sizes["vit_s"] < 23e6


def test_our_launches_are_read_from_a_trace_each_configuration_once():
    ours = {
        "cat": "kernel",
        "name": "void margin::cuda::loss_kernel<float>(int)",
        "args": {"grid": [264, 1, 1], "block": [128, 1, 1], "registers per thread": 80},
    }
    other_grid = {**ours, "args": {**ours["args"], "grid": [33, 1, 1]}}
    theirs = {**ours, "name": "void at::native::fill()"}
    host = {"cat": "cuda_runtime", "name": "cudaLaunchKernelExC"}
    found = kernel_launches({"traceEvents": [ours, ours, theirs, host, other_grid]})
    assert [launch["grid"] for launch in found] == [[264, 1, 1], [33, 1, 1]]
    assert found[0]["registers"] == 80


@pytest.mark.parametrize("q", [1.0, 2.0, float("inf"), 1.5])
def test_what_the_sanitizers_look_at_is_accepted_by_the_ops(q):
    """The program for a GPU, on the CPU: it must not end with an argument that is refused."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for size in (1, 17):
            every_kernel.call_ops(3, size, dtype, q, device="cpu")
            every_kernel.call_ops(3, size, dtype, q, aligned=False, device="cpu")
        every_kernel.call_ops(3, 48, dtype, q, channels=3, device="cpu")
        every_kernel.call_ops(20, 33, dtype, q, device="cpu")


def test_what_is_profiled_is_accepted_by_the_ops():
    for dtype in (torch.float32, torch.bfloat16):
        shape = shapes.Shape(5, (3, 4, 4), 10, "test", dtype)
        full_sizes.call(shape, device="cpu")
        full_sizes.call_others(shape, device="cpu")


def test_without_a_gpu_a_run_on_one_is_refused_in_words():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no CUDA device"):
        scaling.main(["--device", "cuda", "--quick"])


def test_the_suite_runs_a_part_renders_and_tells_failures(tmp_path, monkeypatch, capsys):
    line = ["--quick", "--devices", "cpu", "--results", str(tmp_path), "--docs", str(tmp_path)]
    assert suite.main([*line, "--parts", "call_overhead"]) == 0
    assert "### Call overhead" in (tmp_path / "benchmarks.md").read_text()
    monkeypatch.setattr(suite, "command", lambda *given: [sys.executable, "-c", "exit(3)"])
    assert suite.main([*line, "--parts", "call_overhead"]) == 1
    assert "FAILED: call_overhead on cpu" in capsys.readouterr().err
