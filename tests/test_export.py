"""Export: a file without this package scores as the model does, and holds no row of anybody."""

import io
import json
import logging
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from riskmtl import LogisticBaseline, RiskModel
from riskmtl.calibration import Calibrator
from riskmtl.encoding import FeatureEncoder
from riskmtl.model import Head, sigmoid
from riskmtl.networks import IndependentNetworks, Network, NetworkConfig
from riskmtl.scorers import NetworkScorer
from riskmtl.scoring import export
from riskmtl.scoring.export import export_model, read_export
from riskmtl.scoring.program import Program, _count_reached, exported
from riskmtl.simulate import Portfolio

HEADS = [
    Head("default", calibrator=Calibrator(0.8, -0.3), shift=0.5),
    Head("fraud", calibrator=Calibrator(1.3, 0.2), own=0.4, lent=0.7, lift=-1.1),
    Head("takeover", shift=-0.2),
]


@pytest.fixture(scope="module")
def network(model_folder: Path) -> RiskModel:
    """A trained network with everything that a head can have."""
    return replace(RiskModel.load(model_folder), heads=HEADS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def whole(network: RiskModel, folder: Path) -> Path:
    return export_model(network, folder / "whole.onnx").out


@pytest.fixture(scope="module")
def archive(network: RiskModel, portfolio: Portfolio, folder: Path) -> Path:
    return export_model(
        network, folder / "whole.pt2", format="pt2", rows=portfolio.frame.head(300)
    ).out


def expected(model: RiskModel, encoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-odds, or predictions, of all heads."""
    return np.column_stack(list(model.outputs(encoded).values()))


def run_onnx(path: Path, encoded: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["probability", "log_odds"], {"encoded": encoded})


def assert_scores(found: list[Any], log_odds: NDArray[np.float64]) -> None:
    assert [part.dtype for part in found] == [np.float64, np.float64]
    assert found[0].shape == found[1].shape == log_odds.shape
    assert np.abs(found[0] - sigmoid(log_odds)).max() <= 1e-6
    np.testing.assert_allclose(found[1], log_odds, rtol=1e-6, atol=2e-6)


# ---- equal scores --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_onnx_scores_as_the_model(
    network: RiskModel, whole: Path, portfolio: Portfolio, rows: int
) -> None:
    encoded = network.encode(portfolio.frame.head(rows))
    assert_scores(run_onnx(whole, encoded), expected(network, encoded))


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_pt2_scores_as_the_model(
    network: RiskModel, archive: Path, portfolio: Portfolio, rows: int
) -> None:
    encoded = network.encode(portfolio.frame.head(rows))
    found = torch.export.load(archive).module()(torch.from_numpy(encoded))
    assert_scores([part.numpy() for part in found], expected(network, encoded))


def untrained(config: NetworkConfig, *, shift: float = 0.0) -> RiskModel:
    """A network whose every weight is random, over two numbers and a category."""
    generator = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "amount": generator.normal(size=300),
            "count": generator.integers(0, 6, 300).astype(float),
            "country": generator.choice(["FR", "DE", "NL"], 300),
        }
    )
    encoder = FeatureEncoder().fit(frame)
    torch.manual_seed(0)
    cardinalities, regression = encoder.cardinalities_, [False, True, False]
    if config.network == "single_task":
        parts = [Network(cardinalities, 1, config, regression=[kind]) for kind in regression]
        network: Any = IndependentNetworks(parts)
    else:
        network = Network(cardinalities, 3, config, regression=regression)
        parts = [network]
    with torch.no_grad():
        for part in parts:
            part.embedding.fit(encoder.transform(frame))
            # As if all codes had rows, missing and unseen too.
            part.embedding.categorical.credibility.fill_(1)
            for parameter in part.parameters():
                parameter.copy_(0.6 * torch.randn(parameter.shape))
            part.towers.out.bias += shift
    scorer = NetworkScorer(network.eval(), config, cardinalities, regression)
    heads = [Head("a", own=0.5, lent=0.9), Head("b", "regression", (), mean=70.0, scale=20.0)]
    return RiskModel(encoder, scorer, [*heads, Head("c", calibrator=Calibrator(0.7, 0.1))])


SMALL = NetworkConfig(
    embedding_dim=4,
    bins=8,
    steps=8,
    credible_rows=0,
    expert_units=(16, 8),
    shared_units=(16, 8),
    tower_units=(8,),
)
CONFIGS = {
    "ple": replace(SMALL, levels=2, members=2, linear_path=True),
    "one level": replace(SMALL, task_experts=1, linear_path=True),
    "mmoe": replace(SMALL, network="mmoe", numeric_embedding="periodic", members=2),
    "shared_bottom": replace(SMALL, network="shared_bottom", numeric_embedding="standardize"),
    "single_task": replace(SMALL, network="single_task", members=2, steps=1),
    "cross_stitch": replace(SMALL, network="soft_sharing", tie="cross_stitch"),
    "encoder_decoder": replace(SMALL, network="encoder_decoder", code_width=3, decoder_units=(5,)),
    "cross_attention": replace(SMALL, network="cross_attention", shared_units=(8, 4), members=2),
    "aitm": replace(SMALL, network="aitm", members=2),
    "top_k": replace(SMALL, gating="top_k", task_experts=2),
    "dselect_k": replace(SMALL, network="mmoe", gating="dselect_k", experts=5, expert_dropout=0.5),
}


def assert_close(found: NDArray[np.float64], outputs: NDArray[np.float64], scale: Any = 1) -> None:
    """Log-odds, or predictions of regressions that vary by so much, agree to 1e-5."""
    assert found.shape == outputs.shape
    assert np.all(np.abs(found - outputs) <= 1e-5 * (np.abs(outputs) + scale))


TRANSLATED = ["ple", "one level", "mmoe", "shared_bottom", "single_task"]  # at every commit


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in TRANSLATED else pytest.mark.slow) for n in CONFIGS]
)
def test_every_kind_of_network_can_be_exported(name: str, tmp_path: Path) -> None:
    model = untrained(CONFIGS[name])
    report = export_model(model, tmp_path / "model.onnx")
    encoded = model.encoder.transform(model.encoder.simulate(50, seed=1))
    probability, log_odds = run_onnx(report.out, encoded)
    outputs = expected(model, encoded)
    assert outputs.std(axis=0).min() > 0.1
    assert_close(log_odds, outputs, [1, 20, 1])
    np.testing.assert_array_equal(probability[:, 1], log_odds[:, 1])  # a prediction
    assert np.abs(probability - sigmoid(outputs))[:, [0, 2]].max() <= 1e-6
    assert report.heads["head"].to_list() == ["a", "b", "c"]
    assert [head["kind"] for head in read_export(report.out)["heads"]] == [
        "binary",
        "regression",
        "binary",
    ]


@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_members_keep_their_digits_far_out(shift: float, tmp_path: Path) -> None:
    model = untrained(replace(CONFIGS["shared_bottom"], members=3), shift=shift)
    report = export_model(model, tmp_path / "model.onnx")
    encoded = model.encoder.transform(model.encoder.simulate(50, seed=1))
    outputs = expected(model, encoded)
    assert np.abs(outputs[:, 2]).min() > 20
    assert_close(run_onnx(report.out, encoded)[1], outputs, [1, 20, 1])


def test_codes_without_a_vector_count_as_unseen_or_missing() -> None:
    program = Program(untrained(CONFIGS["mmoe"]), [0, 1, 2])
    rows = torch.tensor([[0.1, 2.0, code] for code in (0, 5, -3, 1e9, 1, torch.nan, 2)])
    scores = program(rows)[1]
    assert torch.equal(scores[:1].expand(3, -1), scores[1:4])
    assert torch.equal(scores[4], scores[5])
    assert len(scores.unique(dim=0)) == 3


def test_steps_are_counted_as_searchsorted_does() -> None:
    generator = torch.Generator().manual_seed(0)
    for steps in (1, 2, 7, 8, 255):
        edges = torch.randn(3, steps, generator=generator).sort(dim=1).values
        edges[1, steps // 2 :] = torch.inf
        x = torch.cat([torch.randn(3, 40, generator=generator), edges[:, :20]], dim=1)
        expected = torch.searchsorted(edges, x.contiguous(), right=True)
        is_finite = x.isfinite()
        found = _count_reached(edges, x, right=True)
        assert torch.equal(found[is_finite], expected[is_finite])
    with pytest.raises(NotImplementedError, match="right=True"):
        _count_reached(edges, x)


# ---- one head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head", [0, 1, 2])
def test_one_head_keeps_what_it_borrows_and_drops_the_rest(name: str, head: int) -> None:
    model = untrained(CONFIGS[name])
    encoded = model.encoder.transform(model.encoder.simulate(50, seed=1))
    alone = Program(model, [head])
    with torch.inference_mode():
        found = alone(torch.from_numpy(encoded))[1].numpy()
    assert_close(found[:, 0], expected(model, encoded)[:, head], model.heads[head].scale)
    sizes = [sum(p.numel() for p in program.parameters()) for program in (alone, whole_of(model))]
    assert sizes[0] < sizes[1]
    assert alone.factors.shape == (1, 2 if head == 0 else 1)  # head a borrows from c


def whole_of(model: RiskModel) -> Program:
    return Program(model, range(len(model.heads)))


def test_one_head_from_the_command_line(
    model_folder: Path, whole: Path, portfolio: Portfolio, tmp_path: Path, run: Callable[..., Any]
) -> None:
    out = tmp_path / "fraud.onnx"
    done = run("export", "--model", model_folder, "--out", out, "--head", "fraud")
    assert done.code == 0, done.err
    assert "beside the model on 1,000 simulated rows:\nfraud: largest difference" in done.out
    assert f"program of {out.stat().st_size:,} bytes: {out}" in done.out
    model = RiskModel.load(model_folder)
    encoded = model.encode(portfolio.frame.head(50))
    assert_scores(run_onnx(out, encoded), model.outputs(encoded)["fraud"][:, None])
    assert [head["name"] for head in read_export(out)["heads"]] == ["fraud"]
    assert out.stat().st_size < whole.stat().st_size


# ---- what is inside ------------------------------------------------------------------------------


def encode_by_hand(row: dict[str, Any], said: dict[str, Any]) -> list[float]:
    """Follow the sentences of the description, with nothing but Python."""
    numbers = []
    for column in said["columns"]:
        value = row[column["name"]]
        is_missing = value is None or value != value or value in column["missing_values"]
        if column["kind"] == "category":
            text = str(value).lower() if isinstance(value, bool) else str(value)
            position = column["values"].index(text) + 2 if text in column["values"] else 0
            numbers.append(1 if is_missing else position)
        elif is_missing:
            numbers.append(float("nan"))
        elif "days_before" in column:
            elapsed = moment(row[column["days_before"]]) - moment(value)
            numbers.append(elapsed.total_seconds() / 86_400)
        else:
            numbers.append(value)
    return numbers


def moment(value: date) -> datetime:
    return value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)


def test_a_row_can_be_encoded_by_the_description_alone(
    network: RiskModel, whole: Path, portfolio: Portfolio
) -> None:
    frame = portfolio.frame.head(300).with_columns(
        pl.when(pl.col("acc_employment") == "employed")
        .then(pl.lit("astronaut"))
        .otherwise(pl.col("acc_employment"))
        .alias("acc_employment")
    )
    assert (frame["acc_bureau_score"] == -9).any()
    session = onnxruntime.InferenceSession(whole)
    said = json.loads(session.get_modelmeta().custom_metadata_map["riskmtl"])
    kinds = {
        (column["kind"], column["type"], "days_before" in column) for column in said["columns"]
    }
    assert {("number", "date", True), ("category", "boolean", False)} <= kinds
    rows = [encode_by_hand(row, said) for row in frame.iter_rows(named=True)]
    encoded = np.array(rows, dtype=np.float32)
    np.testing.assert_array_equal(encoded, network.encode(frame))
    probability = session.run(["probability"], {"encoded": encoded})[0]
    assert [head["name"] for head in said["heads"]] == ["default", "fraud", "takeover"]
    assert np.abs(probability - network.predict_frame(frame).to_numpy()).max() <= 1e-6


def test_the_description_says_where_the_model_comes_from(
    network: RiskModel, whole: Path, archive: Path
) -> None:
    said = read_export(whole)
    assert said == read_export(archive)
    extra = {"riskmtl": ""}
    torch.export.load(archive, extra_files=extra)
    assert json.loads(extra["riskmtl"]) == said
    assert said["model_id"] == network.lineage["model_id"]
    assert said["schema_sha256"] == network.schema.hash
    assert said["precision"] == "float32"
    assert said["heads"][0] == {"name": "default", "kind": "binary", "positive": 1.0}
    assert "low" not in said["columns"][0]  # the least value of a column is somebody's


def contents(path: Path) -> Iterator[bytes]:
    """Bytes of a file, unpacked."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            yield from (parts.read(name) for name in parts.namelist())
    else:
        yield path.read_bytes()


@pytest.mark.parametrize("name", ["whole", "archive"])
def test_no_row_is_inside(
    name: str, network: RiskModel, portfolio: Portfolio, request: pytest.FixtureRequest
) -> None:
    data = b"".join(contents(request.getfixturevalue(name)))
    rows = np.concatenate([network.background, network.encode(portfolio.frame.head(300))])
    golden = network.encoder.transform(network.encoder.simulate(16, seed=0))
    # Six neighbours of a row, or rows of a column; what has few values of its own is everywhere.
    pieces = [row[start : start + 6] for row in [*rows, *golden] for start in (0, 6, 12, 18, 40)]
    pieces += [column[:6] for table in (rows, golden) for column in table.T]
    telling = [piece for piece in pieces if len(np.unique(piece)) >= 4]
    assert len(telling) > 1000
    assert not any(piece.tobytes() in data for piece in telling)


@pytest.mark.parametrize("name", ["whole", "archive"])
def test_no_file_of_this_machine_is_named(name: str, request: pytest.FixtureRequest) -> None:
    data = b"".join(contents(request.getfixturevalue(name)))
    assert str(Path(export.__file__).parents[2]).encode() not in data
    assert b"site-packages" not in data
    assert b"embedding.py" not in data


def test_example_inputs_are_zeros(archive: Path) -> None:
    with zipfile.ZipFile(archive) as parts:
        (name,) = [name for name in parts.namelist() if "sample_inputs" in name]
        (example,), named = torch.load(io.BytesIO(parts.read(name)), weights_only=True)
    assert named == {}
    assert example.shape[0] == 2
    assert not example.any()
    assert example.untyped_storage().nbytes() == example.nbytes


@pytest.mark.slow
def test_a_program_holds_no_view_of_something_larger() -> None:
    for name in CONFIGS:
        program = exported(Program(untrained(CONFIGS[name]), [2]))
        for tensor in program.state_dict.values():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_the_axis_of_rows_is_open(whole: Path, network: RiskModel) -> None:
    session = onnxruntime.InferenceSession(whole)
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("encoded", "tensor(float)")
    assert given.shape == ["rows", len(network.encoder.columns_)]
    assert [(out.name, out.shape) for out in session.get_outputs()] == [
        ("probability", ["rows", 3]),
        ("log_odds", ["rows", 3]),
    ]
    proto = onnx.load(whole)
    onnx.checker.check_model(proto, full_check=True)
    # No copy of the rows for each group of experts or gates: that would take half the time.
    copies = {node.output[0] for node in proto.graph.node if node.op_type == "Expand"}
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    assert len(products) > 5
    assert not any(name in copies for node in products for name in node.input)


# ---- eight bits ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_bits_report_their_error(
    model_folder: Path,
    portfolio: Portfolio,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = RiskModel.load(model_folder)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    frame = portfolio.frame.head(500)
    report = export_model(model, tmp_path / "small.onnx", int8=True, rows=frame)
    assert logging.getLogger().handlers == []
    assert report.rows == 500
    scores = run_onnx(report.out, model.encode(frame))[0]
    apart = np.abs(scores - model.predict_frame(frame).to_numpy())
    np.testing.assert_allclose(report.heads["largest"], apart.max(axis=0), rtol=1e-6)
    np.testing.assert_allclose(report.heads["mean"], apart.mean(axis=0), rtol=1e-6)
    assert report.heads["largest"].min() > 1e-6
    assert report.heads["largest"].max() < 0.02
    assert report.heads["rank_correlation"].min() > 0.97
    assert report.heads["rank_correlation"].max() < 1
    assert report.bytes < 0.8 * whole.stat().st_size
    assert read_export(report.out)["precision"] == "int8"
    # The grouped matrices of experts, gates and towers are among them.
    weights = {part.name: part for part in onnx.load(report.out).graph.initializer}
    names = [name for name in weights if name.endswith("weight_quantized")]
    for part in ("experts.layers.0", "gates.linear", "towers.hidden.layers.0"):
        (name,) = [name for name in names if part in name]
        assert len(weights[name].dims) == 3
        assert weights[name].data_type == onnx.TensorProto.INT8


# ---- what cannot be exported ---------------------------------------------------------------------


def test_only_a_network_that_answers_alone(network: RiskModel, tmp_path: Path) -> None:
    X = pl.DataFrame({"amount": [1.0, 9.0] * 100})
    y = pl.DataFrame({"fraud": [0, 1] * 100})
    logistic = LogisticBaseline(strengths=(0.1,), random_state=0).fit(X, y).model_
    with pytest.raises(ValueError, match="a logistic model cannot be exported, only a network"):
        export_model(logistic, tmp_path / "model.onnx")
    heads = [replace(head, blend=0.5) for head in network.heads]
    blend = replace(network, heads=heads, challenger=logistic)
    with pytest.raises(ValueError, match=r"blend of network and .*parts\(\)\['network'\]"):
        export_model(blend, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onx"}, "unknown format 'onx': did you mean 'onnx'"),
        ({"head": "frod"}, "unknown head 'frod': did you mean 'fraud'"),
        ({"format": "pt2", "int8": True}, "int8 needs format 'onnx'"),
        ({"rows": pl.DataFrame({"amount": [1.0]})}, "column 'account_id' is missing"),
    ],
)
def test_options_that_do_not_go(
    network: RiskModel, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export_model(network, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_rows_of_which_none_keeps_the_schema(
    network: RiskModel, portfolio: Portfolio, tmp_path: Path
) -> None:
    refused = portfolio.frame.head(5).with_columns(acc_bureau_score=5)
    with pytest.raises(ValueError, match="no rows to compare on that keep the schema"):
        export_model(network, tmp_path / "model.onnx", rows=refused)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(
    package: str,
    model_folder: Path,
    network: RiskModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Any],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = f"files in ONNX need {package}: pip install 'riskmtl[export]'"
    with pytest.raises(ImportError, match=message.replace("[", r"\[")):
        export_model(network, tmp_path / "model.onnx")
    done = run("export", "--model", model_folder, "--out", tmp_path / "model.onnx")
    assert (done.code, done.err) == (1, f"riskmtl export: {message}\n")


def test_a_file_that_scores_otherwise_is_not_written(
    network: RiskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [*network.heads[:2], replace(network.heads[2], shift=-0.199)]
    other = Program(replace(network, heads=heads), [0, 1, 2])
    monkeypatch.setattr(export, "exported", lambda program: exported(other))
    out = tmp_path / "model.pt2"
    out.write_text("older")
    with pytest.raises(ValueError, match=r"not written: head 'takeover' .* up to 1\.0e-03"):
        export_model(network, out, format="pt2")
    assert out.read_text() == "older"


def test_files_that_are_no_export(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a program")
    onnx.save(onnx.ModelProto(), tmp_path / "other.onnx")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("archive/data", "nothing")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path}: not a file that riskmtl has exported"):
            read_export(path)
    with pytest.raises(FileNotFoundError):
        read_export(tmp_path / "nowhere.onnx")


def test_the_command_line_refuses(
    model_folder: Path, portfolio_file: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    def refused(*arguments: object) -> str:
        done = run("export", "--model", model_folder, *arguments)
        assert done.code == 1
        return str(done.err)

    assert "is a folder, choose a file" in refused("--out", tmp_path)
    assert "would be written over" in refused("--out", portfolio_file, "--data", portfolio_file)
    pt2 = ["--out", tmp_path / "model.pt2", "--format", "pt2"]
    assert "int8 needs format 'onnx'" in refused(*pt2, "--int8")
    assert "unknown head 'frod'" in refused(*pt2, "--head", "frod")
